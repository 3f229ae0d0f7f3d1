"""Rules for decoding a detector's numbers: moves, elementwise operations, folds over an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import (
    ELEMENTWISE,
    Array,
    Port,
    constant,
    gather,
    key_of,
    rebuild,
    rebuilt,
    reshape,
    sources_of,
)
from ov_recipro.plans.rows.anchors import Anchors, Piece, moved
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.lowering import Lowering
from ov_recipro.plans.rows.tensors import Indices

MOVES = frozenset(
    {
        "Broadcast", "Concat", "Gather", "Reshape", "ScatterNDUpdate", "ShuffleChannels", "Slice",
        "Split", "Squeeze", "StridedSlice", "Transpose", "Unsqueeze", "VariadicSplit",
    }
)  # fmt: skip
FOLDS = {
    "ReduceMax": ops.reduce_max,
    "ReduceMean": ops.reduce_mean,
    "ReduceMin": ops.reduce_min,
    "ReduceSum": ops.reduce_sum,
}
RULES = frozenset({*ELEMENTWISE, *MOVES, *FOLDS, "Convolution", "LogSoftmax", "MatMul", "Softmax"})
"""The operations that some rule here may cover."""


def lower(rules: Lowering, node: ov.Node, values: Sequence[Anchors | None]) -> list[Anchors] | None:
    """Return an operation's outputs as anchors; None where no rule covers it.

    Args:
        rules: to evaluate constants with, and the tensors' backgrounds.
        node: the operation; `values`: what is known of its inputs, in order.
    """
    kind = node.get_type_name()
    if kind in MOVES:
        return _moved(rules, node, values)
    background = rules.backgrounds.get(key_of(node.output(0)))
    if background is None:
        return None
    shape = tuple(int(size) for size in node.output(0).shape)
    empty = Anchors(shape, (), background)
    found: list[Piece] | None = None
    if kind in ELEMENTWISE:
        found = _elementwise(rules, node, values, empty)
    elif kind in ("Softmax", "LogSoftmax") and values[0] is not None:
        found = _softmax(node, values[0])
    elif kind in FOLDS and values[0] is not None:
        axes = rules.constant(node.input_value(1))
        found = None if axes is None else _reduced(kind, values[0], axes)
    elif kind in ("Convolution", "MatMul"):
        found = _contracted(rules, node, values)
    return None if found is None else [replace(empty, pieces=tuple(found))]


def _moved(
    rules: Lowering, node: ov.Node, values: Sequence[Anchors | None]
) -> list[Anchors] | None:
    """Lower a move, by running it on the numbers of its input's elements."""
    name = node.get_friendly_name()
    if name not in rules.moves:
        made = _sources(rules, node, values)
        if made is None:
            return None
        rules.moves[name] = made
    known = [value for value in values if value is not None]
    found = []
    for sources, output in zip(rules.moves[name], node.outputs(), strict=True):
        background = rules.backgrounds.get(key_of(output))
        shape = tuple(int(size) for size in output.shape)
        result = None if background is None else moved(known, sources, shape, background)
        if result is None:
            return None
        found.append(result)
    return found


def _sources(
    rules: Lowering, node: ov.Node, values: Sequence[Anchors | None]
) -> list[Indices] | None:
    """Return for each element of each output its place in the inputs, or -1 (see `moved`)."""
    kind, inputs, start = node.get_type_name(), list[Port](), 0
    parameters, numbers = list[ov.Node](), list[Indices]()
    for value, source in zip(values, sources_of(node), strict=True):
        if value is not None or kind == "Concat":
            shape = list(source.shape)
            count = prod(shape)
            parameters.append(ops.parameter(shape, np.int32))
            inputs.append(parameters[-1].output(0))
            own = np.full(count, -1) if value is None else start + np.arange(count)
            numbers.append(own.reshape(shape).astype(np.int32))
            start += 0 if value is None else count
        elif rules.constant(source) is not None:
            inputs.append(source)
        else:
            return None
    if values[0] is None and kind != "Concat":
        return None
    outputs = rebuilt(node, inputs).outputs()
    model = ov.Model([ops.result(port) for port in outputs], parameters)
    results = [ov.Tensor(ov.Type.i32, ov.Shape(list(port.shape))) for port in outputs]
    if not model.evaluate(results, [ov.Tensor(each) for each in numbers]):
        return None
    return [np.array(result.data).reshape(-1) for result in results]


