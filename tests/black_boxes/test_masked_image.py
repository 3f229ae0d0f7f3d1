"""Masked images, scores that are not finite, and a real model as a black box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
from rectangles import LEFT, WHITE, Array, highest, inside, mean_of

from ov_recipro import ImageError
from ov_recipro.black_boxes import Attribution, MaskedImage, Run, aise, d_rise, occlusion, rise
from ov_recipro.images.reading import read_image
from ov_recipro.saliency import target_scores

Explain = Callable[..., list[Attribution]]
EGYPTIAN_CAT, CUP = 285, 968


def test_hidden_pixels_take_the_fill() -> None:
    tensor = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    masks = np.array([[[1, 0], [0.5, 1]]])
    found = MaskedImage(tensor, np.array([10.0, 20.0, 30.0])).through(masks)
    expected = np.array([[[[0, 10], [6, 3]], [[4, 20], [13, 7]], [[8, 30], [20, 11]]]])
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_channels_last_is_the_same_image() -> None:
    random = np.random.default_rng(0)
    tensor = random.random((1, 3, 5, 7), np.float32)
    masks, fill = random.random((4, 5, 7)), random.random(3)
    first = MaskedImage(tensor, fill)
    last = MaskedImage(tensor.transpose(0, 2, 3, 1), fill, channels_last=True)
    assert first.size == last.size == (5, 7)
    np.testing.assert_array_equal(first.through(masks), last.through(masks).transpose(0, 3, 1, 2))


def test_whole_numbers_are_rounded() -> None:
    tensor = np.full((1, 1, 1, 4), 255, np.uint8)
    found = MaskedImage(tensor, 114).through(np.array([[[1, 0, 0.5, 0.99]]]))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, 0, 0], [255, 114, 184, 254])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("explain", [occlusion, rise, d_rise, aise])
def test_a_masked_score_that_is_not_finite(explain: Explain, value: float) -> None:
    model = mean_of(LEFT)

    def run(inputs: Array) -> Array:
        scores = np.asarray(model(inputs))
        scores[scores < 0.8] = value
        return scores

    with pytest.raises(ImageError) as caught:
        explain(run, WHITE)
    assert str(caught.value) == "The model gives NaN or infinite numbers for a masked image."


@pytest.mark.parametrize("explain", [occlusion, aise])
def test_a_plain_score_that_is_not_finite(explain: Explain) -> None:
    with pytest.raises(ImageError, match="numbers for this image"):
        explain(lambda inputs: np.full((len(inputs), 1), np.nan), WHITE)


@pytest.fixture(scope="module")
def classifier(lite0: Path) -> Run:
    """EfficientNet-Lite0 with two targets, the softmax of a cat and of a cup."""
    model = ov.compile_model(lite0, "CPU", {"INFERENCE_NUM_THREADS": 1})

    def run(inputs: Array) -> Array:
        logits = np.asarray(model([inputs])[0])
        return target_scores(logits, "softmax", [EGYPTIAN_CAT, CUP])

    return run


@pytest.fixture(scope="module")
def quarters(cat: Path, coffee: Path) -> MaskedImage:
    """A cat in the upper left quarter, a cup of coffee in the lower right one."""
    pixels = np.full((224, 224, 3), 127, np.float32)
    for path, place in ((cat, slice(0, 112)), (coffee, slice(112, 224))):
        photograph = read_image(path)
        side = min(photograph.shape[:2])
        top, left = ((length - side) // 2 for length in photograph.shape[:2])
        square = photograph[top : top + side, left : left + side]
        pixels[place, place] = cv2.resize(square, (112, 112), interpolation=cv2.INTER_AREA)
    tensor = (pixels[..., ::-1].transpose(2, 0, 1)[None] - 127) / 128
    return MaskedImage(np.ascontiguousarray(tensor), 0.0)


@pytest.mark.parametrize("explain", [occlusion, rise, aise])
def test_a_cat_and_a_cup(explain: Explain, classifier: Run, quarters: MaskedImage) -> None:
    options = {"masks": 96} if explain is rise else {"windows": 15} if explain is aise else {}
    on_cat, on_cup = explain(classifier, quarters, **options)
    assert inside(highest(on_cat.raw), (0, 0, 112, 112))
    assert inside(highest(on_cup.raw), (112, 112, 224, 224))
