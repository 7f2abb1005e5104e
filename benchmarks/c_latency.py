"""What one text costs in the C source of `ohlol export RUN --c DIR`.

python benchmarks/c_latency.py DIR [--text hello] [--flags="-O3 -march=native"]

Prints, for `NAME_run` and, one way, for `NAME_step` over the whole text: the median and the fastest of ROUNDS rounds, in
nanoseconds for one text, UTF-8 decoded; and the size of the compiled object's sections.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from ohlol.serve.places import RECORD

ROUNDS, TEXTS = 51, 200
PROGRAM = r"""
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "MODEL.h"

#define MOST 4096
static float work[MACRO_WORK(MOST)], logits[MOST * MACRO_CLASSES];
static int labels[MOST];
static uint32_t codepoints[MOST];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : 1;
}

static void run(const char *text, const char *end)
{
    size_t n = 0;
    while (text < end && n < MOST) codepoints[n++] = MODEL_utf8(&text, end);
    MODEL_run(codepoints, n, work, logits, labels);
}

#ifdef MACRO_STATE
static void steps(const char *text, const char *end)
{
    MODEL_state state;
    MODEL_start(&state);
    while (text < end) labels[0] = MODEL_step(&state, MODEL_utf8(&text, end), logits);
}
#endif

static void timed(const char *what, void (*call)(const char *, const char *), const char *text)
{
    double rounds[ROUNDS];
    const char *end = text + strlen(text);
    for (int r = 0; r < ROUNDS; r++) {
        const double start = now();
        for (int k = 0; k < TEXTS; k++) call(text, end);
        rounds[r] = (now() - start) / TEXTS;
    }
    qsort(rounds, ROUNDS, sizeof *rounds, ascending);
    printf("%-5s median %9.0f ns, fastest %9.0f ns\n", what, rounds[ROUNDS / 2], rounds[0]);
}

int main(int argc, char **argv)
{
    const char *text = argc > 1 ? argv[1] : "hello";
    timed("run", run, text);
#ifdef MACRO_STATE
    timed("step", steps, text);
#endif
    return 0;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", default="hello")
    parser.add_argument("--flags", default="-O2")
    parser.add_argument("--compiler", default="cc")
    given = parser.parse_args()
    files = json.loads((given.folder / RECORD).read_bytes())["files"]
    name = next(Path(file).stem for file in files if file.endswith(".h"))
    words = {"MODEL": name, "MACRO": name.upper(), "ROUNDS": str(ROUNDS), "TEXTS": str(TEXTS)}
    program = re.sub("|".join(words), lambda word: words[word[0]], PROGRAM)
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        (folder / "latency.c").write_text(program, encoding="utf-8")
        flags = [given.compiler, "-std=c99", *shlex.split(given.flags), f"-I{given.folder}"]
        subprocess.run([*flags, "-c", given.folder / f"{name}.c", "-o", folder / "model.o"], check=True)
        subprocess.run(
            [*flags, folder / "latency.c", folder / "model.o", "-lm", "-o", folder / "latency"], check=True
        )
        subprocess.run(["size", folder / "model.o"], check=False)
        subprocess.run([folder / "latency", given.text], check=True)


if __name__ == "__main__":
    main()
