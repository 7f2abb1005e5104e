"""What the page shows of the model itself: its hidden state, and its proof replayed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ohlol.artifacts.bundle import open_bundle, shipped
from ohlol.artifacts.parity import allowed
from ohlol.embed import site as site_module
from ohlol.embed.probe import probe
from ohlol.serve.runtimes import run_in


def runs(path):
    """model.onnx of a bundle as it is, and with the probe: outputs by name for a text."""
    bundle = open_bundle(path)
    whole = bundle.contents["model.onnx"]
    found = probe(whole, str(path))

    def inputs(text):
        points = np.array([[ord(c) for c in bundle.manifest.alphabet.normalise(text)]], dtype=np.int32)
        return {"codepoints": points, "lengths": np.array([points.shape[1]], dtype=np.int32)}

    plain, probed = (run_in("onnxruntime", data, str(path)) for data in (whole, whole + found.added))
    return found, lambda text: (plain(inputs(text)), probed(inputs(text)))


def stitched(found, outputs):
    """`(T, H)` or, both ways, `(T, 2H)` in the order of the text."""
    ways = [outputs[name][:, 0] for name in found.names]
    return np.concatenate([ways[0], *(way[::-1] for way in ways[1:])], axis=1)


TEXT = "hello wêt 中😀 qX"


def test_the_probe_sees_the_last_layer(bundles):
    """Of every task, cell and direction: the model's answers stay the same to the bit, and the linear layer makes them of
    what the probe sees, at each character and in the order of the text."""
    from safetensors.numpy import load_file

    for name, path in bundles.items():
        found, answers = runs(path)
        before, after = answers(TEXT)
        for output, expected in before.items():
            assert (after[output] == expected).all(), (name, output)
        hidden = stitched(found, after)
        weights = load_file(path.with_name(f"{name}.run") / "best" / "model.safetensors")
        if "classify" in name:  # each direction at its end
            H = 6
            hidden = np.concatenate([hidden[-1:, :H], hidden[:1, H:]], axis=1)
        logits = hidden @ weights["head.weight"].T + weights["head.bias"]
        expected = before["logits"].reshape(logits.shape)
        assert (np.abs(logits - expected) <= allowed(expected)).all(), name


def test_golden_bundles_are_seen_into(golden):
    """Files of earlier versions, whose graphs look otherwise."""
    for path in sorted(golden.glob("*/model.onnx")):
        found, answers = runs(path.parent)
        before, after = answers(TEXT)
        assert all((after[name] == expected).all() for name, expected in before.items()), path
        assert np.abs(stitched(found, after)).max() <= 1, path


def test_what_is_no_network_of_ours_has_no_probe():
    """Other graphs are left alone."""
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, 1, ["T"]) for name in ("x", "logits")]
    node = onnx.helper.make_node("Tanh", ["x"], ["logits"])
    graph = onnx.helper.make_graph([node], "other", value[:1], value[1:])
    assert probe(onnx.helper.make_model(graph).SerializeToString(), "other.onnx") is None


def test_the_heat_map_is_the_state(name, page_of, paths, models, type_in):
    """A column for each character and a row for each number, the numbers those of Python; of one way, those that
    stream.onnx carries from character to character."""
    page = page_of(name)
    type_in(page, TEXT)
    text = models[name].manifest.alphabet.normalise(TEXT)
    found, answers = runs(paths[name])
    expected = stitched(found, answers(TEXT)[1])
    T, units = expected.shape
    assert len(text) == T
    assert page.evaluate("[at('cells').width, at('cells').height]") == [T, units]
    shown = np.array(page.evaluate("[...heat.state.values]")).reshape(T, units)
    assert (np.abs(shown - expected) <= allowed(expected)).all()
    cell = models[name].manifest.network["cell"]
    if not models[name].manifest.network["bidirectional"]:
        stream = models[name]._stream_file
        hidden = stream.beginning().hidden[:, None]
        for t, character in enumerate(text):
            _, hidden = stream.run(("logits",), np.array([[ord(character)]], dtype=np.int32), hidden)
            last = hidden[-2 if cell == "lstm" else -1, 0]
            assert (np.abs(shown[t] - last) <= allowed(last)).all(), t
    # The colours: cold below 0, hot above, the stronger the further from it.
    pixels = np.array(
        page.evaluate("[...at('cells').getContext('2d').getImageData(0, 0, heat.T, heat.state.units).data]")
    )
    pixels = pixels.reshape(units, T, 4)[..., :3].transpose(1, 0, 2)
    cold, middle, hot = (
        np.array(
            [
                float(x)
                for x in re.findall(
                    r"[\d.]+", page.evaluate(f"getComputedStyle(at('{end}')).backgroundColor")
                )
            ]
        )
        for end in ("cold", "middle", "hot")
    )
    ends = np.where((shown < 0)[..., None], cold, hot)
    assert np.abs(pixels - (middle + np.abs(shown)[..., None] * (ends - middle))).max() <= 1


def test_character_and_column_are_linked(page_of, paths, models, type_in):
    """Hover or arrow keys on either show the other, and the number under the pointer is told."""
    page = page_of("hello")
    type_in(page, "hello")
    page.mouse.move(0, 0)
    found, answers = runs(paths["hello"])
    state = stitched(found, answers("hello")[1])
    page.locator("#strip .c").nth(1).hover()
    assert page.evaluate("[heat.column, at('column').hidden]") == [1, False]
    assert page.is_visible("#tip")
    width, height = page.evaluate("[heat.width, heat.height]")
    page.hover("#cells", position={"x": 3.5 * width, "y": 2.5 * height})
    number = re.fullmatch(r"number 3 at l: ([−+])(\d\.\d{3})", page.text_content("#reading"))
    assert float(number[1].replace("−", "-") + number[2]) == pytest.approx(state[3, 2], abs=6e-4)
    assert page.evaluate("strip.cells.map(c => c.root.classList.contains('linked'))") == [False] * 3 + [
        True,
        False,
    ]
    page.mouse.move(0, 0)
    page.focus("#heat")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.text_content("#reading").startswith("number 2 at e: ")
    label = page.get_attribute("#cells", "aria-label")
    assert label.startswith("Heat map of 8 numbers at 5 characters. Highest: +")


def test_a_wide_picture_says_so(page_of, idle, type_in):
    """Systems that show no bar before one scrolls: a line and a fade, and at the end of it no fade."""
    page = page_of("tag-gru")
    faded = "[!at('wider').hidden, at('heat').classList.contains('more')]"
    type_in(page, "hello")
    assert page.evaluate(faded) == [False, False]
    type_in(page, "hello " * 40)
    assert page.evaluate(faded) == [True, True]
    page.evaluate("at('heat').scrollLeft = 1e6")
    idle(page, "!at('heat').classList.contains('more')")
    assert page.evaluate(faded) == [True, False]
    page.evaluate("at('heat').scrollLeft = 0")


# ---- The proof ----


def replayed(page, idle):
    """What the page says when its button was clicked."""
    if not page.is_visible("#replay"):
        page.locator("summary").click()
    page.click("#replay")
    idle(page, "!replaying")
    assert page.get_attribute("#replayed", "role") == "status"
    return page.text_content("#replayed")


def test_the_proof_is_replayed(name, page_of, paths, idle):
    """One click: every case of the bundle, by every file that the page runs."""
    count = len(list(paths[name].glob("test_data_set_*")))
    by = "model.onnx and stream.onnx" if name == "lm-lstm" else "model.onnx"
    found = re.fullmatch(
        rf"{count} of {count} cases as PyTorch answered, by {by}; largest error (\d\.\de-\d+)\.",
        replayed(page_of(name), idle),
    )
    assert float(found[1]) < 1e-4
    assert not page_of(name).is_visible("#left-out")


def test_a_proof_that_fails_says_so(web, visit, tmp_path, changed, idle):
    """Which case, by which file, and how far off; what was left out of the page, too."""

    def change(manifest, folder):
        file = folder / "test_data_set_1" / "output_0.pb"
        data = bytearray(file.read_bytes())
        data[-4:] = np.float32(77).tobytes()
        file.write_bytes(data)
        return ["test_data_set_1/output_0.pb"]

    site = web(changed(shipped(), tmp_path / "bundle", change), tmp_path / "site")
    page = visit((site / "index.html").as_uri())
    said = replayed(page, idle)
    assert said.startswith("9 of 10 cases as PyTorch answered, by model.onnx; largest error "), said
    assert re.search(r"Not so: test_data_set_1 by model\.onnx, error \d\.\de\+\d", said), said
    assert page.locator("#replayed.bad").is_visible()


def test_what_is_too_large_is_left_out_of_the_page(web, visit, tmp_path, monkeypatch, idle):
    """The smaller cases are replayed, and how many are not there is told."""
    monkeypatch.setattr(site_module, "MOST_PROOF", 10_000)
    page = visit((web("hello", tmp_path / "site") / "index.html").as_uri())
    assert replayed(page, idle).startswith("6 of 6 cases as PyTorch answered")
    assert page.text_content("#left-out").startswith(
        "Of the bundle's 10 cases the 4 largest are not in this page"
    )
