"""`ohlol embed`: what an app embeds is copied whole, and takes the place of nothing but an unchanged copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import ohlol.embed
from ohlol.cli import main

SOURCE = Path(ohlol.embed.__file__).parent


def run(*arguments):
    return CliRunner().invoke(main, ["embed", *map(str, arguments)])


@pytest.mark.parametrize("language", ["js", "cpp"])
def test_a_copy_is_the_whole_of_it(language, tmp_path):
    """Every file, printed; a second time too, since nobody changed them."""
    folder = tmp_path / "app" / "ohlol"
    for _ in range(2):
        ran = run(language, "-o", folder)
        assert ran.exit_code == 0, ran.output
        for file in (SOURCE / language).iterdir():
            assert f"{folder / file.name}\n" in ran.stdout
            assert file.read_bytes() == (folder / file.name).read_bytes()


def test_what_is_the_apps_own_stays(tmp_path):
    """A package.json of the app, a file that somebody changed or added, a file in the place of the folder."""
    own = tmp_path / "package.json"
    own.write_text('{"name": "app"}')
    ran = run("js", "-o", tmp_path)
    assert (ran.exit_code, own.read_text()) == (1, '{"name": "app"}')
    assert "not as ohlol writes it" in ran.stderr
    ran = run("js", "-o", own)
    assert (ran.exit_code, "is a file, expected a folder" in ran.stderr) == (1, True)

    changed = tmp_path / "ohlol" / "ohlol.mjs"
    assert run("js", "-o", changed.parent).exit_code == 0
    changed.write_text("mine")
    ran = run("js", "-o", changed.parent)
    assert (ran.exit_code, changed.read_text()) == (1, "mine")
    assert "ohlol.mjs was added or changed" in ran.stderr


def test_other_languages_are_shown_the_way():
    """Those of the README's table that nothing is copied for."""
    ran = run("rust")
    assert ran.exit_code == 2
    assert "README.md of every bundle" in ran.stderr
