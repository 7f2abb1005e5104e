"""Every parser of files that others made, under millions of inputs: does any raise another error than ours?

    python benchmarks/fuzz.py --minutes 60 [--target manifest] [--target ...] [--crashes FOLDER]

With atheris (pip install atheris) inputs are grown by what code they reach, a process for each target, the targets one
after another; without it, hypothesis draws them from the same seeds. Prints executions and findings of each target, and
exits with 1 where there are findings; the inputs that made them are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    traced = contextlib.nullcontext
else:

    def traced() -> contextlib.AbstractContextManager[None]:
        return atheris.instrument_imports(include=["ohlol"])


with traced():
    from ohlol.artifacts import bundle as bundles
    from ohlol.artifacts import contract, describe, onnx_file
    from ohlol.artifacts.alphabet import Alphabet
    from ohlol.artifacts.bundle import Layout
    from ohlol.artifacts.errors import BundleError, InputError
    from ohlol.artifacts.files import sha256
    from ohlol.artifacts.manifest import Manifest
    from ohlol.serve import blocks, readers, replay, verify, windows
    from ohlol.serve.model import of_file

HELLO = bundles.shipped()
FACTS = json.loads((HELLO / Layout.manifest).read_bytes())
OPENED = bundles.open_bundle(HELLO)
SLOW = 20  # seconds for one input: a finding too
TEXTS = ("hello", "", "h\u0301llo", "\ud800", "a\tb", "👋🏽", "x" * 300)


def manifest(data: bytes) -> None:
    """`manifest.json`, and what is then read of its facts."""
    found = Manifest.from_json(data, "it")
    if Manifest.from_json(found.to_json(), "again") != found:
        raise AssertionError("what was read is not what is written")
    describe.table(describe.describe_manifest(found, {}))


def metadata(data: bytes) -> None:
    """The facts inside an `.onnx` file, here as one object; what stands behind a `=` is taken as it is."""
    try:
        texts = json.loads(data)
        if not isinstance(texts, dict):
            return
        raw = {name: value.removeprefix("=") for name, value in texts.items() if str(value).startswith("=")}
        facts = {name: raw.get(name, json.dumps(value)) for name, value in texts.items()}
    except (ValueError, RecursionError):
        return
    found = Manifest.from_metadata(facts, "it")
    for kind in contract.KINDS:
        found.to_metadata(kind)


def onnx(data: bytes) -> None:
    """An `.onnx` file as our own reader sees it."""
    for look in (onnx_file.summary, onnx_file.check_whole):
        with contextlib.suppress(BundleError):
            look(data, "it")
    onnx_file.check_digest(data, {onnx_file.DIGEST: "0" * 64}, "it")


def tensor(data: bytes) -> None:
    """A tensor of the test data."""
    name, values = onnx_file.read_tensor(data, "it")
    str(name), values.sum(dtype=float)


def proof(data: bytes) -> None:
    """A case of the test data of a bundle, digest and all: the first byte says which tensor is exchanged."""
    names = sorted(name for name in OPENED.contents if name.startswith("test_data_set_0/"))
    name = names[data[0] % len(names)] if data else names[0]
    contents = {**OPENED.contents, name: data[1:]}
    given = bundles.Bundle(OPENED.path, OPENED.manifest, contents)
    for case, _ in verify._test_data(given, "output")[:1]:
        if (
            not case.codepoints.size
            or case.lengths.min() < 1
            or case.lengths.max() > case.codepoints.shape[1]
        ):
            raise AssertionError("a case outside of the contract")
        replay._text(case.codepoints[0], replay.PRIVATE)


def folder(data: bytes) -> None:
    """A whole bundle: a manifest of any bytes beside the files it should list."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "b"
        path.mkdir()
        (path / Layout.onnx).write_bytes(OPENED.contents[Layout.onnx])
        (path / Layout.manifest).write_bytes(data)
        bundles.open_bundle(path)


