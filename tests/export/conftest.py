"""Networks with random weights, and the claims of their exported files."""

from __future__ import annotations

import pytest
import torch

from ohlol.artifacts.alphabet import Alphabet
from ohlol.artifacts.bundle import ONNX, Layout
from ohlol.artifacts.manifest import Manifest
from ohlol.export import proof
from ohlol.export.bundle import PRECISIONS
from ohlol.export.formats import to_onnx, to_program, to_torchscript
from ohlol.train.network import Network
from ohlol.train.recipe import ModelSection

ALPHABET = Alphabet("ehlo é\u0301中😀")  # accents, a combining mark, another page, another plane
LABELS = ("a", "b", "c", "d")


def make_network(task, cell, two_way, layers, given="embedding", head="linear", alphabet=ALPHABET, **more):
    """A network with random weights and the manifest it would be exported with."""
    classes = len(alphabet) if task == "lm" else len(LABELS)
    width = classes // (2 if two_way else 1)
    model = ModelSection(
        input=given,
        cell=cell,
        num_layers=layers,
        bidirectional=two_way,
        head=head,
        **{"embedding_size": 7, "hidden_size": width if head == "none" else 6, **more},
    )
    torch.manual_seed(layers)
    network = Network(model, task, len(alphabet), classes).eval()
    return network, Manifest(task, alphabet, () if task == "lm" else LABELS, None, model.model_dump())


def written(file, network, manifest):
    """The bytes of a bundle's file."""
    if file == Layout.torchscript:
        return to_torchscript(network, manifest.alphabet)
    if file == Layout.program:
        return to_program(network, manifest.alphabet)
    return to_onnx(network, manifest, ONNX[file], PRECISIONS.get(file, "single"), file == Layout.batch)


def claimed(file, content, manifest):
    """What the bytes of a file claim, in every runtime there is."""
    if file in ONNX:
        return proof.onnx_claims(file, content, ONNX[file], manifest, PRECISIONS.get(file, "single"))
    load = proof.torchscript if file == Layout.torchscript else proof.program
    return [proof.torch_claim(file, load(content), manifest.task)]


@pytest.fixture(scope="session")
def make():
    return make_network


@pytest.fixture(scope="session")
def write():
    return written


@pytest.fixture(scope="session")
def claims():
    return claimed
