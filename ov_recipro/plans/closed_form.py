"""The closed form of a tail that is pixelwise up to a global average pool, as an ONNX graph.

With a pointwise part p before the pool, the pooled vector of cell n is
p(0) (N-1)/N + p(F)[:,u,v] / N: no masked map is ever made. What follows the pool runs once, on the
vectors of all cells and, last, on the whole map's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ov_recipro.cut.bundle import Manifest
from ov_recipro.plans import rows
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.stream.stream_onnx import TOTAL, Graph

_POINTWISE = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Conv", "Div", "Elu", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Mul", "Neg", "PRelu", "Relu",
        "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh",
    }
)  # fmt: skip


class NoClosedForm(Exception):
    """A tail has no closed form; the message says why."""


@dataclass(frozen=True)
class ClosedFormPlan:
    """All cells at once, by the closed form."""

    cells: int

    name = "closed form"


def applies(manifest: Manifest, mask: Mask) -> str | None:
    """Return why the closed form can't be used for a bundle; None where it may be."""
    if mask == "drop":
        return "the closed form is of one cell kept, not of one emptied"
    return rows.applies(manifest, mask)


def closed_form(tail: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Rewrite a tail to give the logits [N+1,classes] of all cells and, last, of the whole map.

    Args:
        tail: maps the feature map to the logits; it takes any batch.
        shape: of the feature map, (1, C, H, W).

    Returns:
        A model with the tail's inputs and outputs, the whole map's entry last, and with the output
        `TOTAL`, float32 [], which is finite where all of the feature map is.

    Raises:
        NoClosedForm: the tail has another form.
    """
    (feature,) = [value.name for value in tail.graph.input]
    constants = {t.name: numpy_helper.to_array(t) for t in tail.graph.initializer}
    pixelwise, pool, rest = _split_at_pool(tail, feature, constants)
    height, width = shape[2:]
    cells = height * width

    graph = Graph()
    kind = int(tail.graph.input[0].type.tensor_type.elem_type)
    zeros = _constant(graph, np.zeros((1, shape[1], 1, 1)), kind)
    background = _copied(graph, pixelwise, feature, zeros) if pixelwise else zeros
    spatial = pool.input[0]
    by_pixel = graph.add("Transpose", spatial, perm=[0, 2, 3, 1])
    rows = graph.add("Reshape", by_pixel, graph.constant([cells, -1]))
    empty = graph.add("Reshape", background, graph.constant([1, -1]))
    each = graph.add("Add", rows, graph.add("Mul", empty, _constant(graph, cells - 1, kind)))
    ones = _constant(graph, np.ones((1, cells)), kind)
    total = graph.add("MatMul", ones, rows)  # a sum, in any opset
    pooled = graph.add("Concat", each, total, axis=0)
    pooled = graph.add("Div", pooled, _constant(graph, cells, kind))
    if _keeps_axes(pool):
        target = graph.constant([cells + 1, -1, 1, 1])
    else:
        target = graph.constant([cells + 1, -1])
    graph.add("Reshape", pooled, target, output=pool.output[0])
    as_float = graph.add("Cast", feature, to=TensorProto.FLOAT)
    graph.add("ReduceSum", as_float, output=TOTAL, keepdims=0)

    result = onnx.ModelProto()
    result.CopyFrom(tail)
    del result.graph.node[:]
    result.graph.node.extend([*pixelwise, *graph.nodes, *rest])
    result.graph.initializer.extend(graph.constants)
    del result.graph.value_info[:]
    for value in [*result.graph.input, *result.graph.output]:
        value.type.tensor_type.ClearField("shape")
    result.graph.output.append(helper.make_tensor_value_info(TOTAL, TensorProto.FLOAT, []))
    return result


def _split_at_pool(
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
    """Whether each output pixel depends on the same input pixel alone, everywhere in one way."""
    if node.op_type not in _POINTWISE or node.domain not in ("", "ai.onnx"):
        return False
    for name in node.input:
        if name in spatial or not name:
            continue
        value = constants.get(name)
        if value is None:
            return False
        sizes = value.shape[-2:] if value.ndim >= 2 else value.shape
        if node.op_type not in ("Conv", "BatchNormalization") and any(n != 1 for n in sizes):
            return False  # differs from pixel to pixel
    if node.op_type == "Conv":
        kernel = constants[node.input[1]].shape[2:]
        plain = all(n == 1 for n in [*kernel, *_numbers(node, "strides")])
        return plain and not any(_numbers(node, "pads"))
    return True


def _keeps_axes(pool: onnx.NodeProto) -> bool:
    return pool.op_type == "GlobalAveragePool" or _numbers(pool, "keepdims") != [0]


def _copied(graph: Graph, nodes: list[onnx.NodeProto], feature: str, source: str) -> str:
    """Append copies of `nodes` that read `source` for `feature`; return the last one's output."""
    names = {feature: source}
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}:of zeros"
        copy.input[:] = [names.get(name, name) for name in node.input]
        names |= {name: f"{name}:of zeros" for name in node.output if name}
        copy.output[:] = [names.get(name, name) for name in node.output]
        graph.nodes.append(copy)
    return names[nodes[-1].output[0]]


def _constant(graph: Graph, values: npt.ArrayLike, kind: int) -> str:
    """Append a constant of an ONNX element type."""
    name = graph.constant(values, np.float32)
    return name if kind == TensorProto.FLOAT else graph.add("Cast", name, to=kind)


def _numbers(node: onnx.NodeProto, name: str) -> list[int]:
    """Return an integer attribute, or a list of them, as a list; empty where it is absent."""
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or [attribute.i]
    return []
