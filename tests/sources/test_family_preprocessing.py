"""How families of detectors prepare images."""

from __future__ import annotations

import pytest

from ov_recipro.cut.detectors import find_layout, of_suppression
from ov_recipro.sources.family_preprocessing import family_preprocessing

SIZE = (320, 320)


@pytest.mark.parametrize(
    ("outputs", "name", "resize", "channels", "pad_value", "scale"),
    [
        ({"y": (1, 84, 2100)}, "Ultralytics", "fit_to_window_letterbox", "RGB", 114, 255),
        ({"y": (1, 2100, 85)}, "YOLOX", "fit_to_window", "BGR", 114, 1),
        ({"y": (1, 85, 20, 20)}, "FastestDet", "standard", "BGR", 0, 255),
        ({"y": (1, 2125, 112)}, "NanoDet", "fit_to_window_letterbox", "BGR", 0, 57.375),
        ({"a": (1, 4420, 2), "b": (1, 4420, 4)}, "UltraFace", "standard", "RGB", 0, 128),
        ({"a": (1, 4420, 9), "b": (1, 4420, 4)}, "Model API", "standard", "BGR", 0, 1),
        ({"logits": (1, 50, 92), "pred_boxes": (1, 50, 4)}, "DETR", "standard", "RGB", 0, 58.395),
        ({"logits": (1, 50, 80), "pred_boxes": (1, 50, 4)}, "RT-DETR", "standard", "RGB", 0, 255),
        ({"boxes": (0, 4), "scores": (0,), "labels": (0,)}, "torchvision",
         "standard", "RGB", 0, 255),
    ],
)  # fmt: skip
def test_by_family(
    outputs: dict[str, tuple[int, ...]],
    name: str,
    resize: str,
    channels: str,
    pad_value: int,
    scale: float,
) -> None:
    layout = find_layout(outputs, SIZE)
    assert layout is not None
    found = family_preprocessing(layout, SIZE)
    assert found is not None
    assert (found.size, found.resize, found.channels) == (SIZE, resize, channels)
    assert (found.pad_value, found.scale[0]) == (pad_value, scale)
    assert name in found.source
    assert found.source.endswith("(assumed)")


def test_an_operator_is_not_a_family() -> None:
    layout = of_suppression(("b", (1, 2100, 4)), ("s", (1, 3, 2100)), False, SIZE)
    assert family_preprocessing(layout, SIZE) is None
