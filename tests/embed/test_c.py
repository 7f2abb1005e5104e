"""C source of each bundle's run answers nasty strings as Python does, from UTF-8 on."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest

from ohlol.artifacts import words
from ohlol.artifacts.alphabet import codepoints
from ohlol.artifacts.bundle import open_bundle
from ohlol.export import c, c_source
from ohlol.export.c_proof import Library


@pytest.fixture(scope="module")
def libraries(bundles, program, tmp_path_factory):
    """The C functions of each bundle, compiled from the run that it was made of."""
    cc, folder = program("cc"), tmp_path_factory.mktemp("c")
    with pytest.MonkeyPatch.context() as patch:  # proved together with what Python answers, below
        patch.setattr(c.shutil, "which", lambda name: None)
        for name, path in bundles.items():
            for file, content in c.export(path.with_name(f"{name}.run"), name).files.items():
                (folder / file).write_bytes(content)
    names = {name: c_source.identifier(name) for name in bundles}
    (folder / "all.c").write_text("".join(f'#include "{name}.c"\n' for name in names.values()))
    flags = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-fPIC", "-shared")
    subprocess.run([cc, *flags, folder / "all.c", "-lm", "-o", folder / "all.so"], check=True, timeout=400)
    functions = ctypes.CDLL(str(folder / "all.so"))
    found = {}
    for name, path in bundles.items():
        network, _, _, manifest = c.load(path.with_name(f"{name}.run"), "best")
        tables = c.prepared(network, "float32")[2]
        found[name] = Library(c_source.described(names[name], manifest, tables), functions)
    return found


def decoded(library, data):
    """The code points of UTF-8 bytes, by `NAME_utf8`."""
    function = getattr(library.functions, f"{library.source.name}_utf8")
    function.restype = ctypes.c_uint32
    buffer = ctypes.create_string_buffer(data, len(data))
    at = ctypes.c_void_p(ctypes.addressof(buffer))
    end = at.value + len(data)
    points = []
    while at.value < end:
        points.append(function(ctypes.byref(at), ctypes.c_void_p(end)))
    return np.array(points, dtype=np.uint32)


def told(library, manifest, text, points):
    """The answer to a normalised `text` of these `points`, as JSON values in the form of `answers`."""
    name, C = library.source.name, library.source.classes
    labels = [label.decode() for label in (ctypes.c_char_p * C).in_dll(library.functions, f"{name}_labels")]
    logits, ids = library.run(points)
    found = library.softmax(logits)
    if manifest.task == "classify":
        empty = ids[0] < 0
        probabilities = dict(zip(labels, found[0].tolist(), strict=True))
        return {"text": text, "label": None if empty else labels[ids[0]], "probabilities": probabilities}
    if manifest.task == "tag":
        own = [labels[k] for k in ids]
        answer = {"text": text, "labels": own, "probabilities": found.tolist()}
        if manifest.label_scheme:
            answer["words"] = [text[start:end] for start, end in words.word_spans(own)]
            answer["sentences"] = [text[start:end] for start, end in words.sentence_spans(own)]
        return answer
    nats = None
    if len(points) > 1:
        following = manifest.alphabet.ids(points[1:].view(np.int32))
        nats = float(-np.log(found[np.arange(len(points) - 1), following].astype(float)).mean())
    return {
        "text": text,
        "next": labels[ids[-1]] or None if len(points) else None,
        "probability": float(found[-1].max()) if len(points) else None,
        "nats": nats,
    }


def test_nasty_strings(libraries, bundles, answers, nasty, surrogates, same):
    """Every task, cell and normal form: the caller normalises, all else is in C. A lone surrogate, which no UTF-8 holds, is
    an unknown code point, as in Python."""
    for name, library in libraries.items():
        manifest = open_bundle(bundles[name]).manifest
        for key, text in (nasty | surrogates).items():
            expected = answers[name][key]
            text = manifest.alphabet.normalise(text)
            points = (
                codepoints(text).view(np.uint32) if key in surrogates else decoded(library, text.encode())
            )
            found = told(library, manifest, text, np.ascontiguousarray(points))
            if not len(points):  # what an answer to nothing is made of is Python's own
                assert found["text"] == expected["text"] == ""
                assert library.source.task != "classify" or found["label"] is None
                continue
            same(found, expected)
