"""Translates a sparse plan's graph from OpenVINO's operations into ONNX's.

It uses only operations for which ONNX Runtime has CUDA kernels too, so that nothing moves between
devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import openvino as ov
from onnx import TensorProto

from ov_recipro.plans.nodes import Key, sources_of
from ov_recipro.plans.onnx_graph import Graph
from ov_recipro.plans.onnx_images import convolution, number_of, pool, resize
from ov_recipro.plans.verdict import PlanRefused

_SAME = {
    "Abs": "Abs", "Add": "Add", "Ceiling": "Ceil", "Divide": "Div", "Erf": "Erf", "Exp": "Exp",
    "Floor": "Floor", "Log": "Log", "Maximum": "Max", "Minimum": "Min", "Multiply": "Mul",
    "Negative": "Neg", "Power": "Pow", "Relu": "Relu", "Sigmoid": "Sigmoid",
    "SoftPlus": "Softplus", "SoftSign": "Softsign", "Sqrt": "Sqrt", "Subtract": "Sub",
    "Tanh": "Tanh",
}  # fmt: skip
_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
_TYPES = {
    "f16": TensorProto.FLOAT16,
    "f32": TensorProto.FLOAT,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
}
# how many of an operation's first inputs are tensors; the others are settings
_READ = {
    "EmbeddingBagOffsetsSum": 1, "Gather": 2, "HardSigmoid": 1, "Interpolate": 1, "MVN": 1,
    "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Reshape": 1, "Selu": 1,
    "Slice": 1, "Split": 1, "Squeeze": 1, "Transpose": 1, "Unsqueeze": 1, "VariadicSplit": 1,
}  # fmt: skip


def emit(graph: Graph, model: ov.Model, sources: Sequence[str]) -> list[str]:
    """Append an OpenVINO model, of whose tensors only the first axis may be open, to an ONNX graph.

    Args:
        graph: what is added to.
        model: what is added.
        sources: the graph's tensors that take the place of the model's inputs, in order.

    Returns:
        The graph's tensors that the model's outputs are, in order.

    Raises:
        PlanRefused: ONNX has no counterpart of an operation.
    """
    names: dict[Key, str] = {
        _key_of(parameter.output(0)): source
        for parameter, source in zip(model.get_parameters(), sources, strict=True)
    }

    def name_of(port: ov.Output) -> str:
        node = port.get_node()
        if node.get_type_name() == "Constant":
            return graph.constant(node.data, node.data.dtype)
        return names[_key_of(port)]

    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Constant", "Parameter", "Result"):
            continue
        read = sources_of(node)[: _READ.get(kind)]
        made = _emitted(graph, node, [name_of(port) for port in read])
        names |= {_key_of(port): name for port, name in zip(node.outputs(), made, strict=False)}
    return [name_of(result.input_value(0)) for result in model.get_results()]


def _shape(port: ov.Output) -> list[int]:
    """Return a tensor's sizes, -1 for those that are open."""
    return [size.get_length() if size.is_static else -1 for size in port.get_partial_shape()]


def _key_of(port: ov.Output) -> Key:
    """Return what identifies a tensor where copies of an operation share its name."""
    return port.get_node().get_name(), port.get_index()


def _emitted(graph: Graph, node: ov.Node, inputs: list[str]) -> list[str]:
    """Append one operation; return its outputs' names."""
    kind = node.get_type_name()
    if kind in _SAME:
        return [graph.add(_SAME[kind], *inputs)]
    if kind in _RESHAPES:
        shape = _shape(node.output(0))
        if shape.count(-1) > 1:
            raise PlanRefused("ONNX can't reshape to several open sizes")
        return [graph.add("Reshape", inputs[0], graph.constant(shape))]
    if kind in _REDUCTIONS:
        axes = [int(axis) for axis in number_of(node, 1).reshape(-1)]
        keep = bool(node.get_attributes()["keep_dims"])
        return [graph.reduced(kind, inputs[0], axes, keep)]
    if kind not in _RULES:
        raise PlanRefused(f"ONNX has no counterpart of OpenVINO's '{kind}'")
    made = _RULES[kind](graph, node, inputs)
    return [made] if isinstance(made, str) else made


