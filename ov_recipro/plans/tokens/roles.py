"""What each tensor of a tail is to its tokens, by one rule for each operation.

A tail of operations that treat all tokens alike maps equal tokens to equal tokens, at every depth.
The rules find out whether a tail is of this kind, and where in each tensor the tokens are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_recipro.plans.nodes import ELEMENTWISE, Key, Port, constant, key_of, sources_of
from ov_recipro.plans.verdict import PlanRefused

BY_VALUE = ELEMENTWISE | {"ConvertLike", "Identity", "IsNaN", "Select"}
"""What acts on each number by itself, or on those at one place of several tensors."""

REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceSum"})
_ALONG_AXES = frozenset({"MVN", "NormalizeL2"})
RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
SPLITS = frozenset({"Split", "VariadicSplit"})
_SLICES = frozenset({"Slice", "StridedSlice"})


@dataclass(frozen=True)
class PerToken:
    """A tensor at batch 1 with an axis of tokens; of those from number `first` on."""

    axis: int
    first: int = 0


@dataclass(frozen=True)
class Pairs:
    """The scores of attention.

    Attributes:
        queries: the axis of the tokens that are queries; None where constants are.
        keys: the axis of those that are keys.
        weights: whether the softmax over them was taken.
    """

    queries: int | None
    keys: int
    weights: bool = False


@dataclass(frozen=True)
class PerMask:
    """A tensor [1,...] without an axis of tokens, which becomes one entry for each mask.

    Attributes:
        picked: the prefix tokens that it consists of, where an operation picks these out.
    """

    picked: tuple[int, ...] = ()


Role: TypeAlias = PerToken | Pairs | PerMask


@dataclass(frozen=True)
class Counts:
    """The number of all tokens, and of the prefix tokens in front."""

    tokens: int
    prefix: int


def roles_of(
    nodes: Sequence[ov.Node], start: Key, counts: Counts
) -> tuple[list[ov.Node], dict[Key, Role]]:
    """Return the nodes that depend on the tokens `start`, and the role of all that they make.

    Args:
        nodes: a model's operations, in order.
        start: a tensor [1,T,C].
        counts: how many tokens it holds.

    Raises:
        PlanRefused: an operation tells tokens apart; the message names it.
    """
    roles: dict[Key, Role] = {start: PerToken(1)}
    tail = []
    for node in nodes:
        known = [roles.get(key_of(port)) for port in sources_of(node)]
        if node.get_type_name() == "ShapeOf":
            continue
        if node.get_type_name() == "ConvertLike":
            known[1:] = [None]  # only the type of the second is read
        if all(role is None for role in known):
            continue
        tail.append(node)
        if node.get_type_name() == "Result":
            continue
        for port, role in zip(node.outputs(), _roles(node, known, counts), strict=True):
            if isinstance(role, PerMask) and list(port.shape)[:1] != [1]:
                raise PlanRefused(f"{_described(node)} moves the batch")
            roles[key_of(port)] = role
    return tail, roles


def _selected(node: ov.Node, tokens: int) -> tuple[int, int, int] | None:
    """Return (start, stop, axis) of a slice with step 1 along one axis; None for any other."""
    sources = sources_of(node)
    shape = list(sources[0].shape)
    starts, stops = (np.ravel(_value_of(port)) for port in sources[1:3])
    steps = np.ravel(_value_of(sources[3])) if len(sources) > 3 else np.ones_like(starts)
    axes = np.arange(len(starts))
    if node.get_type_name() == "Slice":
        if len(sources) > 4:
            axes = np.ravel(_value_of(sources[4]))
    else:
        settings = node.get_attributes()
        if any(any(settings.get(f"{each}_mask") or ()) for each in ("new_axis", "ellipsis")):
            return None
        shrunk = _flags(settings, "shrink_axis_mask", len(starts))
        stops = np.where(shrunk, np.where(starts == -1, shape[: len(starts)], starts + 1), stops)
        starts = np.where(_flags(settings, "begin_mask", len(starts)), 0, starts)
        ends = [
            end and not shrinks
            for end, shrinks in zip(_flags(settings, "end_mask", len(stops)), shrunk, strict=True)
        ]
        stops = np.where(ends, np.array(shape[: len(stops)]), stops)
    bounds = []
    for start, stop, step, axis in zip(starts, stops, steps, axes, strict=True):
        size = shape[int(axis)]
        first = max(0, int(start) + size if start < 0 else int(start))
        last = min(size, int(stop) + size if stop < 0 else int(stop))
        if step != 1:
            return None
        if (first, last) != (0, size):
            bounds.append((first, last, int(axis) % len(shape)))
    if not bounds:
        return 0, tokens, 0
    return bounds[0] if len(bounds) == 1 else None


def _gathered(node: ov.Node) -> tuple[npt.NDArray[np.int64], int]:
    """Return the indices that a Gather reads, and its axis."""
    axis = int(np.ravel(_value_of(node.input_value(2)))[0]) % len(node.input_value(0).shape)
    return np.asarray(_value_of(node.input_value(1)), np.int64), axis


def _value_of(port: Port) -> npt.NDArray[Any]:
    """Return a constant's value.

    Raises:
        PlanRefused: it is not a constant.
    """
    node = port.get_node()
    if node.get_type_name() == "Constant":
        return np.array(node.data)
    inputs = [ov.Tensor(_value_of(source)) for source in sources_of(node)]
    outputs = [ov.Tensor(each.get_element_type(), each.shape) for each in node.outputs()]
    if not inputs or not node.evaluate(outputs, inputs):
        raise PlanRefused(f"{_described(node)} is not a constant")
    return np.array(outputs[port.get_index()].data)


def _flags(settings: Mapping[str, Any], name: str, count: int) -> list[bool]:
    flags = [bool(flag) for flag in settings[name]]
    return [*flags, *[False] * count][:count]


def _described(node: ov.Node) -> str:
    name = str(node.get_friendly_name())
    number, _, own = name.partition(":")
    return f"{node.get_type_name()} '{own if number.isdigit() and own else name}'"


def _roles(node: ov.Node, known: list[Role | None], counts: Counts) -> list[Role]:
    """Return the roles of a node's outputs; `known` are those of its inputs."""
    kind = node.get_type_name()
    what = _described(node)
    roles = [role for role in known if role is not None]
    if any(isinstance(role, PerMask) for role in roles):
        if len({type(role) for role in roles}) > 1:
            raise PlanRefused(f"{what} joins tokens with what was read from them")
        return [PerMask()] * len(node.outputs())
    if kind in BY_VALUE:
        return [_elementwise(node, known, what)]
    if kind == "ScaledDotProductAttention":
        return [_attention(node, known, what)]
    if kind == "MatMul":
        return [_product(node, known, what)]
    first = known[0]
    if kind == "Softmax":
        axis = int(node.get_attributes()["axis"]) % len(node.output(0).shape)
        return [_softmax(first, axis, what)]
    if isinstance(first, Pairs):
        raise PlanRefused(f"{what} works on the scores of attention")
    if not isinstance(first, PerToken):
        raise PlanRefused(f"{what} may tell tokens apart")
    return _on_tokens(node, kind, known, first, counts, what)


