# `make demo` and `make test` are all the set-up there is; each makes .venv when it is missing or
# when pyproject.toml or constraints.txt changed, and does nothing to it otherwise.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs hello clean

demo: .venv/.installed
	$(BIN)/ohlol demo

test: .venv/.installed check
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages that are generated.
docs: .venv/.installed
	$(BIN)/python tests/test_docs.py

# The bundle shipped inside the package, made anew from its recipe.
hello: .venv/.installed
	rm -rf runs/hello artifacts/hello
	$(BIN)/ohlol train recipes/seed/rnn_embedding.toml -o runs/hello
	$(BIN)/ohlol export runs/hello -o artifacts/hello

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ohlol needs Python 3.11 or newer, found " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	touch $@

clean:
	rm -rf .venv runs build dist
