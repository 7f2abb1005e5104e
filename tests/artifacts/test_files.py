"""Files and folders are there whole or not at all, whenever the process dies."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ohlol.artifacts.files import folder_or_backup, new_file, new_folder, sha256, sha256_of_file

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs fork, SIGKILL and mode bits")

OLD, NEW = {"a": "old", "sub/b": "older"}, {"a": "new", "c": "newer"}

# A child for each moment: it dies by SIGKILL at the n-th line that runs in these functions, in the block
# inside them or in shutil, until a child lives to the end. Prints what each child left.
DIE_AT_EVERY_LINE = """
import json, os, signal, sys
from pathlib import Path
from ohlol.artifacts.files import folder_or_backup, new_file, new_folder

kind, root, old, new = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])

def fill(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)

def work(path):
    if kind == "folder":
        with new_folder(path) as part:
            fill(part, new)
    else:
        with new_file(path) as file:
            for text in new.values():
                file.write(text)

def found(path):
    if kind == "file":
        return path.read_text() if path.exists() else None
    whole = folder_or_backup(path)
    if not whole.exists():
        return None
    return {f.relative_to(whole).as_posix(): f.read_text() for f in whole.rglob("*") if f.is_file()}

def die_at(moment):
    lines = 0
    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("files.py", "shutil.py", "<string>")):
            return None
        lines += event == "line"
        if lines == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

left, moment, status = [], 0, None
while status != 0:
    moment += 1
    path = root / str(moment) / "it"
    path.parent.mkdir(parents=True)
    if old is not None:
        fill(path, old) if kind == "folder" else path.write_text("".join(old.values()))
    child = os.fork()
    if not child:
        sys.settrace(die_at(moment))
        work(path)
        sys.settrace(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    left.append(found(path))
    if moment % 7 == 0:
        work(path)  # whatever a dead process left, the next one succeeds
        assert found(path) == (new if kind == "folder" else "".join(new.values()))
print(json.dumps(left))
"""


def fill(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def contents_of(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8")
        for file in folder.rglob("*")
        if file.is_file()
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_file_takes_its_name_when_complete(tmp_path: Path) -> None:
    """Nobody sees a half-written file: the old one stands until the new one is whole."""
    path = tmp_path / "deep" / "file.txt"
    with new_file(path) as file:
        file.write("one")
    with new_file(path) as file:
        file.write("two\n€")
        file.flush()
        assert path.read_text(encoding="utf-8") == "one"
    assert "two\n€".encode() == path.read_bytes()
    assert names_in(path.parent) == ["file.txt"]


def test_new_file_writes_a_lone_surrogate_as_a_question_mark(tmp_path: Path) -> None:
    """One bad character does not lose a whole output file."""
    with new_file(tmp_path / "file") as file:
        file.write("a\ud800b")
    assert (tmp_path / "file").read_bytes() == b"a?b"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_new_file_that_fails_leaves_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    """An error half-way, Ctrl-C included, changes nothing and leaves nothing behind."""
    (tmp_path / "file").write_text("old", encoding="utf-8")
    with pytest.raises(error), new_file(tmp_path / "file") as file:
        file.write("half")
        raise error
    assert contents_of(tmp_path) == {"file": "old"}


def test_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    """The old folder's files do not mix with the new one's, and no temporary name stays."""
    path = tmp_path / "deep" / "folder"
    for contents in (OLD, NEW):
        with new_folder(path) as part:
            fill(part, contents)
        assert contents == contents_of(path)
    assert names_in(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_new_folder_that_fails_leaves_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    """An error half-way, Ctrl-C included, changes nothing and leaves nothing behind."""
    fill(tmp_path / "folder", OLD)
    with pytest.raises(error), new_folder(tmp_path / "folder") as part:
        fill(part, NEW)
        raise error
    assert contents_of(tmp_path / "folder") == OLD
    assert names_in(tmp_path) == ["folder"]


def test_new_folder_that_cannot_take_its_name_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error between the two renames puts the old folder back under its name."""
    path, replace = tmp_path / "folder", Path.replace
    fill(path, OLD)

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError("disk gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk gone"), new_folder(path) as part:
        fill(part, NEW)
    assert contents_of(path) == OLD
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="links need no rights on POSIX only")
def test_new_folder_replaces_a_link_again_and_again(tmp_path: Path) -> None:
    """A link at the path is replaced, what it pointed to stays, and the next time works as well."""
    fill(tmp_path / "elsewhere", OLD)
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        with new_folder(tmp_path / "folder") as part:
            fill(part, NEW)
    assert contents_of(tmp_path / "folder") == NEW
    assert contents_of(tmp_path / "elsewhere") == OLD
    assert names_in(tmp_path) == ["elsewhere", "folder"]


def test_folder_or_backup_prefers_the_folder(tmp_path: Path) -> None:
    """The old folder answers only while the new one has not taken its name."""
    path, backup = tmp_path / "folder", tmp_path / ".folder.old"
    assert path == folder_or_backup(path)
    backup.mkdir()
    assert backup == folder_or_backup(path)
    path.mkdir()
    assert path == folder_or_backup(path)


@posix_only
@pytest.mark.parametrize("before", [OLD, None], ids=["over an old one", "where nothing was"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_leaves_old_or_new_whole(
    tmp_path: Path, kind: str, before: dict[str, str] | None
) -> None:
    """SIGKILL at any line leaves one or the other whole, never a mixture, and does not block the next run."""
    arguments = [kind, str(tmp_path), json.dumps(before), json.dumps(NEW)]
    command = [sys.executable, "-c", DIE_AT_EVERY_LINE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    left = json.loads(done.stdout)

    old, new = (
        (before, NEW) if kind == "folder" else (before and "".join(before.values()), "".join(NEW.values()))
    )
    turn = left.index(new)
    assert turn > 10
    assert [old] * turn + [new] * (len(left) - turn) == left


@posix_only
@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    """What others may read is what the person's umask says, not what a temporary file is made with."""
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "file"):
            pass
        with new_folder(tmp_path / "folder") as part:
            (part / "inside").touch()
    finally:
        os.umask(before)
    found = [mode(tmp_path / name) for name in ("file", "folder", "folder/inside")]
    assert [file_mode, folder_mode, file_mode] == found


def test_digests_are_sha256_in_hex(tmp_path: Path) -> None:
    """The digest of a file is that of its bytes, as every other tool prints it."""
    (tmp_path / "file").write_bytes(b"hello")
    assert hashlib.sha256(b"hello").hexdigest() == sha256(b"hello") == sha256_of_file(tmp_path / "file")