def _on_tokens(
    node: ov.Node,
    kind: str,
    known: list[Role | None],
    role: PerToken,
    counts: Counts,
    what: str,
) -> list[Role]:
    source, outputs = node.input_value(0), node.outputs()
    rank, held = len(source.shape), counts.tokens - role.first
    if kind in RESHAPES:
        after = list(outputs[0].shape)
        return [PerToken(_axis_after(role.axis, list(source.shape), after, held, what), role.first)]
    if kind == "Transpose":
        order = [int(axis) for axis in _value_of(node.input_value(1))]
        return [PerToken(order.index(role.axis), role.first)]
    if kind in _ALONG_AXES or kind.startswith("Reduce"):
        axes = {int(axis) % rank for axis in np.ravel(_value_of(node.input_value(1)))}
        if role.axis in axes:
            if kind in REDUCTIONS and axes == {role.axis}:
                return [PerMask()]
            raise PlanRefused(f"{what} runs over the tokens in a way that is not covered")
        if kind in _ALONG_AXES or node.get_attributes()["keep_dims"]:
            return [role]
        return [PerToken(role.axis - sum(axis < role.axis for axis in axes), role.first)]
    if kind in SPLITS:
        if int(np.ravel(_value_of(node.input_value(1)))[0]) % rank != role.axis:
            return [role] * len(outputs)
        sizes = [int(port.shape[role.axis]) for port in outputs]
        ends = (np.cumsum(sizes) + role.first).tolist()
        return [
            _part(end - size, end, role, counts, what)
            for size, end in zip(sizes, ends, strict=True)
        ]
    if kind == "Gather":
        indices, axis = _gathered(node)
        if axis != role.axis:
            dropped = axis < role.axis and indices.ndim == 0
            return [PerToken(role.axis - dropped, role.first)]
        picked = np.ravel(indices) % held + role.first
        if (picked < counts.prefix).all():
            return [PerMask(tuple(picked.tolist()))]
        raise PlanRefused(f"{what} reads single cells")
    if kind in _SLICES:
        bounds = _selected(node, held)
        if bounds is None:
            raise PlanRefused(f"{what} is not a slice along one axis")
        start, stop, axis = bounds
        drops = len(outputs[0].shape) < rank
        if axis != role.axis or (start, stop) == (0, held):
            return [PerToken(role.axis - (drops and axis < role.axis), role.first)]
        part = _part(start + role.first, stop + role.first, role, counts, what)
        if drops and isinstance(part, PerToken):
            raise PlanRefused(f"{what} reads a single cell")
        return [part]
    if kind == "Concat" and int(node.get_attributes()["axis"]) % rank != role.axis:
        if any(each != role for each in known):
            raise PlanRefused(f"{what} joins tokens of different axes")
        return [role]
    raise PlanRefused(f"{what} may tell tokens apart")


