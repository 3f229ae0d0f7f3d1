"""Maps against oracles, on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
import pytest

from oracle import Oracle, features_of, run
from ov_recipro import Explainer
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.saliency import class_scores

LAYERS = [
    pytest.param("auto", False, id="last"),
    pytest.param("blocks.14/depthwise_conv/Conv", True, id="exact-inside-a-block"),
    pytest.param("blocks.8", False, id="14x14"),
]


def check(
    model: Path,
    layer: str,
    exact: bool,
    images: list[Path],
    plan: Literal["auto", "stream"] = "auto",
) -> None:
    """Compare the scores of every cell of the first image, and of some of each other's."""
    explainer = Explainer(model, layer=layer, exact=exact, plan=plan)
    assert explainer.plan.name == ("stream" if exact or plan == "stream" else "rows")
    manifest = explainer.bundle.manifest
    oracle = Oracle(model, manifest.cut.tensor)
    assert manifest.cut.clean is not exact
    tensors = [prepare(read_image(path), explainer.preprocessing)[0] for path in images]
    first = explainer(images[0], targets="top3")
    classes = [target.index for target in first.targets]
    expected = oracle.maps(tensors[0].astype(np.float32), manifest.cut.grid, classes)
    np.testing.assert_allclose(first.maps, expected, atol=1e-4, err_msg=str(images[0]))
    cells = np.random.default_rng(0).permutation(manifest.cut.cells.count)[:25]
    for path, tensor in zip(images[1:], tensors[1:], strict=True):
        other = explainer(path, targets="top3")
        raw = other.raw.reshape(len(other.targets), -1)
        logits = oracle.logits(tensor.astype(np.float32), manifest.cut.grid, cells.tolist())
        scores = class_scores(logits, "softmax")[:, [target.index for target in other.targets]].T
        error = np.abs(raw[:, cells] - scores).max(axis=1)
        assert (error <= 1e-4 * np.ptp(raw, axis=1)).all(), path


@pytest.mark.parametrize("plan", ["auto", "stream"])
@pytest.mark.parametrize(("layer", "exact"), LAYERS)
def test_bundled_model_equals_the_oracle(
    layer: str, exact: bool, plan: Literal["auto", "stream"], lite0: Path, cat: Path, coffee: Path
) -> None:
    check(lite0, layer, exact, [cat, coffee], plan)


@pytest.mark.parametrize(("layer", "exact"), LAYERS)
def test_lite0_equals_the_oracle_on_imagenet(
    layer: str, exact: bool, lite0: Path, samples: list[Path], request: pytest.FixtureRequest
) -> None:
    check(lite0, layer, exact, samples[: request.config.getoption("--oracle-images")])


@pytest.mark.parametrize(
    ("layer", "exact"),
    [*LAYERS[:2], pytest.param("blocks.12", False, id="15x15")],
)
def test_lite1_equals_the_oracle_on_imagenet(
    layer: str, exact: bool, lite1: Path, samples: list[Path], request: pytest.FixtureRequest
) -> None:
    check(lite1, layer, exact, samples[: request.config.getoption("--oracle-images")])


def test_pool_and_linear_tail_has_its_closed_form(
    explainer: Explainer, lite0: Path, cat: Path
) -> None:
    """For average pool and linear, the logits of cell n are W F[:,u,v]/(H*W) + b."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(lite0).graph.initializer}
    matrix = weights["_fc.weight.float16"].astype(np.float32)
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    features = features_of(explainer.bundle, tensor)
    channels = features[0][0].reshape(1280, 49)
    expected = channels.T @ matrix.T / 49 + weights["_fc.bias"]
    _, got = run(explainer._runtime, tensor)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_predictions_are_the_plain_models(explainer: Explainer, lite0: Path, cat: Path) -> None:
    import openvino as ov

    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    compiled = ov.Core().compile_model(lite0, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled(tensor)[0][0].astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum()
    predictions = explainer(cat).predictions
    assert [p.index for p in predictions] == np.argsort(-scores)[:5].tolist()
    for prediction in predictions:
        assert prediction.score == pytest.approx(scores[prediction.index], rel=1e-4)


@pytest.mark.parametrize("batch_memory", [1, 3 << 20, 1 << 30])
def test_the_batch_does_not_change_the_maps(
    batch_memory: int, explainer: Explainer, lite0: Path, cat: Path
) -> None:
    other = Explainer(lite0, batch_memory=batch_memory, plan="stream")
    np.testing.assert_allclose(other(cat, "top3").maps, explainer(cat, "top3").maps, atol=1e-5)


def test_each_class_is_seen_on_its_own_object(
    explainer: Explainer, cat: Path, coffee: Path
) -> None:
    """Two photographs side by side: each class's heat lies on its own half."""
    left = cv2.resize(read_image(cat)[:, 75:375], (240, 480))
    right = cv2.resize(read_image(coffee)[:, 100:500], (240, 480))
    both = np.hstack([left, right]).astype(np.uint8)
    tabby, espresso = explainer(both, ["Egyptian cat", "espresso"]).maps
    assert tabby[:, :3].sum() > 3 * tabby[:, 4:].sum()
    assert espresso[:, 4:].sum() > 3 * espresso[:, :3].sum()


def numpy_masked(features: np.ndarray, mask: str) -> np.ndarray:
    """Write the mask operators out cell by cell: [N,C,H,W]."""
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    _, channels, height, width = features.shape
    result = np.zeros((height * width, channels, height, width))
    for cell in range(height * width):
        u, v = divmod(cell, width)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                y, x = u + i, v + j
                if 0 <= y < height and 0 <= x < width:
                    own = features[0, :, u, v] if mask == "spread" else features[0, :, y, x]
                    result[cell, :, y, x] = kernel[i + 1, j + 1] * own
    return result


@pytest.mark.parametrize("mask", ["spread", "weight"])
def test_gaussian_masks_follow_their_definition(mask: str, lite0: Path, cat: Path) -> None:
    explainer = Explainer(lite0, mask=mask)  # type: ignore[arg-type]
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    features = features_of(explainer.bundle, tensor)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(lite0).graph.initializer}
    pooled = numpy_masked(features[0], mask).mean(axis=(2, 3))
    expected = pooled @ weights["_fc.weight.float16"].astype(np.float64).T + weights["_fc.bias"]
    _, got = run(explainer._runtime, tensor)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("score", ["none", "sigmoid"])
def test_scores_other_than_softmax(
    score: str, explainer: Explainer, lite0: Path, cat: Path
) -> None:
    other = Explainer(lite0, score=score)  # type: ignore[arg-type]
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    plain, masked = run(explainer._runtime, tensor)
    logits = masked[:, 281]
    expected = logits if score == "none" else 1 / (1 + np.exp(-logits))
    explanation = other(cat, 281)
    np.testing.assert_allclose(explanation.raw[0].reshape(-1), expected, rtol=1e-5)
    whole = plain[281] if score == "none" else 1 / (1 + np.exp(-plain[281]))
    assert explanation.targets[0].score == pytest.approx(whole, rel=1e-4)
