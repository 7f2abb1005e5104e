"""Texts in, answers out: from arguments, stdin, pipes and files, to stdout, pipes and files. Order is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ohlol.artifacts.errors import InputError
from ohlol.serve import ahead, runner
from ohlol.serve.blocks import Place
from ohlol.serve.inputs import Input, changed, identity, opened
from ohlol.serve.long_line import Answering, LongLine
from ohlol.serve.model import Model
from ohlol.serve.output import Beside, Journal, Sink, beside, stdout
from ohlol.serve.packed import compressor, format_of, packing
from ohlol.serve.windows import Reading, Window
from ohlol.serve.writers import WRITERS, Look, TextWriter, Writer

VERSION = 1  # of what is written, the journal included: no run is gone on with by another
EVERY = 4  # windows from one place that a run can be gone on from to the next


@dataclass(frozen=True)
class Options:
    """How texts are read and answered. Formats that are not given are those that the files' names say.

    `field` is the text's field or column, `prefix` stands before the names of the fields added, `max_length` is
    the most characters of a text, and `skip` leaves out what cannot be read, instead of stopping there.
    """

    input_format: str | None = None
    format: str | None = None
    field: str = "text"
    as_: str = "labels"
    probabilities: bool = False
    prefix: str = ""
    max_length: int | None = None
    skip: bool = False


@dataclass
class Tally:
    """What a run has done: `texts` and their `characters` (code points), and lines that were `skipped`."""

    texts: int = 0
    characters: int = 0
    skipped: int = 0


class Watch:
    """Is told how a run goes on."""

    def note(self, message: str) -> None:
        """Something that a person should know."""

    def advance(self, part: float | None, tally: Tally) -> None:
        """So much is answered; `part` of the input, from 0 to 1, where that can be told."""


def predict(
    model: Model[Any],
    texts: tuple[str, ...] = (),
    source: Path | None = None,
    output: Path | None = None,
    options: Options = Options(),
    *,
    follow: bool = False,
    resume: bool = False,
    watch: Watch | None = None,
) -> Tally:
    """Answer `texts`, else those of `source` (None: stdin), in order, into `output` (None: stdout).

    A file is written beside and takes its name once it is whole. `resume` goes on with a run from file to file that was
    interrupted, to the same bytes. `follow` answers each line as soon as it is there.
    Raises `InputError` where something cannot be read, unless `options.skip`, and where a run cannot be gone on with.
    """
    return _Run(model, texts, source, output, options, watch or Watch()).run(follow=follow, resume=resume)


class _Run:
    def __init__(
        self,
        model: Model[Any],
        texts: tuple[str, ...],
        source: Path | None,
        output: Path | None,
        options: Options,
        watch: Watch,
    ) -> None:
        self.model, self.texts, self.source, self.output = model, texts, source, output
        self.options, self.watch = options, watch
        self.tally = Tally()
        self.skipped = 0  # by the reader, which is ahead of what is written
        self.read_as = format_of(source, options.input_format)
        self.write_as = format_of(output, options.format)
        self.look = Look(options.probabilities, options.as_, options.prefix, options.field)
        if source and output and output.is_file() and source.exists() and output.samefile(source):
            raise InputError(
                f"{output}: is the input too, which the answers would replace; name another file with -o"
            )
        for path, form, what in ((source, self.read_as, "-i FILE"), (output, self.write_as, "-o FILE")):
            if form == "parquet" and (not path or packing(path) or (path.exists() and not path.is_file())):
                raise InputError(f"Parquet needs a file of its own, not compressed again: {what}")
        if source is not None and not source.is_fifo():
            source.open("rb").close()  # where it cannot be read, this is told before anything is dropped
        limits = [limit for limit in (options.max_length, model.max_length) if limit is not None]
        self.how = Reading(
            name="stdin" if source is None else str(source),
            format=self.read_as,
            alphabet=model.manifest.alphabet,
            skip=self.skip,
            field=options.field,
            max_length=min(limits, default=None),
            in_parts=self.write_as == "text" and not (options.probabilities and model.manifest.task == "tag"),
            judged=options.skip,
            nulls=True,
        )
        self.told = model.runner.carries_state or model.manifest.task == "classify"

    def run(self, *, follow: bool, resume: bool) -> Tally:
        output = self.output
        if output is None:
            self.write_to(stdout(), None, follow)
        elif output.exists() and not output.is_file():  # a device or a pipe is never replaced
            with output.open("wb") as file:
                self.write_to(file, output, follow)
        else:
            with beside(output) as made:
                self.write_beside(made, resume)
        return self.tally

    def write_to(self, file: IO[bytes], path: Path | None, follow: bool) -> None:
        writer = WRITERS[self.write_as](Sink(file, compressor(path) if path else None), self.look, {})
        with opened(self.texts, self.source, self.how, follow=follow) as given:
            for _ in self.answered(given, Place(), writer, at_once=follow):
                if follow:
                    writer.settle()
        writer.close()

    def write_beside(self, made: Beside, resume: bool) -> None:
        journal = self.begun(made, resume)
        if journal and journal.done:
            if made.output.exists():  # else it has its name already
                made.finish()
            return
        place = journal.place if journal else Place()
        with self.writing(made, journal) as writer, opened(self.texts, self.source, self.how) as given:
            for count, end in enumerate(self.answered(given, place, writer), start=1):
                if count % EVERY:
                    continue
                written = writer.settle()  # Parquet holds its tables until then
                if journal:
                    journal.written = written
                    journal.place, journal.skipped, journal.state = end, self.tally.skipped, writer.state
                    made.save(journal)
            writer.close()
        if journal and self.source and (note := changed(self.source, journal.facts["input"])):
            self.watch.note(note)
        if journal and made.kept:
            journal.done, journal.skipped = True, self.tally.skipped
            made.save(journal)
        made.finish()

    def begun(self, made: Beside, resume: bool) -> Journal | None:
        """The journal to go on from, or a new one; None where what is read can be read only once."""
        if self.source is None or not self.source.is_file():
            made.clear()
            return None
        facts = {
            "version": VERSION,
            "input": identity(self.source),
            "model": self.model.digest,
            "options": {
                name: value
                for name, value in asdict(self.options).items()
                if name != "skip"  # may change: it is how a run gets past a line that stopped it
            }
            | {"input_format": self.read_as, "format": self.write_as},
        }
        if resume and (found := made.load(facts)):
            self.tally.skipped = self.skipped = found.skipped
            self.watch.note(f"going on after line {found.place.line:,} of {self.source}")
            return found
        if resume:
            self.watch.note(f"no interrupted run of {made.path} to go on with: begun from the start")
        elif made.kept:
            self.watch.note(
                f"what an interrupted run left of {made.path} is dropped; --resume would have gone on with it"
            )
        made.clear()
        return Journal(facts)

    @contextmanager
    def writing(self, made: Beside, journal: Journal | None) -> Iterator[Writer]:
        state = journal.state if journal else {}
        if self.write_as == "parquet":
            from ohlol.serve.parquet_writer import ParquetWriter

            yield ParquetWriter(made.output, self.model.manifest.task, self.look, state)
            return
        written = journal.written if journal else 0
        with made.opened(written) as file:
            yield WRITERS[self.write_as](Sink(file, compressor(made.path), written), self.look, state)

    def answered(
        self, given: Input, place: Place, writer: Writer, *, at_once: bool = False
    ) -> Iterator[Place]:
        """Answer and write what stands after `place`; after each window, or long line, where the next begins.

        `at_once`: before more is read.
        """
        self.watch.advance(given.part(place), self.tally)
        for long, group in groupby(given.read(place), key=lambda item: isinstance(item, LongLine)):
            if long:
                for item in cast(Iterator[LongLine], group):
                    for end in self.long_line(item, writer):
                        self.watch.advance(given.part(end), self.tally)
                    self.tally.skipped = self.skipped  # those before this line: no more is read yet
                    yield item.end()
                continue
            windows = self.read_on(cast(Iterator[Window], group))
            for some in ([one] for one in windows) if at_once else (windows,):
                with closing(
                    ahead.answered(self.model, some, probabilities=self.options.probabilities)
                ) as answered:
                    for window, skipped, answers in answered:
                        writer.window(window, answers)
                        self.tally.skipped = skipped
                        self.tally.texts += len(window.rows)
                        self.tally.characters += int(window.rows.lengths.sum())
                        self.watch.advance(given.part(window.end), self.tally)
                        yield window.end
        self.tally.skipped = self.skipped

    def read_on(self, windows: Iterator[Window]) -> Iterator[tuple[Window, int]]:
        """Each window, and how many lines were skipped up to its end."""
        for window in windows:
            self.tell_of_windows(window)
            yield window, self.skipped

    def long_line(self, item: LongLine, writer: Writer) -> Iterator[Place]:
        """Answer a line in parts, and write each at once; how far reading is then."""
        assert isinstance(writer, TextWriter)  # others are never given one
        self.tell_of(item.where, None)

        def counted() -> Iterator[str]:
            for part in item.parts:
                self.tally.characters += len(part)
                yield part

        answering = Answering(self.model, probabilities=self.options.probabilities, as_=self.options.as_)
        for text in answering.lines(counted()):
            writer.text(text)
            yield item.end()
        self.tally.texts += 1

    def skip(self, error: InputError) -> None:
        if not self.options.skip:
            raise error
        self.skipped += 1
        self.watch.note(f"skipped: {error}")

    def tell_of_windows(self, window: Window) -> None:
        lengths = window.rows.lengths
        if not self.told and (long := np.flatnonzero(lengths > self.model.runner.long)).size:
            self.tell_of(window.wheres(int(long[0])), int(lengths[long[0]]))

    def tell_of(self, where: str, length: int | None) -> None:
        """Once: that a long text is read in windows, by a network whose state cannot be carried."""
        if self.told:
            return
        self.told = True
        size = f"a text of {length:,} characters" if length else "a long text"
        self.watch.note(
            f"note: {where}: {size} is read {self.model.runner.stretch:,} characters at a time, with {runner.CONTEXT} more around them for "
            "context, so that a label may differ from that of the whole text; --max-length refuses long texts"
        )


def kept(output: Path) -> bool:
    """Whether there is an interrupted run of `output` to go on with."""
    return Beside(output).kept
