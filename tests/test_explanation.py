"""What an explanation says of its origin, and the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest

from command import run
from graphs import residual
from ov_recipro import Explainer, ReciproError, open_bundle, split
from ov_recipro.cut.bundle import MANIFEST
from ov_recipro.images.drawing import Style, legend, overlay, softened
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_file, read_image
from ov_recipro.report.saved import read_cards
from ov_recipro.saliency import saliency_maps, signed_maps
from ov_recipro.splitting.proof import prove
from places import SCENE_VIT


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_weights(folder: Path, form: str) -> tuple[Path, Path]:
    """Write a classifier whose weights lie beside it; return both files."""
    whole = residual(folder / "whole.onnx")
    if form == "ir":
        ov.save_model(ov.Core().read_model(whole), folder / "net.xml")
        return folder / "net.xml", folder / "net.bin"
    (folder / "data").mkdir()
    onnx.save(
        onnx.load(whole),
        folder / "net.onnx",
        save_as_external_data=True,
        location="data/net.weights",
        size_threshold=0,
    )
    return folder / "net.onnx", folder / "data" / "net.weights"


@pytest.mark.parametrize("form", ["onnx", "ir"])
def test_weights_beside_the_model_are_hashed(form: str, tmp_path: Path) -> None:
    model, weights = with_weights(tmp_path, form)
    first = Explainer(model)
    (companion,) = first.provenance()["companions"]
    assert companion["name"] == weights.relative_to(tmp_path).as_posix()
    assert companion["sha256"] == sha256(weights)
    modified = weights.stat().st_mtime_ns
    data = bytearray(weights.read_bytes())
    data[5] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(modified, modified + 10_000_000))
    second = Explainer(model)  # the kept bundle is of other weights
    assert second.provenance()["sha256"] == first.provenance()["sha256"]
    assert second.provenance()["companions"][0]["sha256"] == sha256(weights)
    assert sha256(weights) != companion["sha256"]
    image = np.full((32, 32, 3), 127, np.uint8)
    assert first(image).id != second(image).id


def test_the_id_does_not_depend_on_when_a_file_was_copied(tmp_path: Path) -> None:
    model, weights = with_weights(tmp_path, "onnx")
    image = np.full((32, 32, 3), 127, np.uint8)
    first = Explainer(model)(image)
    os.utime(weights, (1, 1))
    assert Explainer(model)(image).id == first.id


@pytest.mark.parametrize("part", [0, 1])
def test_a_model_that_changes_while_it_is_split_is_refused(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = with_weights(tmp_path, "onnx")

    def then_changed(*arguments: Any) -> Any:
        os.utime(files[part], (1, 1))
        return prove(*arguments)

    monkeypatch.setattr("ov_recipro.splitting.split.prove", then_changed)
    with pytest.raises(ReciproError, match="changed"):
        split(files[0], tmp_path / "net.recipro")
    assert not (tmp_path / "net.recipro").exists()


def test_a_bundle_from_before_weights_were_hashed_opens(tmp_path: Path) -> None:
    model, _ = with_weights(tmp_path, "onnx")
    bundle = split(model, tmp_path / "net.recipro")
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    del manifest["source"]["companions"][0]["sha256"]
    (bundle.folder / MANIFEST).write_text(json.dumps(manifest))
    explainer = Explainer(open_bundle(bundle.folder))
    assert explainer.provenance()["companions"][0]["sha256"] is None
    assert explainer(np.zeros((32, 32, 3), np.uint8)).maps.shape[0] == 1


def test_an_explanation_says_where_it_is_from(explainer: Explainer, cat: Path) -> None:
    found = explainer(cat, "top2")
    assert (found.path, found.sha256) == (str(cat), sha256(cat))
    assert found.provenance["model"] == "efficientnet-lite0.onnx"
    assert json.loads(json.dumps(found.provenance)) == found.provenance
    pixels = explainer(read_image(cat), "top2")
    assert (pixels.path, pixels.sha256) == (None, None)
    np.testing.assert_array_equal(pixels.raw, found.raw)


def test_ids_tell_explanations_apart(
    explainer: Explainer, cat: Path, lite0: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jpg"
    shutil.copy(cat, copy)
    image = read_file(cat)
    found = explainer(cat, "top2").id
    assert explainer(copy, "top2").id == explainer(image, "top2").id == found
    assert len(found) == 32
    tensor, _ = prepare(image.pixels, explainer.preprocessing)
    brighter = np.maximum(image.pixels, 1)
    others = [
        explainer(cat, "top1").id,
        explainer(image.pixels, "top2").id,
        explainer(brighter, "top2").id,
        explainer(image.pixels[:, :-1], "top2").id,
        explainer.explain_tensor(tensor, "top2").id,
        explainer.explain_tensor(0.99 * np.asarray(tensor, np.float32), "top2").id,
        Explainer(lite0, score="sigmoid")(cat, "top2").id,
    ]
    assert len({found, *others}) == 1 + len(others)
    assert explainer.explain_tensor(tensor, "top2").id == others[4]


def test_an_explanation_is_saved(explainer: Explainer, cat: Path, tmp_path: Path) -> None:
    found = explainer(cat, ["tabby", 282])
    written = found.save(tmp_path / "new" / "folder")
    names = ["chelsea.png", "chelsea.282.png", "chelsea.npz", "chelsea.json"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(names)
    np.testing.assert_array_equal(read_image(written[1]), found.overlay(282))
    record = json.loads(written[3].read_text())
    (image,) = record["images"]
    assert (image["id"], image["sha256"]) == (found.id, sha256(cat))
    assert {name: record[name] for name in found.provenance} == found.provenance
    assert [each["overlay"] for each in image["targets"]] == names[:2]
    with np.load(written[2]) as maps:
        np.testing.assert_array_equal(maps["raw"], found.raw)
    pixels = replace(found, path=None, sha256=None)
    assert pixels.save(tmp_path)[0] == tmp_path / "explanation.png"


def test_a_tensors_explanation_is_saved_without_overlays(
    explainer: Explainer, cat: Path, tmp_path: Path
) -> None:
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    found = explainer.explain_tensor(tensor)
    assert [path.name for path in found.save(tmp_path, "t")] == ["t.npz", "t.json"]
    (record,) = json.loads((tmp_path / "t.json").read_text())["images"]
    assert (record["size"], record["targets"][0]["overlay"]) == ([None, None], None)
    assert found._repr_png_() is None
    assert "<img" not in found._repr_html_()


def test_a_file_where_the_folder_should_be(explainer: Explainer, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ReciproError, match="taken can't be written to"):
        explainer(cat).save(tmp_path / "taken")


def test_notebooks_show_an_explanation(explainer: Explainer, cat: Path) -> None:
    large = np.asarray(cv2.resize(read_image(cat), None, fx=3, fy=3), np.uint8)
    png = explainer(large)._repr_png_()
    assert png is not None
    shown = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == (426, 640, 3)
    found = explainer(cat, "top2")
    hostile = replace(found.targets[1], label="<script>alert('\"')</script>", flat=True)
    html = replace(found, targets=(found.targets[0], hostile))._repr_html_()
    assert html.count("data:image/png;base64,") == 2
    assert "Egyptian cat" in html
    assert "All cells score the same" in html
    assert "<script" not in html
    assert "'\"'" not in html


def test_records_of_a_run_carry_hashes(explainer: Explainer, cat: Path, tmp_path: Path) -> None:
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for value in (0, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    result = run("explain", cat, video, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    (image,), (moving,) = record["images"], record["videos"]
    assert (image["sha256"], moving["sha256"]) == (sha256(cat), sha256(video))
    assert image["id"] == explainer(cat).id


def test_a_report_refuses_an_image_that_has_changed(
    cat: Path, coffee: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(cat, tmp_path / "i.jpg")
    assert run("explain", "i.jpg", "--save-maps", cwd=tmp_path).returncode == 0
    cards, missing = read_cards(tmp_path / "explanations")[1:]
    assert (len(cards), missing) == (1, [])
    shutil.copy(coffee, tmp_path / "i.jpg")
    cards, missing = read_cards(tmp_path / "explanations")[1:]
    assert (cards, missing) == ([], ["i.jpg has changed since it was explained."])


def test_maps_of_tokens_are_drawn_softly(cat: Path) -> None:
    explanation = Explainer(SCENE_VIT / "textures.onnx")(cat)
    assert explanation.layout == "NTC"
    soft = softened(explanation.raw[0])[None]
    softly = replace(explanation, maps=saliency_maps(soft), layout="NCHW")
    np.testing.assert_array_equal(explanation.overlay(), softly.overlay())
    sharply = replace(explanation, layout="NCHW")
    assert (explanation.overlay() != sharply.overlay()).any()
    cells = Style(cells=True)
    np.testing.assert_array_equal(explanation.overlay(style=cells), sharply.overlay(style=cells))


@pytest.fixture(scope="module")
def signed(lite0: Path) -> Explainer:
    return Explainer(lite0, signed=True)


def test_what_speaks_against_is_drawn_too(
    signed: Explainer, explainer: Explainer, cat: Path
) -> None:
    found = signed(cat, against="next")
    image, window, zeros = found.image, found.window, found.zeros
    assert image is not None
    assert window is not None
    assert zeros is not None
    assert found.signed_maps.min() < -0.1
    style = Style(signed=True)
    drawn = found.overlay(style=style)
    np.testing.assert_array_equal(drawn, overlay(image, found.signed_maps[0], window, style))
    largest = float(np.abs(found.raw[0] - zeros[0]).max())
    with_legend = found.overlay(style=replace(style, legend=True))
    strip = legend(image.shape[1], (-largest, largest), style)
    np.testing.assert_array_equal(with_legend[len(drawn) :], strip)
    tokens = replace(found, layout="NTC")
    soft = signed_maps(softened(found.raw[0])[None], zeros)[0]
    np.testing.assert_array_equal(tokens.overlay(style=style), overlay(image, soft, window, style))
    cells = Style(signed=True, cells=True)
    np.testing.assert_array_equal(tokens.overlay(style=cells), found.overlay(style=cells))
    plain = explainer(cat, against="next")
    np.testing.assert_array_equal(found.overlay(), plain.overlay())
    assert found._repr_html_() == plain._repr_html_()
    with pytest.raises(ReciproError, match="signed=True"):
        plain.overlay(style=style)


def test_records_hold_zeros_where_there_are_any(
    signed: Explainer, explainer: Explainer, cat: Path, tmp_path: Path
) -> None:
    found = signed(cat, "top2")
    assert found.zeros is not None
    assert [each["zero"] for each in found.record()["targets"]] == found.zeros.tolist()
    with np.load(tmp_path / found.save_maps(tmp_path, "signed")) as saved:
        np.testing.assert_array_equal(saved["zeros"], found.zeros)
    plain = explainer(cat, "top2")
    assert all("zero" not in each for each in plain.record()["targets"])
    with np.load(tmp_path / plain.save_maps(tmp_path, "plain")) as saved:
        assert sorted(saved) == ["feature_shape", "maps", "raw", "targets"]


def test_what_losses_cost_is_drawn_from_0(lite0: Path, cat: Path, tmp_path: Path) -> None:
    found = Explainer(lite0, mask="drop", plan="stream")(cat)
    lowest, highest = found.targets[0].range
    image, window = found.image, found.window
    assert image is not None
    assert window is not None
    assert lowest < 0 < highest
    strip = legend(image.shape[1], (0.0, highest), Style())
    np.testing.assert_array_equal(found.overlay(style=Style(legend=True))[len(image) :], strip)
    soft = saliency_maps(softened(found.raw[0])[None], from_zero=True)[0]
    tokens = replace(found, layout="NTC").overlay()
    np.testing.assert_array_equal(tokens, overlay(image, soft, window))
    drawn = found.overlay(style=Style(signed=True))  # 0 is where nothing is lost
    scaled = found.raw[0] / np.abs(found.raw[0]).max()
    np.testing.assert_array_equal(drawn, overlay(image, scaled, window, Style(signed=True)))
    assert "zero" not in found.record()["targets"][0]
    with np.load(tmp_path / found.save_maps(tmp_path, "i")) as saved:
        assert saved["zeros"].tolist() == [0]
    gains = replace(found.targets[0], range=(-2.0, -1.0), flat=True)
    assert gains.remarks(49, "softmax", "drop")[0].startswith(
        "Dropping a cell never lowers the score"
    )
    (weak,) = found.targets[0].remarks(49, "softmax", "drop") or [""]
    assert (highest < 0.01 * found.targets[0].score) is weak.startswith("Weak signal: the loss")


def test_softened() -> None:
    saliency = np.zeros((5, 5), np.float32)
    saliency[2, 2] = 1
    soft = softened(saliency)
    np.testing.assert_allclose(soft[1:4, 1:4], np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)
    assert soft[0].max() == 0
    assert softened(np.zeros((3, 3), np.float32)).max() == 0
