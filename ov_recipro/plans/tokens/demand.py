"""Which tokens of each tensor anything reads.

In the last block of a model that reads a class token, nothing reads what becomes of the cells'
tokens behind attention, so these are never computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

import openvino as ov

from ov_recipro.plans.nodes import Key, Port, key_of, sources_of
from ov_recipro.plans.tokens.roles import SPLITS, Pairs, PerMask, PerToken, Role
from ov_recipro.plans.verdict import PlanRefused

UNREAD = "behind this tensor the model reads none of the cells' tokens"


class Demand(IntEnum):
    """The tokens of a tensor that are read."""

    NONE = 0
    PREFIX = 1
    ALL = 2


def demand_of(
    tail: Sequence[ov.Node], roles: Mapping[Key, Role], end: Port, start: Key
) -> dict[Key, Demand]:
    """Return what is read of each tensor of a tail.

    Args:
        tail: its nodes, in order; `roles`: of its tensors.
        end: the tensor of its scores.
        start: the tokens that it begins with.

    Raises:
        PlanRefused: the cells' tokens do not reach the scores.
    """
    found: dict[Key, Demand] = {key_of(end): Demand.ALL}

    def want(port: Port, demand: Demand) -> None:
        key = key_of(port)
        if key in roles:
            found[key] = max(found.get(key, Demand.NONE), demand)

    for node in reversed(tail):
        if node.get_type_name() == "Result":
            continue
        demand = max(found.get(key_of(port), Demand.NONE) for port in node.outputs())
        if demand is Demand.NONE:
            continue
        sources = sources_of(node)
        known = [roles.get(key_of(port)) for port in sources]
        made = roles[key_of(node.output(0))]
        kind = node.get_type_name()
        read = [roles[key_of(port)] for port in node.outputs() if found.get(key_of(port))]
        if all(isinstance(role, PerMask) and role.picked for role in read):
            want(sources[0], Demand.PREFIX)
        elif isinstance(made, PerMask) and kind not in SPLITS:
            for port in sources:
                want(port, Demand.ALL)
        elif kind == "ScaledDotProductAttention":
            want(sources[0], demand)
            for port in sources[1:3]:
                want(port, Demand.ALL)
        elif kind == "MatMul" and isinstance(known[1], PerToken):
            want(sources[0], demand)
            joins = isinstance(known[0], PerToken | Pairs)
            want(sources[1], Demand.ALL if joins else demand)
        else:
            for port in sources:
                want(port, demand)
    if found.get(start, Demand.NONE) is not Demand.ALL:
        raise PlanRefused(UNREAD)
    return found
