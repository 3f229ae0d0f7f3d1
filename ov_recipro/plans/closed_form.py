"""The closed form of a tail that is pixelwise up to a global average pool, as an ONNX graph.

With a pointwise part p before the pool, the pooled vector of cell n is
p(0) (N-1)/N + p(F)[:,u,v] / N: no masked map is ever made. What follows the pool runs once on the
vectors of all cells and, as one more, of the whole map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ov_recipro.plans.stream.stream_onnx import TOTAL, Graph

_POINTWISE = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Conv", "Div", "Elu", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Mul", "Neg", "PRelu", "Relu",
        "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh",
    }
)  # fmt: skip


class NoClosedForm(Exception):
    """A tail has none; the message says why."""


@dataclass(frozen=True)
class ClosedFormPlan:
    """All cells at once, by the closed form."""

    cells: int

    name = "closed form"


def closed_form(tail: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Rewrite a tail into one from a feature map to the logits [N+1,classes] of cells and whole.

    Args:
        tail: from the feature map to the logits; it takes any batch.
        shape: of the feature map, (1, C, H, W).

    Returns:
        A model of the tail's inputs whose outputs are the tail's, with the whole map's entry last,
        and `TOTAL`, float32 [], which is finite where all of the feature map is.

    Raises:
        NoClosedForm: the tail is of another form.
    """
    (feature,) = [value.name for value in tail.graph.input]
    constants = {t.name: numpy_helper.to_array(t) for t in tail.graph.initializer}
    pixelwise, pool, rest = _parts(tail, feature, constants)
    height, width = shape[2:]
    cells = height * width

    made = Graph()
    kind = int(tail.graph.input[0].type.tensor_type.elem_type)
    zeros = _constant(made, np.zeros((1, shape[1], 1, 1)), kind)
    background = _copied(made, pixelwise, feature, zeros) if pixelwise else zeros
    spatial = pool.input[0]
    by_pixel = made.add("Transpose", spatial, perm=[0, 2, 3, 1])
    rows = made.add("Reshape", by_pixel, made.constant([cells, -1]))
    empty = made.add("Reshape", background, made.constant([1, -1]))
    each = made.add("Add", rows, made.add("Mul", empty, _constant(made, cells - 1, kind)))
    ones = _constant(made, np.ones((1, cells)), kind)
    whole = made.add("MatMul", ones, rows)  # a sum in every opset's words
    pooled = made.add("Concat", each, whole, axis=0)
    pooled = made.add("Div", pooled, _constant(made, cells, kind))
    if _keeps_axes(pool):
        target = made.constant([cells + 1, -1, 1, 1])
    else:
        target = made.constant([cells + 1, -1])
    made.add("Reshape", pooled, target, output=pool.output[0])
    as_float = made.add("Cast", feature, to=TensorProto.FLOAT)
    made.add("ReduceSum", as_float, output=TOTAL, keepdims=0)

    result = onnx.ModelProto()
    result.CopyFrom(tail)
    del result.graph.node[:]
    result.graph.node.extend([*pixelwise, *made.nodes, *rest])
    result.graph.initializer.extend(made.constants)
    del result.graph.value_info[:]
    for value in [*result.graph.input, *result.graph.output]:
        value.type.tensor_type.ClearField("shape")
    result.graph.output.append(helper.make_tensor_value_info(TOTAL, TensorProto.FLOAT, []))
    return result


def _parts(
    tail: onnx.ModelProto, feature: str, constants: dict[str, np.ndarray]
) -> tuple[list[onnx.NodeProto], onnx.NodeProto, list[onnx.NodeProto]]:
    """Return the nodes before the pool, the pool, and the nodes after it."""
    for node in tail.graph.node:
        if node.op_type == "Constant":
            raise NoClosedForm("its constants are not folded")
    spatial = {feature}
    pixelwise: list[onnx.NodeProto] = []
    rest: list[onnx.NodeProto] = []
    pool = None
    for node in tail.graph.node:
        if not any(name in spatial for name in node.input):
            rest.append(node)
        elif _is_pool(node, constants):
            if pool is not None:
                raise NoClosedForm("it pools more than once")
            pool = node
        elif _is_pixelwise(node, spatial, constants):
            pixelwise.append(node)
            spatial.update(node.output)
        else:
            raise NoClosedForm(f"it has an operation {node.op_type} before the pool")
    if pool is None:
        raise NoClosedForm("it has no global average pool")
    return pixelwise, pool, rest


def _is_pool(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean":
        return False
    axes = _numbers(node, "axes")
    if not axes and len(node.input) > 1:
        axes = constants.get(node.input[1], np.zeros(0)).reshape(-1).tolist()
    return sorted(int(axis) % 4 for axis in axes) == [2, 3]


def _is_pixelwise(
    node: onnx.NodeProto, spatial: set[str], constants: dict[str, np.ndarray]
) -> bool:
    """Whether each output pixel depends on the same pixel alone, in the same way everywhere."""
    if node.op_type not in _POINTWISE or node.domain not in ("", "ai.onnx"):
        return False
    for name in node.input:
        if name in spatial or not name:
            continue
        value = constants.get(name)
        if value is None:
            return False
        wide = value.shape[-2:] if value.ndim >= 2 else value.shape
        if node.op_type not in ("Conv", "BatchNormalization") and any(n != 1 for n in wide):
            return False  # differs from pixel to pixel
    if node.op_type == "Conv":
        kernel = constants[node.input[1]].shape[2:]
        plain = all(n == 1 for n in [*kernel, *_numbers(node, "strides")])
        return plain and not any(_numbers(node, "pads"))
    return True


def _keeps_axes(pool: onnx.NodeProto) -> bool:
    return pool.op_type == "GlobalAveragePool" or _numbers(pool, "keepdims") != [0]


def _copied(made: Graph, nodes: list[onnx.NodeProto], feature: str, source: str) -> str:
    """Append copies of `nodes` that read `source` for `feature`; return the last one's output."""
    names = {feature: source}
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}:of zeros"
        copy.input[:] = [names.get(name, name) for name in node.input]
        names |= {name: f"{name}:of zeros" for name in node.output if name}
        copy.output[:] = [names.get(name, name) for name in node.output]
        made.nodes.append(copy)
    return names[nodes[-1].output[0]]


def _constant(made: Graph, values: npt.ArrayLike, kind: int) -> str:
    """Append a constant of an ONNX element type."""
    name = made.constant(values, np.float32)
    return name if kind == TensorProto.FLOAT else made.add("Cast", name, to=kind)


def _numbers(node: onnx.NodeProto, name: str) -> list[int]:
    """Return an integer attribute, or a list of them, as a list; an absent one as an empty one."""
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or [attribute.i]
    return []
