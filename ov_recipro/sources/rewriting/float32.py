"""The float32 form of an 8-bit or 16-bit ONNX model, from which its tail is taken.

One cell of a feature map, divided by the number of cells when it is pooled, falls below the
quantisation step: an 8-bit tail destroys the maps, and so, less badly, does a 16-bit one. The head
stays as deployed; the tail computes what the deployed one approximates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ov_recipro.errors import ModelError
from ov_recipro.sources.rewriting.shaping import constant, values_of

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_INTEGER_OPS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


@dataclass(frozen=True)
class Rewritten:
    """What was rewritten.

    Attributes:
        scales: (scale, zero point) of the tensors that are integers in the deployed model and
            floats now. Their values here are the dequantised ones.
        halves: the tensors that are float16 or bfloat16 in the deployed model and float32 now.
        weights: whether weights are stored in 8 bits or fewer: runtimes then quantise the
            activations that meet them.
    """

    scales: Mapping[str, tuple[ir.TensorProtocol, ir.TensorProtocol | None]]
    halves: frozenset[str]
    weights: bool

    @property
    def anything(self) -> bool:
        """Whether the model's arithmetic differs from the deployed one's."""
        return bool(self.scales or self.halves or self.weights)


def to_float32(model: ir.Model) -> Rewritten:
    """Rewrite the model's computation in float32, in place.

    Quantise and dequantise pairs on activations become the clamp to their range (which often
    stands for a ReLU that the quantiser dropped); dynamic quantisation is removed; integer
    weights are dequantised; 16-bit floats become float32.
    """
    carried = _image_dependent(model)
    scales: dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol | None]] = {}
    dequantised: set[str] = set()
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or str(source.name) not in carried:
            continue
        if node.op_type == "QuantizeLinear":
            scales.update(_clamp(node, source))
        elif node.op_type == "DequantizeLinear":
            dequantised.add(str(node.outputs[0].name))
            _replace_by(node, "Identity", [source])
        elif node.op_type == "DynamicQuantizeLinear":
            scales.update(_remove_dynamic(node, source))
        elif node.op_type in _INTEGER_OPS:
            _replace_by(node, _INTEGER_OPS[node.op_type], [source, _float_weight(node)])
    for node in list(model.graph):  # integers between quantise and dequantise are floats now
        source = node.inputs[0] if node.inputs else None
        if source is None or str(source.name) not in scales or not _keeps_values(node):
            continue
        for name in {str(value.name) for value in node.outputs} - dequantised:
            scales[name] = scales[str(source.name)]
    weights = [
        node
        for node in list(model.graph)
        if node.op_type == "DequantizeLinear" and node.outputs[0].name not in dequantised
    ]
    for node in weights:
        _dequantise_weight(node)
    rewritten = Rewritten(scales, _widen(model, carried), bool(weights))
    if rewritten.anything:
        for node in model.graph:
            for value in node.outputs:
                value.type = None  # to be inferred anew
    return rewritten


def _image_dependent(model: ir.Model) -> set[str]:
    carried = {str(value.name) for value in model.graph.inputs}
    for node in model.graph:
        if any(value is not None and str(value.name) in carried for value in node.inputs):
            carried.update(str(value.name) for value in node.outputs)
    return carried


def _keeps_values(node: ir.Node) -> bool:
    return node.op_type in (
        "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    )  # fmt: skip


def _clamp(
    node: ir.Node, source: ir.Value
) -> dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol | None]]:
    """Turn QuantizeLinear into the clamp to the range of its integers."""
    scale = _tensor(node, 1)
    zero = _tensor(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scale is None or scale.size != 1 or node.graph is None:
        raise ModelError(
            f"Node '{node.name}': activations quantised per channel, or by computed scales, are "
            "not supported."
        )
    dtype = ir.DataType.UINT8 if zero is None else zero.dtype
    low, high = (0, 255) if zero is None else _range(dtype)
    offset = 0 if zero is None else int(zero.numpy().reshape(-1)[0])
    step = float(scale.numpy().reshape(-1)[0])
    ends = [
        constant(node.graph, f"{node.name}/{name}", np.array((end - offset) * step, np.float32))
        for name, end in (("low", low), ("high", high))
    ]
    name = str(node.outputs[0].name)
    if (node.version or 0) < 11 and node.graph.opset_imports.get("", 1) < 11:
        low_value, high_value = ((end - offset) * step for end in (low, high))
        _replace_by(node, "Clip", [source], min=low_value, max=high_value)
    else:
        _replace_by(node, "Clip", [source, *ends])
    return {name: (scale, zero)}


def _range(dtype: ir.DataType) -> tuple[int, int]:
    bits, signed = dtype.bitwidth, dtype.is_signed()
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _remove_dynamic(
    node: ir.Node, source: ir.Value
) -> dict[str, tuple[ir.TensorProtocol, ir.TensorProtocol | None]]:
    """Make readers of DynamicQuantizeLinear read its float input, at scale 1 and zero point 0."""
    if node.graph is None:
        return {}
    quantised, scale, zero = node.outputs
    unit = constant(node.graph, f"{node.name}/scale", np.array(1, np.float32))
    origin = constant(node.graph, f"{node.name}/zero_point", np.array(0, np.uint8))
    quantised.replace_all_uses_with(source)
    scale.replace_all_uses_with(unit)
    zero.replace_all_uses_with(origin)
    name = str(quantised.name)
    node.graph.remove(node)
    return {name: (ir.tensor(np.array(1, np.float32)), None)}


def _float_weight(node: ir.Node) -> ir.Value:
    """Return the weight of ConvInteger or MatMulInteger minus its zero point, as float32."""
    weight = _tensor(node, 1)
    zero = _tensor(node, 3) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if weight is None or node.graph is None:
        raise ModelError(f"Node '{node.name}' ({node.op_type}) has a weight that is not constant.")
    values = weight.numpy().astype(np.float32)
    if zero is not None:
        offset = zero.numpy().astype(np.float32).reshape(-1)
        if node.op_type == "ConvInteger" and offset.size > 1:
            offset = offset.reshape(-1, *[1] * (values.ndim - 1))
        values = values - offset
    return constant(node.graph, f"{node.name}/weight", values)


def _dequantise_weight(node: ir.Node) -> None:
    """Replace a constant's DequantizeLinear by the float32 constant, if it has the plain form."""
    weight, scale, zero = (_tensor(node, i) for i in range(3))
    if weight is None or scale is None or node.graph is None or len(scale.shape) > 1:
        return
    steps = scale.numpy().astype(np.float32)
    offset = np.zeros((), np.float32) if zero is None else zero.numpy().astype(np.float32)
    if steps.size > 1:
        axis = node.attributes.get_int("axis", 1)
        shape = [1] * len(weight.shape)
        shape[axis] = steps.size
        steps, offset = steps.reshape(shape), offset.reshape(shape if offset.size > 1 else ())
    else:
        steps, offset = steps.reshape(()), offset.reshape(())
    values = (weight.numpy().astype(np.float32) - offset) * steps
    output = node.outputs[0]
    output.replace_all_uses_with(constant(node.graph, f"{output.name}/float32", values))
    node.graph.remove(node)


def _widen(model: ir.Model, carried: set[str]) -> frozenset[str]:
    """Turn all 16-bit floats into float32, if the image passes through any."""
    halves = (
        frozenset(str(value.name) for value in values_of(model) if value.dtype in _HALVES) & carried
    )
    if not halves:
        return halves
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _HALVES:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
                wide = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))
        if node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to", 1)) in _HALVES:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    for value in model.graph.inputs:
        if value.dtype in _HALVES:
            value.dtype = ir.DataType.FLOAT
    return halves


def _tensor(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else ir.convenience.get_const_tensor(value)


def _replace_by(node: ir.Node, op: str, inputs: list[ir.Value], **attributes: float) -> None:
    """Replace the node by another operation, which keeps its names and attributes."""
    kept = [] if op in ("Clip", "Identity") else list(node.attributes.values())
    kept += [ir.AttrFloat32(name, value) for name, value in attributes.items()]
    replacement = ir.Node("", op, inputs, kept, name=node.name)
    old, new = node.outputs[0], replacement.outputs[0]
    new.name, new.shape, new.dtype = old.name, old.shape, ir.DataType.FLOAT
    if node.graph is None:
        return
    node.graph.insert_before(node, replacement)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{new.name}/replaced"
    node.graph.remove(node)
