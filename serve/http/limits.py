"""What the server takes on, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass, field

NUMBERS = 2**23  # in one output of an answer: characters × labels
JSON_NUMBERS = 2**20  # of an answer that is written as JSON: some 20 MB
SHORT = 64 * 2**10  # bytes of an answer that a connection's buffers hold without saying so
UNTAKEN = 2**28  # bytes of longer answers, all together, that their clients have not taken yet


class Refused(Exception):
    """An answer that is an error: `status` is the HTTP code, `message` what the client reads."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def _cpus() -> int:
    from ohlol.serve.runtimes import cpus  # late: it brings onnxruntime, which `--help` has no need of

    return cpus()


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, texts and characters (code points, padding included); times in seconds."""

    body: int = 2 * 2**20
    texts: int = 1_024
    characters: int = 100_000
    queue: int = 256  # requests that wait for a worker
    connections: int = 512
    timeout: float = 10  # from the whole request to its answer
    read_timeout: float = 10  # for a request's header, and for its body; and for a client to take an answer
    grace: int = 30  # for what was begun when the server is told to stop
    batch_wait: float = 0.002
    workers: int = field(default_factory=_cpus)

    def check_body(self, size: int) -> None:
        if size > self.body:
            raise Refused(413, f"the body has more than {self.body:,} bytes, the limit (--max-body)")

    def check_texts(self, texts: int) -> None:
        if texts > self.texts:
            raise Refused(
                422, f"{texts:,} texts in one request, the limit is {self.texts:,} (--max-texts); send fewer"
            )

    def check_characters(self, characters: int, what: str, classes: int = 1) -> None:
        """`classes`: the numbers in the answer for each character."""
        most = max(1, min(self.characters, NUMBERS // classes))
        if characters > most:
            why = (
                "--max-characters" if most == self.characters else f"each is answered by {classes:,} numbers"
            )
            raise Refused(
                422, f"{what}: {characters:,} characters, the limit is {most:,} ({why}); send fewer"
            )
