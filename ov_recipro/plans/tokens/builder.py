"""The tail on tokens: one table of rows through the original operations, masks inside attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.points import CutPoint
from ov_recipro.plans.nodes import (
    Key,
    Port,
    constant,
    key_of,
    rebuild,
    reshape,
    sources_of,
)
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.tokens.demand import Demand, demand_of
from ov_recipro.plans.tokens.placement import masking_of, table_at_cut
from ov_recipro.plans.tokens.roles import (
    BY_VALUE,
    REDUCTIONS,
    SPLITS,
    Counts,
    Pairs,
    PerMask,
    PerToken,
    Role,
    roles_of,
    same_for_all,
)
from ov_recipro.plans.tokens.tables import Entries, PairTables, Regrouper, Table
from ov_recipro.plans.verdict import PlanRefused

_SCALED_ALIKE = frozenset(
    {"Convert", "ConvertLike", "Divide", "Identity", "IsNaN", "Multiply", "Select"}
)

Value: TypeAlias = Table | PairTables | Entries


def merged(
    tail: ov.Model, feature: Port, cut: CutPoint, mask: Mask = "cell", own: bool = True
) -> Port:
    """Compile a prepared tail of one input [1,T,C] into one run over all masks.

    The tail's operations are used up.

    Args:
        tail: the tail at batch 1.
        feature: the tokens [1,T,C] to read.
        cut: where they are.
        mask: what is kept of them.
        own: also give the whole image's logits.

    Returns:
        Logits [N,classes] of each mask, or [N+1,classes] with the image's own last.

    Raises:
        PlanRefused: an operation tells tokens apart.
    """
    (parameter,) = tail.get_parameters()
    start = key_of(parameter.output(0))
    counts = Counts(cut.prefix + cut.cells.count, cut.prefix)
    nodes, roles = roles_of(tail.get_ordered_ops(), start, counts)
    end = tail.get_results()[0].input_value(0)
    classes = int(np.prod(list(end.shape)))
    demand = demand_of(nodes, roles, end, start)
    masking = masking_of(cut, mask)
    table = Table(table_at_cut(feature, cut, masking.weights), masking.at_cut)
    builder = _Builder(Regrouper(counts, masking, own), roles, demand, {start: table})
    for node in nodes:
        builder.visit(node)
    value = builder.values[key_of(end)]
    if not isinstance(value, Entries):
        raise PlanRefused("its scores are those of tokens")
    return reshape(value.port, [builder.regrouper.entries, classes])


@dataclass
class _Builder:
    regrouper: Regrouper
    roles: dict[Key, Role]
    demand: dict[Key, Demand]
    values: dict[Key, Value]

    def visit(self, node: ov.Node) -> None:
        """Rebuild one operation, unless nothing reads it."""
        kind = node.get_type_name()
        outputs = [key_of(port) for port in node.outputs()]
        read = [self.demand.get(key, Demand.NONE) for key in outputs]
        if kind == "Result" or max(read) is Demand.NONE:
            return
        sources = sources_of(node)
        values = [self.values.get(key_of(port)) for port in sources]
        known = [self.roles.get(key_of(port)) for port in sources]
        made = self.roles[outputs[0]]
        sizes = [list(port.shape) for port in node.outputs()]
        results = self._rebuilt(node, kind, values, known, made, sizes, max(read))
        self.values |= dict(zip(outputs, results, strict=True))

    def _rebuilt(
        self,
        node: ov.Node,
        kind: str,
        values: Sequence[Value | None],
        known: Sequence[Role | None],
        made: Role,
        sizes: list[list[int]],
        demand: Demand,
    ) -> Sequence[Value]:
        if all(value is None or isinstance(value, Entries) for value in values):
            return self._per_mask(node, kind, values, sizes)
        if kind == "ScaledDotProductAttention":
            return [self._attention(node, values, known, demand)]
        if any(isinstance(value, PairTables) for value in values):
            return [self._on_pairs(node, kind, values, known, made, sizes[0], demand)]
        if isinstance(made, Pairs) and kind == "MatMul":
            return [self._scores(node, values, known, demand)]
        (value, role) = next((v, r) for v, r in zip(values, known, strict=True) if v is not None)
        if not isinstance(value, Table) or not isinstance(role, PerToken):
            raise PlanRefused(f"{kind} reads no tokens")
        if isinstance(made, Pairs):  # constants are the queries
            masks, own = (
                self.regrouper.group(value, role.axis),
                self.regrouper.own(value, role.axis),
            )
            return [self._softmax(PairTables(masks, own), made, len(sizes[0]))]
        if kind in SPLITS and any(self.roles[key_of(port)] != role for port in node.outputs()):
            return self._divided(node, value, role, sizes)
        if isinstance(made, PerMask):
            return [self._readout(node, kind, value, role, made, sizes[0])]
        if isinstance(made, PerToken) and made.first != role.first:
            return [value]  # a slice of the cells' tokens: readers skip the prefix
        return self._token_by_token(node, kind, values, known, made, sizes, demand)

    def _divided(
        self, node: ov.Node, table: Table, role: PerToken, sizes: list[list[int]]
    ) -> Sequence[Value]:
        """Return the parts of a split along the tokens: prefix tokens, and the cells'."""
        divided: list[Value] = []
        for port, size in zip(node.outputs(), sizes, strict=True):
            made = self.roles[key_of(port)]
            if isinstance(made, PerMask):
                divided.append(self.regrouper.picked(table, role.axis, made.picked, size))
            else:
                divided.append(table)
        return divided

    def _token_by_token(
        self,
        node: ov.Node,
        kind: str,
        values: Sequence[Value | None],
        known: Sequence[Role | None],
        made: Role,
        sizes: list[list[int]],
        demand: Demand,
    ) -> Sequence[Value]:
        """Keep the operation in its place, on rows."""
        at_cut = self.regrouper.masking.at_cut
        tables = [value for value in values if isinstance(value, Table)]
        shared = all(table.placement is at_cut for table in tables)
        placement = at_cut if shared else self.regrouper.behind(demand)
        rank = len(sizes[0])
        for index, (value, role) in enumerate(zip(values, known, strict=True)):
            if isinstance(value, Table) and isinstance(role, PerToken):
                port = self.regrouper.moved(value, role.axis, placement).port
                node.input(index).replace_source_output(port)
            elif kind in BY_VALUE and isinstance(made, PerToken):
                port = same_for_all(node.input_value(index), [rank - made.axis])
                node.input(index).replace_source_output(port)
        if kind in ("Reshape", "Squeeze", "Unsqueeze") and isinstance(made, PerToken):
            shape = list(sizes[0])
            shape[made.axis] = placement.count
            return [Table(reshape(node.input_value(0), shape), placement)]
        node.validate_and_infer_types()
        return [Table(port, placement) for port in node.outputs()]

    def _per_mask(
        self, node: ov.Node, kind: str, values: Sequence[Value | None], sizes: list[list[int]]
    ) -> Sequence[Value]:
        for index, value in enumerate(values):
            if isinstance(value, Entries):
                node.input(index).replace_source_output(value.port)
        if kind in ("Reshape", "Squeeze", "Unsqueeze"):
            return [Entries(reshape(node.input_value(0), [self.regrouper.entries, *sizes[0][1:]]))]
        node.validate_and_infer_types()
        return [Entries(port) for port in node.outputs()]

    def _attention(
        self,
        node: ov.Node,
        values: Sequence[Value | None],
        known: Sequence[Role | None],
        demand: Demand,
    ) -> Value:
        sources = sources_of(node)
        axis = len(sources[1].shape) - 2
        keys, held = (_table(values[index]) for index in (1, 2))
        masks = [self.regrouper.group(table, axis) for table in (keys, held)]
        if values[0] is None:
            shape = list(sources[0].shape)
            asking = reshape(sources[0], [*shape[:-2], 1, *shape[-2:]])
            own_query: Port | None = sources[0]
        else:
            table = _table(values[0])
            asking = self.regrouper.group(table, axis, demand)
            own_query = self.regrouper.own(table, axis, demand)
        keys_of, values_of = masks
        scores = ops.matmul(asking, keys_of, False, True).output(0)
        weights = self._weights(scores, -1, _scale_of(node))
        port = ops.matmul(weights, values_of, False, False).output(0)
        own = None
        if self.regrouper.wants_own:
            inputs = [own_query, self.regrouper.own(keys, axis), self.regrouper.own(held, axis)]
            for index, source in enumerate(inputs):
                node.input(index).replace_source_output(source)
            node.validate_and_infer_types()
            own = node.output(0)
        sizes = list(node.output(0).shape)
        if known[0] is None:
            return self.regrouper.entries_of(port, own, sizes, axis)
        return self.regrouper.ungrouped(port, own, sizes, axis, demand)

    def _scores(
        self,
        node: ov.Node,
        values: Sequence[Value | None],
        known: Sequence[Role | None],
        demand: Demand,
    ) -> Value:
        (asking, query), (asked, key) = (
            (_table(value), _axis(role)) for value, role in zip(values[:2], known[:2], strict=True)
        )
        masks = _product(
            node, self.regrouper.group(asking, query, demand), self.regrouper.group(asked, key)
        )
        own = None
        if self.regrouper.wants_own:
            own = _product(
                node, self.regrouper.own(asking, query, demand), self.regrouper.own(asked, key)
            )
        return PairTables(masks, own)

    def _on_pairs(
        self,
        node: ov.Node,
        kind: str,
        values: Sequence[Value | None],
        known: Sequence[Role | None],
        made: Role,
        sizes: list[int],
        demand: Demand,
    ) -> Value:
        pairs = next(value for value in values if isinstance(value, PairTables))
        if kind == "Softmax" and isinstance(made, Pairs):
            return self._softmax(pairs, made, len(sizes))
        if kind == "MatMul":
            held, axis = _table(values[1]), _axis(known[1])
            masks = _product(node, pairs.masks, self.regrouper.group(held, axis))
            own = None
            if pairs.own is not None:
                own = _product(node, pairs.own, self.regrouper.own(held, axis))
            if isinstance(made, PerToken):
                return self.regrouper.ungrouped(masks, own, sizes, made.axis, demand)
            return self.regrouper.entries_of(masks, own, sizes, len(sizes) - 2)

        others = sources_of(node)
        owns = [value.own if isinstance(value, PairTables) else None for value in values]
        own = None
        if pairs.own is not None:
            own = rebuild(node, [b if a is None else a for a, b in zip(owns, others, strict=True)])
        times: Port | None = None
        if isinstance(made, Pairs) and made.weights and kind not in _SCALED_ALIKE:
            times = constant(self._multiplicity(made.keys - len(sizes)))
        inputs = []
        for value, other in zip(values, others, strict=True):
            if not isinstance(value, PairTables):
                inputs.append(_beside_masks(other, made, len(sizes)))
            elif times is None:
                inputs.append(value.masks)
            else:  # the weight of one of the tokens that a key stands for
                inputs.append(ops.divide(value.masks, times).output(0))
        masks = rebuild(node, inputs)
        if times is not None:
            masks = ops.multiply(masks, times).output(0)
        return PairTables(masks, own)

    def _softmax(self, pairs: PairTables, made: Pairs, rank: int) -> PairTables:
        masks = self._weights(pairs.masks, made.keys - rank)
        own = None if pairs.own is None else ops.softmax(pairs.own, made.keys).output(0)
        return PairTables(masks, own)

    def _weights(self, scores: Port, from_right: int, scale: Port | None = None) -> Port:
        """Return the softmax of the masks' scores, where a key counts for all that it stands for.

        Spelled out: in bfloat16, OpenVINO 2026.4's own attention gives wrong results for a bias
        that is the same for all queries, and its Softmax loses the mark that keeps float32.

        Args:
            scores: of the masks; `from_right`: the axis of the keys, counted from the right.
            scale: what the scores are multiplied by.
        """
        over = constant([len(scores.shape) + from_right], np.int64)
        times = constant(np.log(self._multiplicity(from_right)))
        lower = ops.subtract(scores, ops.reduce_max(scores, over, True))
        if scale is not None:
            lower = ops.multiply(lower, scale)
        lower = ops.add(lower, times)
        total = ops.reduce_sum(ops.exp(lower), over, True)
        return ops.exp(ops.subtract(lower, ops.log(total))).output(0)

    def _multiplicity(self, from_right: int) -> np.ndarray:
        """Return for how many tokens each key stands, along an axis counted from the right."""
        return self.regrouper.masking.multiplicity.reshape([-1, *[1] * (-from_right - 1)])

    def _readout(
        self,
        node: ov.Node,
        kind: str,
        table: Table,
        role: PerToken,
        made: PerMask,
        sizes: list[int],
    ) -> Value:
        if role.axis == 0 or table.port.shape[0] != 1:
            raise PlanRefused("what the scores come from is not batch first")
        if kind in REDUCTIONS:
            return self._pooled(node, kind, table, role, sizes)
        return self.regrouper.picked(table, role.axis, made.picked, sizes)

    def _pooled(
        self, node: ov.Node, kind: str, table: Table, role: PerToken, sizes: list[int]
    ) -> Value:
        axis, first = role.axis, role.first
        masks = self.regrouper.group(table, axis, first=first)
        from_right = axis - len(table.port.shape)
        over = constant([from_right], np.int64)
        if kind == "ReduceMax":
            port = ops.reduce_max(masks, over, False).output(0)
        else:
            share = self.regrouper.masking.multiplicity[first:]
            if kind == "ReduceMean":
                share = share / (self.regrouper.counts.tokens - first)
            share = share.reshape([-1, *[1] * (-from_right - 1)])
            port = ops.reduce_sum(ops.multiply(masks, constant(share)), over, False).output(0)
        own = None
        if self.regrouper.wants_own:
            node.input(0).replace_source_output(self.regrouper.own(table, axis, first=first))
            node.validate_and_infer_types()
            own = node.output(0)
        return self.regrouper.entries_of(port, own, sizes, len(table.port.shape) - 2)


def _table(value: Value | None) -> Table:
    if not isinstance(value, Table):
        raise PlanRefused("attention reads what is not a tensor of tokens")
    return value


def _axis(role: Role | None) -> int:
    if not isinstance(role, PerToken):
        raise PlanRefused("attention reads what is not a tensor of tokens")
    return role.axis


def _beside_masks(port: Port, made: Role, rank: int) -> Port:
    """Return what acts on scores [...,T,T] in a shape that acts on the masks' [...,N,L,L]."""
    if isinstance(made, Pairs):
        axes = [axis for axis in (made.queries, made.keys) if axis is not None]
        port = same_for_all(port, [rank - axis for axis in axes])
    shape = list(port.shape)
    return port if len(shape) < 3 else reshape(port, [*shape[:-2], 1, *shape[-2:]])


def _scale_of(node: ov.Node) -> Port:
    """Return what an operation that does all of attention multiplies its scores by."""
    if node.get_input_size() > 4:
        return node.input_value(4)
    return constant(int(node.input_value(1).shape[-1]) ** -0.5)


def _product(node: ov.Node, left: Port | None, right: Port | None) -> Port:
    settings = node.get_attributes()
    return ops.matmul(left, right, settings["transpose_a"], settings["transpose_b"]).output(0)
