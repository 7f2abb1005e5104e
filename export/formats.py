"""A graph written as an ONNX file and as a TorchScript file."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.contract import BATCH, INPUTS, IR_VERSION, OPSET, TIME, outputs
from ohlol.artifacts.errors import ProofError
from ohlol.artifacts.manifest import Manifest
from ohlol.export.graph import Graph, OnnxGraph
from ohlol.train.network import Network

TRACED = (2, 5)  # B and T of the example; the proof runs other sizes


def to_onnx(network: Network, manifest: Manifest) -> bytes:
    """The network as one ONNX file, complete by itself, the manifest's facts in its metadata.

    The same network and manifest give the same bytes.
    """
    graph = OnnxGraph(network, manifest.alphabet).eval()
    batch, time = torch.export.Dim(BATCH, min=1), torch.export.Dim(TIME, min=1)
    with _quiet():
        program = torch.onnx.export(
            graph,
            _example(),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in INPUTS],
            output_names=[tensor.name for tensor in outputs(manifest.task)],
            dynamic_shapes=({0: batch, 1: time}, {0: batch}),
        )
    assert program is not None
    model = program.model_proto
    _clean(model)
    onnx.helper.set_model_props(model, manifest.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    _check_axes(model, manifest)
    return bytes(model.SerializeToString(deterministic=True))


def to_torchscript(network: Network, alphabet: Alphabet) -> bytes:
    """The traced twin, with the same inputs and outputs."""
    graph = Graph(network, alphabet).eval()
    with _quiet(), torch.inference_mode():
        traced = torch.jit.trace(graph, _example(), check_trace=False)  # type: ignore[no-untyped-call]  # the proof is the check
    whole = io.BytesIO()
    torch.jit.save(traced, whole)
    return _without_source(whole.getvalue())


def _example() -> tuple[Tensor, Tensor]:
    B, T = TRACED
    return torch.full((B, T), ord("a"), dtype=torch.int32), torch.tensor([T, T - 2], dtype=torch.int32)


def _clean(model: onnx.ModelProto) -> None:
    """Leave out what the exporter notes of this machine: stack traces with paths, its own metadata."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "ohlol", ""
    model.graph.name = "ohlol"
    model.doc_string = model.graph.doc_string = ""
    for element in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info,
                    *model.graph.input, *model.graph.output):  # fmt: skip
        element.doc_string = ""
        del element.metadata_props[:]
    del model.metadata_props[:]


def _check_axes(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Batch and time must be symbolic on every input and output: exporters freeze them without a word."""
    for value in (*model.graph.input, *model.graph.output):
        tensor = next(t for t in (*INPUTS, *outputs(manifest.task)) if t.name == value.name)
        found = [axis.dim_param or str(axis.dim_value) for axis in value.type.tensor_type.shape.dim]
        expected = [axis for axis in tensor.shape if axis in (BATCH, TIME)]
        if found[: len(expected)] != expected:
            raise ProofError(
                f"model.onnx: `{value.name}` has axes {found}, expected {expected} to be symbolic; this is a bug "
                "of ohlol with this version of torch: please report it with `pip list`"
            )


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
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
