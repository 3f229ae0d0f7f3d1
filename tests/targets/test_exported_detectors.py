"""Boxes decoded from real exports, against those that each model's own library found."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from ov_recipro.cut.box_values import proven_layout
from ov_recipro.cut.detectors import find_layout
from ov_recipro.targets.candidates import decode, detections
from places import ROOT

DETECTORS = ROOT / "build" / "detectors"

FAMILIES = {
    "detr": "detr",
    "retinanet_resnet50_fpn": "torchvision",
    "rt-detr": "detr",
    "ssdlite320_mobilenet_v3_large": "torchvision",
    "yolo11n": "yolov8",
    "yolo26n": "end-to-end",
    "yolos": "detr",
    "yolov5nu": "yolov8",
    "yolov8n": "yolov8",
    "yolov8n-nms": "end-to-end",
    "yolox-nano": "yolox",
    "yolox-nano-decoded": "yolox",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_same_boxes_as_the_library(name: str) -> None:
    path = DETECTORS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there; tools/export_detectors.py exports it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected = np.load(path.with_suffix(".npz"))
    image = expected["image"]
    outputs = _run(session, image)
    shapes = {
        each.name: tuple(n if isinstance(n, int) else 0 for n in each.shape)
        for each in session.get_outputs()
    }
    layout = find_layout(shapes, image.shape[2:])
    assert layout is not None
    assert layout.family == FAMILIES[name]
    if not layout.suppressed:
        noise = np.random.default_rng(0).random(image.shape, np.float32) * image.max()
        layout = proven_layout(layout, _row(_run(session, noise), layout.outputs))
        assert layout.decoded == (name != "yolox-nano")
    overlap = None if np.isnan(expected["overlap"]) else float(expected["overlap"])
    candidates = decode(_row(outputs, layout.outputs)[None], layout)
    found = detections(candidates, float(expected["threshold"]), overlap)
    assert len(found) == len(expected["scores"])
    for score, label, box in zip(
        expected["scores"], expected["labels"], expected["boxes"], strict=True
    ):
        assert any(
            each.class_index == label
            and abs(each.score - score) < 1e-4
            and np.allclose(each.box, box, atol=0.02)
            for each in found
        ), (score, label, box)


def _run(session: onnxruntime.InferenceSession, image: np.ndarray) -> dict[str, np.ndarray]:
    names = [each.name for each in session.get_outputs()]
    (read,) = session.get_inputs()
    return dict(zip(names, session.run(names, {read.name: image}), strict=True))


def _row(outputs: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    return np.concatenate([outputs[name].ravel() for name in names]).astype(np.float32)
