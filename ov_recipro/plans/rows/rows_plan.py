"""Choosing the plan `rows` for a tail: build it, check it on every cell, keep the verdict."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.points import CutPoint
from ov_recipro.output import user_cache
from ov_recipro.plans.rows.compiler import Lowered, NotWorthIt, lower, prepared
from ov_recipro.plans.rows.tensors import Array, Port

Logits: TypeAlias = Callable[[Array], tuple[Array, Array]]
"""From a feature map [1,C,H,W] to the logits of its cells [N,classes] and its own [classes]."""

FROZEN_BATCH = "the tail's batch is frozen"

TOLERANCE = 1e-3
"""Largest error against the dense tail, as a fraction of the spread over cells."""


@dataclass(frozen=True)
class RowsPlan:
    """The tail on the pixels that a cell can change, all cells in one run.

    Attributes:
        cells: number of cells.
        macs: multiply-accumulates of all cells; plain_macs: of one plain inference.
        dense_from: the first operation computed densely; None where there is none.
    """

    cells: int
    macs: int
    plain_macs: int
    dense_from: str | None

    name = "rows"


@dataclass(frozen=True)
class Verdict:
    """What was found out about a tail: the check's error, or why the plan is not used."""

    error: float | None
    reason: str | None


def applies(manifest: Manifest, mask: str) -> str | None:
    """Return why the plan can't be used for a bundle; None where it can."""
    if mask != "cell":
        return f"the mask '{mask}' keeps more than one cell"
    if not manifest.any_batch:
        return FROZEN_BATCH
    return inapplicable(manifest.cut)


def inapplicable(point: CutPoint) -> str | None:
    """Return why the plan can't be used at a cut; None where it can."""
    if point.bypass:
        return "tensors bypass the cut"
    if point.channels_last:
        return "the feature map is laid out [N,H,W,C]"
    return None


def build(
    tail: ov.Model,
    feature: Port,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    plain: bool,
) -> tuple[Lowered, RowsPlan]:
    """Compile a tail at batch 1 into a graph built on `feature` (see `compiler.lower`).

    Raises:
        NotWorthIt: rows don't apply, save too little, or their compiler fails on this graph.
    """
    try:
        lowered = lower(prepared(tail), feature, core, memory, plain_macs, plain)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as failure:
        raise NotWorthIt(f"{type(failure).__name__}: {str(failure).splitlines()[0]}") from failure
    cells = int(np.prod(list(feature.shape)[2:]))
    return lowered, RowsPlan(cells, lowered.macs, plain_macs, lowered.dense_from)


def largest_error(rows: Logits, dense: Logits, shape: tuple[int, ...]) -> float:
    """Compare the logits of every cell, and of the whole map, on random features.

    A sample of cells is not enough: an error in one table can affect a single cell.

    Returns:
        The largest error, as a fraction of the spread of logits over cells.
    """
    random = np.random.default_rng(0)
    scales = random.uniform(0.2, 3, (1, shape[1], 1, 1))
    features = (random.standard_normal(shape) * scales).astype(np.float32)
    expected, got = dense(features), rows(features)
    pairs = list(zip(got, expected, strict=True))
    if any(g.shape != e.shape or not np.isfinite(g).all() for g, e in pairs):
        return float("inf")
    spread = float(np.ptp(expected[0], axis=0).max())
    error = max(float(np.abs(g - e).max()) for g, e in pairs)
    return error / spread if spread > 0 else (0.0 if error == 0 else float("inf"))


def verdict_file(manifest: Manifest, device: str) -> Path:
    """Return where the verdict on a bundle's tail on a device is kept."""
    about = (
        manifest.source,
        manifest.cut,
        manifest.output,
        manifest.boundary_shapes,
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
