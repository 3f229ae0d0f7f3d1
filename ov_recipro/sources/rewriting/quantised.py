"""ONNX's QOperator form, rewritten as the QDQ form that it abbreviates.

ONNX Runtime's quantiser can fuse dequantise, operation and quantise into one operator, some of them
its own and unknown to OpenVINO. Each is defined as the three in a row, so writing them out changes
nothing, and leaves one quantised form for the rest of the package to know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ov_recipro.errors import ModelError
from ov_recipro.sources.rewriting.shaping import constant

_UNARY = {  # x, x_scale, x_zero_point, y_scale, y_zero_point
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}
_BINARY = {  # a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearMatMul": "MatMul",
}


def to_qdq(model: ir.Model) -> None:
    """Rewrite every QOperator node of `model` in place."""
    for node in list(model.graph):
        if node.op_type in _UNARY:
            _unary(node)
        elif node.op_type in _BINARY:
            _binary(node)
        elif node.op_type == "QLinearConcat":
            _concat(node)
        elif node.op_type == "QLinearConv":
            _conv(node)
        elif node.op_type == "QGemm":
            _gemm(node)


def _unary(node: ir.Node) -> None:
    x, x_scale, x_zero, y_scale, y_zero = node.inputs
    attributes = {a.name: a for a in node.attributes.values() if a.name not in _ORT_ONLY}
    if node.attributes.get_int("channels_last", 0):
        raise ModelError(f"Node '{node.name}': {node.op_type} with channels last is not supported.")
    _replace(
        node,
        _UNARY[node.op_type],
        [_dequantised(node, x, x_scale, x_zero)],
        attributes,
        y_scale,
        y_zero,
    )


def _binary(node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    inputs = [_dequantised(node, a, a_scale, a_zero), _dequantised(node, b, b_scale, b_zero)]
    _replace(node, _BINARY[node.op_type], inputs, {}, y_scale, y_zero)


def _concat(node: ir.Node) -> None:
    y_scale, y_zero, *operands = node.inputs
    inputs = [
        _dequantised(node, operands[i], operands[i + 1], operands[i + 2])
        for i in range(0, len(operands), 3)
    ]
    _replace(node, "Concat", inputs, {"axis": node.attributes["axis"]}, y_scale, y_zero)


def _conv(node: ir.Node) -> None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = node.inputs
    inputs = [
        _dequantised(node, x, x_scale, x_zero),
        _dequantised(node, w, w_scale, w_zero, axis=0),
    ]
    if bias and bias[0] is not None:
        inputs.append(_bias(node, bias[0], x_scale, w_scale, 1.0))
    _replace(node, "Conv", inputs, dict(node.attributes), y_scale, y_zero)


def _gemm(node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, *rest = node.inputs
    transposed = node.attributes.get_int("transB", 0)
    inputs = [
        _dequantised(node, a, a_scale, a_zero),
        _dequantised(node, b, b_scale, b_zero, axis=0 if transposed else 1),
    ]
    if rest and rest[0] is not None:
        alpha = node.attributes.get_float("alpha", 1.0)
        inputs.append(_bias(node, rest[0], a_scale, b_scale, alpha))
    quantises = len(rest) == 3 and rest[1] is not None
    _replace(
        node,
        "Gemm",
        inputs,
        dict(node.attributes),
        rest[1] if quantises else None,
        rest[2] if quantises else None,
    )


_ORT_ONLY = frozenset({"channels_last"})


def _dequantised(
    node: ir.Node,
    value: ir.Value | None,
    scale: ir.Value | None,
    zero: ir.Value | None,
    axis: int | None = None,
) -> ir.Value:
    """Insert a DequantizeLinear before `node`; `axis` applies to a scale of several values."""
    if value is None or scale is None:
        raise ModelError(f"Node '{node.name}' ({node.op_type}) lacks an input.")
    inputs = [value, scale] if zero is None else [value, scale, zero]
    numbers = ir.convenience.get_const_tensor(scale)
    several = axis is not None and numbers is not None and numbers.size > 1
    return _insert(node, "DequantizeLinear", inputs, {"axis": axis} if several else {}, value)


def _bias(
    node: ir.Node,
    bias: ir.Value,
    x_scale: ir.Value | None,
    w_scale: ir.Value | None,
    factor: float,
) -> ir.Value:
    """Insert a bias as float32: its scale is the product of the operands' scales."""
    tensors = [ir.convenience.get_const_tensor(v) if v else None for v in (x_scale, w_scale)]
    if tensors[0] is None or tensors[1] is None or node.graph is None:
        raise ModelError(f"Node '{node.name}' ({node.op_type}) has scales that are not constant.")
    scale = factor * tensors[0].numpy().reshape(-1) * tensors[1].numpy().reshape(-1)
    array = np.float32(scale[0]).reshape(()) if scale.size == 1 else scale.astype(np.float32)
    value = constant(node.graph, f"{bias.name}/scale", np.asarray(array))
    return _insert(
        node, "DequantizeLinear", [bias, value], {"axis": 0} if scale.size > 1 else {}, bias
    )


def _replace(
    node: ir.Node,
    op: str,
    inputs: Sequence[ir.Value],
    attributes: dict[str, ir.Attr],
    scale: ir.Value | None,
    zero: ir.Value | None,
) -> None:
    """Replace `node` by `op`, followed by a QuantizeLinear if `scale` is given."""
    output = node.outputs[0]
    name = str(output.name)
    result = _insert(node, op, inputs, attributes, output)
    if scale is not None:
        ends = [result, scale] if zero is None else [result, scale, zero]
        result = _insert(node, "QuantizeLinear", ends, {}, output)
    output.name = f"{name}/replaced"
    result.name = name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    if node.graph is not None:
        node.graph.remove(node)


def _insert(
    node: ir.Node,
    op: str,
    inputs: Sequence[ir.Value],
    attributes: dict[str, ir.Attr] | dict[str, int] | dict[str, int | None],
    about: ir.Value,
) -> ir.Value:
    if node.graph is None:
        raise ModelError(f"Node '{node.name}' is not in any graph.")
    kept = [
        a if isinstance(a, ir.Attr) else ir.AttrInt64(k, int(a or 0)) for k, a in attributes.items()
    ]
    inserted = ir.Node("", op, list(inputs), kept, name=f"{node.name}/{op}.{about.name}")
    inserted.outputs[0].name = f"{node.name}/{op}.{about.name}"
    node.graph.insert_before(node, inserted)
    return inserted.outputs[0]
