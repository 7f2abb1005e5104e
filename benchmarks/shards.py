"""What a gigabyte of text costs: `ohlol predict` in one process, and by `--engine ray` with one worker and with two.

    python benchmarks/shards.py [BUNDLE] [--text FILE] [--sizes 4 40] [--workers 1 2] [--rounds 3] > shards.md

The lines of FILE (without it, of tinyshakespeare in $OHLOL_DATA), repeated, become JSON lines shards of the two sizes, in
MB of text. Each way answers both, in turn, `--rounds` times, and the fastest of each counts. What two sizes take differs by the
text alone, so the slope is the cost of text and what is left is the cost of starting: Python, Ray, the model.
Core-seconds are those of the control group (`cpu.stat`) where there is one, else of the machine (`/proc/stat`): Ray's
processes are no children of ours. Do nothing else meanwhile.

The parts of every way, put together, must be the same bytes; else it ends with an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

SHARDS = 4
GROUP, MACHINE = Path("/sys/fs/cgroup/cpu.stat"), Path("/proc/stat")


def cores() -> float:
    """Core-seconds used until now by everything that is counted with us."""
    if GROUP.exists():
        return int(GROUP.read_text().split()[1]) / 1e6
    user, nice, system = map(int, MACHINE.read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def make(source: Path, folder: Path, megabytes: float) -> tuple[int, int]:
    """Shards of about as much text; its bytes and its characters."""
    folder.mkdir()
    lines = cycle([line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()])
    size = characters = 0
    for number in range(SHARDS):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            while size < megabytes * 1e6 * (number + 1) / SHARDS:
                line = next(lines)
                size, characters = size + len(line.encode()), characters + len(line)
                file.write(json.dumps({"text": line}, ensure_ascii=False) + "\n")
    return size, characters


def answer(bundle: str, shards: Path, out: Path, workers: int) -> tuple[float, float, str]:
    """Seconds and core-seconds of the command, and the digest of all answers; without workers, in one process."""
    command = [sys.executable, "-m", "ohlol", "predict", bundle]
    if workers:
        command += ["--engine", "ray", "--workers", str(workers), "-i", str(shards), "-o", str(out)]
    else:
        whole = out.with_suffix(".in.jsonl")
        with whole.open("wb") as file:
            for shard in sorted(shards.iterdir()):
                file.write(shard.read_bytes())
        command += ["-i", str(whole), "-o", str(out.with_suffix(".jsonl"))]
    start, used = time.perf_counter(), cores()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    taken, used = time.perf_counter() - start, cores() - used
    digest = hashlib.sha256()
    for part in sorted(out.iterdir()) if workers else [out.with_suffix(".jsonl")]:
        digest.update(part.read_bytes())
    shutil.rmtree(out, ignore_errors=True)
    for file in out.parent.glob(f"{out.name}.*"):
        file.unlink()
    return taken, used, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="hello")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--sizes", type=float, nargs=2, default=[4, 40])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = options.text or Path(os.environ["OHLOL_DATA"]) / "tinyshakespeare" / "input.txt"
    ways = [0, *options.workers]
    with TemporaryDirectory() as name:
        folder = Path(name)
        made = {size: make(source, folder / f"{size}", size) for size in options.sizes}
        best: dict[tuple[int, float], tuple[float, float]] = {}
        digests: dict[float, set[str]] = {size: set() for size in options.sizes}
        for _ in range(options.rounds):
            for size in options.sizes:
                for workers in ways:
                    taken, used, digest = answer(options.bundle, folder / f"{size}", folder / "out", workers)
                    digests[size].add(digest)
                    seconds, core_seconds = best.get((workers, size), (taken, used))
                    best[workers, size] = min(seconds, taken), min(core_seconds, used)
    if any(len(found) > 1 for found in digests.values()):
        sys.exit("the ways do not answer alike")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; Python {platform.python_version()}"
    )
    print(f"onnxruntime {version('onnxruntime')}, ray {version('ray')}; {options.bundle}; {source.name}\n")
    print("| way | start, s | characters/s | core-seconds for a GB | beside one process |")
    print("|---|---|---|---|---|")
    small, large = options.sizes
    size = made[large][0] - made[small][0]
    characters = made[large][1] - made[small][1]
    first = 0.0
    for workers in ways:
        (few, few_cores), (many, many_cores) = best[workers, small], best[workers, large]
        if many <= few:
            sys.exit(
                "the larger size took no longer than the smaller one: quieten the machine, or take larger --sizes"
            )
        rate = characters / (many - few)
        first = first or rate
        start = few - (many - few) * made[small][0] / size
        said = f"ray, {workers} worker(s)" if workers else "one process"
        cost = (many_cores - few_cores) / size * 1e9
        print(f"| {said} | {start:.1f} | {rate:,.0f} | {cost:,.0f} | {rate / first:.2f} |")


if __name__ == "__main__":
    main()
