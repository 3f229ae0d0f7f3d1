"""Candidate boxes and scores, and what remains of them."""

from __future__ import annotations

import itertools
from math import exp, tanh
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.box_values import proven_layout
from ov_recipro.cut.detectors import find_layout, of_suppression
from ov_recipro.images.preprocess import Preprocessing, prepare
from ov_recipro.images.reading import read_image
from ov_recipro.saliency import Floats
from ov_recipro.targets.candidates import Candidates, columns, decode, detections, iou
from places import SHARED

IMAGE = (64, 96)
CELLS = [(s, y, x) for s in (8, 16, 32) for y in range(64 // s) for x in range(96 // s)]
COUNT = len(CELLS)
RANDOM = np.random.default_rng(0)
FASTESTDET = SHARED.parent / "detectors" / "fastestdet.onnx"
ULTRAFACE = SHARED.parent / "detectors" / "ultraface-RFB-320.onnx"
DOG, CAR = 16, 2


def layout_of(*shapes: tuple[int, ...], **named: tuple[int, ...]) -> BoxLayout:
    outputs = {f"output{number}": shape for number, shape in enumerate(shapes)} | named
    layout = find_layout(outputs, IMAGE)
    assert layout is not None
    return layout


def sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value))


def test_yolov8() -> None:
    y = RANDOM.random((2, 7, COUNT)).astype(np.float32)
    found = decode(y.reshape(2, -1), layout_of((1, 7, COUNT)))
    for run, anchor in itertools.product(range(2), range(COUNT)):
        cx, cy, w, h = y[run, :4, anchor]
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        np.testing.assert_allclose(found.boxes[run, anchor], box, atol=1e-6)
        np.testing.assert_array_equal(found.scores[run, anchor], y[run, 4:, anchor])


def test_yolox() -> None:
    y = RANDOM.normal(size=(2, COUNT, 7)).astype(np.float32)
    found = decode(y.reshape(2, -1), layout_of((1, COUNT, 7)))
    for run, (anchor, (stride, row, column)) in itertools.product(range(2), enumerate(CELLS)):
        cx, cy, w, h = y[run, anchor, :4].tolist()
        cx, cy, w, h = (cx + column) * stride, (cy + row) * stride, exp(w) * stride, exp(h) * stride
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        np.testing.assert_allclose(found.boxes[run, anchor], box, rtol=1e-4, atol=1e-3)
        scores = y[run, anchor, 4] * y[run, anchor, 5:]
        np.testing.assert_allclose(found.scores[run, anchor], scores, rtol=1e-6)


def test_yolov5() -> None:
    y = RANDOM.random((1, 3 * COUNT, 7)).astype(np.float32)
    found = decode(y.reshape(1, -1), layout_of((1, 3 * COUNT, 7)))
    np.testing.assert_allclose(found.scores[0], y[0, :, 4:5] * y[0, :, 5:], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[0, :, 2] - found.boxes[0, :, 0], y[0, :, 2], atol=1e-5)


def test_fastestdet() -> None:
    y = RANDOM.random((2, 8, 4, 6)).astype(np.float32)
    found = decode(y.reshape(2, -1), layout_of((1, 8, 4, 6)))
    for run, row, column in itertools.product(range(2), range(4), range(6)):
        objectness, x, dy, w, h, *scores = y[run, :, row, column].tolist()
        cx, cy = (tanh(x) + column) * 16, (tanh(dy) + row) * 16
        w, h = sigmoid(w) * 96, sigmoid(h) * 64
        anchor = row * 6 + column
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        np.testing.assert_allclose(found.boxes[run, anchor], box, atol=1e-4)
        joined = [objectness**0.6 * score**0.4 for score in scores]
        np.testing.assert_allclose(found.scores[run, anchor], joined, rtol=1e-5)


