"""A network written as the bytes of each file format."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.contract import BATCH, TIME, Kind
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.onnx_file import DIGEST, digest
from ohlol.export.graph import Graph
from ohlol.export.nodes import Precision
from ohlol.export.onnx_graph import build
from ohlol.train.network import Network

# What torch.export notes of each node's origin, with the paths of this machine.
NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")
TRACED = (2, 5)  # B and T of the example; the proof runs other sizes


def to_onnx(
    network: Network,
    manifest: Manifest,
    kind: Kind = "model",
    precision: Precision = "single",
    batch: bool = False,
) -> bytes:
    """The network as one ONNX file, complete by itself, the manifest's facts in its metadata.

    The same network and manifest give the same bytes.
    """
    model = build(network, manifest, kind, precision, batch)
    if kind != "text":  # onnx's checker does not know ONNX Runtime's own operators
        onnx.checker.check_model(model, full_check=True)
    metadata = manifest.to_metadata(kind)
    metadata[DIGEST] = json.dumps(digest(model.SerializeToString(deterministic=True)))
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString(deterministic=True))


def to_torchscript(network: Network, alphabet: Alphabet) -> bytes:
    """The traced twin, with the same inputs and outputs."""
    graph = Graph(network, alphabet).eval()
    with _quiet(), torch.inference_mode():
        traced = torch.jit.trace(graph, _example(), check_trace=False)  # type: ignore[no-untyped-call]  # the proof is the check
    whole = io.BytesIO()
    torch.jit.save(traced, whole)
    return _without_source(whole.getvalue())


def to_program(network: Network, alphabet: Alphabet) -> bytes:
    """The network as a program of `torch.export` (`.pt2`), batch and time dynamic."""
    axes = torch.export.Dim(BATCH, min=1), torch.export.Dim(TIME, min=1)
    with _quiet():
        program = torch.export.export(
            Graph(network, alphabet, scan=True).eval(),
            _example(),
            dynamic_shapes=({0: axes[0], 1: axes[1]}, {0: axes[0]}),
        )
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                for note in NOTES:
                    node.meta.pop(note, None)
        whole = io.BytesIO()
        torch.export.save(program, whole)
    return whole.getvalue()


def _example() -> tuple[Tensor, Tensor]:
    B, T = TRACED
    return torch.full((B, T), ord("a"), dtype=torch.int32), torch.tensor([T, T - 2], dtype=torch.int32)


def _without_source(archive: bytes) -> bytes:
    """A TorchScript archive without its debug records, which hold the paths of this machine."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    out = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(out)
    for name in reader.get_all_records():
        if (
            not name.endswith(".debug_pkl")
            and not name.startswith(".data/")
            and name not in ("version", "byteorder")
        ):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return out.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' talk about themselves; their errors still come as errors."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