def _part(start: int, stop: int, role: PerToken, counts: Counts, what: str) -> Role:
    """Return the role of tokens `start` to `stop`, cut out of a tensor."""
    if stop <= counts.prefix:
        return PerMask(tuple(range(start, stop)))
    if (start, stop) == (counts.prefix, counts.tokens):
        return PerToken(role.axis, counts.prefix)
    raise PlanRefused(f"{what} reads tokens {start} to {stop - 1} apart from the others")


def _elementwise(node: ov.Node, known: list[Role | None], what: str) -> Role:
    roles = [role for role in known if role is not None]
    rank = len(node.output(0).shape)
    ports = sources_of(node)
    if all(isinstance(role, PerToken) for role in roles):
        from_right = {
            (len(port.shape) - role.axis, role.first)
            for port, role in zip(ports, known, strict=True)
            if isinstance(role, PerToken)
        }
        if len(from_right) > 1:
            raise PlanRefused(f"{what} joins tokens of different axes")
        ((place, first),) = from_right
        for port, role in zip(ports, known, strict=True):
            if role is None and node.get_type_name() != "ConvertLike":
                _check_same_for_all(port, place, what)
        return PerToken(rank - place, first)
    role = roles[0]
    if not isinstance(role, Pairs) or any(each != role for each in roles):
        raise PlanRefused(f"{what} changes the scores of attention")
    for port, each in zip(ports, known, strict=True):
        for axis in (role.queries, role.keys):
            if each is None and axis is not None and node.get_type_name() != "ConvertLike":
                _check_same_for_all(port, rank - axis, what)
    return role


