"""The walk over the tail: each operation as rows where a rule covers it, the rest densely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import Key, Port, constant, key_of, reshape, sources_of
from ov_recipro.plans.rows import pooling
from ov_recipro.plans.rows.backgrounds import attached, of_image, of_zeros
from ov_recipro.plans.rows.lowering import Lowering
from ov_recipro.plans.rows.rows_cost import (
    MAX_SHARE_OF_DENSE,
    NO_SAVING,
    Reach,
    downstream,
    estimate,
    steps_of,
)
from ov_recipro.plans.rows.seeds import seeds
from ov_recipro.plans.rows.tensors import PerCell, Rows, densified
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused

FROZEN_BATCH = "the tail's batch is frozen"


@dataclass(frozen=True)
class Lowered:
    """A tail as rows.

    Attributes:
        logits: [N,classes] of each cell alone, or [N+1,classes] with the whole feature map's last,
            if asked for.
        macs: multiply-accumulates of all cells.
        dense_from: the first operation that is computed densely, None where there is none.
    """

    logits: Port
    macs: int
    dense_from: str | None


def lower(
    tail: ov.Model,
    feature: Port,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    plain: bool,
    mask: Mask = "cell",
    any_batch: bool = True,
) -> Lowered:
    """Compile a prepared tail of one input [1,C,H,W] into rows built on `feature`.

    Args:
        tail: the tail at batch 1.
        feature: the feature map [1,C,H,W] to read.
        core: to evaluate constants with.
        memory: bytes that the dense remainder's activations may take at once.
        plain_macs: multiply-accumulates of one plain inference.
        plain: also give the whole map's logits. Where each cell is down to one vector, the whole
            map's is treated as one more, so that large weights are read once for all.
        mask: "cell" or "drop".
        any_batch: whether the tail takes any batch.

    Raises:
        PlanRefused: rows don't apply, save too little, or leave something to be computed densely,
            which a frozen batch does not allow.
    """
    unmasked = attached(tail, [feature]) if plain or mask == "drop" else {}
    return _Compiler(tail, core, memory, plain_macs, plain, mask, any_batch, unmasked).run(feature)


@dataclass
class _Compiler:
    tail: ov.Model
    core: ov.Core
    memory: int
    plain_macs: int
    plain: bool
    mask: Mask
    any_batch: bool
    unmasked: Mapping[str, ov.Node]
    values: dict[Key, Rows | PerCell] = field(default_factory=dict)
    rest: set[str] = field(default_factory=set)
    boundary: dict[Key, Rows | PerCell] = field(default_factory=dict)
    dense_from: str | None = None
    rules: Lowering = field(init=False)

    def run(self, feature: Port) -> Lowered:
        (parameter,) = self.tail.get_parameters()
        start = key_of(parameter.output(0))
        height, width = (int(size) for size in list(feature.shape)[2:])
        cells = Cells((height, width))
        steps = downstream(steps_of(self.tail), [start])
        nodes = [step.node for step in steps]
        cost = estimate(steps, {start: Reach.of(cells, cells.grid)}, cells.count)
        if not cost.is_worth_it(self.plain_macs):
            raise PlanRefused(NO_SAVING)
        if self.mask == "drop":
            backgrounds = of_image(nodes, self.unmasked)
        else:
            backgrounds = of_zeros(self.tail, nodes, self.core)
        varying = frozenset({start[0], *(node.get_friendly_name() for node in nodes)})
        self.rules = Lowering(self.core, varying, backgrounds, to_the_end=False)
        self.values[start] = seeds(feature, cells, self.mask)
        for node in nodes:
            if key_of(node.output(0)) in self.values:
                continue  # done together with an earlier one
            outputs = None if self._reads_rest(node) else self._lower(node)
            if outputs is None:
                self._leave(node)
            else:
                self.values |= {key_of(node.output(i)): each for i, each in enumerate(outputs)}
        end = self.tail.get_results()[0].input_value(0)
        value = self.values.get(key_of(end))
        if value is None:
            value = self._densely(cells.count, nodes)
        count = int(np.prod(list(end.shape)))
        if self.plain and not (isinstance(value, PerCell) and value.whole):
            whole_logits = reshape(self._unmasked(key_of(end)), [1, count])
            masked = reshape(self._slice(value, 0, cells.count), [cells.count, count])
            logits = ops.concat([masked, whole_logits], 0).output(0)
        else:
            entries = cells.count + self.plain
            logits = reshape(self._slice(value, 0, entries), [entries, count])
        return Lowered(logits, cost.rows, self.dense_from)

    def _reads_rest(self, node: ov.Node) -> bool:
        return any(value.get_node().get_friendly_name() in self.rest for value in sources_of(node))

    def _leave(self, node: ov.Node) -> None:
        """Note that `node` is computed densely, on the values that it reads."""
        if not self.any_batch:
            raise PlanRefused(FROZEN_BATCH)
        read = [self.values.get(key_of(value)) for value in sources_of(node)]
        if any(isinstance(value, Rows) for value in read) and self.dense_from is None:
            self.dense_from = node.get_type_name()
        self.rest.add(node.get_friendly_name())
        for value in sources_of(node):
            if key_of(value) in self.values:
                self.boundary[key_of(value)] = self.values[key_of(value)]

    def _densely(self, cells: int, nodes: Sequence[ov.Node]) -> PerCell:
        """Run the remainder on the original operations, in chunks of cells within the memory."""
        remainder = [node for node in nodes if node.get_friendly_name() in self.rest]
        carried = {key_of(port) for node in nodes for port in node.outputs()}
        size = max(
            sum(
                4 * int(np.prod(list(port.shape)))
                for port in [*sources_of(node), *node.outputs()]
                if key_of(port) in carried
            )
            for node in remainder
        )
        chunk = max(1, min(cells, self.memory // (2 * size)))
        borders = [*range(0, cells, chunk), cells]
        per_cell = all(isinstance(value, PerCell) for value in self.boundary.values())
        adds_whole = self.plain and len(borders) == 2 and per_cell
        chunks = []
        for start, stop in pairwise(borders):
            copy = self.tail.clone()
            known = {n.get_friendly_name(): n for n in copy.get_ordered_ops()}
            for key, value in self.boundary.items():
                port = self._slice(value, start, stop)
                if adds_whole and isinstance(value, PerCell):
                    port = self._with_whole(value, key)
                for reader in list(known[key[0]].output(key[1]).get_target_inputs()):
                    if reader.get_node().get_friendly_name() in self.rest:
                        reader.replace_source_output(port)
            for node in copy.get_ordered_ops():
                if node.get_friendly_name() in self.rest:
                    node.validate_and_infer_types()
            chunks.append(copy.get_results()[0].input_value(0))
        port = chunks[0] if len(chunks) == 1 else ops.concat(chunks, 0).output(0)
        return PerCell(port, adds_whole)

    def _slice(self, value: Rows | PerCell, start: int, stop: int) -> Port:
        """Return the entries of a range of cells."""
        if isinstance(value, Rows):
            return densified(value, slice(start, stop))
        if value.port.shape[0] == stop - start:
            return value.port
        ends = [constant([each], np.int64) for each in (start, stop, 1, 0)]
        return ops.slice(value.port, *ends).output(0)

    def _with_whole(self, value: PerCell, key: Key) -> Port:
        if value.whole:
            return value.port
        return ops.concat([value.port, self._unmasked(key)], 0).output(0)

    def _unmasked(self, key: Key) -> Port:
        """Return the whole map's value of one of the tail's tensors."""
        return self.unmasked[key[0]].output(key[1])

    def _lower(self, node: ov.Node) -> list[Rows | PerCell] | None:
        """Return the node's outputs as rows or per-cell entries; None where no rule covers it."""
        values = [self.values.get(key_of(value)) for value in sources_of(node)]
        if node.get_type_name() == "Reshape" and isinstance(values[0], Rows):
            return self._flattened(node, values[0])
        return self.rules.lower(node, values)

    def _flattened(self, node: ov.Node, rows: Rows) -> list[Rows | PerCell] | None:
        """Lower Flatten together with the one linear layer that reads it."""
        linear = pooling.flattened_linear(node)
        if linear is None:
            return None
        weight = self.rules.constant(linear.input_value(1))
        background = self.rules.backgrounds.get(key_of(linear.output(0)))
        if weight is None or background is None:
            return None
        cost = pooling.flat_linear_macs(rows.active.sum(axis=0), weight.size)
        if cost > MAX_SHARE_OF_DENSE * len(rows.active) * weight.size:
            return None
        if linear.get_attributes()["transpose_b"]:
            weight = weight.T
        weight = np.asarray(weight, np.float32)
        unmasked = self._unmasked(key_of(node.output(0))) if self.plain else None
        made = pooling.flat_linear(rows, weight, background, unmasked)
        self.values[key_of(linear.output(0))] = made
        return [made]
