"""What the server has done, in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How many values were at most each of `bounds`, how many there were, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self, name: str, labels: Labels) -> Iterator[str]:
        names = [*map(_number, self.bounds), "+Inf"]
        *_, total = counts = list(accumulate(self.counts))
        for bound, count in zip(names, counts, strict=True):
            yield _sample(f"{name}_bucket", (*labels, ("le", bound)), count)
        yield _sample(f"{name}_sum", labels, self.sum)
        yield _sample(f"{name}_count", labels, total)


class Metrics:
    """Counts everything in the server's one event loop; no other thread writes here."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.batches = Histogram(TEXTS)
        self.characters = 0
        self.reloads: Counter[tuple[str, str]] = Counter()
        self.gauges: dict[str, tuple[str, Callable[[], int]]] = {}  # help and value by name

    def request(self, route: str, method: str, code: int, seconds: float) -> None:
        self.requests[route, method, code] += 1
        self.seconds[route].add(seconds)

    def batch(self, texts: int, characters: int) -> None:
        self.batches.add(texts)
        self.characters += characters

    def text(self, models: Iterable[Mapping[str, str]]) -> str:
        """The page. `models`: the labels of each model that is served."""
        lines: list[str] = []

        def family(name: str, kind: str, explained: str, samples: Iterable[str]) -> None:
            lines.extend([f"# HELP {name} {explained}", f"# TYPE {name} {kind}", *samples])

        family(
            "ohlol_requests_total", "counter", "Requests answered, by route, method and HTTP code.",
            (
                _sample("ohlol_requests_total", (("route", route), ("method", method), ("code", str(code))), n)
                for (route, method, code), n in sorted(self.requests.items())
            ),
        )  # fmt: skip
        family(
            "ohlol_request_seconds", "histogram", "From a request's header to the end of its answer, by route.",
            (
                line
                for route, histogram in sorted(self.seconds.items())
                for line in histogram.samples("ohlol_request_seconds", (("route", route),))
            ),
        )  # fmt: skip
        family(
            "ohlol_batch_texts", "histogram", "Texts (rows) that one run of a model answered.",
            self.batches.samples("ohlol_batch_texts", ()),
        )  # fmt: skip
        family(
            "ohlol_characters_total", "counter", "Characters (code points) put to models.",
            [_sample("ohlol_characters_total", (), self.characters)],
        )  # fmt: skip
        family(
            "ohlol_loads_total", "counter", "Models loaded anew, by model and result.",
            (
                _sample("ohlol_loads_total", (("model", model), ("result", result)), n)
                for (model, result), n in sorted(self.reloads.items())
            ),
        )  # fmt: skip
        for name, (explained, value) in self.gauges.items():
            family(name, "gauge", explained, [_sample(name, (), value())])
        family(
            "ohlol_model_info", "gauge", "1 for each model that is served.",
            (_sample("ohlol_model_info", tuple(labels.items()), 1) for labels in models),
        )  # fmt: skip
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
