"""Models that others trained: what is adopted answers as it did, what cannot be is refused by name."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import ohlol
from ohlol.artifacts.errors import AdoptError, OhlolError
from ohlol.cli import main
from ohlol.export import adopt
from ohlol.export.bundle import export
from ohlol.export.parts import Ids, Parts, converted
from ohlol.train.checkpoint import load_network

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
TEXT = "hello"


class Reader(nn.Module):
    """A module as people write them; each option is one of the habits met in the wild."""

    def __init__(self, *, N=4, C=4, D=5, H=6, cell="rnn", layers=1, two_way=False, batch_first=True, bias=True,
                 head=True, embeds=True, answer="whole"):  # fmt: skip
        super().__init__()
        self.table = nn.Embedding(N, D) if embeds else None
        self.memory = CELLS[cell](
            D if embeds else N, H, layers, bidirectional=two_way, batch_first=batch_first, bias=bias
        )
        self.out = nn.Linear(H * (1 + two_way), C, bias=bias) if head else None
        self.drop = nn.Dropout(0.5)
        self.batch_first, self.answer, self.two_way = batch_first, answer, two_way

    def between(self, x):
        return x

    def forward(self, x):
        x = self.table(x) if self.table is not None else x
        x, hidden = self.memory(self.between(x))
        if self.answer == "text":
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            x = torch.cat([hidden[-2], hidden[-1]], dim=-1) if self.two_way else hidden[-1]
        x = self.drop(x)
        x = self.out(x) if self.out is not None else x
        if self.answer == "flat":
            return x.reshape(-1, x.shape[-1])
        if self.answer == "classes first":
            return x.transpose(1, 2)
        return (x, hidden) if self.answer == "tuple" else x


def logits_of(module, numbers, *, one_hot=0, time_first=False):
    """What the module itself answers to one text: `(T, C)`, or `(1, C)` for one answer."""
    ids = torch.tensor([numbers])
    ids = ids.t() if time_first else ids
    given = functional.one_hot(ids, one_hot).float() if one_hot else ids
    with torch.inference_mode():
        found = copy.deepcopy(module).eval()(given)
    found = found[0] if isinstance(found, tuple) else found
    return found.reshape(-1, found.shape[-1])


def served(run, folder, text):
    """The probabilities of the exported file, through the proof, ONNX Runtime and the public face."""
    assert export(run, folder / "bundle", ("onnx",)).proof.passed
    return ohlol.load(folder / "bundle")(text)


def same(result, wanted):
    found = result.probabilities
    if isinstance(
        found, dict
    ):  # the likeliest label first; here the labels' ids are in the order of their names
        found = [found[label] for label in sorted(found)]
    found = torch.tensor(found.tolist() if hasattr(found, "tolist") else found)
    found = found.reshape(wanted.shape)
    torch.testing.assert_close(found, wanted.softmax(-1), atol=1e-5, rtol=0)


@settings(max_examples=25, phases=[Phase.generate])  # an export takes a second: one failure is enough
@given(
    cell=st.sampled_from(sorted(CELLS)),
    layers=st.integers(1, 3),
    two_way=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    head=st.booleans(),
    embeds=st.booleans(),
    answer=st.sampled_from(["whole", "flat", "tuple", "classes first", "text"]),
    seed=st.integers(0, 100),
)
def test_what_is_adopted_answers_as_the_module(answer, seed, embeds, head, two_way, batch_first, **options):
    """Whatever the cell, ways, layers, axes, biases and form of the answer: the served bundle is their module."""
    if answer == "classes first":
        batch_first = True
    torch.manual_seed(seed)
    sizes = {"H": 6, "C": 4} if head else {"H": 2 if two_way else 4}
    module = Reader(
        head=head, embeds=embeds, two_way=two_way, batch_first=batch_first, answer=answer, **sizes, **options
    )
    before = copy.deepcopy(module.state_dict())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = adopt(module, alphabet="ehlo", labels=["a", "b", "c", "d"], output=folder / "run")
        result = served(run, folder, TEXT)
    wanted = logits_of(
        module, ["ehlo".index(c) for c in TEXT], one_hot=0 if embeds else 4, time_first=not batch_first
    )
    if answer == "classes first":
        wanted = logits_of_classes_first(module, embeds)
    same(result, wanted)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(weight.requires_grad for weight in module.parameters())


def logits_of_classes_first(module, embeds):
    ids = torch.tensor([["ehlo".index(c) for c in TEXT]])
    with torch.inference_mode():
        found = copy.deepcopy(module).eval()(ids if embeds else functional.one_hot(ids, 4).float())
    return found[0].t()


class RnnEmbeddingModel(nn.Module):
    """The lesson's third model as it stands there: one row only, answers flat."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 10)
        self.rnn_emb = nn.RNN(input_size=10, hidden_size=8, num_layers=2, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, input):
        hidden = torch.zeros(2, 1, 8)
        input = self.embedding(input)
        out, _ = self.rnn_emb(input, hidden)
        out = self.fc(out)
        return out.view(-1, 4)


