"""Recognising how a detector's outputs hold its boxes, from their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TypeAlias

from ov_recipro.cut.box_layout import BoxLayout, Content, Grid, Part, grids_of
from ov_recipro.cut.graph import Shape

__all__ = ["BoxLayout", "find_layout", "of_suppression"]

Shapes: TypeAlias = Mapping[str, Shape]

_MASKS = 32  # coefficients of a mask, as Ultralytics' segmentation models have them
_BINS = (8, 11, 16, 17)  # of the distributions that NanoDet, YOLOv8 and GFL predict
_UNREADABLE = ("obb", "pose", "keypointdetection", "anomalydetection")
_FEW = 900  # the most queries that a DETR has


def find_layout(
    outputs: Mapping[str, Shape],
    image: tuple[int, int],
    *,
    declared: str | None = None,
    classes: int | None = None,
) -> BoxLayout | None:
    """Return the layout of a detector's outputs, or None if it is not one that can be read.

    Args:
        outputs: shapes at batch 1, by name; 0 or -1 for an open number of boxes, () where nothing
            is known.
        image: (height, width) of the model's input.
        declared: the task or the type of model that the file names.
        classes: their number, if the file names them.
    """
    if declared is not None and declared.lower() in _UNREADABLE:
        return None
    shapes = {name: tuple(max(n, 0) for n in shape) for name, shape in outputs.items()}
    for rule in (_by_name, _with_masks, _pairs, _single, _levels, _single_map):
        if (found := rule(shapes, image, classes)) is not None:
            return found
    return None


def of_suppression(
    boxes: tuple[str, Shape],
    scores: tuple[str, Shape],
    centred: bool,
    image: tuple[int, int],
    *,
    x_first: bool = False,
) -> BoxLayout:
    """Return the layout of the inputs of ONNX's or OpenVINO's NonMaxSuppression.

    Args:
        boxes: name and shape [1,A,4]; scores: name and shape [1,K,A].
        centred: whether boxes have a centre and a size, not corners.
        image: (height, width) of the model's input.
        x_first: whether x comes first in corners. NonMaxSuppression is defined with y first, but
            gives the same either way, and PyTorch's exports have x first.
    """
    (_, anchors, _), (_, classes, _) = boxes[1], scores[1]
    return BoxLayout(
        "suppression",
        (boxes[0], scores[0]),
        (boxes[1], scores[1]),
        classes,
        image,
        (
            Part("boxes", 0, (0, 4), 4),
            Part("scores", 1, (0, classes), classes, channels_first=True),
        ),
        form="cxcywh" if centred else "xyxy" if x_first else "yxyx",
        grids=grids_of(anchors, image),
    )


def _by_name(shapes: Shapes, image: tuple[int, int], classes: int | None) -> BoxLayout | None:
    """Outputs that their names explain, and DetectionOutput's [1,1,N,7]."""
    for name, shape in shapes.items():
        if len(shape) == 4 and shape[:2] == (1, 1) and shape[3] == 7 and shape[2] != image[0]:
            parts = (_row("image", 0, 7), _row("labels", 1, 7), _row("scores", 2, 7))
            boxes = Part("boxes", 0, (3, 7), 7)
            return BoxLayout(
                "detection-output", (name,), (shape,), classes or 0, image, (*parts, boxes),
                form="xyxy", unit="image",
            )  # fmt: skip
    names = {name.lower(): name for name in shapes}

    def of(*wanted: str) -> tuple[tuple[str, ...], tuple[Shape, ...]] | None:
        if not set(wanted) <= set(names):
            return None
        found = tuple(shapes[names[w]] for w in wanted)
        return (tuple(names[w] for w in wanted), found) if all(found) else None

    if (found := of("det_boxes", "det_scores", "det_classes", "num_dets")) is not None:
        parts4 = (*_separate(), Part("count", 3, (0, 1), 1))
        return BoxLayout("efficient-nms", *found, classes or 0, image, parts4, form="xyxy")
    if (found := of("pred_boxes", "logits")) is not None:
        return _detr(*found, image, classes)
    if "boxes" in names and shapes[names["boxes"]][-1:] == (5,):
        found = of("boxes", "labels")
        parts2 = (Part("boxes", 0, (0, 4), 5), _row("scores", 4, 5), Part("labels", 1, (0, 1), 1))
        return found and BoxLayout("model-api", *found, classes or 0, image, parts2, form="xyxy")
    if not {"boxes", "scores", "labels"} <= set(names):
        return None
    three = (names["boxes"], names["scores"], names["labels"])
    any_number = {three[0]: (0, 4), three[1]: (0,), three[2]: (0,)}
    known = tuple(shapes[name] or any_number[name] for name in three)
    return BoxLayout("torchvision", three, known, classes or 0, image, _separate(), form="xyxy")


def _separate() -> tuple[Part, Part, Part]:
    """Boxes, scores and labels in outputs of their own."""
    scores, labels = Part("scores", 1, (0, 1), 1), Part("labels", 2, (0, 1), 1)
    return Part("boxes", 0, (0, 4), 4), scores, labels


