"""The ways of running a tagger that `serving.py` puts beside ours. Each takes bytes of lines and gives bytes of labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from ohlol.artifacts.alphabet import Alphabet, codepoints
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.files import sha256
from ohlol.artifacts.manifest import Entry, Manifest
from ohlol.export.formats import to_onnx, to_torchscript
from ohlol.serve.model import TASKS, Model
from ohlol.serve.rows import Rows
from ohlol.serve.runtimes import cpus
from ohlol.train.network import Network
from ohlol.train.recipe import ModelSection

ROWS = 64  # lines in a batch of those that take them in the file's order
BLOCK = 1 << 20  # bytes that ours reads at once
LABELS = ("B", "I", "O", "S")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}

Answer = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Shape:
    cell: str
    layers: int
    hidden: int
    both: bool = False


@dataclass
class Drawn:
    """A network of a shape with weights drawn at random, and its files."""

    shape: Shape
    network: Network
    manifest: Manifest

    @cached_property
    def files(self) -> dict[str, bytes]:
        made = {Layout.onnx: to_onnx(self.network, self.manifest)}
        made[Layout.int8] = to_onnx(self.network, self.manifest, precision="int8")
        if self.shape.cell != "rnn":
            made[Layout.batch] = to_onnx(self.network, self.manifest, batch=True)
        return made

    @cached_property
    def model(self) -> Model[Any]:
        return TASKS["tag"](self.manifest, self.files, "drawn")

    @property
    def operations(self) -> int:
        """Floating-point operations of the products for one character: two for each weight that is multiplied.

        The first layer's input weights are left out: in the files they are a table, which is looked up.
        """
        s = self.shape
        ways = 2 if s.both else 1
        recurrent = s.layers * ways * GATES[s.cell] * s.hidden * s.hidden
        between = (s.layers - 1) * ways * GATES[s.cell] * s.hidden * ways * s.hidden
        return 2 * (recurrent + between + ways * s.hidden * len(LABELS))


def draw(shape: Shape, lines: list[str]) -> Drawn:
    model = ModelSection(
        cell=shape.cell, num_layers=shape.layers, hidden_size=shape.hidden, embedding_size=64, bidirectional=shape.both
    )  # fmt: skip
    alphabet = Alphabet("".join(sorted({c for line in lines for c in line})))
    torch.manual_seed(0)
    network = Network(model, "tag", len(alphabet), len(LABELS)).eval().requires_grad_(False)
    return Drawn(shape, network, Manifest("tag", alphabet, LABELS, None, model.model_dump()))


def bundle(shape: Shape, lines: list[str], folder: Path) -> Path:
    """A bundle of a drawn network, without test data or proof."""
    drawn, path = draw(shape, lines), folder / "bundle"
    path.mkdir()
    files = {name: content for name, content in drawn.files.items() if name != Layout.int8}
    for name, content in files.items():
        (path / name).write_bytes(content)
    entries = {name: Entry(sha256(content), len(content)) for name, content in files.items()}
    (path / Layout.manifest).write_text(drawn.manifest.with_files(entries).to_json(), encoding="utf-8")
    return path


def bare(drawn: Drawn, text: str) -> Callable[[], Any]:
    """One run of a session on arrays that are ready."""
    session = drawn.model._session
    points = codepoints(text)[None]
    feed = {"codepoints": points, "lengths": np.array([len(text)], dtype=np.int32)}
    return lambda: session.run(["label_ids", "probabilities"], feed)


def eager_one(drawn: Drawn, text: str) -> str:
    """A text through PyTorch, with the steps before and after it that ours has."""
    alphabet, labels = drawn.manifest.alphabet, drawn.model.labels
    ids = torch.from_numpy(alphabet.encode(alphabet.normalise(text)))[None]
    with torch.inference_mode():
        logits = drawn.network(ids, torch.tensor([ids.shape[1]]))
        logits.softmax(-1)
    return labels.join(logits.argmax(-1)[0].int().numpy())


def sides(drawn: Drawn) -> dict[str, Answer]:
    """Every way, by name; "ohlol" first."""
    found = {"ohlol": ours(drawn.model)}
    if drawn.shape.hidden >= 256:
        low = TASKS["tag"](drawn.manifest, {Layout.onnx: drawn.files[Layout.int8]}, "int8")
        found["ohlol, model.int8.onnx"] = ours(low)
    found["PyTorch eager, padded"] = in_file_order(drawn, padded(drawn))
    found["PyTorch eager, packed"] = in_file_order(drawn, packed(drawn))
    found["TorchScript"] = in_file_order(drawn, torchscript(drawn))
    found["plain onnxruntime script"] = in_file_order(drawn, plain(drawn))
    found["OpenVINO"] = in_file_order(drawn, openvino_run(compiled(drawn.files[Layout.onnx], streams=1)))
    for name in (Layout.onnx, Layout.batch):
        if name in drawn.files:
            model = TASKS["tag"](drawn.manifest, {Layout.onnx: drawn.files[Layout.onnx]}, "OpenVINO")
            model.runner._session = InOpenVINO(compiled(drawn.files[name], streams=cpus()))
            found[f"OpenVINO on our batches, {name}"] = ours(model)
    return found


def ours(model: Model[Any]) -> Answer:
    """As `ohlol predict -i FILE -o FILE` does, from memory to memory."""

    def windows(data: bytes) -> Iterator[Rows]:
        start = 0
        while start < len(data):
            end = data.rfind(b"\n", start, start + BLOCK) + 1 or data.find(b"\n", start) + 1 or len(data)
            yield Rows.of_lines(data[start:end].decode(), model.manifest.alphabet)
            start = end

    return lambda data: b"".join(answers.lines().encode() for answers in model.answers(windows(data)))


def in_file_order(
    drawn: Drawn, run: Callable[[NDArray[np.int32], NDArray[np.int32]], NDArray[Any]]
) -> Answer:
    """Lines in the file's order, `ROWS` at once, padded to the longest of them."""
    alphabet, labels = drawn.manifest.alphabet, drawn.model.labels

    def answer(data: bytes) -> bytes:
        out = []
        lines = data.decode().splitlines()
        for first in range(0, len(lines), ROWS):
            rows = [codepoints(alphabet.normalise(line)) for line in lines[first : first + ROWS]]
            lengths = np.array([len(row) for row in rows], dtype=np.int32)
            points = np.zeros((len(rows), max(1, lengths.max())), dtype=np.int32)
            for row, own in zip(points, rows, strict=True):
                row[: len(own)] = own
            ids = run(points, lengths)
            out += [labels.join(row[:length]) for row, length in zip(ids, lengths.tolist(), strict=True)]
        return ("\n".join(out) + "\n").encode()

    return answer


