"""python host.py MODEL TEXT COUNT: the answer, then the median seconds of COUNT more, as lines of JSON."""

import json
import sys

import ohlol

model, text = ohlol.load(sys.argv[1]), sys.argv[2]
print(json.dumps(str(model(text))), flush=True)

from statistics import median  # noqa: E402  (the first answer does not wait for it)
from time import perf_counter  # noqa: E402

times = []
for _ in range(200 + int(sys.argv[3])):
    begun = perf_counter()
    str(model(text))
    times.append(perf_counter() - begun)
print(median(times[200:]))
