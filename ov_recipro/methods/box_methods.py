"""Methods for the boxes of a detector, and two controls that know nothing about the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias
from zlib import crc32

import numpy as np

from ov_recipro.errors import OptionError
from ov_recipro.methods.subject import NotApplicable, Subject
from ov_recipro.metrics import Box
from ov_recipro.saliency import Floats
from ov_recipro.targets.boxes import BoxTarget

BoxMethod: TypeAlias = Callable[[Subject, Floats, Sequence[BoxTarget]], list[Floats]]
"""From a model, an image [C,H,W] in its input's units and boxes to a map [h,w] for each box.

Raises NotApplicable where the model does not allow it.
"""

GAUSSIAN, RANDOM = "gauss-in-box", "random"
CONTROLS = (GAUSSIAN, RANDOM)
"""The methods that know nothing about the model: a method that is no better than they are has not
shown that it does."""

BLOBS = 4
"""Cells of noise along a box's longer side. Finer noise is too even: coarse maps that know nothing
would often be far better than it."""


def recipro(subject: Subject, image: Floats, targets: Sequence[BoxTarget]) -> list[Floats]:
    """Recipro-CAM with the explainer's mask, by default "drop": what each cell's loss costs."""
    if subject.explainer.bundle.whole:
        raise NotApplicable("the model can't be cut")
    return subject.maps("recipro", image, targets)


def _black_box(
    method: Literal["occlusion", "d-rise", "aise", "votes"],
    subject: Subject,
    image: Floats,
    targets: Sequence[BoxTarget],
) -> list[Floats]:
    try:
        return subject.maps(method, image, targets)
    except OptionError as error:
        raise NotApplicable(str(error)) from error


def gaussians(subject: Subject, image: Floats, targets: Sequence[BoxTarget]) -> list[Floats]:  # noqa: ARG001
    """Return a Gaussian in the middle of each box, at the image's size [H,W]."""
    return [gaussian_in(target.edges, (image.shape[1], image.shape[2])) for target in targets]


def gaussian_in(box: Box, size: tuple[int, int]) -> Floats:
    """Return a Gaussian in a box's middle, its sigma a quarter of each side, [H,W]."""
    left, top, right, bottom = box
    y = (np.arange(size[0]) + 0.5 - (top + bottom) / 2) / (bottom - top)
    x = (np.arange(size[1]) + 0.5 - (left + right) / 2) / (right - left)
    return np.asarray(np.exp(-8 * (y[:, None] ** 2 + x[None] ** 2)), np.float32)


def random_maps(subject: Subject, image: Floats, targets: Sequence[BoxTarget]) -> list[Floats]:  # noqa: ARG001
    """Return noise for each box, the same for the same image and box (see `noise`)."""
    return [noise(image, target, 1)[0] for target in targets]


def noise(image: Floats, target: BoxTarget, count: int) -> Floats:
    """Return uniform noise for a box of an image [C,H,W], 0..1, float32 [count,h,w].

    `BLOBS` of its square cells lie along the box's longer side, but none is smaller than a pixel:
    whatever made the map that is held against it, and wherever the model is cut, the noise is the
    same. It depends on the image and the box alone; the first maps are the same for any `count`.
    """
    left, top, right, bottom = target.edges
    cell = max(1.0, max(right - left, bottom - top) / BLOBS)
    grid = [max(1, round(side / cell)) for side in image.shape[1:]]
    seed = [crc32(image.tobytes()), crc32(np.array(target.edges).tobytes())]
    return np.random.default_rng(seed).random((count, *grid), np.float32)


BOX_METHODS: dict[str, BoxMethod] = {
    "recipro": recipro,
    "occlusion": partial(_black_box, "occlusion"),
    "d-rise": partial(_black_box, "d-rise"),
    "aise": partial(_black_box, "aise"),
    "votes": partial(_black_box, "votes"),
    GAUSSIAN: gaussians,
    RANDOM: random_maps,
}
"""The methods for boxes, by the names that users give."""