def _attention(node: ov.Node, known: list[Role | None], what: str) -> Role:
    query, keys, values = known[:3]
    axis = len(node.input_value(1).shape) - 2
    if not all(isinstance(role, PerToken) and role.axis == axis for role in (keys, values)):
        raise PlanRefused(f"{what} does not ask all tokens")
    if keys != values or (query is not None and query != PerToken(axis)):
        raise PlanRefused(f"{what} joins tokens of different axes")
    if any(role is not None for role in known[3:]):
        raise PlanRefused(f"{what} has a mask that depends on the image")
    if node.get_attributes().get("causal"):
        raise PlanRefused(f"{what} is causal")
    if node.get_input_size() > 3:
        for place in (1, 2):
            _check_same_for_all(node.input_value(3), place, what)
    return PerMask() if query is None else PerToken(axis)


def _product(node: ov.Node, known: list[Role | None], what: str) -> Role:
    settings = node.get_attributes()
    ranks = [len(node.input_value(i).shape) for i in (0, 1)]
    rank = len(node.output(0).shape)
    row, summed = ranks[0] - 2, ranks[0] - 1
    if settings["transpose_a"]:
        row, summed = summed, row
    other, column = ranks[1] - 2, ranks[1] - 1
    if settings["transpose_b"]:
        other, column = column, other
    left, right = known[:2]
    mixer = f"{what} mixes tokens by constant weights"
    if isinstance(left, PerToken) and right is None:
        if left.axis == summed:
            raise PlanRefused(mixer)
        axis = rank - 2 if left.axis == row else left.axis + rank - ranks[0]
        return PerToken(axis, left.first)
    if left is None and isinstance(right, PerToken):
        if right.axis == other:
            raise PlanRefused(mixer)
        axis = rank - 1 if right.axis == column else right.axis + rank - ranks[1]
        return PerToken(axis, right.first)
    if (left, right) == (PerToken(row), PerToken(column)):
        return Pairs(rank - 2, rank - 1)
    if isinstance(left, Pairs) and (left.weights, left.keys, right) == (
        True,
        summed,
        PerToken(other),
    ):
        return PerMask() if left.queries is None else PerToken(rank - 2)
    raise PlanRefused(f"{what} joins tokens, but not as attention does")


def _softmax(role: Role | None, axis: int, what: str) -> Role:
    if isinstance(role, Pairs) and axis == role.keys:
        return Pairs(role.queries, role.keys, True)
    if isinstance(role, PerToken):
        return role if axis != role.axis else Pairs(None, axis, True)
    raise PlanRefused(f"{what} runs over the queries, not the keys")


def _axis_after(axis: int, before: list[int], after: list[int], size: int, what: str) -> int:
    """Return where a reshape puts the axis of tokens."""
    front = int(np.prod(before[:axis], dtype=np.int64))
    for place, each in enumerate(after):
        if each == size and int(np.prod(after[:place], dtype=np.int64)) == front:
            return place
    raise PlanRefused(f"{what} joins tokens with something else ({before} to {after})")


def same_for_all(port: Port, places: Sequence[int]) -> Port:
    """Return a constant without the axes along which its numbers repeat.

    Args:
        port: the constant.
        places: axes, counted from the right; there, one number stays for all tokens.

    Raises:
        PlanRefused: the numbers differ along one of them.
    """
    shape = list(port.shape)
    repeated = [-place for place in places if len(shape) >= place and shape[-place] != 1]
    if not repeated:
        return port
    values = _value_of(port)
    for axis in repeated:
        first = np.take(values, [0], axis)
        if (values != first).any():
            raise PlanRefused("its numbers differ")
        values = first
    return constant(values, values.dtype)


def _check_same_for_all(port: Port, place: int, what: str) -> None:
    """Raise where a constant differs along the axis that is `place`-th from the right."""
    try:
        same_for_all(port, [place])
    except PlanRefused:
        raise PlanRefused(
            f"{what} has a constant for each token {list(port.shape)}, as relative and rotary "
            "positions do"
        ) from None
