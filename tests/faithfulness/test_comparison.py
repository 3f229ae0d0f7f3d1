"""Two models, or two layers, side by side."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxes import SCENE_MODEL, make_scenes, write_scenes
from command import fails, run
from graphs import Builder
from ov_recipro import Explainer, ReciproError
from ov_recipro.faithfulness.comparison import compare
from ov_recipro.images.reading import read_image


def test_a_float_model_and_its_8_bit_form(
    models: dict[str, Path], tmp_path: Path, lite0: Path, cat: Path, coffee: Path
) -> None:
    """The maps stay close; the gate lets them pass at 0.9 and stops them at 0.99999."""
    how = Explainer(lite0).preprocessing
    options = [
        *("--mean", ",".join(map(str, how.mean)), "--scale", ",".join(map(str, how.scale))),
        *("--resize", how.resize, "--labels", str(lite0.with_name("labels.txt"))),
    ]
    arguments: list[str | Path] = ["compare", models["float"], models["qdq"], cat, coffee, *options]
    done = run(*arguments, "--min-correlation", "0.9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "A", "says", "B", "says", "same", "correlation"]
    assert "espresso 0.9" in lines[2]
    assert "correlation of the maps: mean 0.9" in done.stderr
    record = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    found = [image["correlation"] for image in record["images"]]
    assert all(0.9 < r < 0.99999 for r in found)
    drawn = read_image(tmp_path / "comparison" / "chelsea.png")
    assert drawn.shape == (300, 902, 3)
    gate = run(*arguments, "--min-correlation", "0.99999", cwd=tmp_path)
    fails(gate, "2 of 2 images correlate less than 0.99999")


def test_two_layers_of_one_model(tmp_path: Path, lite0: Path, coffee: Path) -> None:
    arguments: list[str | Path] = [
        "compare",
        lite0,
        lite0,
        coffee,
        "--layer-b",
        "blocks.8",
        "--json",
    ]
    done = run(*arguments, "-t", "967", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["layers"][0] != record["layers"][1]
    (image,) = record["images"]
    assert not image["changed"]
    assert image["target"]["index"] == 967
    assert 0.2 < image["correlation"] < 0.999


def test_a_model_is_like_itself(lite0: Path, explainer: Explainer, cat: Path) -> None:
    found, one, other = compare(explainer, Explainer(lite0), cat)
    assert found.correlation == pytest.approx(1)
    assert not found.changed
    assert found.second_score == pytest.approx(found.target.score)
    np.testing.assert_allclose(one.maps, other.maps, atol=1e-6)


def test_maps_meet_on_the_image(explainer: Explainer, lite0: Path, cat: Path) -> None:
    """The same model that looks at another part: alike where both look."""
    how = replace(explainer.preprocessing, resize="standard")
    found, _, _ = compare(explainer, Explainer(lite0, preprocessing=how), cat, 285)
    assert found.correlation is not None
    assert 0.6 < found.correlation < 0.999


def test_what_can_go_wrong(tmp_path: Path, lite0: Path, cat: Path) -> None:
    b = Builder()
    b.head(b.add("Relu", b.conv("image", 4, strides=[2, 2])))
    b.save(tmp_path / "small.onnx")
    result = run("compare", lite0, "small.onnx", cat, cwd=tmp_path)
    assert result.returncode == 1
    assert "1000 and 5 classes" in result.stderr
    (tmp_path / "photos").mkdir()
    shutil.copy(cat, tmp_path / "photos")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no")
    result = run("compare", lite0, lite0, "photos", cwd=tmp_path)
    assert result.returncode == 1
    assert "bad.png: not an image" in result.stderr
    assert "photos/chelsea.jpg" in result.stdout
    with pytest.raises(ReciproError, match="classes"):
        compare(Explainer(lite0), Explainer(tmp_path / "small.onnx"), cat)


def test_boxes_of_two_detectors(tmp_path: Path) -> None:
    """A detector is like itself; by other cells its maps stay close to these."""
    folder = write_scenes(tmp_path / "scenes", 2)
    explainer = Explainer(SCENE_MODEL)
    found, one, other = compare(explainer, Explainer(SCENE_MODEL), folder / "0.png")
    assert found.correlation == pytest.approx(1, abs=1e-3)  # its box is rounded to 0.1 pixels
    assert (found.changed, found.second) == (False, one.predictions[0])
    assert found.second_score == pytest.approx(found.target.score, abs=1e-2)
    assert one.targets[0].outline == other.targets[0].outline
    label = one.predictions[-1].label
    assert label is not None
    named, *_ = compare(explainer, explainer, folder / "0.png", label)
    assert named.target.label == label
    first, coarsest, *others = explainer.bundle.manifest.cut.masked
    coarser = ",".join((coarsest, first, *others))
    models = (SCENE_MODEL, SCENE_MODEL)
    done = run("compare", *models, folder, "--layer-b", coarser, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for image in json.loads(done.stdout)["images"]:
        assert 0.3 < image["correlation"] < 0.999
        assert image["first"]["box"] == pytest.approx(image["second"]["box"], abs=1)


def test_only_the_best_box_of_a_class_is_explained() -> None:
    explainer = Explainer(SCENE_MODEL)
    for scene in make_scenes(40):
        predictions = explainer(scene.image, box=1).predictions
        labels = [each.label for each in predictions]
        behind = [label for label in labels[1:] if label and labels.count(label) > 1]
        if behind and labels[0] != behind[0]:
            break
    found, one, _ = compare(explainer, explainer, scene.image, behind[0])
    assert found.first == predictions[labels.index(behind[0])]
    assert len(one.targets) == 1
    absent = next(name for name in explainer.labels or () if name not in labels)
    with pytest.raises(ReciproError, match=f"No box of {absent} scores"):
        compare(explainer, explainer, scene.image, absent)
    with pytest.raises(ReciproError, match="none"):
        compare(explainer, explainer, scene.image, "none")


def test_a_box_that_the_second_detector_misses(tmp_path: Path) -> None:
    """It looks at an image turned dark, and sees nothing."""
    folder = write_scenes(tmp_path / "scenes", 1)
    dark = Explainer(SCENE_MODEL, preprocessing=lambda how: replace(how, scale=(25500,) * 3))
    found, _, _ = compare(Explainer(SCENE_MODEL), dark, folder / "0.png")
    assert (found.second, found.changed, found.correlation) == (None, True, None)
    assert found.second_score < 0.4 < found.target.score


def test_models_of_two_kinds(tmp_path: Path, explainer: Explainer) -> None:
    folder = write_scenes(tmp_path / "scenes", 1)
    with pytest.raises(ReciproError, match="is a classifier, the second a detector"):
        compare(explainer, Explainer(SCENE_MODEL), folder / "0.png")
