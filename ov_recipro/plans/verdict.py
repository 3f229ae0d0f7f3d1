"""Whether a sparse plan is used for a tail: checked once against the dense plan, and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from ov_recipro.cut.bundle import Manifest
from ov_recipro.output import user_cache
from ov_recipro.plans.nodes import Array

Logits: TypeAlias = Callable[[Array], tuple[Array, Array]]
"""From a feature map at batch 1 to the logits of its cells [N,classes] and its own [classes]."""

TOLERANCE = 1e-3
"""Largest error against the dense plan, as a fraction of the spread over cells.

With one cell kept or emptied alike, float32 itself comes to some 3e-5 in EfficientNet-Lite0 and
Lite1; a single row of one cell that is taken from its neighbour comes to 4e-3 and more.
"""


class PlanRefused(Exception):
    """A plan can't be used for a tail, or is not worth it; the message says why."""


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
    random = np.random.default_rng(0)
    sizes = [size if axis == channel_axis else 1 for axis, size in enumerate(shape)]
    scales = random.uniform(0.2, 3, sizes)
    features = (random.standard_normal(shape) * scales).astype(np.float32)
    expected, (masked, whole) = dense(features), sparse(features)
    chosen = masked if cells is None else masked[list(cells)]
    pairs = list(zip((chosen, whole), expected, strict=True))
    if any(g.shape != e.shape or not np.isfinite(g).all() for g, e in pairs):
        return float("inf")
    spread = float(np.ptp(expected[0], axis=0).max())
    spread += rounding * float(np.abs(expected[0]).max())
    error = max(float(np.abs(g - e).max()) for g, e in pairs)
    return error / spread if spread > 0 else (0.0 if error == 0 else float("inf"))


def verdict_file(manifest: Manifest, mask: str, device: str) -> Path:
    """Return where the verdict on a bundle's tail on a device is kept."""
    about = (
        manifest.source,
        manifest.cut,
        manifest.output,
        manifest.boundary_shapes,
        mask,
        device,
        version("ov-recipro"),
        version("openvino"),
    )
    name = hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:32]
    return user_cache("plans") / f"{name}.json"


def read_verdict(path: Path) -> Verdict | None:
    """Return the verdict kept in `path`, if there is a valid one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.MsgspecError):
        return None  # it is found out again


def keep_verdict(path: Path, verdict: Verdict) -> None:
    """Write a verdict; where the cache can't be written, it is found out again each time."""
    work = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_bytes(msgspec.json.encode(verdict))
        work.replace(path)
    except OSError:
        work.unlink(missing_ok=True)
