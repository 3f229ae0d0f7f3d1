"""The variants against what they are by definition: one cell at a time, through the whole model."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import run
from graphs import Builder
from oracle import Oracle
from ov_recipro import Explainer, OptionError
from ov_recipro.black_boxes.attribution import METHOD_NAMES
from ov_recipro.images.reading import read_image
from ov_recipro.methods import METHODS, NotApplicable, Subject
from ov_recipro.metrics import upsampled
from ov_recipro.report import wording
from ov_recipro.saliency import class_scores, saliency_maps
from ov_recipro.variants import VARIANTS
from ov_recipro.variants.aumann import aumann
from ov_recipro.variants.pair import pair


def image_for(explainer: Explainer, seed: int = 0) -> Any:
    entry = explainer.bundle.manifest.image
    return np.random.default_rng(seed).standard_normal(entry.shape).astype(entry.dtype)


def two_layers(path: Path, tail: str = "linear", **first: Any) -> Path:
    """Two blocks, of which the second mixes cells, and a tail."""
    b = Builder(shape=(1, 3, 24, 24))
    x = b.add("Relu", b.conv("image", 6, strides=[2, 2], **first), output="early")
    x = b.add("Relu", b.conv(x, 8), output="late")
    if tail == "linear":
        b.head(x, classes=7)
    elif tail == "hidden":
        pooled = b.add("Flatten", b.add("GlobalAveragePool", x))
        b.linear(b.add("Tanh", b.linear(pooled, 8, classes=6, output="hidden")), 6, classes=7)
    else:
        gate = b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", x), 8, 1))
        b.head(b.add("Mul", x, gate), classes=7)
    return b.save(path)


def by_definition(
    explainer: Explainer, model: Path, earlier: str, image: Any, classes: list[int]
) -> Any:
    """Return the maps of `pair` from the whole model, run once for each cell."""
    cut = explainer.bundle.manifest.cut
    kept, dropped = Oracle(model, earlier), Oracle(model, cut.tensor, drop=True)
    score = explainer.score

    def scores(logits: Any) -> Any:
        return class_scores(np.asarray(logits), score)[..., classes]

    grid = cut.grid
    alone = scores(kept.logits(image, grid)).T.reshape(-1, *grid)
    none = scores(kept.empty(image))
    without = scores(dropped.logits(image, grid)).T.reshape(-1, *grid)
    whole = scores(kept.plain(image))
    maps = []
    for each, empty, lacking, full in zip(alone, none, without, whole, strict=True):
        gained, lost = np.maximum(each - empty, 0), np.maximum(full - lacking, 0)
        root = np.sqrt(gained / gained.max()) if gained.max() > 0 else gained
        maps.append(root + (lost / lost.max() if lost.max() > 0 else lost))
    return saliency_maps(np.stack(maps))


def test_pair_is_its_definition_on_real_weights(lite0: Path) -> None:
    explainer = Explainer(lite0, method="recipro-pair")
    image = image_for(explainer)
    found = explainer.explain_tensor(image, "top3")
    classes = [target.index for target in found.targets]
    expected = by_definition(explainer, lite0, "/blocks.14/Add_output_0", image, classes)
    np.testing.assert_allclose(found.maps, expected, atol=1e-4)
    assert found.provenance["method"] == "recipro-pair"
    assert found.provenance["second_layer"] == "/blocks.14/Add_output_0"


@pytest.mark.parametrize("tail", ["linear", "hidden", "gate"])
def test_pair_takes_any_tail(tail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ov_recipro.plans.rows.rows_cost.CHEAP", 1e9)
    monkeypatch.setattr("ov_recipro.runtimes.pair_graph._MOST", 1e9)
    model = two_layers(tmp_path / "m.onnx", tail)
    explainer = Explainer(model, layer="late", method="recipro-pair")
    image = image_for(explainer)
    found = explainer.explain_tensor(image, [0, 3])
    expected = by_definition(explainer, model, "early", image, [0, 3])
    # a root makes more of what rounding leaves of a score that hardly changes
    np.testing.assert_allclose(found.maps, expected, atol=1e-2)
    if tail != "linear":
        with pytest.raises(OptionError, match="'recipro-aumann' can't be used: the tail is not"):
            Explainer(model, layer="late", method="recipro-aumann")


def test_a_costly_second_layer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ov_recipro.runtimes.pair_graph._MOST", 1.0)
    model = two_layers(tmp_path / "m.onnx")
    with pytest.raises(OptionError, match=r"'early' as its second layer .* limit is 1\."):
        Explainer(model, layer="late", method="recipro-pair")


def test_a_model_without_a_second_layer_is_refused(tmp_path: Path) -> None:
    b = Builder()
    b.head(b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="feature"))
    model = b.save(tmp_path / "m.onnx")
    with pytest.raises(OptionError, match="has no second layer"):
        Explainer(model, layer="feature", method="recipro-pair")


def test_pair_enlarges_the_coarser_map() -> None:
    random = np.random.default_rng(0)
    kept, dropped = random.uniform(size=(2, 3, 3)), random.uniform(size=(2, 6, 6))
    found = pair(kept, np.zeros(2), dropped, np.ones(2))
    assert found.shape == (2, 6, 6)
    root = np.sqrt(kept / kept.max(axis=(1, 2), keepdims=True))
    lost = (1 - dropped) / (1 - dropped).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(
        found[0], upsampled(root[0], (6, 6), "bilinear") + lost[0], rtol=1e-6
    )


def test_a_look_that_says_nothing_is_zero() -> None:
    nothing = pair(np.zeros((1, 2, 2)), np.ones(1), np.ones((1, 2, 2)), np.zeros(1))
    assert not nothing.any()


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "none"])
def test_aumann_shares_add_up(score: Any) -> None:
    random = np.random.default_rng(0)
    alone, bias = random.normal(size=(9, 5)), random.normal(size=5)
    shares = aumann(alone + bias, bias, [1, 4], score)
    whole, empty = (class_scores(each, score)[[1, 4]] for each in (bias + alone.sum(axis=0), bias))
    np.testing.assert_allclose(shares.sum(axis=0), whole - empty, atol=2e-3)


def test_aumann_is_the_mean_of_many_small_steps() -> None:
    """Shapley values of cells that are split finely, which is what Aumann and Shapley's are."""
    random = np.random.default_rng(1)
    alone, bias, steps = random.normal(size=(3, 4)), random.normal(size=4), 400
    expected = np.zeros(3)
    orders = list(permutations(range(3)))
    grown, before = np.zeros(3), class_scores(bias, "softmax")[0]
    for step in range(steps):
        for cell in orders[step % len(orders)]:
            grown[cell] += 1 / steps
            after = class_scores(bias + grown @ alone, "softmax")[0]
            expected[cell] += after - before
            before = after
    found = aumann(alone + bias, bias, [0], "softmax")[:, 0]
    np.testing.assert_allclose(found, expected, atol=3e-3)


