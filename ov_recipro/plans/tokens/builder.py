"""The tail on tokens: one table of rows through the original operations, masks inside attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.cut_point import CutPoint
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
    RESHAPES,
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


@dataclass(frozen=True)
class _Operation:
    """An operation of the tail, before it is rebuilt.

    Attributes:
        node: the operation; kind: its type.
        sources: what it reads; values: what was made of that, None for constants.
        known: the roles of what it reads; made: the roles of its outputs.
        sizes: its outputs' shapes; demand: what is read of them.
    """

    node: ov.Node
    kind: str
    sources: list[Port]
    values: list[Value | None]
    known: list[Role | None]
    made: list[Role]
    sizes: list[list[int]]
    demand: Demand

    def table(self, index: int) -> tuple[Table, int]:
        """Return an input that is rows of tokens, and their axis."""
        value, role = self.values[index], self.known[index]
        if not isinstance(value, Table) or not isinstance(role, PerToken):
            raise PlanRefused(f"{self.kind} reads what is not a tensor of tokens")
        return value, role.axis


@dataclass
class _Builder:
    regrouper: Regrouper
    roles: dict[Key, Role]
    demand: dict[Key, Demand]
    values: dict[Key, Value]

    def visit(self, node: ov.Node) -> None:
        """Rebuild one operation, unless nothing reads it."""
        outputs = [key_of(port) for port in node.outputs()]
        read = max((self.demand.get(key, Demand.NONE) for key in outputs), default=Demand.NONE)
        if node.get_type_name() == "Result" or read is Demand.NONE:
            return
        sources = sources_of(node)
        operation = _Operation(
            node=node,
            kind=node.get_type_name(),
            sources=sources,
            values=[self.values.get(key_of(port)) for port in sources],
            known=[self.roles.get(key_of(port)) for port in sources],
            made=[self.roles[key] for key in outputs],
            sizes=[list(port.shape) for port in node.outputs()],
            demand=read,
        )
        self.values |= dict(zip(outputs, self._rebuilt(operation), strict=True))

    def _rebuilt(self, op: _Operation) -> Sequence[Value]:
        made = op.made[0]
        if all(value is None or isinstance(value, Entries) for value in op.values):
            return self._per_mask(op)
        if op.kind == "ScaledDotProductAttention":
            return [self._attention(op)]
        if any(isinstance(value, PairTables) for value in op.values):
            return [self._on_pairs(op)]
        if isinstance(made, Pairs) and op.kind == "MatMul":
            return [self._scores(op)]
        first = next(index for index, value in enumerate(op.values) if value is not None)
        (table, axis), role = op.table(first), op.known[first]
        if isinstance(made, Pairs):  # constants are the queries
            pairs = PairTables(self.regrouper.group(table, axis), self.regrouper.own(table, axis))
            return [self._softmax(pairs, made, len(op.sizes[0]))]
        if op.kind in REDUCTIONS and isinstance(made, PerMask):
            return [self._pooled(op)]
        if isinstance(role, PerToken) and any(_is_part(each, role) for each in op.made):
            return [
                self.regrouper.picked(table, axis, each.picked, sizes)
                if isinstance(each, PerMask)
                else table  # of the cells' tokens alone: readers skip the prefix
                for each, sizes in zip(op.made, op.sizes, strict=True)
            ]
        return self._token_by_token(op, made)

    def _token_by_token(self, op: _Operation, made: Role) -> Sequence[Value]:
        """Keep the operation in its place, on rows."""
        if not isinstance(made, PerToken):
            raise PlanRefused(f"{op.kind} makes no tensor of tokens")
        at_cut, node = self.regrouper.masking.at_cut, op.node
        tables = [value for value in op.values if isinstance(value, Table)]
        shared = all(table.placement is at_cut for table in tables)
        placement = at_cut if shared else self.regrouper.behind(op.demand)
        for index, (value, role) in enumerate(zip(op.values, op.known, strict=True)):
            if isinstance(value, Table) and isinstance(role, PerToken):
                port = self.regrouper.moved(value, role.axis, placement).port
                node.input(index).replace_source_output(port)
            elif op.kind in BY_VALUE:
                from_right = len(op.sizes[0]) - made.axis
                port = same_for_all(op.sources[index], [from_right])
                node.input(index).replace_source_output(port)
        if op.kind in RESHAPES:
            shape = list(op.sizes[0])
            shape[made.axis] = placement.count
            return [Table(reshape(node.input_value(0), shape), placement)]
        node.validate_and_infer_types()
        return [Table(port, placement) for port in node.outputs()]

    def _per_mask(self, op: _Operation) -> Sequence[Value]:
        for index, value in enumerate(op.values):
            if isinstance(value, Entries):
                op.node.input(index).replace_source_output(value.port)
        if op.kind in RESHAPES:
            sizes = [self.regrouper.entries, *op.sizes[0][1:]]
            return [Entries(reshape(op.node.input_value(0), sizes))]
        op.node.validate_and_infer_types()
        return [Entries(port) for port in op.node.outputs()]

    def _attention(self, op: _Operation) -> Value:
        node, regrouper = op.node, self.regrouper
        (keys, axis), (held, _) = op.table(1), op.table(2)
        own_query: Port | None = op.sources[0]
        if op.values[0] is None:
            shape = list(op.sources[0].shape)
            query = reshape(op.sources[0], [*shape[:-2], 1, *shape[-2:]])
        else:
            asking, _ = op.table(0)
            query = regrouper.group(asking, axis, op.demand)
            own_query = regrouper.own(asking, axis, op.demand)
        scores = ops.matmul(query, regrouper.group(keys, axis), False, True).output(0)
        weights = self._weights(scores, -1, _scale_of(op))
        port = ops.matmul(weights, regrouper.group(held, axis), False, False).output(0)
        own = None
        if regrouper.wants_own:
            inputs = [own_query, regrouper.own(keys, axis), regrouper.own(held, axis)]
            inputs += [same_for_all(mask, [1, 2]) for mask in op.sources[3:4]]
            for index, source in enumerate(inputs):
                node.input(index).replace_source_output(source)
            node.validate_and_infer_types()
            own = node.output(0)
        if op.values[0] is None:
            return regrouper.entries_of(port, own, op.sizes[0], axis)
        return regrouper.ungrouped(port, own, op.sizes[0], axis, op.demand)

    def _scores(self, op: _Operation) -> Value:
        regrouper = self.regrouper
        (queries, row), (keys, column) = op.table(0), op.table(1)
        masks = _product(
            op.node, regrouper.group(queries, row, op.demand), regrouper.group(keys, column)
        )
        own = None
        if regrouper.wants_own:
            own = _product(
                op.node, regrouper.own(queries, row, op.demand), regrouper.own(keys, column)
            )
        return PairTables(masks, own)

    def _on_pairs(self, op: _Operation) -> Value:
        pairs = next(value for value in op.values if isinstance(value, PairTables))
        made, sizes = op.made[0], op.sizes[0]
        if op.kind == "Softmax" and isinstance(made, Pairs):
            return self._softmax(pairs, made, len(sizes))
        if op.kind == "MatMul":
            held, axis = op.table(1)
            masks = _product(op.node, pairs.masks, self.regrouper.group(held, axis))
            own = None
            if pairs.own is not None:
                own = _product(op.node, pairs.own, self.regrouper.own(held, axis))
            if isinstance(made, PerToken):
                return self.regrouper.ungrouped(masks, own, sizes, made.axis, op.demand)
            return self.regrouper.entries_of(masks, own, sizes, len(sizes) - 2)
        own = None
        if pairs.own is not None:
            owns = [each.own if isinstance(each, PairTables) else None for each in op.values]
            inputs = [b if a is None else a for a, b in zip(owns, op.sources, strict=True)]
            own = rebuild(op.node, inputs)
        times: Port | None = None
        if isinstance(made, Pairs) and made.weights and op.kind not in _SCALED_ALIKE:
            times = constant(self._multiplicity(made.keys - len(sizes)))
        inputs = []
        for value, source in zip(op.values, op.sources, strict=True):
            if not isinstance(value, PairTables):
                inputs.append(_beside_masks(source, made, len(sizes)))
            elif times is None:
                inputs.append(value.masks)
            else:  # the weight of one of the tokens that a key stands for
                inputs.append(ops.divide(value.masks, times).output(0))
        masks = rebuild(op.node, inputs)
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

    def _pooled(self, op: _Operation) -> Value:
        table, axis = op.table(0)
        role, node = op.known[0], op.node
        if axis == 0 or table.port.shape[0] != 1:
            raise PlanRefused("what the scores come from is not batch first")
        first = role.first if isinstance(role, PerToken) else 0
        masks = self.regrouper.group(table, axis, first=first)
        from_right = axis - len(table.port.shape)
        over = constant([from_right], np.int64)
        if op.kind == "ReduceMax":
            port = ops.reduce_max(masks, over, False).output(0)
        else:
            share = self._multiplicity(from_right)[first:]
            if op.kind == "ReduceMean":
                share = share / (self.regrouper.counts.tokens - first)
            port = ops.reduce_sum(ops.multiply(masks, constant(share)), over, False).output(0)
        own = None
        if self.regrouper.wants_own:
            node.input(0).replace_source_output(self.regrouper.own(table, axis, first=first))
            node.validate_and_infer_types()
            own = node.output(0)
        return self.regrouper.entries_of(port, own, op.sizes[0], len(table.port.shape) - 2)


def _is_part(made: Role, role: PerToken) -> bool:
    """Whether an output is some of the tokens that an operation reads, and nothing more."""
    if isinstance(made, PerMask):
        return bool(made.picked)
    return isinstance(made, PerToken) and made.first != role.first


def _beside_masks(port: Port, made: Role, rank: int) -> Port:
    """Return what acts on scores [...,T,T] in a shape that acts on the masks' [...,N,L,L]."""
    if isinstance(made, Pairs):
        axes = [axis for axis in (made.queries, made.keys) if axis is not None]
        port = same_for_all(port, [rank - axis for axis in axes])
    shape = list(port.shape)
    return port if len(shape) < 3 else reshape(port, [*shape[:-2], 1, *shape[-2:]])


def _scale_of(op: _Operation) -> Port:
    """Return what an operation that does all of attention multiplies its scores by."""
    if len(op.sources) > 4:
        return op.sources[4]
    return constant(int(op.sources[1].shape[-1]) ** -0.5)


def _product(node: ov.Node, left: Port | None, right: Port | None) -> Port:
    settings = node.get_attributes()
    return ops.matmul(left, right, settings["transpose_a"], settings["transpose_b"]).output(0)
