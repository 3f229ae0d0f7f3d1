"""Which boxes of an image are predicted, and which are explained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.bundle import Manifest
from ov_recipro.errors import OptionError, TargetError
from ov_recipro.images.preprocess import Window
from ov_recipro.options import Targets
from ov_recipro.saliency import Floats
from ov_recipro.sources.labels import class_index
from ov_recipro.targets.boxes import BoxTarget, DetectedBox, in_image, in_input, near
from ov_recipro.targets.candidates import (
    BoxEdges,
    Candidates,
    Detection,
    decode,
    detections,
    iou,
)
from ov_recipro.targets.classes import RANKED

BEST = 3
"""Boxes that are explained where nothing else is asked for."""

_LEAST_SEEN = 0.5  # IoU from which on a drawn box is one that the model predicts
_ALL = "all"


@dataclass(frozen=True)
class Detector:
    """What a detector's outputs say about one image.

    Attributes:
        layout: how they hold candidates; candidates: of the image; boxes: those that remain.
        labels: names of the classes, where they are known.
        window: the model's input in pixels of the image.
    """

    layout: BoxLayout
    candidates: Candidates
    boxes: tuple[Detection, ...]
    labels: tuple[str, ...] | None
    window: Window

    @property
    def predictions(self) -> tuple[DetectedBox, ...]:
        """The boxes that the detector predicts, best first."""
        return tuple(
            DetectedBox(
                each.class_index,
                self._label(each.class_index),
                each.score,
                self._in_image(each.box),
            )
            for each in self.boxes
        )

    def targets(self, asked: Targets) -> list[BoxTarget]:
        """Return the boxes to explain.

        Raises:
            TargetError: there is no such box or class.
        """
        if isinstance(asked.box, tuple):
            return [self._drawn(asked.box, asked)]
        numbered = list(enumerate(self.boxes, 1))
        classes = self._classes(asked)
        if classes:
            numbered = [(n, each) for n, each in numbered if each.class_index in classes]
        if not numbered:
            raise TargetError(self._nothing_found(asked, classes))
        if isinstance(asked.box, int):
            known = dict(numbered)
            if asked.box not in known:
                raise TargetError(self._no_such_box(asked.box))
            numbered = [(asked.box, known[asked.box])]
        elif asked.box is None and not classes:
            numbered = numbered[:BEST]
        return [self._target(each, number) for number, each in numbered]

    def _no_such_box(self, number: int) -> str:
        if 0 < number <= len(self.boxes):
            name = self._name(self.boxes[number - 1].class_index)
            return f"Box {number} is of another class: {name}."
        count = len(self.boxes)
        return f"There is no box {number}: the image has {count}, from 1 on."

    def _nothing_found(self, asked: Targets, classes: list[int]) -> str:
        best = float(self.candidates.scores.max(initial=0))
        what = "box"
        if classes:
            scores = self.candidates.scores[0][:, classes]
            best = float(scores.max(initial=0))
            what = f"box of {' or '.join(self._name(each) for each in classes)}"
        return (
            f"No {what} scores {asked.threshold:g} or more; the best one scores {best:.2g}. "
            "--threshold lowers the limit, --box X,Y,WIDTH,HEIGHT asks about a place."
        )

    def _classes(self, asked: Targets) -> list[int]:
        if asked.classes in ((), Targets().classes):
            return []
        count = self.candidates.scores.shape[2]
        return [class_index(name, self.labels, count) for name in asked.classes]

    def _target(self, found: Detection, number: int | None) -> BoxTarget:
        boxes = self.candidates.boxes[0]
        return BoxTarget(
            index=found.class_index,
            label=self._label(found.class_index),
            edges=found.box,
            layout=self.layout,
            anchors=None if self.layout.suppressed else near(boxes, found.box),
            box=self._in_image(found.box),
            number=number,
            missed=False,
            anchor=found.anchor,
        )

    def _drawn(self, box: tuple[float, ...], asked: Targets) -> BoxTarget:
        """Return a box that the user drew, of the class that is asked for, or fits it best."""
        edges = in_input(box, self.window, self.layout.image)
        overlap = iou(self.candidates.boxes[0], edges)
        if not overlap.any():
            raise TargetError(
                f"No candidate of the model overlaps the box {','.join(f'{n:g}' for n in box)}: "
                "it lies outside what the model saw, or is far too small or large."
            )
        classes = self._classes(asked)
        scores = overlap[:, None] * self.candidates.scores[0]
        if classes:
            chosen = np.zeros(scores.shape[1], bool)
            chosen[classes] = True
            scores = np.where(chosen, scores, -1)
        anchor, index = (int(n) for n in np.unravel_index(scores.argmax(), scores.shape))
        seen = any(
            each.class_index == index and iou(np.array(each.box), edges) >= _LEAST_SEEN
            for each in self.boxes
        )
        return BoxTarget(
            index=index,
            label=self._label(index),
            edges=edges,
            layout=self.layout,
            anchors=None if self.layout.suppressed else near(self.candidates.boxes[0], edges),
            box=(box[0], box[1], box[2], box[3]),
            number=None,
            missed=not seen,
            anchor=anchor,
        )

    def _in_image(self, edges: BoxEdges) -> BoxEdges:
        return in_image(edges, self.window, self.layout.image)

    def _label(self, index: int) -> str | None:
        known = self.labels is not None and index < len(self.labels)
        return self.labels[index] if self.labels is not None and known else None

    def _name(self, index: int) -> str:
        return self._label(index) or f"class {index}"


def detected(
    manifest: Manifest,
    labels: tuple[str, ...] | None,
    asked: Targets,
    outputs: Floats,
    window: Window | None,
) -> Detector:
    """Return what a detector finds in an image.

    Args:
        manifest: of the model; labels: names of its classes.
        asked: the threshold and the overlap from which on boxes are suppressed.
        outputs: the model's, in a row [V].
        window: the model's input in pixels of the image; None where an input was given, in whose
            pixels boxes then are.
    """
    layout = manifest.boxes
    if layout is None:
        raise TypeError("the model is not a detector")
    height, width = layout.image
    candidates = decode(outputs[None], layout)
    overlap = None if layout.suppressed else asked.nms
    boxes = detections(candidates, asked.threshold, overlap)
    return Detector(layout, candidates, tuple(boxes), labels, window or (0, 0, width, height))


def check_box(asked: Targets) -> None:
    """Raise where options about boxes are out of range.

    Raises:
        OptionError: they are.
    """
    if not (0 < asked.threshold <= 1 and 0 < asked.nms <= 1):
        raise OptionError("--threshold and --nms must be above 0 and at most 1.")
    if isinstance(asked.box, bool) or (isinstance(asked.box, str) and asked.box != _ALL):
        raise OptionError(f"--box is a number, all, or X,Y,WIDTH,HEIGHT, not '{asked.box}'.")
    if isinstance(asked.box, tuple) and not (
        len(asked.box) == 4 and np.isfinite(asked.box).all() and min(asked.box[2:]) > 0
    ):
        raise OptionError(
            "A box is X,Y,WIDTH,HEIGHT: four finite numbers, with WIDTH and HEIGHT above 0."
        )
    ranked = [each for each in asked.classes if isinstance(each, str) and RANKED.fullmatch(each)]
    if ranked and asked.classes != Targets().classes:
        raise OptionError(f"'{ranked[0]}' ranks classes; to choose a detector's boxes, use --box.")