def _elementwise(
    rules: Lowering, node: ov.Node, values: Sequence[Anchors | None], empty: Anchors
) -> list[Piece] | None:
    """Lower an elementwise operation: piece by piece of the first input that has its shape."""
    shape = empty.shape
    leading = next((v for v in values if v is not None and v.shape == shape), None)
    if leading is None:
        return None
    places = [
        None
        if value is None
        else np.broadcast_to(np.arange(prod(value.shape)).reshape(value.shape), shape).reshape(-1)
        for value in values
    ]
    covered = leading.owners[0] >= 0
    for value, where in zip(values, places, strict=True):
        if value is None or where is None:
            continue
        if ((value.owners[0][where] >= 0) != covered).any():
            return None
    constants = [
        rules.constant(source) if value is None else None
        for value, source in zip(values, sources_of(node), strict=True)
    ]
    if any(v is None and c is None for v, c in zip(values, constants, strict=True)):
        return None
    none = np.zeros(1, np.float32)
    flat = [none if c is None else _flattened(node, c, shape) for c in constants]
    found = []
    for piece in leading.pieces:
        for columns in _groups(piece, values, places):
            part = piece.chosen(columns)
            others = [
                None if value is None or where is None else _beside(part, value, where)
                for value, where in zip(values, places, strict=True)
            ]
            if any(v is not None and o is None for v, o in zip(values, others, strict=True)):
                return None
            active = np.logical_or.reduce([o[0].active for o in others if o is not None])
            inputs = [
                other[0].aligned(active, other[1])
                if other is not None
                else _by_pixel(number, part, active)
                for other, number in zip(others, flat, strict=True)
            ]
            found.append(Piece(rebuild(node, inputs), active, part.elements))
    return found


def _groups(
    piece: Piece, values: Sequence[Anchors | None], places: Sequence[Indices | None]
) -> list[Indices]:
    """Split a piece's columns by the pieces of the other inputs that they are combined with."""
    keys = []
    live = np.maximum(piece.elements, 0)
    for value, where in zip(values, places, strict=True):
        if value is not None and where is not None:
            pieces = np.where(piece.elements >= 0, value.owners[0][where[live]], -1)
            keys.append(pieces.max(axis=0))
    _, group = np.unique(np.stack(keys), axis=1, return_inverse=True)
    return [np.flatnonzero(group.reshape(-1) == number) for number in range(group.max() + 1)]


def _beside(part: Piece, value: Anchors, where: Indices) -> tuple[Piece, Background] | None:
    """Return from another input the numbers to combine with those of a piece, column by column.

    Args:
        part: the piece, all of whose numbers go with one piece of the other input.
        value: that input.
        where: for each element of the flattened result, its place in that input.
    """
    live = part.elements >= 0
    pieces, pixels, columns = (each[where[np.maximum(part.elements, 0)]] for each in value.owners)
    number = int(pieces[live][0])
    other, column = value.pieces[number], np.where(live, columns, -1).max(axis=0)
    places = np.arange(len(pixels))[:, None]
    right = (pieces == number) & (columns == column) & (pixels == places)
    if not right[live].all() or other.active.shape != part.active.shape:
        return None
    if len(column) > 1 and (column == column[0]).all():
        column = column[:1]  # the same for all
    return other.chosen(column), value.background


def _flattened(node: ov.Node, value: Array, shape: tuple[int, ...]) -> Array:
    """Return a constant with an entry for each element of the flattened result, or just one."""
    if value.size == 1:
        return value.reshape(-1)
    if node.get_type_name() == "PRelu" and value.ndim == 1:
        value = value.reshape(-1, *(1 for _ in shape[2:]))
    return np.broadcast_to(value, shape).reshape(-1)


def _by_pixel(values: Array, part: Piece, active: np.ndarray) -> Port:
    """Return a constant [V], or of a single entry, as one over the rows of a piece."""
    if values.size == 1:
        return constant(values, values.dtype)
    table = values[np.maximum(part.elements, 0)]
    live = part.elements >= 0
    first = table[live.argmax(axis=0), np.arange(table.shape[1])]
    if (table == first)[live].all():
        return constant(first[None], table.dtype)
    across = table[np.arange(len(table)), live.argmax(axis=1)][:, None]
    if (table == across)[live].all():
        table = across
    pixels = np.flatnonzero(active) % len(table)
    return gather(constant(table, table.dtype), pixels)


