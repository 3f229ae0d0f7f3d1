"""The sparse plan of a cut: `rows` for feature maps, `tokens` for tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import openvino as ov

from ov_recipro.cut.bundle import Manifest
from ov_recipro.errors import OptionError
from ov_recipro.plans import rows, tokens
from ov_recipro.plans.nodes import Array, Port, prepared
from ov_recipro.plans.rows import RowsPlan, Scattered
from ov_recipro.plans.rows.on_demand import lower_on_demand
from ov_recipro.plans.rows.zones import OnDemand
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.tokens import TokensPlan
from ov_recipro.plans.verdict import (
    TOLERANCE,
    Logits,
    PlanFailed,
    PlanRefused,
    Verdict,
    keep_verdict,
    largest_error,
    largest_joint_error,
    read_verdict,
)

SparsePlan: TypeAlias = RowsPlan | TokensPlan
_T = TypeVar("_T")


def applies(manifest: Manifest, mask: Mask, plan: str = "auto") -> str | None:
    """Return why no sparse plan, or not the one named, can be used; None where it can."""
    on_tokens = manifest.cut.layout == "NTC"
    if plan == "rows" or (plan == "auto" and not on_tokens):
        return rows.applies(manifest, mask)
    return tokens.applies(manifest, mask)


def chosen(
    manifest: Manifest,
    plan: str,
    mask: Mask,
    open_sparse: Callable[[], _T],
    open_stream: Callable[[], _T],
) -> tuple[_T, str | None]:
    """Open the sparse plan if it can be used, else plan `stream`.

    Args:
        manifest: of the bundle; plan: what is asked for, "auto" or a plan's name.
        mask: what is kept of the feature map.
        open_sparse, open_stream: open the plans; the first may raise PlanRefused.

    Returns:
        The result, and the reason why the sparse plan is not used; None if it is.

    Raises:
        OptionError: the sparse plan that is asked for can't be used.
    """
    reason = "asked for" if plan == "stream" else applies(manifest, mask, plan)
    if reason is None:
        try:
            return open_sparse(), None
        except PlanRefused as failure:
            reason = str(failure)
    if plan in ("rows", "tokens"):
        raise OptionError(f"The plan '{plan}' can't be used: {reason}.")
    return open_stream(), reason


def build(
    manifest: Manifest,
    mask: Mask,
    tail: ov.Model,
    feature: Port,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    plain: bool,
) -> tuple[Port, SparsePlan]:
    """Compile a tail at batch 1 into a graph built on the feature map or tokens `feature`.

    Args:
        manifest: of the bundle; `mask`: what is kept of the feature map.
        tail: the tail; it is used up.
        feature: what it reads.
        core: to evaluate constants with.
        memory: bytes that the activations may take at once.
        plain_macs: multiply-accumulates of one plain inference.
        plain: also give the logits of the whole feature map, last.

    Raises:
        PlanRefused: the plan does not apply, or `rows` saves too little.
    """
    if manifest.cut.layout == "NTC":
        return tokens.build(tail, feature, manifest.cut, mask, plain_macs, plain)
    lowered, plan = rows.build(
        tail, feature, core, memory, plain_macs, plain, mask, manifest.any_batch
    )
    return lowered.logits, plan


def is_joint(manifest: Manifest) -> bool:
    """Whether a tail gives too many values to hold those of all cells (see `build_joint`).

    Tails of detectors do, and those of joint cuts.
    """
    return bool(manifest.cut.joined) or manifest.task == "detector"


def build_joint(
    manifest: Manifest,
    mask: Mask,
    tail: ov.Model,
    core: ov.Core,
    memory: int,
    plain_macs: int,
) -> tuple[ov.Model, Scattered, RowsPlan]:
    """Compile a detector's tail at batch 1 (see `rows.build_joint`).

    Args:
        manifest, mask, tail, core, memory, plain_macs: as of `build`.

    Raises:
        PlanRefused: the plan does not apply, or saves too little.
    """
    return rows.build_joint(tail, manifest.cut.cells, core, memory, plain_macs, mask)


def build_on_demand(manifest: Manifest, mask: Mask, tail: ov.Model, core: ov.Core) -> OnDemand:
    """Compile a detector's tail at batch 1 for some of its values at a time.

    Args:
        manifest, mask, tail, core: as of `build`.

    Raises:
        PlanRefused: an operation has no rule, or the compiler fails on this graph.
    """
    try:
        lowered = lower_on_demand(prepared(tail), manifest.cut.cells, core, mask == "drop")
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as failure:
        raise PlanRefused(f"{type(failure).__name__}: {str(failure).splitlines()[0]}") from failure
    return OnDemand(lowered)


def refusal(file: Path, error: Callable[[], float]) -> str | None:
    """Return why a plan is not used; None where it is. It is found out once.

    Args:
        file: where the verdict is kept.
        error: builds the plan and compares it with the dense one; it may raise PlanRefused.
    """
    verdict = read_verdict(file)
    if verdict is None:
        try:
            verdict = Verdict(error(), None)
        except PlanFailed as failure:
            return str(failure)
        except PlanRefused as failure:
            verdict = Verdict(None, str(failure))
        keep_verdict(file, verdict)
    return verdict.reason


def tolerated(name: str, error: float) -> float:
    """Return the error of the plan of this name.

    Raises:
        PlanRefused: it is larger than `verdict.TOLERANCE`.
    """
    if not error <= TOLERANCE:
        raise PlanRefused(
            f"plan '{name}' differs from the dense tail by {error:.1e} of the logits' spread"
        )
    return error


def checked_cells(manifest: Manifest) -> list[list[int]]:
    """Return the cells for which a plan is compared with the dense one, in groups.

    A detector's plan has tables of its own for each block of cells. They follow from the block's
    rows and columns, so of each block there is a cell in each row and each column, twice: blocks
    that take too much memory are computed in halves.
    """
    if manifest.cut.layout == "NTC":
        return [tokens.sample(manifest)]
    cells = manifest.cut.cells
    if not is_joint(manifest):
        return [list(range(cells.count))]
    return [rows.sample(block, cells.grid) for block in rows.blocks_of(cells)]


def logits_of(run: Callable[[Sequence[Array]], list[Array]]) -> Logits:
    """Return a function from a feature map to the logits [N,classes] of its cells and its own.

    Args:
        run: runs a plan that gives them together, [N+1,classes], the map's last.
    """

    def logits(features: Array) -> tuple[Array, Array]:
        together = run([features])[0]
        return together[:-1], together[-1]

    return logits


def error(
    manifest: Manifest,
    name: str,
    sparse: Callable[[list[int]], Logits],
    dense: Callable[[list[int]], Logits],
) -> float:
    """Compare a plan with the dense one; return the error.

    Args:
        manifest: of the bundle; name: of the plan.
        sparse, dense: make what runs each for one group of `checked_cells`.

    Raises:
        PlanRefused: the error is larger than `verdict.TOLERANCE`.
    """
    groups = checked_cells(manifest)
    return tolerated(name, max(error_of(manifest, sparse(group), dense(group)) for group in groups))


def error_of(manifest: Manifest, sparse: Logits, dense: Logits) -> float:
    """Compare a plan with the dense plan, both for one group of `checked_cells` (see `verdict`).

    Plan `tokens` gives all cells, of which those are taken.
    """
    shape = manifest.boundary_shapes[0]
    if is_joint(manifest):
        shapes = manifest.boundary_shapes[: len(manifest.cut.masked)]
        layout = manifest.boxes
        known = layout is not None and layout.values == manifest.values
        outputs = layout.shapes if layout is not None and known else (manifest.scores_shape,)
        return largest_joint_error(sparse, dense, shapes, outputs)
    if manifest.cut.layout == "NTC":
        (cells,) = checked_cells(manifest)
        return largest_error(sparse, dense, shape, 2, cells, tokens.ROUNDING)
    return largest_error(sparse, dense, shape)