def _gather(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    if node.get_attributes().get("batch_dims", 0):
        raise PlanRefused("'Gather' uses batch dimensions")
    return graph.add("Gather", inputs[0], inputs[1], axis=int(number_of(node, 2).reshape(-1)[0]))


def _concat(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    return graph.add("Concat", *inputs, axis=int(node.get_attributes()["axis"]))


def _transpose(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    return graph.add("Transpose", inputs[0], perm=[int(each) for each in number_of(node, 1)])


def _product(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    factors = []
    for index, side in enumerate("ab"):
        factor = inputs[index]
        if node.get_attributes()[f"transpose_{side}"]:
            factor = _turned(graph, factor, node.input_value(index))
        factors.append(factor)
    return graph.add("MatMul", *factors)


def _turned(graph: Graph, name: str, port: ov.Output) -> str:
    """Append a tensor's transposition: its last two axes change places."""
    order = list(range(len(_shape(port))))
    order[-2:] = order[:-3:-1]
    return graph.add("Transpose", name, perm=order)


def _slice(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    begin, end, step = (number_of(node, index) for index in (1, 2, 3))
    axes = number_of(node, 4) if len(node.inputs()) > 4 else np.arange(len(begin))
    ends = [graph.constant(each) for each in (begin, end, axes, step)]
    return graph.add("Slice", inputs[0], *ends)


def _split(graph: Graph, node: ov.Node, inputs: list[str]) -> list[str]:
    axis = int(number_of(node, 1).reshape(-1)[0])
    sizes = graph.constant([_shape(port)[axis] for port in node.outputs()])
    return graph.add_several("Split", len(node.outputs()), inputs[0], sizes, axis=axis)


def _convert(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    kind = node.output(0).get_element_type().get_type_name()
    if kind not in _TYPES:
        raise PlanRefused(f"a tensor is of type {kind}")
    return graph.add("Cast", inputs[0], to=_TYPES[kind])


def _softmax(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    axis = int(node.get_attributes()["axis"])
    return graph.add(node.get_type_name(), inputs[0], axis=axis)


def _clamp(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    ends = [node.get_attributes()[name] for name in ("min", "max")]
    return graph.add("Clip", inputs[0], *(graph.constant(each, np.float32) for each in ends))


def _prelu(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    slope, rank = _shape(node.input_value(1)), len(_shape(node.input_value(0)))
    if slope not in ([], [1]) and len(slope) == 1:  # by channel, the second axis
        inputs = [
            inputs[0],
            graph.add("Reshape", inputs[1], graph.constant([slope[0], *[1] * (rank - 2)])),
        ]
    return graph.add("PRelu", *inputs)


def _elu(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    return graph.add("Elu", inputs[0], alpha=float(node.get_attributes()["alpha"]))


def _selu(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    alpha, gamma = (float(number_of(node, index).reshape(-1)[0]) for index in (1, 2))
    return graph.add("Selu", inputs[0], alpha=alpha, gamma=gamma)


def _hard_sigmoid(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    alpha, beta = 1 / 6, 0.5
    if node.get_type_name() == "HardSigmoid":
        alpha, beta = (float(number_of(node, index).reshape(-1)[0]) for index in (1, 2))
    return graph.add("HardSigmoid", inputs[0], alpha=alpha, beta=beta)


def _hard_swish(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    return graph.add("Mul", inputs[0], _hard_sigmoid(graph, node, inputs))


def _swish(graph: Graph, _: ov.Node, inputs: list[str]) -> str:
    scaled = inputs[0] if len(inputs) == 1 else graph.add("Mul", *inputs)
    return graph.add("Mul", inputs[0], graph.add("Sigmoid", scaled))


def _mish(graph: Graph, _: ov.Node, inputs: list[str]) -> str:
    return graph.add("Mul", inputs[0], graph.add("Tanh", graph.add("Softplus", inputs[0])))


def _gelu(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    def number(value: float) -> str:
        return graph.constant(value, np.float32)

    x = inputs[0]
    if str(node.get_attributes()["approximation_mode"]).lower() == "erf":
        inner = graph.add("Erf", graph.add("Mul", x, number(0.5**0.5)))
    else:
        cube = graph.add("Mul", graph.add("Mul", x, x), graph.add("Mul", x, number(0.044715)))
        scaled = graph.add("Mul", graph.add("Add", x, cube), number((2 / np.pi) ** 0.5))
        inner = graph.add("Tanh", scaled)
    half = graph.add("Mul", x, number(0.5))
    return graph.add("Mul", half, graph.add("Add", inner, number(1)))


def _squared_difference(graph: Graph, _: ov.Node, inputs: list[str]) -> str:
    difference = graph.add("Sub", *inputs)
    return graph.add("Mul", difference, difference)


def _normalised(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    """Append MVN: a tensor less its mean along some axes, over its standard deviation."""
    axes = [int(axis) for axis in number_of(node, 1).reshape(-1)]
    attributes = node.get_attributes()
    centred = graph.add("Sub", inputs[0], graph.reduced("ReduceMean", inputs[0], axes, True))
    if not attributes["normalize_variance"]:
        return centred
    squares = graph.add("Mul", centred, centred)
    variance = graph.reduced("ReduceMean", squares, axes, True)
    epsilon = graph.constant(attributes["eps"], np.float32)
    if str(attributes["eps_mode"]).lower() == "inside_sqrt":
        return graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", variance, epsilon)))
    return graph.add("Div", centred, graph.add("Add", graph.add("Sqrt", variance), epsilon))


def _attention(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    """Append attention: queries, keys, values, and what is added to the scores, and their scale."""
    if node.get_attributes()["causal"]:
        raise PlanRefused("attention is causal")
    queries, keys, values, *others = inputs
    products = graph.add("MatMul", queries, _turned(graph, keys, node.input_value(1)))
    if len(others) > 1:
        scale = others[1]
    else:
        scale = graph.constant(int(node.input_value(0).shape[-1]) ** -0.5, np.float32)
    scores = graph.add("Mul", products, scale)
    if others and node.input_value(3).get_element_type() == ov.Type.boolean:
        raise PlanRefused("an attention mask is boolean")
    if others and list(node.input_value(3).shape):  # a single number stands for no mask
        scores = graph.add("Add", scores, others[0])
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)


def _sums_of_bags(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    """Append the sums of some rows of a table: of all bags of one size at a time."""
    numbers, offsets = number_of(node, 1).reshape(-1), number_of(node, 2).reshape(-1)
    weights = number_of(node, 4).reshape(-1) if len(node.inputs()) > 4 else None
    sizes = np.diff(np.append(offsets, len(numbers)))
    if len(sizes) == 0 or sizes.min() < 1:
        raise PlanRefused("a sum has no terms")
    order = np.argsort(sizes, kind="stable")
    sums = []
    for size in np.unique(sizes):
        places = offsets[sizes == size][:, None] + np.arange(size)
        if size == 1:
            places = places[:, 0]
        rows = graph.add("Gather", inputs[0], graph.constant(numbers[places], np.int32), axis=0)
        if weights is not None:
            factors = graph.constant(weights[places][..., None], np.float32)
            rows = graph.add("Mul", rows, factors)
        if size > 1:
            rows = graph.reduced("ReduceSum", rows, [1], False)
        sums.append(rows)
    together = sums[0] if len(sums) == 1 else graph.add("Concat", *sums, axis=0)
    if (order == np.arange(len(order))).all():
        return together
    return graph.add("Gather", together, graph.constant(np.argsort(order), np.int32), axis=0)


_Rule: TypeAlias = Callable[[Graph, ov.Node, list[str]], str | list[str]]
_RULES: Mapping[str, _Rule] = {
    "AvgPool": pool,
    "Clamp": _clamp,
    "Concat": _concat,
    "Convert": _convert,
    "Convolution": convolution,
    "Elu": _elu,
    "EmbeddingBagOffsetsSum": _sums_of_bags,
    "Gather": _gather,
    "Gelu": _gelu,
    "GroupConvolution": convolution,
    "HSigmoid": _hard_sigmoid,
    "HSwish": _hard_swish,
    "HardSigmoid": _hard_sigmoid,
    "Interpolate": resize,
    "LogSoftmax": _softmax,
    "MVN": _normalised,
    "MatMul": _product,
    "MaxPool": pool,
    "Mish": _mish,
    "PRelu": _prelu,
    "Selu": _selu,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "ScaledDotProductAttention": _attention,
    "SquaredDifference": _squared_difference,
    "Swish": _swish,
    "Transpose": _transpose,
    "VariadicSplit": _split,
}
