"""The plan's cost, estimated before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

import openvino as ov

from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.plans.nodes import Key, key_of, macs_of, sources_of
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.tokens.demand import Demand, demand_of
from ov_recipro.plans.tokens.placement import behind_attention, masking_of
from ov_recipro.plans.tokens.roles import Counts, Pairs, PerMask, PerToken, Role, roles_of


def estimate(
    nodes: Sequence[ov.Node], start: Key, end: ov.Output, cut: CutPoint, mask: Mask = "cell"
) -> int:
    """Count the multiply-accumulates that all masks add to the image's own in a tail.

    The number may be below 0: tokens of the image that nothing reads are left out.

    Args:
        nodes: a model's operations, in order.
        start: the tokens [1,T,C]; `end`: the tensor of its scores.
        cut: where the tokens are; `mask`: what is kept of them.

    Raises:
        PlanRefused: the plan does not apply.
    """
    counts = Counts(cut.prefix + cut.cells.count, cut.prefix)
    tail, roles = roles_of(nodes, start, counts)
    demand = demand_of(tail, roles, end, start)
    masking = masking_of(cut, mask)
    cells, per_mask = masking.at_cut.masks.shape
    at_cut = {start}  # tensors whose rows are those at the cut
    total = 0
    for node in tail:
        outputs = [key_of(port) for port in node.outputs()]
        read = max((demand.get(key, Demand.NONE) for key in outputs), default=Demand.NONE)
        if read is Demand.NONE:
            total -= macs_of(node)
            continue
        keys = [key_of(port) for port in sources_of(node)]
        known = [roles.get(key) for key in keys]
        made, macs = roles[outputs[0]], macs_of(node)
        total -= macs
        asks = _asks(node, known)
        if asks is not None:
            each = per_mask if read is Demand.ALL else counts.prefix
            own = counts.tokens if read is Demand.ALL else counts.prefix
            queries = (own + cells * each * per_mask / counts.tokens) / counts.tokens
            total += int(macs * (queries if asks else 1 + cells * per_mask / counts.tokens))
        elif isinstance(made, PerMask):
            total += macs * (cells + 1)
        else:
            placement = masking.at_cut
            if {key for key in keys if key in roles} <= at_cut:
                at_cut.update(outputs)
            else:
                placement = behind_attention(masking, counts.prefix, read, own=True)
            total += macs * placement.count // counts.tokens
    return total


def _asks(node: ov.Node, known: Sequence[Role | None]) -> bool | None:
    """Whether tokens, not constants, ask in a product of attention; None for other operations."""
    if node.get_type_name() == "ScaledDotProductAttention":
        return known[0] is not None
    if node.get_type_name() == "MatMul" and isinstance(known[1], PerToken):
        if isinstance(known[0], Pairs):
            return known[0].queries is not None
        return True if isinstance(known[0], PerToken) else None
    return None
