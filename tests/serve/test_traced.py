"""Under a tracing of every file and socket: nothing is written outside of the given paths, nothing reports home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from ohlol.artifacts.bundle import shipped

STRACING = ["strace", "-f", "-qq", "-e", "trace=%file,%network,ftruncate,fchmod,fchown"]
COMMAND = "from ohlol.cli import main; main()"
LOAD = "import sys, ohlol; model = ohlol.load(sys.argv[1]); print(model('hello'), *model(['hello', '']))"
# Calls that make or change a file; what they name stands in quotes, or behind the number of an open file.
CHANGES = "creat|mkdir|mkdirat|mknod|mknodat|unlink|unlinkat|rmdir|rename|renameat|renameat2|link|linkat|symlink|symlinkat|truncate|chmod|fchmodat|chown|lchown|fchownat|utime|utimes|utimensat|futimesat|setxattr|removexattr"  # fmt: skip
NETWORK = "socket|connect|sendto|sendmsg|sendmmsg|bind|listen"


@pytest.fixture
def place(tmp_path):
    """Empty folders for home, for temporary files and to work in."""
    for name in ("home", "tmp", "here", "out"):
        (tmp_path / name).mkdir()
    return tmp_path


def environment(place, telemetry):
    """Of a user that never heard of onnxruntime, or of one that wants to report (`telemetry`)."""
    found = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ORT_", "XDG_", "COV", "PYTEST"))
    }
    found |= {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    return found | ({"ORT_DISABLE_TELEMETRY": "0"} if telemetry else {})


def traced(place, code, *arguments, telemetry=False, stdin=b""):
    """`(written, sockets)`: the lines of a trace that make or change a file, and those of sockets."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: nothing can be traced")
    log = place / "trace"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    ran = subprocess.run(
        [*STRACING, "-o", log, sys.executable, "-c", code, *map(str, arguments)],
        cwd=place / "here", env=environment(place, telemetry), input=stdin, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    lines = log.read_text(errors="replace").splitlines()
    assert any(line.count('"/') and "python" in line for line in lines), "it did trace something"
    written, sockets = [], []
    for line in lines:
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if call and re.fullmatch(NETWORK, call[1]) and "AF_UNIX" not in line:
            sockets.append(line)
        if call and (
            re.fullmatch(CHANGES, call[1]) or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_TMPFILE", line)
        ):
            written += [line] if not re.search(r'"/dev/(null|tty|pts/\d+)"', line) else []
    return written, sockets


@pytest.mark.parametrize("command", ["predict", "verify", "inspect", "compare", "bench", "load", "stdin"])
def test_nothing_is_written_and_nothing_is_sent(place, command):
    """Of every door: no file is made, changed or removed anywhere, and no socket opened."""
    if command == "load":
        found = traced(place, LOAD, "hello")
    elif command == "stdin":
        found = traced(place, COMMAND, "predict", "hello", "--format", "jsonl", stdin=b"hello\n\nhe\n")
    else:
        found = traced(place, COMMAND, command, "hello", *(["hello"] if command == "predict" else []))
    assert found == ([], [])
    assert [path for name in ("home", "tmp", "here", "out") for path in (place / name).rglob("*")] == []


def test_only_the_given_file_is_written(place):
    """`-o` makes its file, by another name in the same folder first; the rest of the machine stays as it was."""
    written, sockets = traced(
        place, COMMAND, "predict", "hello", "-o", place / "out" / "a.txt", stdin=b"hello\n"
    )
    assert sockets == []
    assert written, "the file itself"
    for line in written:
        if re.search(r'unlinkat\(\d+, "(lock|output|journal\.json)"', line):
            continue  # in the folder beside a.txt, which is named where it goes itself
        paths = re.findall(r'"([^"]*)"', line)
        assert paths or "fchmod" in line or "ftruncate" in line, line
        assert all(f"{path}/".startswith(f"{place}/out/") for path in paths), line
    assert (place / "out" / "a.txt").read_text() == "ohlol\n"
    assert [path for name in ("home", "tmp", "here") for path in (place / name).rglob("*")] == []


def test_a_bundle_is_only_read(place, tmp_path):
    """A bundle in a folder of its own has the same bytes, times and names after every command."""
    bundle = shutil.copytree(shipped(), tmp_path / "bundle")

    def state():
        return {
            path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes())
            for path in [bundle, *bundle.rglob("*")]
        }

    before = state()
    for command in ("predict", "verify", "inspect"):
        subprocess.run(
            [sys.executable, "-c", COMMAND, command, bundle, *(["hello"] if command == "predict" else [])],
            check=True, capture_output=True, cwd=place / "here", env=environment(place, False),
        )  # fmt: skip
    assert before == state()
    assert [path for name in ("home", "tmp", "here") for path in (place / name).rglob("*")] == []


@pytest.mark.skipif(sys.platform != "linux", reason="onnxruntime's wheels for other systems report otherwise")
def test_the_tracing_sees_what_telemetry_does(place):
    """With the variable set to 0 the same command leaves files at home: so the tests above can fail."""
    written, _ = traced(place, COMMAND, "predict", "hello", "hello", telemetry=True)
    left = [path for name in ("home", "tmp") for path in (place / name).rglob("*")]
    if not left:
        pytest.skip("this build of onnxruntime has no telemetry")
    assert any("/home/.cache/Microsoft" in line for line in written)


def test_the_tracing_sees_files_and_sockets(place):
    """What is looked for is found: a file beside the given one, a removed one, a socket to anywhere."""
    code = """
import socket, onnxruntime, os
open("x", "w").close(); os.rename("x", "y"); os.unlink("y"); os.mkdir("z")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
"""
    written, sockets = traced(place, "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'" + code)
    assert [re.search(r" (\w+)\(", line)[1] for line in sockets] == ["socket", "connect"]
    assert [re.findall(r'"([^"]*)"', line) for line in written] == [["x"], ["x", "y"], ["y"], ["z"]]


def test_nothing_is_unpickled(place):
    """A pickle can run code where it is read; no door of ours reads one, whatever lies in the bundle."""
    code = """
import pickle, sys
from click.testing import CliRunner
unpickled = []
sys.addaudithook(lambda event, args: unpickled.append(args) if event == "pickle.find_class" else None)
from ohlol.cli import main
for command in (["predict", "hello", "hello"], *([name, "hello"] for name in ("verify", "inspect", "compare"))):
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
assert "ohlol.artifacts.bundle" in sys.modules and "torch" not in sys.modules
assert unpickled == [], unpickled
pickle.loads(pickle.dumps(main.main.__func__))
assert len(unpickled) == 1, "what is looked for is found"
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=place / "here",
        env=environment(place, False),
        timeout=300,
    )