def test_aumann_on_real_weights(lite0: Path, cat: Path) -> None:
    explainer = Explainer(lite0, method="recipro-aumann")
    found = explainer(cat, "top2")
    logits = Explainer(lite0, score="none")(cat, range(1000)).raw.reshape(1000, -1).T
    image, _ = explainer._prepared(read_image(cat))
    oracle = Oracle(lite0, explainer.bundle.manifest.cut.tensor)
    empty = oracle.empty(image.astype(np.float32))
    classes = [target.index for target in found.targets]
    expected = aumann(logits, empty, classes, "softmax").T.reshape(2, 7, 7)
    np.testing.assert_allclose(found.maps, saliency_maps(expected, from_zero=True), atol=1e-4)
    scores = class_scores(np.stack([logits.sum(axis=0) - 48 * empty, empty]), "softmax")
    for target, shares in zip(found.targets, expected, strict=True):
        difference = scores[0, target.index] - scores[1, target.index]
        assert shares.sum() == pytest.approx(difference, abs=0.01)


@pytest.mark.parametrize("method", VARIANTS)
def test_masks_of_recipro_are_refused(method: Any, lite0: Path) -> None:
    for options in ({"mask": "drop"}, {"signed": True}):
        with pytest.raises(OptionError, match="are for --method recipro"):
            Explainer(lite0, method=method, **options)


def test_pair_needs_openvino_and_float32(lite0: Path) -> None:
    with pytest.raises(OptionError, match="needs an OpenVINO device"):
        Explainer(lite0, method="recipro-pair", device="ort-cpu")
    with pytest.raises(OptionError, match="in float32"):
        Explainer(lite0, method="recipro-pair", precision="native")


def test_aumann_is_the_same_in_onnx_runtime(lite0: Path, cat: Path) -> None:
    ours, theirs = (
        Explainer(lite0, method="recipro-aumann", device=device)(cat).maps
        for device in ("CPU", "ort-cpu")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("method", VARIANTS)
def test_reports_and_verdicts(method: str, tmp_path: Path, cat: Path) -> None:
    words = ("explain", cat, "--method", method, "--report", "--verify", "--legend")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "explanations" / "report.html").read_text()
    assert wording.METHODS[method] in page
    record = json.loads((tmp_path / "explanations" / "explanations.json").read_text())
    assert record["images"][0]["targets"][0]["verification"]["measured"]["saco"] is None


def test_every_method_has_its_words() -> None:
    assert set(wording.METHODS) == set(METHOD_NAMES)


def test_a_refusal_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    b.head(b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="feature"))
    subject = Subject(Explainer(b.save(tmp_path / "m.onnx"), layer="feature"))
    image = np.zeros((3, 16, 16), np.float32)
    for _ in range(2):
        with pytest.raises(NotApplicable, match="has no second layer"):
            METHODS["recipro-pair"](subject, image, 0)
        monkeypatch.setattr("ov_recipro.methods.subject.Explainer", None)


def test_a_lower_limit_holds(lite0: Path) -> None:
    with pytest.raises(OptionError, match=r"about 2\.1 .* limit is 1\.5\."):
        Explainer(lite0, method="recipro-pair", max_cost=1.5)
