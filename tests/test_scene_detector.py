"""The bundled detector: it finds the objects of its scenes, and their evidence decides."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest
from numpy.typing import NDArray

from ov_recipro.sources.ultralytics import find_export
from places import ROOT

sys.path.append(str(ROOT / "tools"))
detector_scenes = importlib.import_module("detector_scenes")

MODEL = ROOT / "tests" / "assets" / "scene-detector" / "model.onnx"
Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@pytest.fixture(scope="module")
def run() -> Run:
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(MODEL, "CPU", precision)

    def infer(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return boxes [525,4], left top right bottom, and scores [525,6] of a BGR image."""
        planes = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        output = compiled(planes)[0][0].T
        centres, sizes = output[:, :2], output[:, 2:4]
        return np.hstack([centres - sizes / 2, centres + sizes / 2]), output[:, 4:]

    return infer


@pytest.fixture(scope="module")
def scenes() -> list[Any]:
    return list(detector_scenes.make_scenes(60, (detector_scenes.HELD_OUT_SEED, 1)))


def overlaps(boxes: NDArray[np.float32], truth: tuple[int, ...]) -> NDArray[np.float32]:
    x0, y0, x1, y1 = boxes.T
    width = np.minimum(x1, truth[2]) - np.maximum(x0, truth[0])
    height = np.minimum(y1, truth[3]) - np.maximum(y0, truth[1])
    shared = width.clip(0) * height.clip(0)
    area = (truth[2] - truth[0]) * (truth[3] - truth[1])
    return np.asarray(shared / ((x1 - x0) * (y1 - y0) + area - shared))


def score(run: Run, image: NDArray[np.uint8], class_index: int, truth: tuple[int, ...]) -> float:
    boxes, scores = run(image)
    return float(scores[overlaps(boxes, truth) >= 0.5, class_index].max(initial=0))


def test_what_the_file_says() -> None:
    model = onnx.load(MODEL)
    export = find_export({each.key: each.value for each in model.metadata_props}, MODEL)
    assert export is not None
    assert (export.task, export.size) == ("detect", (160, 160))
    assert export.names == detector_scenes.CLASSES
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": [1, 3, 160, 160], "output0": [1, 10, 525]}
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert MODEL.stat().st_size < 400_000


def test_it_finds_the_objects(run: Run, scenes: list[Any]) -> None:
    right = found = there = 0
    for scene in scenes:
        boxes, scores = run(scene.image)
        for class_index in range(len(detector_scenes.CLASSES)):
            truths = [each.box for each in scene.objects if each.class_index == class_index]
            corners = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.tolist()]
            kept = cv2.dnn.NMSBoxes(corners, scores[:, class_index].tolist(), 0.4, 0.5)
            kept_boxes = boxes[np.array(kept, int)]
            right += sum(bool((overlaps(kept_boxes, truth) >= 0.5).any()) for truth in truths)
            found += len(kept)
            there += len(truths)
    assert there > 100
    assert right / there > 0.9
    assert right / found > 0.9


@pytest.mark.parametrize("evidence", ["part", "context"])
def test_the_evidence_decides(run: Run, scenes: list[Any], evidence: str) -> None:
    left = []
    for scene in scenes:
        for each in scene.objects:
            if (box := getattr(each, evidence)) is not None:
                whole = score(run, scene.image, each.class_index, each.box)
                bare = score(run, scene.without(box), each.class_index, each.box)
                left.append(bare / whole)
    assert len(left) > 20
    assert np.mean(np.array(left) < 0.5) > 0.8


def test_the_truth_of_the_scenes(scenes: list[Any]) -> None:
    again = detector_scenes.make_scenes(60, (detector_scenes.HELD_OUT_SEED, 1))
    for scene, same in zip(scenes, again, strict=True):
        np.testing.assert_array_equal(scene.image, same.image)
        assert scene.objects == same.objects
        for each in scene.objects:
            kind = detector_scenes.CLASSES[each.class_index].split()[-1]
            assert (each.part is not None) == (kind == "plate")
            assert (each.context is not None) == (kind == "pod")
            x0, y0, x1, y1 = each.box
            assert 0 <= x0 < x1 <= 160
            assert 0 <= y0 < y1 <= 160
            if each.part is not None:
                assert x0 < each.part[0] < each.part[2] < x1
                assert y0 < each.part[1] < each.part[3] < y1
            if each.context is not None:
                across = max(x0 - each.context[2], each.context[0] - x1, 0)
                along = max(y0 - each.context[3], each.context[1] - y1, 0)
                assert 0.4 <= np.hypot(across, along) / max(x1 - x0, y1 - y0) <= 1
            evidence = each.part or each.context
            if evidence is not None:
                changed = (scene.without(evidence) != scene.image).any(2)
                rows, columns = np.nonzero(changed)
                assert evidence[0] <= columns.min() <= columns.max() < evidence[2]
                assert evidence[1] <= rows.min() <= rows.max() < evidence[3]
