"""What is read of an `.onnx` file without onnx: digests, counts, tensors; damage is always one error."""

from __future__ import annotations

import math

import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ohlol.artifacts.bundle import Layout, shipped
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.onnx_file import (
    DIGEST,
    check_digest,
    check_whole,
    digest,
    metadata,
    read_tensor,
    summary,
)

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


def message(number, content):
    """A field of protobuf that holds bytes."""
    size, digits = len(content), b""
    while size > 127:
        size, digits = size >> 7, digits + bytes([size & 127 | 128])
    return varint(number << 3 | 2) + digits + bytes([size]) + content


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def wrapped(tensor, *numbers):
    """`tensor` inside of messages, the outermost first."""
    for number in reversed(numbers):
        tensor = message(number, tensor)
    return tensor


OUTSIDE = (
    b"\x08\x04\x10\x01" + message(8, b"w") + message(13, message(1, b"location") + message(2, b"/etc/passwd"))
)
PLACES = {
    "an initialiser": (7, 5),
    "a sparse one's values": (7, 15, 1),
    "a sparse one's indices": (7, 15, 2),
    "a constant": (7, 1, 5, 5),
    "constants": (7, 1, 5, 10),
    "a sparse constant": (7, 1, 5, 22, 1),
    "the body of a loop": (7, 1, 5, 6, 5),
    "one of several bodies": (7, 1, 5, 11, 1, 5, 5),
    "a function": (25, 7, 5, 5),
    "training": (20, 1, 5),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_weight_stands_in_another_file(place):
    """A runtime would go and read that file, wherever it is: refused before any runtime sees the model."""
    check_whole(MODEL, "here")
    check_whole(MODEL + wrapped(b"\x08\x04\x10\x01" + message(8, b"w"), *PLACES[place]), "here")
    for tensor in (OUTSIDE, b"\x70\x01"):  # external_data, and data_location EXTERNAL
        with pytest.raises(BundleError, match="here: a weight of it stands in another file"):
            check_whole(MODEL + wrapped(tensor, *PLACES[place]), "here")


def test_no_field_hides_behind_a_larger_number():
    """protobuf leaves out the bits of a field's number above 32: `external_data` so written is one to a runtime."""
    hidden = (13 << 3 | 2) + (1 << 32)
    digits = bytes(hidden >> shift & 127 | 128 for shift in range(0, 28, 7)) + bytes([hidden >> 28])
    content = message(1, b"location") + message(2, b"/etc/passwd")
    tensor = b"\x08\x04\x10\x01" + digits + bytes([len(content)]) + content
    with pytest.raises(BundleError, match="the number of the field at byte 4 is too large"):
        check_whole(MODEL + wrapped(tensor, 7, 5), "here")


def test_graphs_in_graphs_without_end():
    """A small file that is thousands of graphs deep costs neither the stack nor time."""
    deep = b""
    for _ in range(2_000):
        deep = wrapped(deep, 1, 5, 6)
    for read in (summary, check_whole):
        with pytest.raises(BundleError, match="nested deeper"):
            read(message(7, deep), "here")


def test_metadata():
    """What the file says of itself, as a runtime reads it; a name that is there twice has no one meaning."""
    session = onnxruntime.InferenceSession(MODEL)
    assert metadata(MODEL, "here") == session.get_modelmeta().custom_metadata_map
    twice = MODEL + message(14, message(1, b"ohlol.task") + message(2, b'"lm"'))
    with pytest.raises(BundleError, match=r"'ohlol\.task' is there twice"):
        metadata(twice, "here")
    for damaged in (MODEL + message(14, message(1, b"\xff")), MODEL + b"\x70\x01", MODEL[:-1]):
        with pytest.raises(BundleError, match="here: not an ONNX file, or its metadata is damaged"):
            metadata(damaged, "here")


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=5),
    st.sampled_from([MODEL, *((shipped() / name).read_bytes() for name in (Layout.stream, Layout.text))]),
)
def test_any_change_of_a_model_is_read_or_refused(changes, model):
    """Bytes cut out and put in anywhere: what can still be read can be counted, and the rest is one error."""
    for place, length, new in changes:
        at = int(place * len(model))
        model = model[:at] + new + model[at + length :]
    for read in (
        lambda: summary(model, "here").numbers,
        lambda: check_whole(model, "here"),
        lambda: metadata(model, "here"),
    ):
        try:
            read()
        except BundleError as error:
            assert str(error).startswith("here: ")
