"""The walk over the tail of a joint cut: all of it as rows, up to the numbers of a detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import Key, Port, key_of, reshape, sources_of
from ov_recipro.plans.rows import anchor_rules
from ov_recipro.plans.rows.anchors import Anchors
from ov_recipro.plans.rows.backgrounds import attached, of_image, of_zeros
from ov_recipro.plans.rows.joint_cost import estimates, sum_of
from ov_recipro.plans.rows.lowering import Lowering
from ov_recipro.plans.rows.rows_cost import NO_SAVING, downstream, steps_of
from ov_recipro.plans.rows.scattered import Scattered
from ov_recipro.plans.rows.seeds import seeds
from ov_recipro.plans.rows.tensors import Indices, Rows
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused

_SPATIAL = frozenset({"AvgPool", "Convolution", "GroupConvolution", "Interpolate", "MaxPool"})


@dataclass(frozen=True)
class LoweredJoint:
    """The tail of a joint cut as rows.

    Attributes:
        pieces: the rows [P,Q] of each piece of the last tensor.
        plain: [V], that tensor without a mask, in a row.
        scattered: where the rows belong.
        macs: multiply-accumulates of all cells.
    """

    pieces: tuple[Port, ...]
    plain: Port
    scattered: Scattered
    macs: int


def lower_joint(
    tail: ov.Model,
    features: Sequence[Port],
    cells: Cells,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    mask: Mask,
) -> LoweredJoint:
    """Compile a prepared tail of several inputs [1,C,h,w] into rows built on `features`.

    Args:
        tail: the tail at batch 1.
        features: the feature maps to read, in the order of its inputs.
        cells: those of the cut.
        core: to evaluate constants with.
        memory: bytes that the activations of one block of cells may take at once.
        plain_macs: multiply-accumulates of one plain inference.
        mask: "cell" or "drop".

    Raises:
        PlanRefused: an operation has no rule, or rows save too little.
    """
    starts = {
        key_of(parameter.output(0)): port
        for parameter, port in zip(tail.get_parameters(), features, strict=True)
    }
    steps = downstream(steps_of(tail), starts)
    sizes = {key: (int(port.shape[2]), int(port.shape[3])) for key, port in starts.items()}
    parts = estimates(steps, sizes, cells, memory, plain_macs)
    total = sum_of([cost for _, cost in parts])
    if not total.is_worth_it(plain_macs):
        raise PlanRefused(NO_SAVING)
    nodes = [step.node for step in steps]
    unmasked = attached(tail, features)
    of_plain = mask == "drop"
    backgrounds = of_image(nodes, unmasked) if of_plain else of_zeros(tail, nodes, core)
    varying = frozenset({*(key[0] for key in starts), *(n.get_friendly_name() for n in nodes)})
    resamplings = {step.node.get_friendly_name(): step.resampling for step in steps}
    rules = Lowering(core, varying, backgrounds, True, resamplings)
    end = tail.get_results()[0].input_value(0)
    pieces: list[Port] = []
    lasts: list[tuple[Indices, Anchors]] = []
    for block, _ in parts:
        masked = {key: seeds(port, cells, mask, block) for key, port in starts.items()}
        last = _walked(rules, nodes, masked, key_of(end))
        lasts.append((block.cells(cells.grid), last))
        pieces += [piece.port for piece in last.pieces]
    plain = unmasked[end.get_node().get_friendly_name()].output(end.get_index())
    plain = reshape(plain, [int(np.prod(list(plain.shape)))])
    return LoweredJoint(tuple(pieces), plain, Scattered.of(cells.count, lasts), total.rows)


def _walked(
    rules: Lowering, nodes: Sequence[ov.Node], masked: Mapping[Key, Rows], end: Key
) -> Anchors:
    """Return the tensor `end` that the operations `nodes` make of masked feature maps."""
    values: dict[Key, Rows | Anchors] = dict(masked)
    readers = Counter(key_of(port) for node in nodes for port in sources_of(node))
    for node in nodes:
        # a pool's second output, the places of its values, is not lowered
        for port, made in zip(node.outputs(), _lowered(rules, node, values), strict=False):
            values[key_of(port)] = made
        for key in (key_of(port) for port in sources_of(node)):
            readers[key] -= 1
            if not readers[key] and key != end:
                values.pop(key, None)  # its tables take memory
    return _as_anchors(values[end])


def _lowered(
    rules: Lowering, node: ov.Node, values: dict[Key, Rows | Anchors]
) -> Sequence[Rows | Anchors]:
    """Return a node's outputs: as feature maps while they are some, else as anchors."""
    read = [values.get(key_of(port)) for port in sources_of(node)]
    kind = node.get_type_name()
    maps = [_as_rows(value) if kind in _SPATIAL else value for value in read]
    if all(value is None or isinstance(value, Rows) for value in maps):
        found = rules.lower(node, maps)  # type: ignore[arg-type]
        if found is not None:
            return found  # type: ignore[return-value]
    laid_out = [None if value is None else _as_anchors(value) for value in read]
    anchors = anchor_rules.lower(rules, node, laid_out)
    if anchors is None:
        name = node.get_friendly_name().partition(":")[2]
        raise PlanRefused(f"no rule covers '{kind}' at '{name}'")
    return anchors


def _as_rows(value: Rows | Anchors | None) -> Rows | Anchors | None:
    if not isinstance(value, Anchors):
        return value
    rows = value.as_rows()
    return value if rows is None else rows


def _as_anchors(value: Rows | Anchors) -> Anchors:
    return value if isinstance(value, Anchors) else Anchors.of_rows(value)
