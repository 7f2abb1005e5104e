"""Text that a language model makes: drawn as it is said to be, its state carried, stopped where it should."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import ohlol
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.errors import InputError
from ohlol.cli import main
from ohlol.serve.generate import Sampling, _made, _until

MADE = "hello 👋 ohlol. "  # what the model of the golden bundle learnt by heart


@pytest.fixture(scope="module")
def model(golden):
    return ohlol.load(golden / "files")


def whole(model, text):
    """The logits after each character of `text`, from model.onnx, which reads the whole text."""
    points = codepoints(text)[None]
    return model.outputs(points, np.array([points.shape[1]], dtype=np.int32))["logits"][0].astype(np.float64)


# How a character is drawn.


def exact(p, temperature=1.0, top_k=None, top_p=None):
    """The rules of `Sampling`, by sorted lists: the probability of each known character."""
    weights = {k: np.longdouble(p[k]) ** np.longdouble(1 / temperature) for k in range(2, len(p))}
    order = sorted(weights, key=lambda k: (-weights[k], k))[:top_k]
    total = sum(weights[k] for k in order)
    if top_p is not None:
        sizes = [n for n in range(1, len(order) + 1) if sum(weights[k] for k in order[:n]) / total >= top_p]
        order = order[: sizes[0]]
        total = sum(weights[k] for k in order)
    return [float(weights[k] / total) if k in order else 0.0 for k in range(len(p))]


P = np.array([0.05, 0.15, 0.3, 0.1, 0.2, 0.15, 0.05])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 1.0},
        {"top_p": 0.7},
        {"top_p": 1e-9},
        {"temperature": 2.0, "top_k": 4, "top_p": 0.6},
    ],
)
def test_probabilities(options):
    """Temperature, then top-k, then the smallest set of the likeliest that reaches top-p; never padding or unknown."""
    found = Sampling(**options).probabilities(np.log(P).astype(np.float32))
    assert found == pytest.approx(exact(P, **options), abs=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found[:2].tolist() == [0, 0]


def test_equals_are_kept_by_their_ids():
    """With ties at the edge, top-k still keeps exactly k, and top-p no more than it needs."""
    even = np.zeros(6, dtype=np.float32)
    assert Sampling(top_k=2).probabilities(even).tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert Sampling(top_p=0.5).probabilities(even).tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert Sampling(top_p=0.51).probabilities(even)[2:].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert Sampling(0).probabilities(even).tolist() == [0, 0, 1, 0, 0, 0]


@given(
    logits=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=30),
    temperature=st.floats(0, 1e300) | st.sampled_from([5e-324, 1e-40, 1e308]),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(5e-324, 1),
)
def test_always_a_distribution(logits, temperature, top_k, top_p):
    """Whatever the options, something known can be drawn; the likeliest is never left out."""
    given_ = np.array(logits, dtype=np.float32)
    p = Sampling(temperature, top_k, top_p).probabilities(given_)
    assert p.sum() == pytest.approx(1)
    assert p[:2].sum() == 0
    assert p[2 + int(given_[2:].argmax())] == p.max() > 0
    assert top_k is None or np.count_nonzero(p) <= top_k


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1, expected a number from 0 up"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_k": 0}, "top_k is 0, expected a whole number from 1 up"),
        ({"top_k": 2.5}, r"top_k is 2\.5"),
        ({"top_p": 0}, "top_p is 0, expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"length": -1}, "length is -1"),
        ({"length": True}, "length is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"stop": [3]}, "a stop string is empty or no string"),
        ({"prompt": b"x"}, "the prompt is bytes"),
    ],
)
def test_options_out_of_range(model, options, message):
    """Said at once, not when the first character is asked for."""
    with pytest.raises(InputError, match=message):
        model.generate(**options)


# Text.


def test_greedy_is_the_likeliest_character_of_the_whole_text(model):
    """The state that is carried is that of the text so far, computed anew from its beginning by model.onnx."""
    text = "oh"
    for character in model.generate(text, length=40, temperature=0):
        logits = whole(model, text)[-1]
        logits[:2] = -np.inf
        assert model.manifest.alphabet.character(int(logits.argmax())) == character
        text += character
    assert text[-20:] in MADE * 3


@pytest.mark.parametrize(
    "options", [{"temperature": 2.0}, {"temperature": 3.0}, {"temperature": 4.0, "top_k": 4, "top_p": 0.9}]
)
def test_characters_are_drawn_as_often_as_they_should(model, options):
    """4,000 first characters after a prompt against the exact distribution: Pearson's chi-square below its 99.99 %
    point, with fixed seeds."""
    prompt, draws = "hello 👋 ohlol. oooh", 4_000
    logits = whole(model, prompt)[-1]
    expected = np.array(exact(np.exp(logits - logits.max()), **options))
    found = [next(model.generate(prompt, length=1, seed=seed, **options)) for seed in range(draws)]
    ids = model.manifest.alphabet.encode("".join(found))
    counts = np.bincount(ids, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    often = expected * draws >= 5
    rare = draws * expected[~often].sum()
    chi = ((counts - draws * expected)[often] ** 2 / (draws * expected[often])).sum()
    chi += (counts[~often].sum() - rare) ** 2 / max(rare, 1)
    assert often.sum() >= 2
    assert chi < {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7, 6: 27.9, 7: 29.9, 8: 31.8}[int(often.sum())]


def test_draws_do_not_depend_on_each_other(model):
    """Every character of a long text is drawn from what follows the text before it: those of probability p come up
    with frequency p, over all places together."""
    text = "".join(model.generate("hello", length=3_000, temperature=6.0, seed=4))
    logits = whole(model, "hello" + text)[4:-1]
    logits[:, :2] = -np.inf
    p = np.exp((logits - logits.max(axis=1, keepdims=True)) / 6)
    p /= p.sum(axis=1, keepdims=True)
    drawn = model.manifest.alphabet.encode(text)
    for k in range(2, p.shape[1]):
        spread = np.sqrt((p[:, k] * (1 - p[:, k])).sum())
        assert abs((drawn == k).sum() - p[:, k].sum()) < 4.5 * spread


def test_seeds(model):
    """The same seed, the same text; another seed or none, another one; a longer text begins with the shorter."""
    first, again, longer = (
        "".join(model.generate("he", length=n, seed=7, temperature=5)) for n in (50, 50, 80)
    )
    assert first == again == longer[:50]
    others = {
        "".join(model.generate("he", length=50, seed=seed, temperature=5)) for seed in (8, 9, None, None)
    }
    assert len(others | {first}) == 5


def test_a_seed_makes_the_text_it_made(model):
    """PCG64 and one number in [0, 1) for each character, by the cumulative sum: the format of a seed, so to say."""
    assert "".join(model.generate("h", length=24, seed=2, temperature=4)) == "ell. he. ohello 👋 ohlool"


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_p": 0.5}])
def test_the_least_and_the_largest_number(model, number, options):
    """At the ends of [0, 1) too, what is drawn has a probability: never padding, never what was cut off."""

    class Fixed:
        def random(self):
            return number

    sampling = Sampling(temperature=3.0, **options)
    made = next(_made(model._stream_file, "hello", sampling, Fixed()))
    (drawn,) = model.manifest.alphabet.encode(made)
    assert sampling.probabilities(whole(model, "hello")[-1])[drawn] > 0


def test_without_a_prompt(model, golden):
    """The first character is what follows a line end, where the model knows it."""
    assert "\n" in model.manifest.alphabet.characters
    likeliest = "".join(model.generate(length=20, temperature=0))
    assert likeliest == "".join(model.generate("\n", length=20, temperature=0))


def test_a_prompt_is_normalised_and_may_be_anything(model):
    """Decomposed, unknown, a lone surrogate, longer than a batch: nothing raises, nothing is cut."""
    made = ["".join(model.generate(p, length=5, temperature=0)) for p in ("he\u0301", "hé")]
    assert made[0] == made[1]
    assert len("".join(model.generate("\ud800\0 中", length=5, seed=0))) == 5
    long = "hello 👋 ohlol. " * 1_000
    assert "".join(model.generate(long + "hel", length=3, temperature=0)) == "lo "


def test_length(model):
    """At most so many characters, none at all too."""
    assert list(model.generate("he", length=0)) == []
    assert len(list(model.generate("he", length=33, seed=1, temperature=9))) == 33


def test_each_character_is_one_step(model, monkeypatch):
    """Nothing is computed twice: the prompt in one call, then one character a call; and nothing ahead of its reader."""
    file, calls = model._stream_file, []
    run = file.run
    monkeypatch.setattr(
        file, "run", lambda names, points, hidden: calls.append(points.shape) or run(names, points, hidden)
    )
    made = model.generate("hello", length=100, seed=0)
    assert calls == []
    list(islice(made, 4))
    assert calls == [(1, 5), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), " 👋 ohlol. hello 👋"),
        ("ohlol.", " 👋 "),
        (["lol"], " 👋 oh"),
        ([". hex", "ohlolo", "zz"], " 👋 ohlol. hello 👋"),
        (["hello", "ohlol. h"], " 👋 "),
        ([" "], ""),
        (["👋"], " "),
    ],
)
def test_stop_strings(model, stop, expected):
    """Nothing of a stop string comes out; what only begins like one does, in the end."""
    assert "".join(model.generate("hello", length=17, temperature=0, stop=stop)) == expected


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    length=st.integers(0, 40),
)
def test_stop_strings_over_steps(text, stops, length):
    """Character by character as from the whole: up to the stop string that is complete first."""
    length = min(length, len(text))
    complete = [n for n in range(length + 1) if any(text[:n].endswith(stop) for stop in stops)]
    expected = text[:length]
    if complete:
        end = text[: complete[0]]
        expected = end[: min(end.index(stop) for stop in stops if stop in end)]
    assert "".join(_until(tuple(stops), iter(text), length)) == expected


def test_other_tasks_and_files_cannot(golden):
    """One message that says what is needed."""
    with pytest.raises(AttributeError):
        ohlol.load("hello").generate("h")
    with pytest.raises(InputError, match=r"holds no stream\.onnx"):
        ohlol.load(golden / "lm").generate("h")


# The command.


def run(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def test_the_command(model, golden):
    """Prompt and text on stdout, a line end after it, as the API makes them."""
    options = ("--length", 30, "--temperature", 3, "--top-k", 5, "--top-p", 0.95, "--seed", 11)
    result = run(golden / "files", "--prompt", "hello", *options)
    made = model.generate("hello", length=30, temperature=3, top_k=5, top_p=0.95, seed=11)
    expected = "".join(made)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"hello{expected}\n", "")
    assert run(golden / "files", "--prompt", "hello", "--no-prompt", *options).stdout == f"{expected}\n"
    alone = run(golden / "files" / Layout.stream, "--prompt", "hello", *options)
    assert alone.stdout == result.stdout


def test_the_commands_stop(golden):
    """May be given twice."""
    stop = ("--stop", "zz", "--stop", "ohlol.")
    assert run(golden / "files", "--prompt", "hello", "--temperature", 0, *stop).stdout == "hello 👋 \n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("hello",), 1, "Error: generating needs a language model (task lm), this one is for tag"),
        (("nowhere",), 1, "nowhere: does not exist"),
        (("lm",), 1, "holds no stream.onnx; export it again"),
        (("words",), 1, "reads both ways"),
        (("files", "--temperature", "nan"), 2, "temperature is nan"),
        (("files", "--temperature", "-1"), 2, "temperature is -1.0"),
        (("files", "--top-k", "0"), 2, "top_k is 0"),
        (("files", "--top-p", "2"), 2, "top_p is 2.0"),
        (("files", "--length", "-1"), 2, "--length"),
        (("files", "--stop", ""), 2, "--stop: it is empty"),
        (("files", "--prompt", "h\udcff"), 2, "not UTF-8"),
        (("files", "--stop", "h\udcff"), 2, "not UTF-8"),
    ],
)
def test_mistakes(golden, arguments, code, message):
    """One message; exit 1 where the bundle cannot, 2 where the words are wrong."""
    bundle, *options = arguments
    result = run(bundle if bundle in ("hello", "nowhere") else golden / bundle, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.output


def process(*arguments, **options):
    code = "from ohlol.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "generate", *map(str, arguments)], **options)


def test_text_appears_as_it_is_made(golden):
    """A reader of the pipe has the beginning while the end, which never comes, is not made; Ctrl-C ends it with one
    line on stderr."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with process(golden / "files", "--length", 10**9, "--temperature", 0, **pipes) as running:
        first = running.stdout.read(64)
        running.send_signal(signal.SIGINT)
        rest, message = running.communicate(timeout=60)
    assert first.decode("utf-8", "ignore").startswith(" hello 👋 ohlol. hello")
    assert (running.returncode, message, rest[-1:]) == (1, b"stopped\n", b"\n")


def test_a_terminal_sees_every_character(golden):
    """There, nothing waits for others."""
    above, below = pty.openpty()
    code = f"""
import sys
from ohlol.serve import generate
made = generate.generate
def slow(*given, **options):
    for number, character in enumerate(made(*given, **options)):
        yield character
        assert sys.stdin.readline()  # the test has seen it
generate.generate = slow
from ohlol.cli import main
main(["generate", {str(golden / "files")!r}, "--prompt", "hel", "--temperature", "0", "--length", "3"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=below, text=True
    ) as running:
        os.close(below)
        seen = ""
        for expected in ("hell", "hello", "hello "):
            while seen != expected:
                assert select.select([above], [], [], 60)[0], seen
                seen += os.read(above, 1).decode()
                assert expected.startswith(seen)
            running.stdin.write("\n")
            running.stdin.flush()
        assert os.read(above, 10) == b"\r\n"
    os.close(above)
    assert running.returncode == 0


def test_a_closed_pipe(golden):
    """`| head -c 10` ends it with one line on stderr."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with process(golden / "files", "--length", 10**9, **pipes) as running:
        running.stdout.close()
        message = running.stderr.read().decode()
    assert (running.returncode, message) == (1, "stdout was closed by its reader: stopped\n")