def model(data: bytes) -> None:
    """An `.onnx` file whose digest is right, or that has none, loaded by ONNX Runtime and asked. Whatever this finds
    in the runtime itself (it may end the process) is for its makers; that it is an error of ours is for us."""
    data = data.replace(onnx_file.DIGEST.encode(), b"ohlol.no_sha", 1)
    facts = Manifest.from_metadata(onnx_file.metadata(data, "it"), "it")
    of_file(facts, data, "it")(list(TEXTS))


def reader(form: str) -> Callable[[bytes], None]:
    """Texts to answer in the format `form`."""

    def texts(data: bytes) -> None:
        read, skipped = 0, list[InputError]()
        how = windows.Reading("it", form, Alphabet("ehlo"), skipped.append)
        for window in readers.windows(blocks.Blocks(io.BytesIO(data)), how):
            if len(window.rows.texts()) != len(window.records):
                raise AssertionError(f"{len(window.records)} records gave {len(window.rows)} texts")
            read += len(window.rows)
        lines = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
        if form == "text" and lines != read + len(skipped):
            raise AssertionError(f"{lines} lines gave {read} texts and {len(skipped)} refusals")

    return texts


def _seeds() -> dict[str, list[bytes]]:
    small = {
        **FACTS,
        "files": {Layout.onnx: FACTS["files"][Layout.onnx]},
        "metrics": {"test": {"accuracy": 0.5}},
    }
    whole = json.dumps(small).encode()
    lines = [json.dumps({"text": text, "id": k}) for k, text in enumerate(TEXTS)]
    tensors = {name: data for name, data in OPENED.contents.items() if name.startswith("test_data_set_0/")}
    names = sorted(tensors)
    return {
        "manifest": [whole],
        "metadata": [json.dumps({f"ohlol.{key}": value for key, value in small.items()}).encode()],
        "onnx": [OPENED.contents[name] for name in (Layout.onnx, Layout.stream, Layout.text)],
        "model": [OPENED.contents[Layout.onnx]],
        "tensor": list(tensors.values()),
        "proof": [bytes([k]) + tensors[name] for k, name in enumerate(names)],
        "folder": [whole],
        "text": ["\n".join(TEXTS).encode("utf-8", "surrogatepass"), b"\xef\xbb\xbfhello\r\nhe\xffllo\n"],
        "jsonl": ["\n".join(lines).encode()],
        "csv": [b'id,text\r\n1,"he,llo"\r\n2,"a\nb"\r\n3,"q""q"\r\n', b"text\nhello\n"],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest, "metadata": metadata, "onnx": onnx, "tensor": tensor, "proof": proof, "folder": folder,
    "model": model,
    **{form: reader(form) for form in ("text", "jsonl", "csv")},
}  # fmt: skip


VALUES = (
    None, True, 0, -1, 10**30, 10**400, 1e300, float("inf"), "", "\ud800", "\0", "../x", "lm", "text", [], {}, [[[]]]
)  # fmt: skip


def mutated(begin: bytes, data: bytes, most: int, seed: int) -> bytes:
    """For JSON: most of the time another value, name or order at one place of it, else as libFuzzer does.

    Every other time at one place of `begin`: what libFuzzer keeps are new ways to be refused, and change upon change
    leads ever farther from what is not.
    """
    draw = random.Random(seed)
    with contextlib.suppress(ValueError, RecursionError, IndexError):
        if draw.random() < 0.8:
            value = json.loads(data if draw.random() < 0.5 else begin)
            places = list(_places(value))
            holder, key = draw.choice(places)
            old = holder.pop(key)
            new = draw.choice([*VALUES, old, [old], {"x": old}, draw.choice(places)[0]])
            if isinstance(holder, list):
                holder.insert(draw.randrange(len(holder) + 1), new)
            elif draw.random() < 0.8:
                holder[key if draw.random() < 0.8 else str(draw.choice(VALUES))] = new
            changed = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
            if len(changed) <= most:
                return changed
    return bytes(atheris.Mutate(data, most))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def tried(target: Callable[[bytes], None], data: bytes) -> None:
    """Refused by our error or not at all; whatever else comes out is a finding."""
    with contextlib.suppress(BundleError, InputError):
        target(data)


