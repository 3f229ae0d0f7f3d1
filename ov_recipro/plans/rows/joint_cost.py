"""The cost of a joint cut: which cells are computed together, and multiply-accumulates of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import Key
from ov_recipro.plans.rows.blocks import Block, blocks_of
from ov_recipro.plans.rows.rows_cost import Estimate, Reach, Step, estimate

_LIVE = 4  # what lives at once, in the largest operation's inputs and outputs
_CACHED = 96 << 20  # bytes of a block's activations; more leave the processor's cache


def estimates(
    steps: Sequence[Step],
    starts: Mapping[Key, tuple[int, int]],
    cells: Cells,
    memory: int,
    plain_macs: int,
) -> list[tuple[Block, Estimate]]:
    """Divide the cells into blocks and estimate what each costs.

    Args:
        steps: the operations that depend on the masked feature maps, in order.
        starts: the height and width of each of these.
        cells: those of the cut.
        memory: bytes that the activations of a block may take at once; blocks are smaller still
            where that is faster.
        plain_macs: multiply-accumulates of one plain inference; cells that cost less are one block.
    """

    def cost_of(block: Block) -> Estimate:
        reached = {key: Reach.of(cells, size, block) for key, size in starts.items()}
        return estimate(steps, reached, len(block.rows) * len(block.columns), to_the_end=True)

    whole = Block(*(np.arange(size) for size in cells.grid))
    cost = cost_of(whole)
    if cost.rows <= plain_macs:
        return [(whole, cost)]
    memory = min(memory, _CACHED)
    left, found = blocks_of(cells)[::-1], []
    while left:
        block = left.pop()
        cost = cost_of(block)
        if _LIVE * cost.largest > memory and len(block.rows) * len(block.columns) > 1:
            left += block.halves()[::-1]
        else:
            found.append((block, cost))
    return found


def sum_of(costs: Sequence[Estimate]) -> Estimate:
    """Return the estimate of all blocks."""
    return Estimate(
        sum(cost.rows for cost in costs),
        sum(cost.dense for cost in costs),
        max(cost.largest for cost in costs),
        costs[0].dense_from,
    )
