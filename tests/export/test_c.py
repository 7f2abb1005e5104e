"""C source of every network, compiled without a warning, held against PyTorch; what goes wrong is seen or refused."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.errors import OhlolError, ProofError
from ohlol.artifacts.manifest import Manifest
from ohlol.cli import main
from ohlol.export import c, c_proof, c_source, c_tables, proof
from ohlol.export.adopt import adopt
from ohlol.train.data import load
from ohlol.train.loop import finish, train
from ohlol.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
STRICT = (
    *("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wconversion", "-Wdouble-promotion"),
    *("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wundef", "-Wcast-align", "-Wwrite-strings", "-Wvla"),
)
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0", "-g0")
CHECKPOINT = {"which": "best", "epoch": 3, "sha256": "0" * 64}
# Three layers are two and one more: a few of them.
NETWORKS = {
    "_".join(map(str, (task, cell, "both" if both else "one", layers, given, head, weights))).lower(): (
        *(task, cell, both, layers, given, head, weights),
    )
    for task, cell, both, layers, given, head, weights in itertools.product(
        ("tag", "classify", "lm"),
        ("rnn", "gru", "lstm"),
        (False, True),
        (1, 2, 3),
        ("embedding", "one_hot"),
        ("linear", "none"),
        ("float32", "int8"),
    )
    if not (task == "lm" and both)
    and not (layers == 3 and (given, head, weights) != ("embedding", "linear", "float32"))
    and not (weights == "int8" and head == "none")
}


def made(make, name, described, **more):
    """A network with random weights, its manifest, what its source is, the network it is held against, and the files."""
    *shape, weights = described
    network, manifest = make(*shape, **more)
    with torch.no_grad():  # a network that was trained answers with larger numbers than one just made
        for weight in network.parameters():
            weight.mul_(2)
    manifest = dataclasses.replace(manifest, provenance={"checkpoint": CHECKPOINT})
    _, oracle, tables = c.prepared(network, weights)
    source = c_source.described(name, manifest, tables)
    cases = proof.draw_cases(manifest.alphabet)
    return network, manifest, source, oracle, c.written(source, manifest, tables, oracle, cases)


def compiled(compiler, *arguments):
    done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stderr == ""


def ran(program, code=0):
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def cc(program):
    return program("cc")


@pytest.fixture(scope="module")
def networks(make, tmp_path_factory):
    """Every network, its files in one folder; `NAME_test.c` is short, since their number is large."""
    folder = tmp_path_factory.mktemp("c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c_proof, "MOST", 300)
        found = {name: made(make, name, described) for name, described in NETWORKS.items()}
    for *_, files in found.values():
        for file, content in files.items():
            (folder / file).write_bytes(content)
    return folder, found


@pytest.fixture(scope="module")
def library(cc, networks):
    """All of them compiled in one file, so that no two names are the same, without a warning, as one library."""
    folder, found = networks
    (folder / "all.c").write_text("".join(f'#include "{name}.c"\n' for name in found))
    compiled(cc, *STRICT, "-O0", "-fPIC", "-shared", folder / "all.c", "-lm", "-o", folder / "all.so")
    functions = ctypes.CDLL(str(folder / "all.so"))
    return {name: c_proof.Library(source, functions) for name, (_, _, source, _, _) in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_pytorch(name, networks, library):
    """Logits, probabilities and labels, of the network itself in float64; for int8, of the network rounded."""
    _, manifest, source, oracle, _ = networks[1][name]
    claims = c_proof.claims(library[name], "of a test")
    cases = proof.draw_cases(manifest.alphabet, seed=3)
    table = proof.prove(oracle, manifest.alphabet, claims, cases)
    assert table.passed, table.table()
    assert len(table.rows) == len(cases) * (2 if source.one_way else 1)


# One of each form that the source has.
FORMS = [
    name
    for name, (task, cell, both, layers, given, head, weights) in NETWORKS.items()
    if layers < 3 and (given == "embedding") == (layers == 2) and (head == "linear" or weights == "float32")
]
EXACT = """
static void exact_NAME(void)
{
    size_t n, k;
    for (n = 0; n < 4; n++) {
        uint32_t *codepoints = malloc(n * sizeof *codepoints + 1);
        float *work = malloc(MACRO_WORK(n) * sizeof *work), *logits = malloc(ANSWERS * MACRO_CLASSES * sizeof *logits + 1);
        int *labels = malloc(ANSWERS * sizeof *labels + 1);
        for (k = 0; k < n; k++) codepoints[k] = k == 1 ? 'h' : 0xFFFFFFFF;
        NAME_run(codepoints, n, work, logits, NULL);
        NAME_run(codepoints, n, work, logits, labels);
        if (ANSWERS > 0 && labels[0] != (n == 0 ? -1 : labels[0])) abort();
        free(codepoints); free(work); free(logits); free(labels);
    }
}
"""


def test_no_sanitizer_finds_anything(cc, networks):
    """NAME_test.c of every form of the source, and calls with not one byte more than asked for, under ASan and UBSan."""
    folder, found = networks
    lines = ["#include <stdlib.h>"]
    for name in FORMS:
        answers = "(size_t)1" if found[name][2].task == "classify" else "n"
        exact = EXACT.replace("NAME", name).replace("MACRO", name.upper()).replace("ANSWERS", answers)
        lines += [f"#define {name.upper()}_NO_MAIN", f'#include "{name}.c"', f'#include "{name}_test.c"', exact]
    calls = " ".join(f"wrong += {name}_test(); exact_{name}();" for name in FORMS)
    lines.append(f"int main(void) {{ int wrong = 0; {calls} return wrong > 0; }}")
    (folder / "sanitized.c").write_text("\n".join(lines) + "\n")
    compiled(cc, *STRICT, *SANITIZED, folder / "sanitized.c", "-lm", "-o", folder / "sanitized")
    told = ran(folder / "sanitized")
    assert len(FORMS) == told.count("all as PyTorch's")