@pytest.mark.parametrize("as_maps", [False, True])
def test_nanodet(as_maps: bool) -> None:
    cells = {8: 96, 16: 24, 32: 6}
    cls = {s: RANDOM.random((1, n, 5)).astype(np.float32) for s, n in cells.items()}
    dis = {s: RANDOM.normal(size=(1, n, 32)).astype(np.float32) for s, n in cells.items()}

    def laid_out(rows: Floats, stride: int) -> Floats:
        if not as_maps:
            return rows
        return rows.transpose(0, 2, 1).reshape(1, -1, 64 // stride, 96 // stride)

    outputs = {f"cls{s}": laid_out(rows, s) for s, rows in cls.items()}
    outputs |= {f"dis{s}": laid_out(rows, s) for s, rows in dis.items()}
    layout = layout_of(**{name: array.shape for name, array in outputs.items()})
    row = np.concatenate([outputs[name].ravel() for name in layout.outputs])
    found = decode(row[None], layout)
    scores = np.concatenate([cls[s] for s in cells], axis=1)
    bins = np.concatenate([dis[s] for s in cells], axis=1)[0].reshape(-1, 4, 8)
    np.testing.assert_array_equal(found.scores, scores)
    for anchor, (stride, row_, column) in enumerate(CELLS):
        left, top, right, bottom = (
            sum(n * exp(v) for n, v in enumerate(side)) / sum(exp(v) for v in side) * stride
            for side in bins[anchor].tolist()
        )
        cx, cy = (column + 0.5) * stride, (row_ + 0.5) * stride
        box = [cx - left, cy - top, cx + right, cy + bottom]
        np.testing.assert_allclose(found.boxes[0, anchor], box, atol=1e-3)


def test_nanodet_plus_measures_from_corners() -> None:
    y = np.zeros((1, COUNT + 2, 37), np.float32)  # of 64-pixel cells, too
    y[..., 5:] = np.tile([100] + [0] * 7, 4)  # no distance
    found = decode(y.reshape(1, -1), layout_of(y.shape))
    for anchor, (stride, row, column) in enumerate(CELLS):
        corner = [column * stride, row * stride]
        np.testing.assert_allclose(found.boxes[0, anchor], corner * 2, atol=1e-6)


def test_ssd_in_shares_of_the_image() -> None:
    boxes, scores = RANDOM.random((1, 1000, 4)), RANDOM.random((1, 1000, 2))
    layout = layout_of(scores=scores.shape, boxes=boxes.shape)
    found = decode(row_of(boxes, scores), layout)
    np.testing.assert_allclose(found.boxes, boxes * [96, 64, 96, 64], rtol=1e-5)
    np.testing.assert_allclose(found.scores, scores[..., 1:], rtol=1e-6)


def test_ssd_with_logits() -> None:
    boxes, logits = RANDOM.random((1, 1000, 4)), RANDOM.normal(size=(1, 1000, 5))
    layout = find_layout({"b": boxes.shape, "s": logits.shape}, IMAGE, classes=4)
    assert layout is not None
    proven = proven_layout(layout, row_of(boxes, logits))
    powers = np.exp(logits)
    expected = (powers / powers.sum(axis=-1, keepdims=True))[..., 1:]
    found = decode(row_of(boxes, logits), proven)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)


@pytest.mark.parametrize("count", [92, 80])
def test_detr(count: int) -> None:
    logits, boxes = RANDOM.normal(size=(1, 50, count)), RANDOM.random((1, 50, 4))
    layout = layout_of(logits=logits.shape, pred_boxes=boxes.shape)
    found = decode(row_of(boxes, logits), layout)
    if count == 92:
        powers = np.exp(logits)
        expected = (powers / powers.sum(axis=-1, keepdims=True))[..., :-1]
    else:
        expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
    x, y = found.boxes[..., [0, 2]].mean(axis=-1), found.boxes[..., [1, 3]].mean(axis=-1)
    np.testing.assert_allclose(np.stack([x, y], axis=-1), boxes[..., :2] * [96, 64], rtol=1e-4)


@pytest.mark.parametrize("center_point_box", [False, True])
def test_inputs_of_an_operator(center_point_box: bool) -> None:
    layout = of_suppression(("b", (1, 2, 4)), ("s", (1, 3, 2)), center_point_box, IMAGE)
    boxes = [[8, 20, 4, 10], [4, 10, 8, 20]]  # two corners, in either order; or centre and size
    scores = RANDOM.random((1, 3, 2))
    found = decode(row_of(np.array([boxes]), scores), layout)
    expected = [[6, 15, 10, 25], [0, 0, 8, 20]] if center_point_box else [[10, 4, 20, 8]] * 2
    assert found.boxes[0].tolist() == expected
    np.testing.assert_allclose(found.scores[0], scores[0].T, rtol=1e-6)