class RnnModel(nn.Module):
    """The lesson's second model: one-hot, time first, the hidden state is the answer."""

    def __init__(self, input_size=4, hidden_size=4, batch_size=1, num_layers=1):
        super().__init__()
        self.num_layers, self.batch_size = num_layers, batch_size
        self.hidden_size, self.input_size = hidden_size, input_size
        self.rnn = nn.RNN(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)

    def forward(self, input):
        hidden = torch.zeros(self.num_layers, self.batch_size, self.hidden_size)
        out, _ = self.rnn(input, hidden)
        return out.view(-1, self.hidden_size)


class Model_rnncell(nn.Module):
    """The lesson's first model: one step at a call."""

    def __init__(self, input_size=4, hidden_size=4, batch_size=1):
        super().__init__()
        self.rnncell = nn.RNNCell(input_size=input_size, hidden_size=hidden_size)

    def forward(self, input, hidden):
        return self.rnncell(input, hidden)


@pytest.mark.parametrize(
    ("make", "one_hot", "learning_rate"), [(RnnEmbeddingModel, 0, 0.05), (RnnModel, 4, 0.05)]
)
def test_the_lesson_as_a_learner_leaves_it(make, one_hot, learning_rate, tmp_path):
    """Trained as in the lesson, on one row, and left in training mode: its answer is the bundle's."""
    torch.manual_seed(0)
    module = make()
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    ids, targets = torch.tensor([[1, 0, 2, 2, 3]]), torch.tensor([3, 1, 2, 3, 2])
    inputs = functional.one_hot(ids.t(), 4).float() if one_hot else ids
    for _ in range(60):
        optimizer.zero_grad()
        outputs = module(inputs)
        functional.cross_entropy(outputs, targets).backward()
        optimizer.step()
    run = adopt(module, alphabet="ehlo", labels=list("ehlo"), output=tmp_path / "run")
    result = served(run, tmp_path, TEXT)
    assert ["ehlo"[k] for k in outputs.argmax(-1)] == list(result.labels)
    same(result, module(inputs).detach())


def test_a_cell_is_refused_with_what_to_do(tmp_path):
    """The lesson's first model cannot be looked into; the message names the layer that holds its weights."""
    module = Model_rnncell()
    with pytest.raises(
        AdoptError, match=r"`rnncell` is an nn\.RNNCell.* nn\.RNN\(…, batch_first=True\).*_l0"
    ):
        adopt(module, alphabet="ehlo", labels=list("ehlo"), output=tmp_path / "run")
    layer = nn.RNN(4, 4, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in module.rnncell.state_dict().items()})
    run = adopt(layer, alphabet="ehlo", labels=list("ehlo"), output=tmp_path / "run")
    hidden, steps = torch.zeros(1, 4), []
    for k in (1, 0, 2, 2, 3):
        hidden = module(functional.one_hot(torch.tensor([k]), 4).float(), hidden)
        steps.append(hidden)
    same(served(run, tmp_path, TEXT), torch.cat(steps).detach())


@pytest.mark.parametrize("embeds", [True, False])
def test_ids_that_are_no_characters_and_the_unknown(embeds, tmp_path):
    """Their padding and marks anywhere among the ids, and their id for unknown characters, keep their meaning."""
    alphabet = [None, "h", None, "o", "l", None, "e"]
    module = Reader(N=7, embeds=embeds)
    run = adopt(module, alphabet=alphabet, labels=list("abcd"), output=tmp_path / "run", unknown=5)
    result = served(run, tmp_path, "hexlo")
    same(result, logits_of(module, [1, 6, 5, 4, 3], one_hot=0 if embeds else 7))


