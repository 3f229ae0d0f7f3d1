"""What a model is for, from what its file says, and the names and shapes of its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from ov_recipro.cut.box_layout import BoxLayout, pyramids
from ov_recipro.cut.detectors import find_layout
from ov_recipro.cut.graph import Shape, Task

Kind = Task | Literal["anomaly", "detector", "instances", "keypoints", "unknown"]

SALIENCY_MAP = "saliency_map"
SALIENCY_CLASSES = "saliency_classes"
FEATURE_VECTOR = "feature_vector"
OWN_OUTPUTS = frozenset({SALIENCY_MAP, SALIENCY_CLASSES, FEATURE_VECTOR})
"""Outputs that explaining adds to a model; they say nothing about it."""

NORMALISATIONS = frozenset({"LpNormalization", "NormalizeL2", "ReduceL2"})
_OVER_CLASSES = ("LogSoftmax", "SoftMax", "Softmax")
_VECTOR_WORDS = ("embed", "descriptor", "pooler", "feat")
_FINEST = 8  # the stride up to which a map [1,K,h,w] is taken for a segmentation
_MODEL_TYPES: dict[str, Kind] = {
    "classification": "classifier",
    "segmentation": "segmentation",
    **dict.fromkeys(
        ("ssd", "yolo", "yolov3-onnx", "yolov4", "yolov5", "yolov8", "yolo11", "yolox", "yolof",
         "detectionmodel"),
        "detector",
    ),
    **dict.fromkeys(("maskrcnn", "detrinstseg"), "instances"),
    "anomalydetection": "anomaly",
    "keypointdetection": "keypoints",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What a model is for, and how that is known, in words.

    Attributes:
        boxes: of a detector, how its outputs hold candidate boxes; None where that is unknown.
    """

    kind: Kind
    why: str
    boxes: BoxLayout | None = None


@dataclass(frozen=True)
class Output:
    """One of a model's outputs.

    Attributes:
        shape: at batch 1; closing: the operation that makes it, casts and reshapes aside.
        channels_last: whether it is laid out [N,H,W,C].
    """

    shape: Shape
    closing: str
    channels_last: bool = False


def with_article(noun: str) -> str:
    """Return a noun with "a" or "an" in front of it."""
    return f"{'an' if noun[0] in 'aei' else 'a'} {noun}"


def of_model_type(model_type: str) -> Finding | None:
    """Return what OpenVINO Model API's `model_type` says, if it is one that is known."""
    kind = _MODEL_TYPES.get(model_type.lower())
    return None if kind is None else Finding(kind, f"model_type '{model_type}'")


def recognise(outputs: Mapping[str, Output], image: tuple[int, int]) -> Finding:
    """Return what a model is for, judging by its outputs; the first rule that fits decides.

    Args:
        outputs: the outputs of known shape, by name.
        image: (height, width) of the model's input.
    """
    known = {name: out for name, out in outputs.items() if name not in OWN_OUTPUTS} or outputs
    shapes = {name: output.shape for name, output in known.items()}
    for name, output in known.items():
        if len(known) == 1 and len(output.shape) == 3 and output.closing in _OVER_CLASSES:
            return Finding("sequence", _as_text(name, output.shape))
    for rule in (_boxes_by_name, _boxes_by_shape, _raw_heads):
        if (why := rule(shapes, image)) is not None:
            return Finding("detector", why, find_layout(shapes, image))
    boxes = find_layout(shapes, image)
    if boxes is not None and all(known[name].closing == "Concat" for name in boxes.outputs):
        return Finding("detector", _as_text(boxes.outputs[0], boxes.shapes[0]), boxes)
    vectors = [name for name, shape in shapes.items() if is_vector(shape)]
    if vectors:
        name = vectors[0]
        by_name = any(word in name.lower() for word in _VECTOR_WORDS)
        if len(vectors) == 1 and (by_name or known[name].closing in NORMALISATIONS):
            return Finding("embedding", _as_text(name, shapes[name]))
        return Finding("classifier", _as_text(name, shapes[name]))
    for name, output in known.items():
        if _is_map(output, image):
            return Finding("segmentation", _as_text(name, output.shape))
    return Finding("unknown", ", ".join(_as_text(*each) for each in shapes.items()))


def is_vector(shape: Shape) -> bool:
    """[K], [1,K], [1,K,1,1] or [1,1,1,K]."""
    return len(shape) in (1, 2) or (
        len(shape) == 4 and shape[0] == 1 and prod(shape) == max(shape[1], shape[3])
    )


def _as_text(name: str, shape: Shape) -> str:
    return f"output '{name}' {list(shape)}"


def _is_map(output: Output, image: tuple[int, int]) -> bool:
    """Whether an output is [1,K,h,w] of a fine stride, or an index of a class for each pixel."""
    shape = output.shape
    if output.closing in ("ArgMax", "TopK"):
        return len(shape) in (3, 4) and prod(shape) == shape[-1] * shape[-2]
    if len(shape) != 4 or shape[0] != 1:
        return False
    height, width = shape[1:3] if output.channels_last else shape[2:]
    return min(height, width) > 1 and height * _FINEST >= image[0]


def _boxes_by_name(shapes: Mapping[str, Shape], _: tuple[int, int]) -> str | None:
    return named_as_boxes(shapes)


def named_as_boxes(outputs: Iterable[str]) -> str | None:
    """Return what says that outputs of these names hold boxes, if their names do."""
    names = {name.lower() for name in outputs}
    if {"num_dets", "det_boxes"} <= names:
        return "outputs of TensorRT's EfficientNMS"
    if {"boxes", "labels"} <= names or ("boxes" in names and len(names) > 1):
        return "an output 'boxes'"
    return "outputs 'logits' and 'pred_boxes'" if "pred_boxes" in names else None


def _boxes_by_shape(shapes: Mapping[str, Shape], image: tuple[int, int]) -> str | None:
    values = list(shapes.values())
    if any(len(s) == 4 and s[:2] == (1, 1) and s[3] == 7 and s[2] != image[0] for s in values):
        return "an output [1,1,N,7] of DetectionOutput"
    if len(values) == 2 and all(len(s) == 3 for s in values) and values[0][1] == values[1][1]:
        four = [s for s in values if s[2] == 4]
        return f"boxes and scores of {four[0][1]} candidates" if len(four) == 1 else None
    if len(values) != 1 or len(values[0]) != 3:
        return None
    _, first, last = values[0]
    grids = pyramids(image)
    if last in (6, 7) and first > last:
        return f"an output [1,{first},{last}] of boxes"
    if last in grids:
        return f"an output [1,4+K,{last}], as of YOLOv8"
    if first in grids:
        return f"an output [1,{first},5+K], as of YOLOX"
    return f"an output [1,{first},5+K], as of YOLOv5" if first in {3 * g for g in grids} else None


def _raw_heads(shapes: Mapping[str, Shape], image: tuple[int, int]) -> str | None:
    sizes = {prod(s[2:]) if len(s) == 4 else s[-2] for s in shapes.values() if len(s) in (3, 4)}
    if len(shapes) > 2 and len(sizes) > 1 and sum(sizes) in pyramids(image):
        return "maps of the strides of a detector"
    return None
