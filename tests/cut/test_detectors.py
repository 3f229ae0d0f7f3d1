"""How a detector's outputs hold its boxes, by their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.detectors import find_layout, of_suppression

IMAGE = (256, 320)  # strides 8, 16, 32: 1280 + 320 + 80 cells
CELLS = 1680
WITH_64 = CELLS + 20

LAYOUTS: list[tuple[str, int, int, Mapping[str, tuple[int, ...]]]] = [
    ("yolov8", 80, CELLS, {"output0": (1, 84, CELLS)}),
    ("yolov8", 3, CELLS, {"output0": (1, 39, CELLS), "output1": (1, 32, 64, 80)}),
    ("yolox", 80, CELLS, {"output": (1, CELLS, 85)}),
    ("yolov5", 80, 3 * CELLS, {"output0": (1, 3 * CELLS, 85)}),
    ("nanodet", 80, WITH_64, {"output": (1, WITH_64, 112)}),
    ("ssd", 1, 4420, {"scores": (1, 4420, 2), "boxes": (1, 4420, 4)}),
    ("ssd", 20, 1917, {"a": (1, 1917, 4), "b": (1, 1917, 20)}),
    ("ssd", 80, CELLS, {"a": (1, CELLS, 4), "b": (1, 80, CELLS)}),
    ("ssd", 80, 5040, {"boxes": (1, 5040, 1, 4), "confs": (1, 5040, 80)}),
    ("detr", 91, 100, {"logits": (1, 100, 92), "pred_boxes": (1, 100, 4), "states": (1, 100, 256)}),
    ("detr", 80, 300, {"logits": (1, 300, 80), "pred_boxes": (1, 300, 4)}),
    ("fastestdet", 80, 320, {"758": (1, 85, 16, 20)}),
    ("end-to-end", 0, 300, {"output0": (1, 300, 6)}),
    ("end-to-end", 0, 300, {"output0": (1, 300, 38), "output1": (1, 32, 64, 80)}),
    ("end-to-end", 0, 0, {"output": (-1, 7)}),
    ("model-api", 0, 100, {"boxes": (1, 100, 5), "labels": (1, 100)}),
    ("torchvision", 0, 0, {"boxes": (-1, 4), "labels": (-1,), "scores": (-1,)}),
    ("torchvision", 0, 0, {"boxes": (), "labels": (), "scores": ()}),
    ("detection-output", 0, 200, {"out": (1, 1, 200, 7)}),
    (
        "efficient-nms",
        0,
        100,
        {
            "num_dets": (1, 1),
            "det_boxes": (1, 100, 4),
            "det_scores": (1, 100),
            "det_classes": (1, 100),
        },
    ),
]


@pytest.mark.parametrize(("family", "classes", "anchors", "outputs"), LAYOUTS)
def test_by_shapes(
    family: str, classes: int, anchors: int, outputs: Mapping[str, tuple[int, ...]]
) -> None:
    layout = find_layout(outputs, IMAGE)
    assert layout is not None
    assert (layout.family, layout.classes, layout.anchors) == (family, classes, anchors)
    assert set(layout.outputs) <= set(outputs)
    assert layout.suppressed == (classes == 0)
    again = msgspec.json.decode(msgspec.json.encode(layout), type=BoxLayout)
    assert again == layout
    assert hash(again) == hash(layout)


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": ()},
        {"logits": (), "pred_boxes": ()},
        {"y": (1, 1000)},
        {"y": (1, 197, 768)},
        {"y": (1, 21, 256, 320)},
        {"y": (1, 85, 8, 10)},
        {"a": (1, 9, 32, 40), "b": (1, 9, 16, 20), "c": (1, 9, 8, 10)},
        {"a": (1, 100, 4), "b": (1, 99, 20)},
    ],
)
def test_other_outputs_are_left_alone(outputs: Mapping[str, tuple[int, ...]]) -> None:
    assert find_layout(outputs, IMAGE) is None


def test_levels_of_nanodet() -> None:
    cells = {8: 1280, 16: 320, 32: 80}
    scores = {f"cls_pred_stride_{s}": (1, n, 80) for s, n in cells.items()}
    distances = {f"dis_pred_stride_{s}": (1, n, 32) for s, n in cells.items()}
    layout = find_layout(scores | distances, IMAGE)
    assert layout is not None
    assert (layout.family, layout.classes, layout.anchors) == ("nanodet", 80, CELLS)
    assert layout.outputs[:2] == ("cls_pred_stride_8", "dis_pred_stride_8")
    maps = {name: (1, s[2], 256 // k, 320 // k) for (name, s), k in zip(
        (scores | distances).items(), (8, 16, 32) * 2, strict=True)}  # fmt: skip
    as_maps = find_layout(maps, IMAGE)
    assert as_maps is not None
    assert as_maps.grids == layout.grids
    assert all(part.channels_first for part in as_maps.parts)


def test_the_file_decides_what_shapes_leave_open() -> None:
    rows = {"y": (1, CELLS, 36)}
    found = [find_layout(rows, IMAGE, classes=count) for count in (31, 32, 4, 30)]
    assert [each and each.family for each in found] == ["yolox", "yolov8", "nanodet", None]
    assert find_layout({"y": (1, 20, CELLS)}, IMAGE, classes=15) is None  # boxes with an angle
    assert find_layout({"y": (1, 20, CELLS)}, IMAGE, declared="obb") is None
    pair = {"a": (1, 5000, 4), "b": (1, 5000, 21)}
    backgrounds = [find_layout(pair, IMAGE, classes=count) for count in (20, 21)]
    assert [each and each.background for each in backgrounds] == ["first", "none"]
    queries = {"logits": (1, 100, 8), "pred_boxes": (1, 100, 4)}
    detrs = [find_layout(queries, IMAGE, classes=count) for count in (7, 8)]
    assert [each and each.activation for each in detrs] == ["softmax", "sigmoid"]


def test_place_of_an_anchor() -> None:
    layout = find_layout({"y": (1, CELLS, 85)}, IMAGE)
    assert layout is not None
    assert layout.place(0) == (0, 0, 0)
    assert layout.place(41) == (0, 1, 1)
    assert layout.place(1280 + 39) == (1, 1, 19)
    assert layout.place(CELLS - 1) == (2, 7, 9)
    assert layout.place(CELLS) is None
    three = find_layout({"y": (1, 3 * CELLS, 85)}, IMAGE)
    assert three is not None
    assert three.place(1280 + 41) == (0, 1, 1)
    assert three.place(3 * 1280) == (1, 0, 0)


def test_open_numbers_of_boxes() -> None:
    layout = find_layout({"boxes": (0, 4), "labels": (0,), "scores": (0,)}, IMAGE)
    assert layout is not None
    assert layout.of_size(18).shapes == ((3, 4), (3,), (3,))
    assert layout.of_size(0).anchors == 0
    with pytest.raises(ValueError, match="19 values"):
        layout.of_size(19)


def test_inputs_of_an_operator_that_suppresses() -> None:
    boxes, scores = ("b", (1, CELLS, 4)), ("s", (1, 3, CELLS))
    layout = of_suppression(boxes, scores, False, IMAGE)
    assert (layout.form, layout.classes, layout.anchors) == ("yxyx", 3, CELLS)
    assert not layout.suppressed
    assert layout.place(41) == (0, 1, 1)
    assert of_suppression(boxes, scores, True, IMAGE).form == "cxcywh"
    assert of_suppression(boxes, scores, False, IMAGE, x_first=True).form == "xyxy"