def _row(content: Content, channel: int, width: int) -> Part:
    return Part(content, 0, (channel, channel + 1), width)


def _with_masks(shapes: Shapes, image: tuple[int, int], classes: int | None) -> BoxLayout | None:
    """Ultralytics' segmentation models: their boxes, without the coefficients of the masks."""
    maps = [n for n, s in shapes.items() if len(s) == 4 and s[1] == _MASKS and s[2] * 4 == image[0]]
    rest = {name: shape for name, shape in shapes.items() if name not in maps}
    if len(maps) != 1 or len(rest) != 1:
        return None
    ((name, shape),) = rest.items()
    if len(shape) != 3:
        return None
    if shape[2] == 6 + _MASKS:
        return _end_to_end(name, shape, image, classes)
    return _yolov8(name, shape, image, classes, _MASKS)


def _pairs(shapes: Shapes, image: tuple[int, int], classes: int | None) -> BoxLayout | None:
    """Boxes [1,A,4] or [1,A,1,4] and scores [1,A,K] or [1,K,A]."""
    fours = [n for n, s in shapes.items() if _is_rows(s) and s[-1] == 4]
    others = [n for n, s in shapes.items() if n not in fours and len(s) == 3]
    if len(shapes) != 2 or len(fours) != 1 or len(others) != 1:
        return None
    boxes, scores = fours[0], others[0]
    anchors, shape = shapes[boxes][1], shapes[scores]
    if anchors not in shape[1:]:
        return None
    names, both = (boxes, scores), (shapes[boxes], shape)
    grids = grids_of(anchors, image)
    if "logits" in scores.lower() or (anchors <= _FEW and not grids and shape[1] == anchors):
        return _detr(names, both, image, classes)
    first = shape[1] != anchors
    count = shape[1] if first else shape[2]
    background = count == 2 if classes is None else count == classes + 1
    return BoxLayout(
        "ssd",
        names,
        both,
        count - background,
        image,
        (
            Part("boxes", 0, (0, 4), 4),
            Part("scores", 1, (0, count), count, channels_first=first),
        ),
        form="xyxy",
        unit="image" if not grids else "pixels",
        background="first" if background else "none",
        grids=grids,
    )


def _is_rows(shape: Shape) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and shape[2] == 1)


def _detr(
    names: tuple[str, ...],
    shapes: tuple[Shape, ...],
    image: tuple[int, int],
    classes: int | None,
) -> BoxLayout | None:
    """Boxes [1,Q,4] and logits [1,Q,K]; the last class stands for no object, or there is none.

    Without the number of classes, COCO's 91 and a class of its own tell DETR from its successors.
    """
    count = shapes[1][-1]
    has_none = count == classes + 1 if classes else count == 92
    return BoxLayout(
        "detr",
        names,
        shapes,
        count - has_none,
        image,
        (Part("boxes", 0, (0, 4), 4), Part("scores", 1, (0, count), count)),
        unit="image",
        activation="softmax" if has_none else "sigmoid",
        background="last" if has_none else "none",
    )


