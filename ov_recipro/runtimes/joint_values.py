"""What a plan gives under masks, whatever runs it; a detector's as `sparse.build_joint` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ov_recipro.plans import sparse
from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.rows.scattered import Run
from ov_recipro.plans.verdict import Logits
from ov_recipro.runtimes.runtime import Floats, Indices
from ov_recipro.saliency import Array

_HELD = 64 << 20  # bytes for the values of some cells, where all values are asked for


def joint_values(
    scattered: Scattered, run: Run, columns: Indices | None
) -> Iterator[tuple[Floats, None]]:
    """Yield what `Inference.masked` does, of the values `columns` or of all.

    Args:
        scattered: where the plan's numbers belong.
        run: runs the plan on one image.
        columns: see `Inference.masked`.
    """
    if columns is None:
        for batch in scattered.batches(run, _HELD):
            yield batch, None
    else:
        yield scattered.select(run, columns), None


def logits_by_cells(
    run: Callable[[Sequence[Array]], list[Array]], scattered: Scattered | None
) -> Callable[[list[int]], Logits]:
    """Return what gives, for some cells, a function from feature maps to the plan's logits.

    Args:
        run: runs the plan.
        scattered: where a detector's numbers belong; None for a plan that gives all cells at once.
    """
    if scattered is None:
        return lambda _: sparse.logits_of(run)
    return lambda cells: _joint_logits(scattered, run, cells)


def _joint_logits(
    scattered: Scattered, run: Callable[[Sequence[Array]], list[Array]], cells: list[int]
) -> Logits:
    """Return a function from feature maps to all values of some cells [n,V] and their own [V].

    Args:
        scattered: where the plan's numbers belong.
        run: runs the plan on feature maps and, behind them, which numbers are wanted.
        cells: which cells.
    """

    def values(*features: Floats) -> tuple[Floats, Floats]:
        plain: list[Floats] = []

        def run_on(wanted: list[Array]) -> list[Array]:
            outputs = run([*features, *wanted])
            plain.append(np.array(outputs[-1]))
            return outputs

        masked = scattered.select(run_on, np.arange(scattered.values), np.array(cells))
        return masked, plain[0]

    return values
