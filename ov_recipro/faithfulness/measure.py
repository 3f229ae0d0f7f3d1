"""Measuring one map of one image, by one of the two profiles in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ov_recipro.faithfulness.mosaics import Mosaic
from ov_recipro.methods import AnyTarget, Method, Subject
from ov_recipro.metrics import (
    Box,
    Measurement,
    area,
    auc_inside,
    blurred,
    by_saliency,
    coherency,
    complexity,
    drop,
    energy_inside,
    points_inside,
    replaced,
    replaced_by_cell,
    saco,
    upsampled,
)
from ov_recipro.saliency import Floats, saliency_maps

Profile = Literal["poppi", "byun"]
"""How metrics are taken: as Poppi et al. (2021) with RISE's curves, or as Recipro-CAM's authors
scored their own rows: the true class, maps enlarged by bicubic interpolation, coherency and
complexity of the native map, curves cell by cell."""

_GROUPS = 10  # of pixels, for SaCo

PROFILES: tuple[Profile, ...] = get_args(Profile)


def measure(
    subject: Subject,
    method: Method,
    image: Floats,
    target: AnyTarget,
    profile: Profile,
    step: int | None = None,
    boxes: Sequence[Box] = (),
    mosaic: Mosaic | None = None,
    has_saco: bool = True,
) -> Measurement:
    """Make a method's map of an image and measure it.

    Args:
        subject: the model.
        method: see `methods.METHODS`.
        image: [C,H,W] in the units of the model's input.
        target: what to explain; a class is scored by its probability.
        profile: see `Profile`.
        step: pixels replaced between two points of deletion and insertion under "poppi"; by
            default the image's width.
        boxes: around the class's objects, in pixels of `image`.
        mosaic: in which the image is a quarter, to play the grid pointing game on.
        has_saco: whether SaCo is measured too.

    Raises:
        NotApplicable: the model does not allow the method.
        ReciproError: the model gives NaN.
    """
    size = (image.shape[1], image.shape[2])
    score = subject.score(image, target)
    saliency = _scaled(method(subject, image, target))
    enlarged = upsampled(saliency, size, "bicubic" if profile == "byun" else "bilinear")
    seen_through_map = image * enlarged
    explained = subject.score(seen_through_map, target)
    second_saliency = _scaled(method(subject, seen_through_map, target))
    if profile == "byun":
        agreement = coherency(saliency, second_saliency)
        covered = complexity(saliency)
        deletion, insertion = _curves_by_cell(subject, image, saliency, target)
    else:
        agreement = coherency(enlarged, upsampled(second_saliency, size, "bilinear"))
        covered = complexity(enlarged)
        deletion, insertion = curves(subject, image, enlarged, target, step)
    return Measurement(
        score=score,
        explained=explained,
        drop=drop(score, explained),
        increase=explained > score,
        coherency=agreement,
        complexity=covered,
        deletion=deletion,
        insertion=insertion,
        flat=bool(saliency.min() == saliency.max()),
        pointing=points_inside(enlarged, boxes) if boxes else None,
        energy=energy_inside(enlarged, boxes) if boxes else None,
        saco=_saco(subject, image, enlarged, target, score) if has_saco else None,
        **(_in_grid(subject, method, mosaic, target) if mosaic is not None else {}),
    )


def _in_grid(subject: Subject, method: Method, mosaic: Mosaic, target: AnyTarget) -> dict[str, Any]:
    """Return what the grid pointing game says of a method."""
    size = (mosaic.image.shape[1], mosaic.image.shape[2])
    enlarged = upsampled(_scaled(method(subject, mosaic.image, target)), size, "bilinear")
    return {
        "grid_energy": energy_inside(enlarged, [mosaic.quarter]),
        "grid_auc": auc_inside(enlarged, mosaic.quarter),
        "grid_peak": points_inside(enlarged, [mosaic.quarter]),
    }


def curves(
    subject: Subject, image: Floats, enlarged: Floats, target: AnyTarget, step: int | None = None
) -> tuple[float, float]:
    """Return the areas below RISE's deletion and insertion curves of a map [H,W]."""
    order, step = by_saliency(enlarged), step or image.shape[2]
    deletion = subject.curve(replaced(image, np.zeros_like(image), order, step), target)
    insertion = subject.curve(replaced(blurred(image), image, order, step), target)
    return area(deletion, len(deletion) - 1), area(insertion, len(insertion) - 1)


def _saco(
    subject: Subject, image: Floats, enlarged: Floats, target: AnyTarget, score: float
) -> float:
    """Return `metrics.saco` of a map [H,W]; hidden pixels get the image's mean colour."""
    groups = np.array_split(by_saliency(enlarged), _GROUPS)
    colour = image.mean(axis=(1, 2))

    def hidden() -> Iterator[Floats]:
        for group in groups:
            without = np.array(image)
            without.reshape(len(image), -1)[:, group] = colour[:, None]
            yield without

    drops = [score - each for each in subject.curve(hidden(), target)]
    values = enlarged.ravel().astype(np.float64)
    return saco([float(values[group].mean()) for group in groups], drops)


def _curves_by_cell(
    subject: Subject, image: Floats, saliency: Floats, target: AnyTarget
) -> tuple[float, float]:
    """Return the areas as Recipro-CAM's authors take them.

    The deletion curve starts at the image; the insertion curve, from the image's mean colour, after
    the first cell, and ends with the image. A map finer than the feature map is first averaged to
    the latter's grid.
    """
    height, width = subject.explainer.bundle.manifest.cut.grid
    if saliency.size > height * width:
        small = cv2.resize(saliency, (width, height), interpolation=cv2.INTER_AREA)
        saliency = np.asarray(small, np.float32)
    canvas = np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape)
    deletion = subject.curve(replaced_by_cell(image, np.zeros_like(image), saliency), target)
    inserted = chain(islice(replaced_by_cell(canvas, image, saliency), 1, None), [image])
    insertion = subject.curve(inserted, target)
    return area(deletion, len(deletion)), area(insertion, len(insertion))


def _scaled(saliency: Floats) -> Floats:
    return np.asarray(saliency_maps(saliency[None])[0])
