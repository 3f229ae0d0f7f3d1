"""Whether a sparse plan is used for a tail: checked once against the dense plan, and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from ov_recipro.cut.bundle import Manifest
from ov_recipro.output import as_json, user_cache
from ov_recipro.plans.nodes import Array

Logits: TypeAlias = Callable[..., tuple[Array, Array]]
"""From feature maps at batch 1 to the logits of cells [N,classes] and their own [classes]."""

TOLERANCE = 1e-3
"""Largest error against the dense plan, as a fraction of the spread over cells.

With one cell kept or emptied alike, float32 itself comes to some 3e-5 in EfficientNet-Lite0 and
Lite1; a single row of one cell that is taken from its neighbour comes to 4e-3 and more.
"""


ROUNDING = 1e-2
"""Share of the largest number of a kind that is added to its spread where a detector is checked.

An edge of a box, of some hundred pixels, is rounded to more than a thousandth of what little a cell
may move it by.
"""


class PlanRefused(Exception):
    """A plan can't be used for a tail, or is not worth it; the message says why."""


class PlanFailed(PlanRefused):
    """A device can't run a plan, perhaps for now alone; this is found out anew each time."""


@dataclass(frozen=True)
class Verdict:
    """What was found out about a tail: the check's error, or why the plan is not used."""

    error: float | None
    reason: str | None


def largest_error(
    sparse: Logits,
    dense: Logits,
    shape: tuple[int, ...],
    channel_axis: int = 1,
    cells: Sequence[int] | None = None,
    rounding: float = 0.0,
) -> float:
    """Compare a plan's logits with the dense plan's, for the cells and the whole, on random values.

    Args:
        sparse: the plan.
        dense: the whole tail for each cell, or for those in `cells` alone.
        shape: of the feature map; `channel_axis`: its axis of channels.
        cells: the cells to compare; all by default. Where the cells differ in shape, as pixels at a
            border do, a sample is not enough: an error in one table can affect a single cell.
        rounding: the share of the largest logit that is added to the spread. Where the cells'
            scores differ little, float32 itself is the limit.

    Returns:
        The largest error, as a fraction of the spread of logits over cells.
    """
    features = _features(np.random.default_rng(0), shape, channel_axis)
    expected, (masked, whole) = dense(features), sparse(features)
    chosen = masked if cells is None else masked[list(cells)]
    pairs = list(zip((chosen, whole), expected, strict=True))
    if any(g.shape != e.shape or not np.isfinite(g).all() for g, e in pairs):
        return float("inf")
    spread = float(np.ptp(expected[0], axis=0).max())
    spread += rounding * float(np.abs(expected[0]).max())
    error = max(float(np.abs(g - e).max()) for g, e in pairs)
    return error / spread if spread > 0 else (0.0 if error == 0 else float("inf"))


def largest_joint_error(
    sparse: Logits,
    dense: Logits,
    shapes: Sequence[tuple[int, ...]],
    outputs: Sequence[tuple[int, ...]],
) -> float:
    """Compare a plan's values with the dense plan's, for some cells and the whole.

    Args:
        sparse: the plan; `dense`: the whole tail; both for the same cells.
        shapes: of the feature maps [1,C,h,w].
        outputs: shapes of the tensors that the values are those of, in a row. Numbers along a
            tensor's longest axis, or over its height and width, are of one kind: edges of boxes,
            scores of a class.

    Returns:
        The largest error of a kind of number, as a fraction of its spread over cells.
    """
    random = np.random.default_rng(0)
    features = [_features(random, shape, 1) for shape in shapes]
    (expected, whole), (masked, plain) = dense(*features), sparse(*features)
    if masked.shape != expected.shape or plain.shape != whole.shape:
        return float("inf")
    worst, start = 0.0, 0
    for shape in outputs:
        stop = start + int(np.prod(shape))
        axes = (2, 3) if len(shape) == 4 else (int(np.argmax(shape)),)
        masks = (len(expected), *shape)
        error = _error_by_kind(
            (masked[:, start:stop].reshape(masks), plain[start:stop].reshape(shape)),
            (expected[:, start:stop].reshape(masks), whole[start:stop].reshape(shape)),
            tuple(axis + 1 for axis in axes),
        )
        worst, start = max(worst, error), stop
    return worst


def _error_by_kind(
    got: tuple[Array, Array], expected: tuple[Array, Array], axes: tuple[int, ...]
) -> float:
    """Return the largest error, as in `largest_joint_error`, of values under masks and without.

    Args:
        got, expected: both, [n,...] and [...].
        axes: those of [n,...] along which numbers are of one kind.
    """
    finite = [np.isfinite(each) for each in expected]
    for ours, theirs, known in zip(got, expected, finite, strict=True):
        if (np.isfinite(ours) != known).any() or (ours[~known] != theirs[~known]).any():
            return float("inf")
    masked = np.where(finite[0], expected[0], 0)
    spread = np.ptp(masked, axis=0, keepdims=True).max(axis=axes, keepdims=True)
    scale = spread + ROUNDING * np.abs(masked).max(axis=(0, *axes), keepdims=True)
    error = np.zeros_like(scale)
    for ours, theirs, known in zip(got, expected, finite, strict=True):
        off = np.abs(np.where(known, ours, 0) - np.where(known, theirs, 0))
        off = off.reshape(-1, *masked.shape[1:])
        error = np.maximum(error, off.max(axis=(0, *axes), keepdims=True))
    share = np.divide(error, scale, out=np.where(error > 0, np.inf, error), where=scale > 0)
    return float(share.max())


def _features(random: np.random.Generator, shape: tuple[int, ...], channel_axis: int) -> Array:
    """Return normally distributed values, each channel of a scale of its own."""
    sizes = [size if axis == channel_axis else 1 for axis, size in enumerate(shape)]
    scales = random.uniform(0.2, 3, sizes)
    return np.asarray(random.standard_normal(shape) * scales, np.float32)


def verdict_file(manifest: Manifest, mask: str, device: str, memory: int) -> Path:
    """Return where the verdict on a bundle's tail on a device is kept.

    A detector's blocks of cells, and so its tables, also follow from the memory.
    """
    detector = manifest.task == "detector"
    about = (
        manifest.source,
        manifest.cut,
        manifest.output,
        manifest.boundary_shapes,
        mask,
        device,
        (manifest.boxes, memory) if detector else None,
        version("ov-recipro"),
        version("openvino"),
    )
    name = hashlib.sha256(as_json(about)).hexdigest()[:32]
    return user_cache("plans") / f"{name}.json"


def read_verdict(path: Path) -> Verdict | None:
    """Return the verdict kept in `path`, if there is a valid one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # it is found out again


def keep_verdict(path: Path, verdict: Verdict) -> None:
    """Write a verdict; where the cache can't be written, it is found out again each time."""
    work = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_bytes(msgspec.json.encode(verdict))
        work.replace(path)
    except OSError:
        with suppress(OSError):
            work.unlink(missing_ok=True)