def test_one_hot_ids_that_are_no_characters_are_left_out(tmp_path):
    """Without an unknown the input stays one-hot, with a column for each character and none for the rest."""
    module = Reader(N=7, embeds=False, two_way=True, cell="lstm")
    alphabet = [None, "h", None, "o", "l", None, "e"]
    run = adopt(module, alphabet=alphabet, labels=list("abcd"), output=tmp_path / "run")
    assert load_network(run)[1].model.input == "one_hot"
    same(served(run, tmp_path, TEXT), logits_of(module, [1, 6, 4, 4, 3], one_hot=7))


def test_without_an_unknown_it_says_nothing(tmp_path):
    """An unknown character is then the zero vector, as in a network of ohlol's own."""
    module = Reader()
    run = adopt(module, alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")
    weight = load_network(run)[0].embedding.weight
    assert torch.equal(weight[:2], torch.zeros(2, 5))
    assert torch.equal(weight[2:], module.table.weight)


@pytest.mark.parametrize("unknown", [None, 2])
@pytest.mark.parametrize("head", [True, False])
def test_the_next_character(head, unknown, tmp_path):
    """lm: their answer for id k is ours for the same character; what they cannot answer is never likely."""
    alphabet = ["e", None, None, "h", "l", "o"]
    module = Reader(N=6, C=6, H=6, head=head, cell="gru")
    run = adopt(module, alphabet=alphabet, labels=None, output=tmp_path / "run", unknown=unknown)
    network = load_network(run)[0]
    numbers = [3, 0, 4, 4, 5]
    with torch.inference_mode():
        (logits,) = network(torch.tensor([[3, 2, 4, 4, 5]]), torch.tensor([5]))
    theirs = logits_of(module, numbers)
    columns = [0, 3, 4, 5]
    torch.testing.assert_close(logits[:, 2:], theirs[:, columns], atol=1e-5, rtol=0)
    if unknown is not None:
        torch.testing.assert_close(logits[:, 1], theirs[:, 2], atol=1e-5, rtol=0)
    answered = [2, *columns] if unknown is not None else columns
    torch.testing.assert_close(
        logits.softmax(-1)[:, 2:],
        theirs[:, answered].softmax(-1)[:, -4:],
        atol=1e-6,
        rtol=0,
    )
    assert logits.softmax(-1)[:, 0].max() < 1e-8
    assert served(run, tmp_path, TEXT).bits_per_character > 0


@given(st.integers(1, 40), st.integers(0, 3), st.floats(0.01, 30), st.integers(0, 100))
def test_an_answer_that_they_have_not_never_wins(H, unused, scale, seed):
    """For every hidden state within (-1, 1), however large the weights: it changes no probability."""
    torch.manual_seed(seed)
    N = 4 + unused
    layer = {
        "weight_ih": torch.randn(H, N),
        "weight_hh": torch.randn(H, H),
        "bias_ih": torch.randn(H),
        "bias_hh": torch.randn(H),
    }
    head = torch.randn(N, H) * scale, torch.randn(N) * scale
    ids = Ids(("a", "b", "c", "d", *[None] * unused))
    _, weights = converted(Parts("rnn", None, [[layer]], head), ids, "lm")
    states = torch.rand(200, H) * 2 - 1
    probabilities = (states @ weights["head.weight"].T + weights["head.bias"]).softmax(-1)
    assert probabilities[:, :2].max() < 2.1e-9 * 2
    logits = (states @ head[0].T + head[1])[:, :4]
    rounding = 1e-7 * max(10, float(logits.abs().max()))  # of float32, which a probability has of its logit
    torch.testing.assert_close(probabilities[:, 2:], logits.softmax(-1), atol=rounding, rtol=0)
    assert weights["head.bias"].abs().max() < 21 + H * head[0].abs().max() + head[1].abs().max()


def test_layers_that_are_modules_of_their_own(tmp_path):
    """Two nn.GRU one after the other are two layers."""

    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.one = nn.Embedding(4, 5), nn.GRU(5, 6, batch_first=True)
            self.two, self.fc = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(self.two(self.one(self.emb(x))[0])[0])

    module = Stacked()
    run = adopt(module, alphabet="ehlo", labels=list("abc"), output=tmp_path / "run")
    same(served(run, tmp_path, TEXT), logits_of(module, [1, 0, 2, 2, 3]))


# What cannot be adopted.


def changed(method, **options):
    """A `Reader` with one method replaced."""
    kind = type("Changed", (Reader,), method)
    return kind(**options)


def with_part(name, part, **options):
    module = Reader(**options)
    module.add_module(name, part)
    return module


def whole(module, x, finish=lambda x: x, state=None):
    out = module.memory(module.table(x), state)[0]
    return finish(out)


def stepwise(self, x):
    hidden, out = None, []
    for step in self.table(x).split(1, dim=1):
        one, hidden = self.memory(step, hidden)
        out.append(one)
    return self.out(torch.cat(out, dim=1) * 1.01)


class WithRelu(Reader):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.out(self.act(self.memory(self.table(x))[0]))


REFUSED = {
    "two embeddings": (lambda: with_part("second", nn.Embedding(4, 2)), "2 embeddings, `table`, `second`"),
    "two linears": (lambda: with_part("fc2", nn.Linear(4, 4)), "2 linear layers, `out`, `fc2`"),
    "a convolution": (lambda: with_part("conv", nn.Conv1d(4, 4, 3)), "`conv` is of type Conv1d"),
    "a norm": (lambda: with_part("norm", nn.LayerNorm(6)), "`norm` is of type LayerNorm"),
    "no recurrence": (
        lambda: nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4)),
        "no nn.RNN, nn.GRU or nn.LSTM",
    ),
    "relu inside": (lambda: with_part("memory", nn.RNN(5, 6, nonlinearity="relu")), "nonlinearity is 'relu'"),
    "a projection": (lambda: with_part("memory", nn.LSTM(5, 6, proj_size=2)), "proj_size is 2, expected 0"),
    "max_norm": (lambda: with_part("table", nn.Embedding(4, 5, max_norm=1.0)), "`table`: max_norm is 1.0"),
    "layers not alike": (lambda: with_part("more", nn.GRU(6, 6)), "`more` and `memory` differ"),
    "too many rows": (lambda: Reader(N=9), "alphabet: 4 ids, but `table` has 9 rows"),
    "too wide one-hot": (lambda: Reader(N=9, embeds=False), "alphabet: 4 ids, but `memory` has 9 inputs"),
    "too many answers": (lambda: Reader(C=7), "labels: 4 found, but `out` answers with 7 numbers"),
    "a wider state": (lambda: Reader(head=False), "labels: 4 found, but `memory` answers with 6 numbers"),
    "not to be called": (
        lambda: changed({"forward": lambda self, x, y: x}),
        r"Changed cannot be called as module\(ids\).*TypeError.*forward\(self, ids\)",
    ),
    "another batch": (
        lambda: changed({"forward": lambda self, x: whole(self, x, self.out, torch.zeros(1, 32, 6))}),
        "cannot be called.*not even with one row.*hidden",
    ),
    "a dict": (lambda: changed({"forward": lambda self, x: {"logits": whole(self, x)}}), "answers with dict"),
    "a mean": (
        lambda: changed({"forward": lambda self, x: self.out(whole(self, x)).mean()}),
        r"answers to 3 × 5 characters with \(\)",
    ),
    "before the embedding": (
        lambda: changed({"forward": lambda self, x: Reader.forward(self, (x + 1) % 4)}),
        "something happens between what it is given and `table`",
    ),
    "after the embedding": (
        lambda: changed({"between": lambda self, x: x * 2}),
        "something happens between `table` and `memory`",
    ),
    "before the linear": (WithRelu, r"something happens between `memory` and `out`: `act` \(ReLU\)"),
    "after the linear": (
        lambda: changed({"forward": lambda self, x: Reader.forward(self, x).log_softmax(-1)}),
        "something happens between `out` and its answer",
    ),
    "a state": (
        lambda: changed({"forward": lambda self, x: whole(self, x, self.out, torch.ones(1, len(x), 6))}),
        "`memory` starts from a state that is not zero",
    ),
    "step by step": (lambda: changed({"forward": stepwise}), "`memory` is called 5 times for one text"),
    "not used": (
        lambda: changed({"forward": lambda self, x: functional.linear(whole(self, x), self.out.weight * 2)}),
        "`out` is called 0 times",
    ),
    "the last step both ways": (
        lambda: changed({"forward": lambda self, x: self.out(whole(self, x)[:, -1])}, two_way=True),
        r"the last step of both directions, \[:, -1\]",
    ),
    "the last answer both ways": (
        lambda: changed({"forward": lambda self, x: self.out(whole(self, x))[:, -1]}, two_way=True),
        r"the last step of both directions, \[:, -1\]",
    ),
    "a mean over time": (
        lambda: changed({"forward": lambda self, x: self.out(whole(self, x).mean(1))}),
        "something happens between `memory` and `out`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_adopted_is_refused_by_name(name, tmp_path):
    """The message names the part or the place, and nothing is written."""
    make, message = REFUSED[name]
    torch.manual_seed(0)
    module = make()
    with pytest.raises(AdoptError, match=f"(?s){message}"):
        adopt(module, alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert module.training
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphabet": ["e", "h", "ll", "o"]}, "id 2 is 'll', expected one code point"),
        ({"alphabet": "ehho"}, "'h' stands there more than once"),
        ({"alphabet": [None] * 4}, "found no character"),
        ({"alphabet": {"e": 0, "h": 1, "l": 2, "o": 3}}, "found dict, expected a list"),
        ({"unknown": 4}, "found id 4, expected one from 0 to 3"),
        ({"unknown": 2}, "id 2 is the character 'l'"),
        ({"labels": ["a", "a", "b", "c"]}, "a label stands there twice"),
        (
            {"task": "classify"},
            "classify needs an answer for each text; the module gives one for each character",
        ),
        ({"task": "lm"}, "labels is None for lm"),
        ({"task": "tagging"}, "found 'tagging', expected one of"),
        ({"normalisation": "nfc"}, "normalisation is 'nfc'"),
        ({"label_scheme": "word"}, "label_scheme"),
    ],
)
def test_facts_that_contradict_the_module_or_themselves(options, message, tmp_path):
    """What is said of the module is held against it before anything is written."""
    facts = {"alphabet": "ehlo", "labels": list("abcd"), **options}
    with pytest.raises(OhlolError, match=message):
        adopt(Reader(), output=tmp_path / "run", **facts)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(tmp_path):
    """A model that diverged is not adopted."""
    module = Reader()
    module.out.bias.data[0] = float("nan")
    with pytest.raises(AdoptError, match=r"head\.bias: holds a number that is not finite"):
        adopt(module, alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")


def test_a_folder_that_is_there_is_never_replaced(tmp_path):
    """Whole or not at all, and never over a person's files; an empty folder is taken."""
    (tmp_path / "run").mkdir()
    adopt(Reader(), alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")
    before = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    with pytest.raises(AdoptError, match="is not an empty folder"):
        adopt(Reader(), alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == before


# The command line.


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_an_adopted_run_is_a_run(tmp_path):
    """inspect, export and predict take it; train and evaluate say that it names no data."""
    folder = adopt(Reader(two_way=True), alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")
    told = run("inspect", folder).stdout
    assert "Reader, given ids (B, T) int64, answers (B, T, C)" in told
    run("export", folder)
    assert len(run("predict", folder / "bundle", TEXT).stdout.strip()) == 5
    assert "Reader" in run("inspect", folder / "bundle").stdout
    for command in (["train", folder / "recipe.toml", "-o", tmp_path / "x"], ["evaluate", folder]):
        assert 'data.format is "none"' in run(*command, code=1).stderr


RECIPE = """
[task]
kind = "tag"
[data]
format = "none"
alphabet = "ehlo"
labels = ["a", "b", "c", "d"]
[model]
cell = "gru"
embedding_size = 5
hidden_size = 6
num_layers = 2
bidirectional = true
"""


@pytest.fixture
def files(tmp_path):
    """A module, its weights and a recipe that says what it is."""
    torch.manual_seed(0)
    module = Reader(cell="gru", layers=2, two_way=True)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "r.toml").write_text(RECIPE)
    return module


def weights(tmp_path, code=0, *more):
    return run("export", "--state-dict", tmp_path / "w.safetensors", "--recipe", tmp_path / "r.toml", "--formats",
               "onnx", *more, code=code)  # fmt: skip


def test_a_state_dict_is_exported(files, tmp_path):
    """Without the module's code: the recipe says what it is, and the bundle answers as the module does."""
    weights(tmp_path)
    model = ohlol.load(tmp_path / "bundle")
    same(model(TEXT), logits_of(files, [1, 0, 2, 2, 3]))
    source = model.manifest.provenance["data"]["weights"]
    assert source["file"] == "w.safetensors"
    assert len(source["sha256"]) == 64
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "r.toml", "w.safetensors"}


@pytest.mark.parametrize("reserved", [1, 2, 3])
@pytest.mark.parametrize("embeds", [True, False])
def test_reserved_ids_before_the_characters(embeds, reserved, tmp_path):
    """The characters are the last ids; --unknown says which of those before is the unknown; 1 where there are two."""
    module = Reader(N=4 + reserved, embeds=embeds, bias=False)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    kind = "embedding" if embeds else "one_hot"
    (tmp_path / "r.toml").write_text(
        RECIPE.replace("num_layers = 2\nbidirectional = true", f'input = "{kind}"').replace("gru", "rnn")
    )
    weights(tmp_path, 0, *(["--unknown", 0] if reserved != 2 else []))
    numbers = [k if k < 2 and n == 2 else k + reserved for n, k in enumerate([1, 0, 1, 2, 3])]
    numbers[2] = 1 if reserved == 2 else 0
    wanted = logits_of(module, numbers, one_hot=0 if embeds else 4 + reserved)
    same(ohlol.load(tmp_path / "bundle")("hexlo"), wanted)


def test_a_checkpoint_of_our_own(files, tmp_path):
    """The weights of a run are a state dict like another."""
    folder = adopt(files, alphabet="ehlo", labels=list("abcd"), output=tmp_path / "run")
    (tmp_path / "w.safetensors").write_bytes((folder / "best" / "model.safetensors").read_bytes())
    weights(tmp_path)
    same(ohlol.load(tmp_path / "bundle")(TEXT), logits_of(files, [1, 0, 2, 2, 3]))
    state = load_file(tmp_path / "w.safetensors")
    del state["layers.1.1.bias_hh_l0"]
    save_file(state, tmp_path / "w.safetensors")
    assert "weight layers.1.1.bias_hh_l0: expected (18), found nothing" in weights(tmp_path, 1).stderr


def test_the_next_character_from_a_state_dict(tmp_path):
    """lm: the answers are rearranged as the ids are."""
    module = Reader(N=6, C=6, cell="lstm")
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "r.toml").write_text(
        '[task]\nkind = "lm"\n[data]\nformat = "none"\nalphabet = "ehlo"\n[model]\nembedding_size = 5\nhidden_size = 6\n'
    )
    weights(tmp_path)
    result = ohlol.load(tmp_path / "bundle")(TEXT)
    logits = logits_of(module, [3, 2, 4, 4, 5])[:, 1:]
    bits = functional.cross_entropy(logits[:4], torch.tensor([1, 3, 3, 4])) / torch.tensor(2.0).log()
    assert result.bits_per_character == pytest.approx(float(bits), abs=1e-4)


def test_with_data_to_measure_by(files, tmp_path):
    """A recipe that names test data, and none to train on, lets the bundle be evaluated."""
    (tmp_path / "t.tsv").write_text("hello\tabcda\n")
    (tmp_path / "r.toml").write_text(RECIPE.replace('"none"', '"tsv"\ntest = "t.tsv"'))
    weights(tmp_path)
    assert "accuracy" in run("evaluate", tmp_path / "bundle", "--data", tmp_path).stdout
    refused = run("train", tmp_path / "r.toml", "-o", tmp_path / "x", code=1).stderr
    assert "data.train: missing" in refused


def edit(change):
    def on(folder):
        state = load_file(folder / "w.safetensors")
        change(state)
        save_file(state, folder / "w.safetensors")

    return on


def replace(old, new):
    return lambda folder: (folder / "r.toml").write_text(RECIPE.replace(old, new))


def cut(folder):
    path = folder / "w.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "w.safetensors").unlink(), "no such file"),
        (lambda f: torch.save({}, f / "w.safetensors"), "a pickled file.*save_file"),
        (cut, "damaged"),
        (replace("hidden_size = 6", "hidden_size = 7"), r"weight memory\.weight_hh_l0: expected \(21, 7\), found \(18, 6\)"),
        (replace("embedding_size = 5", "embedding_size = 9"), r"weight table\.weight: expected \(N, 9\), found \(4, 5\)"),
        (replace("num_layers = 2", "num_layers = 1"), r"weight memory\.bias_hh_l1: expected nothing, found \(18\)"),
        (replace("num_layers = 2", "num_layers = 3"), r"weight memory\.weight_ih_l2: expected \(18, 12\), found nothing"),
        (replace("= true", "= false"), r"weight memory\.weight_ih_l0_reverse: expected nothing"),
        (replace('"gru"', '"lstm"'), r"weight memory\.weight_ih_l0: expected \(24, 5\), found \(18, 5\)"),
        (replace('"gru"', '"gru"\nhead = "none"'), r'linear: expected nothing, since model\.head = "none"; found out\.weight'),
        (replace('"gru"', '"gru"\ninput = "one_hot"'), r"embedding: expected nothing.*found table\.weight"),
        (replace('"d"]', '"d", "e"]'), r"answer with 4 numbers, expected 5: data\.labels"),
        (replace('"ehlo"', '"ehlo!"'), "the input has 4 ids, expected at least 5"),
        (replace('alphabet = "ehlo"\n', ""), r"data\.alphabet: missing"),
        (edit(lambda s: s.pop("out.weight")), "linear: expected one weight"),
        (edit(lambda s: s.pop("table.weight")), "embedding: expected one weight.*found nothing"),
        (edit(lambda s: s.pop("memory.bias_ih_l1")), r"memory\.bias_ih_l1: expected \(18\), found nothing"),
        (edit(lambda s: s.update(norm=torch.ones(6))), r"weight norm: expected nothing, found \(6\)"),
        (edit(lambda s: s.update({"b.weight_ih_l0": torch.ones(6)})), "2 recurrent modules"),
        (edit(lambda s: s.update({"out.bias": torch.ones(4, dtype=torch.int64)})), "found torch.int64"),
        (edit(lambda s: s.update({"out.bias": torch.ones(4) / 0})), "not finite"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_recipes(files, spoil, message, tmp_path):
    """Each mismatch is named: the weight, the shape expected and the one found; and no bundle is left."""
    spoil(tmp_path)
    result = weights(tmp_path, 1)
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run", "--state-dict", "w.safetensors"],
        ["--state-dict", "w.safetensors"],
        ["--recipe", "r.toml"],
        ["run", "--recipe", "r.toml"],
        ["run", "--unknown", "1"],
    ],
)
def test_wrong_usage(arguments):
    """A run or a state dict with its recipe: anything else is exit code 2."""
    assert "--state-dict" in run("export", *arguments, code=2).stderr


def test_a_bias_free_linear_as_wide_as_the_embedding_is_told_by_name(tmp_path):
    """Two matrices of one shape: the one with `emb` in its name is looked up, and without a name it is refused."""
    state = {f"r.{name}": value for name, value in nn.RNN(6, 6).state_dict().items()}
    state |= {"decode.weight": torch.randn(4, 6), "emb.weight": torch.randn(4, 6)}
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "r.toml").write_text(
        RECIPE.replace("num_layers = 2\nbidirectional = true", "").replace("gru", "rnn").replace("= 5", "= 6")
    )
    weights(tmp_path)
    found = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert found["network"]["embedding_size"] == 6
    state["inp.weight"] = state.pop("emb.weight")
    save_file(state, tmp_path / "w.safetensors")
    assert "cannot tell which is the embedding" in weights(tmp_path, 1).stderr
