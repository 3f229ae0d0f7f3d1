"""How a detector's outputs hold its boxes, from their names and shapes.

A *candidate* is one box that the model proposes, with a score for each class. Most detectors have a
fixed number of candidates, each of its own cell of a feature map, its *anchor*; removing those that
overlap (non-maximum suppression) is left to whoever reads the outputs. Others do that inside, or
choose their candidates from the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]

Grid = tuple[int, int, int]
"""The stride in pixels, and the rows and columns, of one level of a detector."""

Family = Literal[
    "yolov8",
    "yolox",
    "yolov5",
    "ssd",
    "detr",
    "fastestdet",
    "nanodet",
    "suppression",
    "end-to-end",
    "model-api",
    "torchvision",
    "detection-output",
    "efficient-nms",
]
Form = Literal["xyxy", "yxyx", "cxcywh", "yolox", "fastestdet", "distances"]
Unit = Literal["pixels", "image"]
Background = Literal["none", "first", "last"]
Content = Literal["boxes", "objectness", "scores", "labels", "image", "count"]

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32), (8, 16, 32, 64, 128))
"""The strides of the levels of usual detectors."""

DECODED: tuple[Form, ...] = ("xyxy", "yxyx", "cxcywh")
_SUPPRESSED = ("end-to-end", "model-api", "torchvision", "detection-output", "efficient-nms")


@dataclass(frozen=True)
class Part:
    """Which values of an output are the boxes, or something else, of some candidates.

    Attributes:
        content: what they are; "image" is the number of an image, below 0 where the list ended,
            "count" the number of boxes that are valid.
        output: the output, by its place in `BoxLayout.outputs`.
        channels: the first one, and the one behind the last, of the numbers of a candidate.
        width: how many numbers the output has for a candidate.
        first: the candidate that comes first in the output.
        channels_first: whether the output has a row for each number, not one for each candidate.
    """

    content: Content
    output: int
    channels: tuple[int, int]
    width: int
    first: int = 0
    channels_first: bool = False


@dataclass(frozen=True)
class BoxLayout:
    """How a detector's outputs hold its candidates.

    The values of an image are those of all `outputs`, in this order, flattened and in a row.

    Attributes:
        family: whose layout it is; "ssd" stands for decoded boxes and scores in two outputs,
            "suppression" for the inputs of an operator that suppresses boxes.
        outputs: the outputs that are read; shapes: theirs at batch 1, with 0 for an open number of
            boxes.
        classes: their number, without a background; 0 where boxes have labels of unknown number.
        image: (height, width) of the model's input.
        parts: where boxes, scores and the like are.
        form: corners, a centre and a size, or, not decoded: "yolox" (offsets of the centre in the
            cell, logarithms of the size in cells), "fastestdet" (likewise, by tanh and sigmoid of
            the image's size), "distances" (distributions of the distances of the sides from the
            cell's middle, in cells).
        unit: of decoded boxes: pixels of the model's input, or shares of its sides.
        activation: what remains to be applied to scores.
        background: whether a class stands for no object.
        grids: the levels, in the order of the candidates; () where unknown.
        middle: where distances are measured from, in cells from the cell's corner.
        priors: candidates per cell; those of one prior follow each other.
    """

    family: Family
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    classes: int
    image: tuple[int, int]
    parts: tuple[Part, ...]
    form: Form = "cxcywh"
    unit: Unit = "pixels"
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    background: Background = "none"
    grids: tuple[Grid, ...] = ()
    middle: float = 0.5
    priors: int = 1

    @property
    def anchors(self) -> int:
        """The number of candidates; 0 where it is open."""
        return sum(self.count(part) for part in self.parts if part.content == "boxes")

    @property
    def values(self) -> int:
        """The number of values of an image; those of an open number of boxes do not count."""
        return sum(prod(shape) for shape in self.shapes)

    def fits(self, values: int, classes: int) -> bool:
        """Whether a row of so many values can hold these candidates, of so many classes."""
        contents = {part.content for part in self.parts}
        return (
            self.values == values
            and self.classes == classes
            and len(self.shapes) == len(self.outputs)
            and {"boxes", "scores"} <= contents
            and all(0 <= part.output < len(self.shapes) for part in self.parts)
            and all(0 <= part.channels[0] < part.channels[1] <= part.width for part in self.parts)
        )

    @property
    def suppressed(self) -> bool:
        """Whether boxes that overlap were already removed."""
        return self.family in _SUPPRESSED

    @property
    def decoded(self) -> bool:
        """Whether the boxes are given by their corners or by their centre and size."""
        return self.form in DECODED

    def count(self, part: Part) -> int:
        """Return how many candidates a part has."""
        return prod(self.shapes[part.output]) // part.width

    def offset(self, output: int) -> int:
        """Return the place of an output's first value in the row."""
        return sum(prod(shape) for shape in self.shapes[:output])

    def of_size(self, values: int) -> BoxLayout:
        """Return the layout of so many values, of which an open number of boxes follows.

        Raises:
            ValueError: no number of boxes has so many.
        """
        if all(0 not in shape for shape in self.shapes):
            return self
        each = sum(prod(n or 1 for n in shape) for shape in self.shapes if 0 in shape)
        boxes, rest = divmod(values - self.values, each)
        if rest or boxes < 0:
            raise ValueError(f"{values} values are not those of boxes with {each} numbers each")
        shapes = tuple(tuple(n or boxes for n in shape) for shape in self.shapes)
        return replace(self, shapes=shapes)

    def contents(self) -> tuple[Content, ...]:
        """Return what the parts hold, each once."""
        return tuple(dict.fromkeys(part.content for part in self.parts))

    def channels(self, content: Content) -> tuple[int, int]:
        """Return `Part.channels` of what some parts hold."""
        return next(part.channels for part in self.parts if part.content == content)

    def places(self, content: Content, anchors: Indices, channels: Indices) -> Indices:
        """Return where some numbers of some candidates are in the row, [A,C].

        Args:
            content: which parts; anchors: the candidates, [A].
            channels: the numbers, [C], counted within the part.
        """
        found = np.empty((len(anchors), len(channels)), np.int64)
        for part in self.parts:
            if part.content != content:
                continue
            count, start = self.count(part), self.offset(part.output)
            if content == "count":
                found[:] = start
                continue
            inside = (anchors >= part.first) & (anchors < part.first + count)
            here = (anchors[inside] - part.first)[:, None]
            numbers = (channels + part.channels[0])[None]
            if part.channels_first:
                found[inside] = start + numbers * count + here
            else:
                found[inside] = start + here * part.width + numbers
        return found

    def cells(self, anchors: Indices) -> tuple[Indices, Indices, Indices]:
        """Return stride, row and column of candidates' cells, [A] each; 0 where unknown."""
        found = np.zeros((3, len(anchors)), np.int64)
        start = 0
        for stride, rows, columns in self.grids:
            end = start + rows * columns * self.priors
            inside = (anchors >= start) & (anchors < end)
            row, column = np.divmod((anchors[inside] - start) % (rows * columns), columns)
            found[:, inside] = np.stack([np.full(len(row), stride), row, column])
            start = end
        return found[0], found[1], found[2]

    def place(self, anchor: int) -> tuple[int, int, int] | None:
        """Return the level, row and column of a candidate's cell, if it is known."""
        for level, (_, rows, columns) in enumerate(self.grids):
            cells = rows * columns
            if anchor < cells * self.priors:
                return level, *divmod(anchor % cells, columns)
            anchor -= cells * self.priors
        return None


def pyramids(image: tuple[int, int]) -> dict[int, tuple[Grid, ...]]:
    """Return the levels of usual detectors by the number of all their cells."""
    found = [
        tuple((s, ceil(image[0] / s), ceil(image[1] / s)) for s in strides) for strides in STRIDES
    ]
    return {sum(rows * columns for _, rows, columns in grids): grids for grids in found}


def grids_of(anchors: int, image: tuple[int, int]) -> tuple[Grid, ...]:
    """Return the levels of usual detectors with so many cells, () if there are none."""
    return pyramids(image).get(anchors, ())
