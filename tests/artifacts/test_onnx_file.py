"""What is read of an `.onnx` file without onnx: digests, counts, tensors; damage is always one error."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.onnx_file import DIGEST, check_digest, digest, read_tensor, summary

MODEL = (shipped() / Layout.onnx).read_bytes()
SAID = {DIGEST: f'"{digest(MODEL)}"'}
INSIDE = MODEL.index(b"ohlol.")  # the first metadata property; the graph and its weights come before


def test_the_shipped_file():
    """A scan for each layer, the axes of its weights, and the versions that the contract pins."""
    found = summary(MODEL, "model.onnx")
    assert (found.ir_version, found.opsets) == (10, {"": 18})
    assert found.nodes["Scan"] == 2
    assert ("head", "float32", (8, 4)) in found.weights
    assert found.numbers == sum(math.prod(shape) for _, _, shape in found.weights)


def test_the_digest_is_that_of_graph_and_weights():
    """Metadata may carry it, since it is not part of what is digested."""
    check_digest(MODEL, SAID, "here")
    assert digest(MODEL + b"\x72\x04\x0a\x02hi") == digest(MODEL), "field 14, metadata_props"
    assert digest(MODEL + b"\x32\x02hi") != digest(MODEL), "field 6, doc_string"
    check_digest(MODEL[:-1], {}, "a file that says nothing of a digest passes")


@given(st.integers(0, INSIDE - 40), st.integers(1, 255))
def test_no_byte_changes_unnoticed(at, by):
    """Any byte of the graph or a weight: damaged or changed, whatever protobuf makes of it."""
    data = bytearray(MODEL)
    data[at] ^= by
    with pytest.raises(BundleError, match=r"here: damaged"):
        check_digest(bytes(data), SAID, "here")


@given(st.integers(0, len(MODEL) - 1))
def test_no_cut_goes_unnoticed(at):
    """A download that broke off: the digest, or the reader, says so."""
    cut = MODEL[:at]
    if digest_or_none(cut) != digest(MODEL):
        with pytest.raises(BundleError, match=r"here: damaged"):
            check_digest(cut, SAID, "here")
    else:
        assert at > INSIDE - 40, "only metadata was cut off, at the end of a field"


def digest_or_none(data):
    try:
        return digest(data)
    except (IndexError, ValueError):
        return None


@given(st.binary(max_size=300) | st.integers(0, len(MODEL)).map(lambda at: MODEL[:at]))
def test_any_bytes_are_summed_up_or_refused(data):
    """Never another error than ours, never endless."""
    try:
        summary(data, "here")
    except BundleError as error:
        assert str(error).startswith("here: not an ONNX file, or damaged")
    try:
        read_tensor(data, "here")
    except BundleError as error:
        assert str(error).startswith("here: not a tensor")
