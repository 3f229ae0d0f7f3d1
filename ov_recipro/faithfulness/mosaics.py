"""Mosaics of a dataset's own images, for the grid pointing game."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np

from ov_recipro.errors import ImageError
from ov_recipro.faithfulness.datasets import Sample
from ov_recipro.images.reading import read_image
from ov_recipro.methods import Subject
from ov_recipro.metrics import Box
from ov_recipro.saliency import Floats

_OTHERS = 3
_DRAWS = 32  # which nearly always hold three others of other classes
_SURE = 0.5  # a class that the model is not sure of need not be anywhere in a mosaic


@dataclass(frozen=True)
class Mosaic:
    """Four images in one.

    Attributes:
        image: [C,H,W] in the units of the model's input; quarter: where one of them is.
    """

    image: Floats
    quarter: Box


def companions(samples: Sequence[Sample]) -> Mapping[str, list[str]]:
    """Return for each sample the paths of three others, of other classes where they have any.

    They are drawn at random, the same each time for the same samples.
    """
    found: dict[str, list[str]] = {}
    labels = Counter(sample.label for sample in samples)
    rare = [each for each in samples if 2 * labels[each.label] <= len(samples)]
    for sample in samples:
        own = 1 if sample.label is None else labels[sample.label]
        if len(samples) - own < _OTHERS:
            continue
        random = np.random.default_rng(crc32(sample.name.encode()))
        drawn = (samples[place] for place in random.integers(len(samples), size=_DRAWS))
        chosen = _others(sample, drawn)
        if len(chosen) < _OTHERS:  # most samples are of its class, and the others few
            chosen = _others(sample, (rare[each] for each in random.permutation(len(rare))))
        if len(chosen) == _OTHERS:
            found[sample.name] = chosen
    return found


def _others(sample: Sample, drawn: Iterable[Sample]) -> list[str]:
    """Return the paths of the first three that are of other classes, as far as that is known."""
    found: dict[str, str] = {}
    for each in drawn:
        if each.name != sample.name and (each.label is None or each.label != sample.label):
            found[each.name] = each.path
            if len(found) == _OTHERS:
                break
    return list(found.values())


def mosaic(subject: Subject, image: Floats, index: int, paths: Sequence[str]) -> Mosaic | None:
    """Return an image among three others; None where the game says nothing.

    That is where the model is not sure of the class, takes another image for it too, or another
    image can't be read.

    Args:
        subject: the model.
        image: [C,H,W]; index: its class.
        paths: of the others.
    """
    if float(subject.scores(image)[index]) < _SURE:
        return None
    try:
        others = [subject.prepare(read_image(Path(path)))[0] for path in paths]
    except ImageError:
        return None  # its own measurement says why
    if any(int(subject.scores(other).argmax()) == index for other in others):
        return None
    place = crc32(image.tobytes()) % (_OTHERS + 1)
    tiles = [_halved(each) for each in [*others[:place], image, *others[place:]]]
    rows = [np.concatenate(tiles[first : first + 2], axis=2) for first in (0, 2)]
    height, width = tiles[0].shape[1:]
    top, left = place // 2 * height, place % 2 * width
    whole = np.concatenate(rows, axis=1)
    size = image.shape[2], image.shape[1]
    resized = np.stack([cv2.resize(plane, size) for plane in whole])  # of odd sizes a line is lost
    y, x = image.shape[1] / whole.shape[1], image.shape[2] / whole.shape[2]
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    return Mosaic(np.asarray(resized, np.float32), box)


def _halved(image: Floats) -> Floats:
    size = image.shape[2] // 2, image.shape[1] // 2
    planes = [np.ascontiguousarray(plane) for plane in image]
    halves = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes]
    return np.asarray(np.stack(halves), np.float32)
