"""A model that sees only rectangles: what hides them is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.black_boxes import MaskedImage, Run

Array = npt.NDArray[Any]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

SIZE = (64, 80)
WHITE = MaskedImage(np.ones((1, 3, *SIZE), np.float32), 0.0)
LEFT: Rectangle = (10, 16, 26, 32)
RIGHT: Rectangle = (52, 36, 68, 52)


def mean_of(*rectangles: Rectangle) -> Run:
    """Return a run with a target for each rectangle: the mean of the input in it."""

    def run(inputs: Array) -> Array:
        parts = [inputs[:, :, top:bottom, left:right] for left, top, right, bottom in rectangles]
        return np.stack([part.mean(axis=(1, 2, 3), dtype=np.float64) for part in parts], axis=1)

    return run


def counted(run: Run) -> tuple[Run, list[int]]:
    """Return the same run, and a list of the sizes of the batches that it was given."""
    batches: list[int] = []

    def counting(inputs: Array) -> Array:
        batches.append(len(inputs))
        return np.asarray(run(inputs))

    return counting, batches


def noise() -> Callable[[Array], Array]:
    """Return a run with one target that has nothing to do with the input."""
    random = np.random.default_rng(7)
    return lambda inputs: random.random((len(inputs), 1))


def highest(raw: Array) -> tuple[int, int]:
    """Return x and y of a map's maximum."""
    row, column = np.unravel_index(int(raw.argmax()), raw.shape)
    return int(column), int(row)


def inside(point: tuple[int, int], rectangle: Rectangle) -> bool:
    left, top, right, bottom = rectangle
    return left <= point[0] < right and top <= point[1] < bottom