BOX = [10.0, 20.0, 30.0, 40.0]
AFTER = [
    ({"y": (1, 300, 6)}, [*BOX, 0.9, 2, *[0.0] * 6 * 299]),
    ({"y": (0, 7)}, [0, *BOX, 2, 0.9]),
    ({"boxes": (0, 5), "labels": (0,)}, [*BOX, 0.9, 2]),
    ({"boxes": (0, 4), "scores": (0,), "labels": (0,)}, [*BOX, 0.9, 2]),
    (
        {"y": (1, 1, 2, 7)},
        [0, 2, 0.9, 10 / 96, 20 / 64, 30 / 96, 40 / 64, -1, 1, 0.8, 0, 0, 1, 1],
    ),
    (
        {
            "num_dets": (1, 1),
            "det_boxes": (1, 2, 4),
            "det_scores": (1, 2),
            "det_classes": (1, 2),
        },
        [*BOX, 0, 0, 9, 9, 0.9, 0.8, 2, 1, 1],
    ),
]


@pytest.mark.parametrize(("shapes", "values"), AFTER)
def test_boxes_that_were_suppressed(
    shapes: dict[str, tuple[int, ...]], values: list[float]
) -> None:
    layout = layout_of(**shapes)
    assert layout.suppressed
    (found,) = detections(decode(row_of(np.array(values)), layout), overlap=None)
    assert (found.anchor, found.class_index) == (0, 2)
    assert found.score == pytest.approx(0.9)
    assert found.box == pytest.approx(BOX, rel=1e-5)
    scores = decode(row_of(np.array(values)), layout, classes=np.array([0, 2])).scores
    assert scores[0, 0].tolist() == pytest.approx([0, 0.9])


def test_no_box_at_all() -> None:
    layout = layout_of(boxes=(0, 4), scores=(0,), labels=(0,))
    assert detections(decode(np.zeros((1, 0), np.float32), layout)) == []


LAYOUTS = [
    layout_of((1, 7, COUNT)),
    layout_of((1, COUNT, 7)),
    layout_of((1, 3 * COUNT, 7)),
    layout_of((1, 8, 4, 6)),
    layout_of(scores=(1, 1000, 2), boxes=(1, 1000, 4)),
    layout_of(logits=(1, 50, 92), pred_boxes=(1, 50, 4)),
    layout_of(
        **{f"cls{n}": (1, n, 5) for n in (96, 24, 6)},
        **{f"dis{n}": (1, n, 32) for n in (96, 24, 6)},
    ),
    of_suppression(("b", (1, COUNT, 4)), ("s", (1, 3, COUNT)), False, IMAGE),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.family)
def test_some_candidates_need_some_values(layout: BoxLayout) -> None:
    values = RANDOM.random((5, layout.values)).astype(np.float32)
    every = decode(values, layout)
    anchors = np.array([17, 3, 11])
    classes = np.array([0]) if layout.classes == 1 else np.array([1, 0])
    some = columns(layout, anchors, classes)
    assert len(some) < layout.values / 2
    assert (np.diff(some) > 0).all()
    few = decode(values[:, some], layout, anchors, classes, some)
    np.testing.assert_array_equal(few.boxes, every.boxes[:, anchors])
    np.testing.assert_array_equal(few.scores, every.scores[:, anchors][..., classes])
    other = values.copy()
    other[:, np.setdiff1d(np.arange(layout.values), some)] = np.nan
    same = decode(other, layout, anchors, classes)
    np.testing.assert_array_equal(same.scores, few.scores)
    with pytest.raises(ValueError, match=f"{len(some) - 1} values a run, not {len(some)}"):
        decode(values[:, some[:-1]], layout, anchors, classes, some)


def test_iou() -> None:
    boxes = np.array([[[0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4], [0, 0, 0, 0]]], np.float32)
    assert iou(boxes, (0, 0, 2, 2))[0].tolist() == pytest.approx([1, 1 / 7, 0, 0])


def test_detections() -> None:
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]]
    scores = [[0.7, 0], [0.9, 0.1], [0, 0.8], [0.4, 0.5], [0.3, 0.2]]
    candidates = Candidates(np.array([boxes], np.float32), np.array([scores], np.float32))
    found = detections(candidates)
    assert [(each.anchor, each.class_index) for each in found] == [(1, 0), (2, 1), (3, 1)]
    assert found[0].box == (1, 0, 11, 10)
    assert found[0].score == pytest.approx(0.9)
    assert [each.anchor for each in detections(candidates, overlap=0.9)] == [1, 2, 0, 3]
    assert [each.anchor for each in detections(candidates, 0.6, None)] == [1, 2, 0]


def test_boxes_without_an_area_neither_go_nor_suppress() -> None:
    boxes = [
        [5, 5, 5, 9],  # no width
        [9, 9, 1, 1],  # inverted
        [np.nan, 0, 1, 1],
        [0, 0, np.inf, 9],
        [0, 0, 10, 10],
        [0, 1, 10, 10],
    ]
    scores = np.linspace(0.95, 0.5, 6, dtype=np.float32)[None, :, None]
    found = detections(Candidates(np.array([boxes], np.float32), scores))
    assert [each.anchor for each in found] == [0, 1, 2, 3, 4]