def padded(drawn: Drawn) -> Callable[..., NDArray[Any]]:
    """Our network as it trains: both ways is two padded passes, the second over rows reversed within their length."""

    def run(points: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[Any]:
        ids = torch.from_numpy(drawn.manifest.alphabet.ids(points))
        with torch.inference_mode():
            return drawn.network(ids, torch.from_numpy(lengths).long()).argmax(-1).numpy()

    return run


def packed(drawn: Drawn) -> Callable[..., NDArray[Any]]:
    """One `nn.RNN`, `nn.GRU` or `nn.LSTM` with the same weights, over packed rows."""
    s, network = drawn.shape, drawn.network
    layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[s.cell](
        64, s.hidden, s.layers, bidirectional=s.both, batch_first=True
    )
    weights = {}
    for number, directions in enumerate(network.layers):
        for way, one in zip(("", "_reverse"), directions, strict=False):
            for name, value in one.state_dict().items():
                weights[f"{name.removesuffix('_l0')}_l{number}{way}"] = value
    layer.load_state_dict(weights)

    def run(points: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[Any]:
        ids = torch.from_numpy(drawn.manifest.alphabet.ids(points))
        with torch.inference_mode():
            rows = nn.utils.rnn.pack_padded_sequence(
                network.embedding(ids),
                torch.from_numpy(lengths).long(),
                batch_first=True,
                enforce_sorted=False,
            )
            states, _ = nn.utils.rnn.pad_packed_sequence(
                layer(rows)[0], batch_first=True, total_length=points.shape[1]
            )
            return network.head(states).argmax(-1).numpy()

    return run


def torchscript(drawn: Drawn) -> Callable[..., NDArray[Any]]:
    from ohlol.export.proof import torchscript as loaded

    module: Any = loaded(to_torchscript(drawn.network, drawn.manifest.alphabet))

    def run(points: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[Any]:
        with torch.inference_mode():
            return module(torch.from_numpy(points), torch.from_numpy(lengths))[2].numpy()

    return run


def plain(drawn: Drawn) -> Callable[..., NDArray[Any]]:
    """ONNX Runtime as it comes: its own number of threads, spinning."""
    session = onnxruntime.InferenceSession(drawn.files[Layout.onnx], providers=["CPUExecutionProvider"])
    return lambda points, lengths: session.run(["label_ids"], {"codepoints": points, "lengths": lengths})[0]


def compiled(onnx: bytes, streams: int) -> Any:
    """On all CPUs, in float32: by default it may compute in bfloat16, which moves recurrent models by tenths."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cpus(), "NUM_STREAMS": streams}
    core = openvino.Core()
    return core.compile_model(core.read_model(onnx), "CPU", settings)


def openvino_run(model: Any) -> Callable[..., NDArray[Any]]:
    request = model.create_infer_request()

    def run(points: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[Any]:
        request.infer({"codepoints": points, "lengths": lengths})
        return request.get_tensor("label_ids").data

    return run


class InOpenVINO:
    """A compiled model in the place of a session; each thread has a request of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.own = threading.local()

    def run(self, names: list[str], feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if not hasattr(self.own, "request"):
            self.own.request = self.model.create_infer_request()
        self.own.request.infer(feed)
        return [self.own.request.get_tensor(name).data for name in names]
