"""The last operations of a graph of rows, on some of its rows only.

A graph has every row that some cell can change; which of them are wanted is known when it runs.
What works on each row by itself, as much of a detector's heads does, runs on the wanted ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from ov_recipro.plans.nodes import ELEMENTWISE, Key, Port, constant, key_of, sources_of

_AXIS_AS_ATTRIBUTE = frozenset({"Concat", "LogSoftmax", "Softmax"})
_AXIS_AS_INPUT = {
    "Gather": 2, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Split": 1,
    "VariadicSplit": 1,
}  # fmt: skip


def narrowed(pieces: Sequence[Port], groups: Sequence[int]) -> tuple[list[ov.Node], list[Port]]:
    """Return what makes a model of rows compute its last tensors at chosen rows.

    Args:
        pieces: tensors [P,Q].
        groups: for each the number of its group, from 0; those of a group have the same rows.

    Returns:
        For each group an input int32 [r], and for each piece its rows [r,Q].
    """
    chosen = [ops.parameter(ov.PartialShape([-1]), np.int32) for _ in range(max(groups) + 1)]
    walks = {
        group: _Walk(int(port.shape[0]), chosen[group].output(0))
        for port, group in zip(pieces, groups, strict=True)
    }
    found = [walks[group].at(port) for port, group in zip(pieces, groups, strict=True)]
    return chosen, found


@dataclass
class _Walk:
    """From the last tensors up to the first operation that does not work row by row.

    Attributes:
        count: P, the rows of each tensor on the way.
        chosen: int32 [r], which of them are wanted.
        known: the tensors that were made at these rows.
    """

    count: int
    chosen: Port
    known: dict[Key, Port] = field(default_factory=dict)

    def at(self, port: Port) -> Port:
        """Return the chosen rows of a tensor [P,...]."""
        key = key_of(port)
        if key not in self.known:
            node = port.get_node()
            inputs = self._inputs(node)
            if inputs is None:
                self.known[key] = self._taken(port)
            else:
                factory = NodeFactory(node.get_type_info().version_id)
                made = factory.create(node.get_type_name(), inputs, node.get_attributes())
                for old, new in zip(node.outputs(), made.outputs(), strict=True):
                    self.known[key_of(old)] = new
        return self.known[key]

    def _taken(self, port: Port) -> Port:
        """Return the chosen rows of a tensor that must be there whole."""
        node, rows = port.get_node(), self.chosen
        if node.get_type_name() == "Gather" and _axes(node) == {0}:
            port, places = sources_of(node)[:2]
            rows = _gathered(places, rows)
        return _gathered(port, rows)

    def _inputs(self, node: ov.Node) -> list[Port] | None:
        """Return what a node reads at the chosen rows; None where it works on rows together."""
        kind, sources = node.get_type_name(), sources_of(node)
        if not all(self._has_rows(port) for port in node.outputs()):
            return None
        rank = len(node.output(0).shape)
        if kind in ELEMENTWISE:
            return [
                self.at(port) if len(port.shape) == rank and self._has_rows(port) else port
                for port in sources
            ]
        if not sources or not self._has_rows(sources[0]):
            return None
        if kind == "MatMul":
            turned = node.get_attributes()["transpose_a"]
            by_row = not turned and len(sources[0].shape) > 1 and len(sources[1].shape) <= 2
        elif kind == "Reshape":
            sources[1] = constant([-1, *list(node.output(0).shape)[1:]], np.int64)
            by_row = True
        else:
            by_row = bool(axes := _axes(node)) and 0 not in axes
        if not by_row:
            return None
        if kind == "Concat":
            return [self.at(port) for port in sources]
        return [self.at(sources[0]), *sources[1:]]

    def _has_rows(self, port: Port) -> bool:
        shape = list(port.shape)
        return bool(shape) and int(shape[0]) == self.count


def _axes(node: ov.Node) -> set[int]:
    """Return the axes along which a node combines or chooses numbers; none where it is unknown."""
    kind, rank = node.get_type_name(), len(node.input_value(0).shape)
    if kind in _AXIS_AS_ATTRIBUTE:
        return {int(node.get_attributes()["axis"]) % rank}
    if kind not in _AXIS_AS_INPUT:
        return set()
    axes = node.input_value(_AXIS_AS_INPUT[kind]).get_node()
    if axes.get_type_name() != "Constant":
        return set()
    return {int(axis) % rank for axis in np.asarray(axes.data).reshape(-1)}


def _gathered(table: Port, rows: Port) -> Port:
    return ops.gather(table, rows, constant(0, np.int32)).output(0)
