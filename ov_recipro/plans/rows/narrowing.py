"""The last operations of a graph of rows, on some of its rows only.

A graph has every row that some cell can change; which of them are wanted is known when it runs.
What works on each row by itself, as much of a detector's heads does, runs on the wanted ones alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import ELEMENTWISE, Key, Port, constant, key_of, rebuilt, sources_of

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
    members: dict[int, list[Port]] = {}
    for port, group in zip(pieces, groups, strict=True):
        members.setdefault(group, []).append(port)
    chosen = {group: ops.parameter(ov.PartialShape([-1]), np.int32) for group in sorted(members)}
    walks = {group: _Walk.of(ports, chosen[group].output(0)) for group, ports in members.items()}
    found = [walks[group].at(port) for port, group in zip(pieces, groups, strict=True)]
    return list(chosen.values()), found


@dataclass
class _Walk:
    """From the last tensors up to the first operation that does not work row by row.

    Attributes:
        chosen: int32 [r], which of the P rows are wanted.
        narrow: by the names of the operations that run on these alone, `_by_row` of each.
        known: the tensors that were made at these rows.
    """

    chosen: Port
    narrow: Mapping[str, list[bool]]
    known: dict[Key, Port] = field(default_factory=dict)

    @classmethod
    def of(cls, ends: Sequence[Port], chosen: Port) -> _Walk:
        """Find the operations that work row by row and that nothing else reads.

        What is needed whole anyway is not computed a second time.
        """
        order: list[ov.Node] = []
        left, flags = [(port.get_node(), False) for port in ends], dict[str, list[bool] | None]()
        while left:
            node, done = left.pop()
            name = node.get_friendly_name()
            if done:
                order.append(node)
            elif name not in flags:
                flags[name] = _by_row(node)
                left.append((node, True))
                read = zip(sources_of(node), flags[name] or (), strict=False)
                left += [(port.get_node(), False) for port, by_row in read if by_row]
        narrow = dict[str, list[bool]]()
        for node in reversed(order):
            name = node.get_friendly_name()
            readers = [each for port in node.outputs() for each in port.get_target_inputs()]
            names = {each.get_node().get_friendly_name() for each in readers}
            by_row = flags[name]
            if by_row is not None and names <= narrow.keys():
                narrow[name] = by_row
        return cls(chosen, narrow)

    def at(self, port: Port) -> Port:
        """Return the chosen rows of a tensor [P,...]."""
        key = key_of(port)
        if key in self.known:
            return self.known[key]
        node = port.get_node()
        by_row = self.narrow.get(node.get_friendly_name())
        if by_row is None:
            self.known[key] = self._taken(port)
            return self.known[key]
        inputs = [
            self.at(source) if chosen else source
            for source, chosen in zip(sources_of(node), by_row, strict=True)
        ]
        if node.get_type_name() == "Reshape":
            inputs[1] = constant([-1, *list(port.shape)[1:]], np.int64)
        made = rebuilt(node, inputs)
        self.known |= {key_of(old): made.output(old.get_index()) for old in node.outputs()}
        return self.known[key]

    def _taken(self, port: Port) -> Port:
        """Return the chosen rows of a tensor that is there whole."""
        node, rows = port.get_node(), self.chosen
        if node.get_type_name() == "Gather" and _axes(node) == {0}:
            table, places = sources_of(node)[:2]
            if len(places.shape) == 1:
                port, rows = table, _gathered(places, rows)
        return _gathered(port, rows)


def _by_row(node: ov.Node) -> list[bool] | None:
    """Tell which inputs a node reads row by row; None where it works on rows together."""
    kind, sources = node.get_type_name(), sources_of(node)
    if not sources or not list(node.output(0).shape):
        return None
    rows, rank = int(node.output(0).shape[0]), len(node.output(0).shape)
    has_rows = [bool(list(port.shape)) and int(port.shape[0]) == rows for port in sources]
    if any(int(port.shape[0]) != rows for port in node.outputs()):
        return None
    if kind in ELEMENTWISE:
        return [
            has and len(port.shape) == rank for port, has in zip(sources, has_rows, strict=True)
        ]
    if kind == "MatMul":
        turned = node.get_attributes()["transpose_a"]
        separate = not turned and len(sources[0].shape) > 1 and len(sources[1].shape) <= 2
    elif kind == "Reshape":
        separate = True
    else:
        separate = bool(axes := _axes(node)) and 0 not in axes
    if not separate or not has_rows[0]:
        return None
    return [kind == "Concat" or index == 0 for index in range(len(sources))]


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
