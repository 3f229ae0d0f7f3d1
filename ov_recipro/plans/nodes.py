"""OpenVINO's nodes and their ports, as the sparse plans read and make them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_moc_transformations
from openvino.utils.node_factory import NodeFactory

Port: TypeAlias = ov.Output
Key: TypeAlias = tuple[str, int]
Array: TypeAlias = npt.NDArray[np.float32]

ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "Clamp", "Convert", "Divide", "Elu", "Erf", "Exp", "Gelu", "HSigmoid",
        "HSwish", "HardSigmoid", "Log", "Maximum", "Minimum", "Mish", "Multiply", "Negative",
        "PRelu", "Power", "Relu", "Selu", "Sigmoid", "SoftPlus", "SoftSign", "Sqrt",
        "SquaredDifference", "Subtract", "Swish", "Tanh",
    }
)  # fmt: skip


def prepared(tail: ov.Model) -> ov.Model:
    """Fuse what OpenVINO can fuse offline, and give every operation a name of its own."""
    apply_moc_transformations(tail, cf=True)
    for number, node in enumerate(tail.get_ordered_ops()):
        node.set_friendly_name(f"{number}:{node.get_friendly_name()}")
    return tail


def key_of(port: Port) -> Key:
    """Return what identifies a tensor in a model and in its copies."""
    return port.get_node().get_friendly_name(), port.get_index()


def sources_of(node: ov.Node) -> list[Port]:
    """Return the tensors that a node reads."""
    return [port.get_source_output() for port in node.inputs()]


def macs_of(node: ov.Node) -> int:
    """Return the multiply-accumulates of a convolution, product or attention at its shapes."""
    kind = node.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention"):
        return 0
    out = int(np.prod(list(node.output(0).shape)))
    weight = list(node.input_value(1).shape)
    if kind == "Convolution":
        return out * int(np.prod(weight[1:]))
    if kind == "GroupConvolution":
        return out * int(np.prod(weight[2:]))
    if kind == "ScaledDotProductAttention":
        keys, width = (int(size) for size in weight[-2:])
        return keys * (out + out // int(node.output(0).shape[-1]) * width)
    return out * int(weight[-1 if node.get_attributes()["transpose_b"] else -2])


def constant(values: npt.ArrayLike, dtype: Any = np.float32) -> Port:
    """Return a constant."""
    return ops.constant(np.ascontiguousarray(np.asarray(values, dtype))).output(0)


def gather(table: Port, rows: npt.NDArray[Any], axis: int = 0) -> Port:
    """Return table[rows], along any axis."""
    return ops.gather(table, constant(rows, np.int32), constant(axis, np.int32)).output(0)


def reshape(port: Port, shape: list[int]) -> Port:
    """Reshape to exactly these sizes."""
    return ops.reshape(port, constant(shape, np.int64), False).output(0)


def rebuilt(node: ov.Node, inputs: list[Port]) -> ov.Node:
    """Return the same operation on other inputs."""
    factory = NodeFactory(node.get_type_info().version_id)
    return factory.create(node.get_type_name(), inputs, node.get_attributes())


def rebuild(node: ov.Node, inputs: list[Port]) -> Port:
    """Return the first output of the same operation on other inputs."""
    return rebuilt(node, inputs).output(0)
