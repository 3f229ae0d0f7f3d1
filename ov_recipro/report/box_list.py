"""The boxes of a card: where they lie on its picture, and which are explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ov_recipro.explanation import Target
from ov_recipro.report.wording import class_name
from ov_recipro.targets.boxes import Box, DetectedBox


@dataclass(frozen=True)
class ListedBox:
    """A box that is predicted, drawn by the user, or both.

    Attributes:
        name: its class; score: of the class.
        place: left, top, width and height of its part inside the picture, in percent of the
            picture's sides; None where it lies outside.
        number: its place among the predictions, from 1; None for one that the user drew.
        target: its place among the card's targets, from 0; None where it is not explained.
        missed: the user drew it, and the model does not predict it.
    """

    name: str
    score: float
    place: tuple[float, float, float, float] | None
    number: int | None
    target: int | None
    missed: bool = False

    @property
    def title(self) -> str:
        """What it is called in the list."""
        return f"drawn: {self.name}" if self.number is None else f"{self.number} {self.name}"

    @property
    def area(self) -> float:
        """Of its part inside the picture, in percent of a percent."""
        return 0.0 if self.place is None else self.place[2] * self.place[3]


def listed_boxes(record: Mapping[str, Any], targets: Sequence[Target]) -> list[ListedBox]:
    """Return an image's boxes: those that are predicted, best first, then those that are drawn.

    Args:
        record: the image's entry of `explanations.json`.
        targets: what is explained of it; nothing is listed where these are no boxes.
    """
    explained = {each.number: n for n, each in enumerate(targets) if isinstance(each, Box)}
    if not explained:
        return []
    predicted = [
        ListedBox(
            class_name(each), each.score, _inside(each.box, record["size"]), n, explained.get(n)
        )
        for n, each in enumerate(msgspec.convert(record["predictions"], list[DetectedBox]), 1)
    ]
    drawn = [
        ListedBox(
            class_name(each), each.score, _inside(each.box, record["size"]), None, n, each.missed
        )
        for n, each in enumerate(targets)
        if isinstance(each, Box) and each.number is None
    ]
    return predicted + drawn


def _inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Return a box's part inside an image of size (height, width), in percent of its sides."""
    left, top, width, height = box
    x0, x1 = max(0.0, left), min(float(size[1]), left + width)
    y0, y1 = max(0.0, top), min(float(size[0]), top + height)
    if x0 >= x1 or y0 >= y1:
        return None
    across, down = 100 / size[1], 100 / size[0]
    return x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down
