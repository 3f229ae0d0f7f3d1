"""What only values tell of a detector's outputs."""

from __future__ import annotations

import numpy as np
import pytest

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.box_values import is_decoded, proven_layout
from ov_recipro.cut.detectors import find_layout
from ov_recipro.saliency import Floats
from ov_recipro.targets.candidates import decode

IMAGE = (64, 96)
CELLS = 96 + 24 + 6
RANDOM = np.random.default_rng(0)


def layout_of(outputs: dict[str, tuple[int, ...]]) -> BoxLayout:
    layout = find_layout(outputs, IMAGE)
    assert layout is not None
    return layout


def test_yolox_decoded_or_not() -> None:
    layout = layout_of({"y": (1, CELLS, 7)})
    raw = RANDOM.normal(size=(1, CELLS, 7)).astype(np.float32)
    raw[..., 4:] = RANDOM.random((1, CELLS, 3))
    found = decode(raw.reshape(1, -1), layout)
    decoded = raw.copy()
    decoded[..., :2] = (found.boxes[..., :2] + found.boxes[..., 2:]) / 2
    decoded[..., 2:4] = found.boxes[..., 2:] - found.boxes[..., :2]
    assert not is_decoded(raw, layout)
    assert is_decoded(decoded, layout)
    assert proven_layout(layout, raw) == layout
    proven = proven_layout(layout, decoded)
    assert proven.decoded
    assert is_decoded(decoded, proven)
    same = decode(decoded.reshape(1, -1), proven)
    np.testing.assert_allclose(same.boxes, found.boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("lowest", "highest", "decoded"),
    [(0.5, 90, True), (0, 4, False), (-5, 5, False), (-90, 90, False)],
)
def test_sizes_of_yolox(lowest: float, highest: float, decoded: bool) -> None:
    values = np.zeros((1, CELLS, 7), np.float32)
    values[..., 2:4] = np.linspace(lowest, highest, 2 * CELLS).reshape(1, CELLS, 2)
    assert is_decoded(values, layout_of({"y": values.shape})) == decoded


@pytest.mark.parametrize("background", [0, -1])
def test_a_class_for_no_object(background: int) -> None:
    layout = layout_of({"boxes": (1, 1000, 4), "scores": (1, 1000, 5)})
    assert (layout.classes, layout.background) == (5, "none")
    scores = RANDOM.random((1000, 5))
    scores[:, background] += 2
    scores /= scores.sum(axis=1, keepdims=True)
    proven = proven_layout(layout, row(RANDOM.random((1000, 4)), scores))
    assert (proven.classes, proven.background) == (4, "last" if background else "first")
    assert (proven.activation, proven.unit) == ("none", "image")


def test_two_classes_that_do_not_add_up_are_two() -> None:
    layout = layout_of({"boxes": (1, 1000, 4), "scores": (1, 1000, 2)})
    assert (layout.classes, layout.background) == (1, "first")
    proven = proven_layout(layout, row(RANDOM.random((1000, 4)), RANDOM.random((1000, 2))))
    assert (proven.classes, proven.background) == (2, "none")


def test_pixels_and_logits() -> None:
    layout = layout_of({"boxes": (1, 1000, 4), "scores": (1, 1000, 5)})
    proven = proven_layout(
        layout, row(RANDOM.random((1000, 4)) * 90, RANDOM.normal(size=(1000, 5)))
    )
    assert (proven.unit, proven.activation) == ("pixels", "sigmoid")


def test_a_detr_whose_last_class_leads() -> None:
    layout = layout_of({"logits": (1, 20, 6), "pred_boxes": (1, 20, 4)})
    assert (layout.classes, layout.activation) == (6, "sigmoid")
    logits, boxes = RANDOM.normal(size=(20, 6)), RANDOM.random((20, 4))
    assert proven_layout(layout, row(boxes, logits - 5)) == layout
    logits[:, -1] += 8
    proven = proven_layout(layout, row(boxes, logits))
    assert (proven.classes, proven.activation, proven.background) == (5, "softmax", "last")
    assert proven_layout(proven, row(boxes, logits)) == proven


def row(*arrays: Floats) -> Floats:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float32)