def with_atheris(name: str, seconds: int, crashes: Path) -> tuple[int, int]:
    """Executions, and findings at different places. libFuzzer ends its process at each, so that others follow it."""
    corpus = crashes / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in _seeds()[name]:
        (corpus / sha256(seed)[:16]).write_bytes(seed)
    done, found = 0, set[str]()
    end = time.monotonic() + seconds
    while (left := int(end - time.monotonic())) > 0:
        command = [
            sys.executable,
            __file__,
            "--one",
            name,
            str(corpus),
            f"-max_total_time={left}",
            "-max_len=65536",
            "-len_control=0",
            "-mutate_depth=2",  # more at once, and hardly an input is still well-formed
        ]
        command += [f"-timeout={SLOW}", "-rss_limit_mb=4096", f"-artifact_prefix={crashes}/{name}-"]
        ran = subprocess.run(
            [*command, "-print_final_stats=1"], capture_output=True, text=True, errors="replace", check=False
        )
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", ran.stderr)
        done += int(counted[1]) if counted else 0
        if ran.returncode == 0:
            break
        raised = re.findall(
            r'^  File "(.*)$', ran.stdout, re.MULTILINE
        )  # else it was killed, or ran too long
        where = raised[-1] if raised else " ".join(re.findall("^SUMMARY: (.*)$", ran.stderr, re.MULTILINE))
        if where not in found:
            print(f"{name}: FOUND\n{(ran.stdout if raised else ran.stderr).strip()[-3_000:]}", flush=True)
        found.add(where)
        if not counted:
            break  # it never began
    return done, len(found)


def without(name: str, seconds: int, crashes: Path) -> tuple[int, int]:
    """The same by blind mutation of the seeds: hypothesis draws the places and the bytes."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    seeds, target = _seeds()[name], TARGETS[name]
    cuts = st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8))
    done, end, findings = 0, time.monotonic() + seconds, set()

    @settings(
        max_examples=1_000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(seeds), st.lists(cuts, max_size=6), st.binary(max_size=64))
    def round_of(seed: bytes, changes: list[tuple[float, int, bytes]], noise: bytes) -> None:
        nonlocal done
        data = seed if changes else noise
        for place, length, new in changes:
            at = int(place * len(data))
            data = data[:at] + new + data[at + length :]
        done += 1
        try:
            tried(target, data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            if (key := (type(error).__name__, where.filename, where.lineno)) not in findings:
                findings.add(key)
                crashes.mkdir(parents=True, exist_ok=True)
                (crashes / f"{name}-{sha256(data)[:16]}").write_bytes(data)
                print(f"{name}: FOUND\n{''.join(traceback.format_exception(error))}", flush=True)

    while time.monotonic() < end:
        random.seed(done)  # hypothesis draws from here, other inputs in each round
        round_of()
    return done, len(findings)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="of all targets together")
    parser.add_argument("--target", action="append", choices=[*TARGETS, "all"], default=None)
    parser.add_argument(
        "--crashes", type=Path, default=None, help="folder for the inputs that were findings, and the corpus"
    )
    given = parser.parse_args()
    names = list(TARGETS) if not given.target or "all" in given.target else given.target
    fuzz = with_atheris if find_spec("atheris") else without
    crashes = given.crashes or Path(tempfile.mkdtemp(prefix="ohlol-fuzz-"))
    seconds = max(1, int(given.minutes * 60 / len(names)))
    print(
        f"{'atheris' if fuzz is with_atheris else 'hypothesis'}, {seconds} s for each target; findings in {crashes}",
        flush=True,
    )
    total = findings = 0
    for name in names:
        done, found = fuzz(name, seconds, crashes)
        print(f"{name:<10}{done:>12,} executions{found:>5} findings", flush=True)
        total, findings = total + done, findings + found
    print(f"{'all':<10}{total:>12,} executions{findings:>5} findings in {given.minutes:g} minutes")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        target = TARGETS[sys.argv[2]]
        begin, grow = _seeds()[sys.argv[2]][0], {}
        if sys.argv[2] in ("manifest", "metadata", "folder"):
            grow = {"custom_mutator": partial(mutated, begin)}
        atheris.Setup([sys.argv[0], *sys.argv[3:]], lambda data: tried(target, data), **grow)
        atheris.Fuzz()
    else:
        main()