def _single(shapes: Shapes, image: tuple[int, int], classes: int | None) -> BoxLayout | None:
    """One output with all numbers of all candidates."""
    if len(shapes) != 1:
        return None
    ((name, shape),) = shapes.items()
    if len(shape) == 2 and shape[1] == 7:
        parts = (_row("image", 0, 7), Part("boxes", 0, (1, 5), 7), _row("labels", 5, 7))
        return BoxLayout(
            "end-to-end", (name,), (shape,), classes or 0, image, (*parts, _row("scores", 6, 7)),
            form="xyxy",
        )  # fmt: skip
    if len(shape) != 3:
        return None
    _, anchors, width = shape
    if width == 6 and (anchors == 0 or anchors > width):
        return _end_to_end(name, shape, image, classes)
    if (found := _yolov8(name, shape, image, classes)) is not None:
        return found
    for priors in (1, 3):
        grids = grids_of(anchors // priors, image) if anchors % priors == 0 else ()
        if grids:
            return _rows_of_cells(name, shape, image, classes, grids, priors)
    return None


def _end_to_end(name: str, shape: Shape, image: tuple[int, int], classes: int | None) -> BoxLayout:
    """[1,N,6]: corners, score and class; what follows is not read."""
    width = shape[2]
    parts = (Part("boxes", 0, (0, 4), width), _row("scores", 4, width), _row("labels", 5, width))
    return BoxLayout("end-to-end", (name,), (shape,), classes or 0, image, parts, form="xyxy")


def _yolov8(
    name: str, shape: Shape, image: tuple[int, int], classes: int | None, more: int = 0
) -> BoxLayout | None:
    """[1,4+K,A], and `more` numbers of each candidate that are not read."""
    _, width, anchors = shape
    grids, count = grids_of(anchors, image), width - 4 - more
    if not grids or count < 1 or (classes or count) != count:
        return None
    parts = (
        Part("boxes", 0, (0, 4), width, channels_first=True),
        Part("scores", 0, (4, 4 + count), width, channels_first=True),
    )
    return BoxLayout("yolov8", (name,), (shape,), count, image, parts, grids=grids)


def _rows_of_cells(
    name: str,
    shape: Shape,
    image: tuple[int, int],
    classes: int | None,
    grids: tuple[Grid, ...],
    priors: int,
) -> BoxLayout | None:
    """[1,A,5+K], as of YOLOX and YOLOv5; [1,A,K+4*bins], as of NanoDet-Plus; or [1,A,4+K]."""
    width = shape[2]
    bins = [n for n in _BINS if width - 4 * n == classes]
    if classes is None and priors == 1 and len(grids) == 4 and grids[-1][0] == 64:
        bins = [_BINS[0]] if width > 4 * _BINS[0] else []
    if bins and priors == 1:
        count = width - 4 * bins[0]
        parts = (Part("scores", 0, (0, count), width), Part("boxes", 0, (count, width), width))
        return BoxLayout(
            "nanodet", (name,), (shape,), count, image, parts, form="distances", grids=grids,
            middle=0.0,
        )  # fmt: skip
    if width - 4 == classes and priors == 1:
        parts = (Part("boxes", 0, (0, 4), width), Part("scores", 0, (4, width), width))
        return BoxLayout("yolov8", (name,), (shape,), classes, image, parts, grids=grids)
    count = width - 5
    if count < 1 or (classes or count) != count:
        return None
    scores = (_row("objectness", 4, width), Part("scores", 0, (5, width), width))
    return BoxLayout(
        "yolov5" if priors == 3 else "yolox",
        (name,),
        (shape,),
        count,
        image,
        (Part("boxes", 0, (0, 4), width), *scores),
        form="cxcywh" if priors == 3 else "yolox",
        grids=grids,
        priors=priors,
    )


def _levels(shapes: Shapes, image: tuple[int, int], classes: int | None) -> BoxLayout | None:
    """Outputs of each level: class scores and distances, as of NanoDet."""
    levels: dict[int, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) not in (3, 4):
            return None
        cells = prod(shape[2:]) if len(shape) == 4 else shape[1]
        levels.setdefault(cells, []).append(name)
    grids = grids_of(sum(levels), image)
    if len(levels) != len(grids) or any(len(names) != 2 for names in levels.values()):
        return None
    outputs: list[str] = []
    parts: list[Part] = []
    first, counts = 0, set()
    for cells in sorted(levels, reverse=True):
        pair = _scores_and_distances(levels[cells], shapes, classes)
        if pair is None:
            return None
        for content, name in zip(("scores", "boxes"), pair, strict=True):
            width = _width(shapes[name])
            is_scores = content == "scores"
            parts.append(
                Part("scores" if is_scores else "boxes", len(outputs), (0, width), width, first,
                     len(shapes[name]) == 4)
            )  # fmt: skip
            outputs.append(name)
        counts.add(tuple(_width(shapes[name]) for name in pair))
        first += cells
    if len(counts) != 1:
        return None
    return BoxLayout(
        "nanodet",
        tuple(outputs),
        tuple(shapes[name] for name in outputs),
        counts.pop()[0],
        image,
        tuple(parts),
        form="distances",
        grids=grids,
    )


def _width(shape: Shape) -> int:
    return shape[1] if len(shape) == 4 else shape[2]


def _scores_and_distances(
    names: list[str], shapes: Shapes, classes: int | None
) -> tuple[str, str] | None:
    """Return which of two outputs are scores and which distances: by number, names, usual bins."""
    for scores, boxes in (names, reversed(names)):
        if _width(shapes[boxes]) not in [4 * n for n in _BINS]:
            continue
        named = any(word in scores.lower() for word in ("cls", "score", "conf", "class"))
        other = _width(shapes[scores])
        if other == classes or (classes is None and (named or other not in (32, 44, 64, 68))):
            return scores, boxes
    return None


def _single_map(shapes: Shapes, image: tuple[int, int], classes: int | None) -> BoxLayout | None:
    """[1,5+K,h,w] at stride 16, as of FastestDet: objectness, box, class scores."""
    if len(shapes) != 1:
        return None
    ((name, shape),) = shapes.items()
    if len(shape) != 4 or (shape[2] * 16, shape[3] * 16) != image:
        return None
    width = shape[1]
    count = width - 5
    if count < 1 or (classes or count) != count:
        return None
    parts = (
        Part("objectness", 0, (0, 1), width, channels_first=True),
        Part("boxes", 0, (1, 5), width, channels_first=True),
        Part("scores", 0, (5, width), width, channels_first=True),
    )
    return BoxLayout(
        "fastestdet", (name,), (shape,), count, image, parts,
        form="fastestdet", grids=((16, shape[2], shape[3]),),
    )  # fmt: skip