def _folded(value: Anchors, axis: int) -> list[tuple[Port, Piece, Indices]] | None:
    """Bring the numbers along an axis of K entries to the end.

    Returns:
        For each piece its rows [P,G,K], the piece in the order of these columns, and the number
        [h*w,G] of each group of K among all groups of the tensor, -1 where there is none; None
        where numbers along the axis are not of one pixel, or in several pieces.
    """
    axis %= len(value.shape)
    length, inner = value.shape[axis], prod(value.shape[axis + 1 :])
    found = []
    for piece in value.pieces:
        live = piece.elements >= 0
        used = np.asarray(live.any(axis=1))
        if (used != live.all(axis=1)).any() or piece.elements.shape[1] % length:
            return None
        some = int(used.argmax())
        groups = piece.elements // (length * inner) * inner + piece.elements % inner
        entries = piece.elements // inner % length
        order = np.lexsort((entries[some], groups[some]))
        shape = (len(live), -1, length)
        groups = groups[:, order].reshape(shape)
        entries = entries[:, order].reshape(shape)
        if (groups != groups[:, :, :1])[used].any() or (entries != np.arange(length))[used].any():
            return None
        ordered = piece.chosen(order)
        rows = int(piece.active.sum())
        port = reshape(ordered.port, [rows, groups.shape[1], length])
        found.append((port, ordered, np.where(used[:, None], groups[:, :, 0], -1)))
    return found


def _softmax(node: ov.Node, value: Anchors) -> list[Piece] | None:
    folded = _folded(value, int(node.get_attributes()["axis"]))
    if folded is None:
        return None
    made = ops.softmax if node.get_type_name() == "Softmax" else ops.log_softmax
    return [
        replace(piece, port=reshape(made(port, 2).output(0), [-1, piece.elements.shape[1]]))
        for port, piece, _ in folded
    ]


def _reduced(kind: str, value: Anchors, axes: Array) -> list[Piece] | None:
    if axes.size != 1:
        return None
    folded = _folded(value, int(axes.reshape(-1)[0]))
    if folded is None:
        return None
    return [
        Piece(FOLDS[kind](port, constant([2], np.int32), False).output(0), piece.active, groups)
        for port, piece, groups in folded
    ]


def _contracted(
    rules: Lowering, node: ov.Node, values: Sequence[Anchors | None]
) -> list[Piece] | None:
    """Lower a product with constant weights along an axis, as a 1x1 convolution is one."""
    value = values[0] if values[0] is not None else values[1]
    if value is None or (values[0] is not None and values[1] is not None):
        return None
    second = values[0] is None
    weight = rules.constant(node.input_value(0 if second else 1))
    if weight is None:
        return None
    attributes = node.get_attributes()
    if node.get_type_name() == "Convolution":
        plain = set(attributes["strides"]) == {1} and prod(weight.shape[2:]) == 1
        if second or not plain or any([*attributes["pads_begin"], *attributes["pads_end"]]):
            return None
        axis, matrix = 1, weight.reshape(len(weight), -1).T
    else:
        matrix = weight.reshape(weight.shape[-2:]) if weight.ndim > 1 else weight[:, None]
        own = attributes["transpose_b" if second else "transpose_a"]
        if matrix.size != weight.size or own or len(value.shape) < 2:
            return None
        if attributes["transpose_a" if second else "transpose_b"] and weight.ndim > 1:
            matrix = matrix.T
        if second and weight.ndim > 1:
            matrix = matrix.T
        axis = len(value.shape) - (2 if second else 1)
    folded = _folded(value, axis)
    if folded is None:
        return None
    inner, count = prod(value.shape[axis + 1 :]), matrix.shape[1]
    found = []
    for port, piece, groups in folded:
        made = ops.matmul(port, constant(matrix), False, False).output(0)
        each = groups // inner * (count * inner) + groups % inner
        elements = each[:, :, None] + np.arange(count) * inner
        elements = np.where(groups[:, :, None] >= 0, elements, -1)
        shape = [int(piece.active.sum()), groups.shape[1] * count]
        found.append(Piece(reshape(made, shape), piece.active, elements.reshape(len(groups), -1)))
    return found