def test_thousands_of_boxes_are_suppressed_as_one_after_the_other() -> None:
    """Most overlap a better one, so that the first thousand do not suffice."""
    limit = 0.1234567  # which no two boxes of whole pixels overlap by exactly
    corners = RANDOM.integers(0, 60, (5000, 2)) * 7
    boxes = np.concatenate([corners, corners + RANDOM.integers(30, 40, (5000, 2))], axis=1)
    scores = RANDOM.random((5000, 2)).astype(np.float32)
    candidates = Candidates(boxes[None].astype(np.float32), scores[None])
    index, best = scores.argmax(axis=1), scores.max(axis=1)
    left, expected = np.argsort(-best, kind="stable"), list[int]()
    while len(left) and len(expected) < 300:
        first, left = int(left[0]), left[1:]
        expected.append(first)
        same = index[left] == index[first]
        left = left[~(same & (iou(candidates.boxes[0][left], candidates.boxes[0][first]) > limit))]
    found = [each.anchor for each in detections(candidates, 0.01, limit)]
    assert found == expected
    assert best[found[-1]] < np.sort(best)[-1000]


def row_of(*arrays: Floats) -> Floats:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float32)[None]


def found_in(model: Path, how: Preprocessing, image: Path) -> tuple[BoxLayout, Floats, Candidates]:
    """Return the layout and values of a real model, and the candidates in a photograph."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(tensor: Floats) -> dict[str, Floats]:
        results = compiled([tensor])
        return {port.any_name: results[port] for port in compiled.outputs}

    noise = run(RANDOM.normal(size=(1, 3, *how.size)).astype(np.float32))
    layout = find_layout({name: array.shape for name, array in noise.items()}, how.size)
    assert layout is not None
    layout = proven_layout(layout, row_of(*(noise[name] for name in layout.outputs)))
    tensor, _ = prepare(read_image(image), how)
    outputs = run(tensor.astype(np.float32))
    values = row_of(*(outputs[name] for name in layout.outputs))
    return layout, values, decode(values, layout)


def photograph(wnid: str) -> Path:
    found = sorted((SHARED / wnid).glob("*.jpg"))
    if not found:
        pytest.skip("the ImageNet sample is not there")
    return found[0]


@pytest.mark.parametrize(("wnid", "index"), [("n02099712", DOG), ("n02814533", CAR)])
def test_fastestdet_on_photographs(wnid: str, index: int) -> None:
    if not FASTESTDET.is_file():
        pytest.skip(f"{FASTESTDET.name} is not there")
    how = Preprocessing((352, 352), "standard", mean=(0, 0, 0), scale=(255, 255, 255),
                        channels="BGR")  # fmt: skip
    layout, values, candidates = found_in(FASTESTDET, how, photograph(wnid))
    best = detections(candidates)[0]
    assert (best.class_index, layout.family) == (index, "fastestdet")
    assert best.score > 0.8
    assert iou(np.array([best.box], np.float32), (20, 20, 340, 340))[0] > 0.5
    anchors, classes = np.array([best.anchor, 0]), np.array([index])
    kept = columns(layout, anchors, classes)
    few = decode(values[:, kept], layout, anchors, classes, kept)
    np.testing.assert_array_equal(few.boxes, candidates.boxes[:, anchors])
    np.testing.assert_array_equal(few.scores, candidates.scores[:, anchors][..., classes])


def test_ultraface_on_photographs() -> None:
    if not ULTRAFACE.is_file():
        pytest.skip(f"{ULTRAFACE.name} is not there")
    how = Preprocessing((240, 320), "standard", mean=(127,) * 3, scale=(128,) * 3)
    layout, values, candidates = found_in(ULTRAFACE, how, photograph("n02111277"))
    assert (layout.unit, layout.background, layout.classes) == ("image", "first", 1)
    found = detections(candidates, 0.9)
    assert len(found) == 1
    left, top, right, bottom = found[0].box
    assert 80 < left < right < 260
    assert 0 < top < bottom < 240
    anchors = np.array([found[0].anchor])
    kept = columns(layout, anchors)
    few = decode(values[:, kept], layout, anchors, reads=kept)
    np.testing.assert_array_equal(few.boxes, candidates.boxes[:, anchors])
