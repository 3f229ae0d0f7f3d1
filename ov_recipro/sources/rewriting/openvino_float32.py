"""The float32 form of an 8-bit or 16-bit OpenVINO model, and the tools to rewrite its graph.

See `ov_recipro.sources.rewriting.float32` for why, and for the same on ONNX.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.errors import ModelError
from ov_recipro.sources.openvino_models import core, name_of, ports

_HALVES = (ov.Type.f16, ov.Type.bf16)


def to_float32(model: ov.Model) -> bool:
    """Rewrite an 8-bit or 16-bit model's computation in float32, in place; return whether it was.

    FakeQuantize on activations becomes the clamp to its range (which may stand for a ReLU),
    conversions to and from integers are removed, 16-bit floats become float32.
    """
    carried = _image_dependent(model)
    changed = False
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("FakeQuantize", "Convert") or name_of(node.input_value(0)) not in carried:
            continue
        source = node.input_value(0)
        if kind == "FakeQuantize":
            hand_over(node.output(0), _clamp(node))
        elif node.get_element_type().is_integral() and source.get_element_type().is_real():
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(source)
        else:
            continue
        changed = True
    halves = any(
        port.get_element_type() in _HALVES for _, port in ports(model) if name_of(port) in carried
    )
    if halves:
        _widen(model)
    weights = _dequantise_weights(model, carried)
    if changed or halves or weights:
        model.validate_nodes_and_infer_types()
    return changed or halves or weights


def _image_dependent(model: ov.Model) -> set[str]:
    carried = {name_of(port) for port in model.inputs}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Result":
            continue
        if any(name_of(port.get_source_output()) in carried for port in node.inputs()):
            carried.update(name_of(port) for port in node.outputs())
    return carried


def _clamp(node: ov.Node) -> ov.Output:
    """Return FakeQuantize's clamp and linear map without its rounding."""
    source = node.input_value(0)
    ends = [node.input_value(i) for i in range(1, 5)]
    low, high, out_low, out_high = ends
    clamped = ops.minimum(ops.maximum(source, low), high)
    from_low, from_high, to_low, to_high = (_value(end) for end in ends)
    if np.allclose(from_low, to_low, rtol=1e-6) and np.allclose(from_high, to_high, rtol=1e-6):
        return clamped.output(0)
    factor = ops.divide(ops.subtract(out_high, out_low), ops.subtract(high, low))
    scaled = ops.multiply(ops.subtract(clamped, low), factor)
    return ops.add(scaled, out_low).output(0)


def _value(port: ov.Output) -> npt.NDArray[np.float64]:
    node = port.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        raise ModelError(f"'{node.get_friendly_name()}': a quantisation range is not constant.")
    return np.asarray(node.data, np.float64)


def _widen(model: ov.Model) -> None:
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if node.get_output_size() != 1 or node.output(0).get_element_type() not in _HALVES:
            continue
        if kind == "Constant":
            hand_over(node.output(0), ops.constant(np.float32(node.data)).output(0))
        elif kind == "Convert":
            hand_over(node.output(0), ops.convert(node.input_value(0), ov.Type.f32).output(0))
        elif kind == "Parameter":
            node.set_element_type(ov.Type.f32)


def _dequantise_weights(model: ov.Model, carried: set[str]) -> bool:
    """Replace what is computed from 8-bit and 4-bit weights alone by float32; return if any was.

    If they stayed compressed, OpenVINO would quantise the activations that meet them, on the fly.
    """
    found: dict[str, ov.Output] = {}
    for node in model.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        if any(name_of(source) in carried for source in sources):
            for source in sources:
                is_float = source.get_element_type() == ov.Type.f32
                if name_of(source) not in carried and is_float and _is_compressed(source):
                    found[str(source.get_node().get_friendly_name())] = source
    if not found:
        return False
    compiled = core().compile_model(
        ov.Model([ops.result(port) for port in found.values()], []), "CPU"
    )
    values = compiled([])
    for index, port in enumerate(found.values()):
        new = ops.constant(np.array(values[index], np.float32)).output(0)
        for reader in list(port.get_target_inputs()):
            if reader.get_node().get_type_name() != "Result":
                reader.replace_source_output(new)
    return True


def _is_compressed(port: ov.Output) -> bool:
    """Whether a value is computed from integer constants of 8 bits or fewer."""
    node = port.get_node()
    if node.get_type_name() == "Constant":
        kind = port.get_element_type()
        return bool(kind.is_integral() and kind.bitwidth <= 8 and kind != ov.Type.boolean)
    return any(_is_compressed(each.get_source_output()) for each in node.inputs())


def hand_over(old: ov.Output, new: ov.Output) -> None:
    """Make the readers of `old` read `new`, which takes its names."""
    names = old.get_names() or ({name_of(old)} if old.get_node().get_output_size() == 1 else set())
    readers = list(old.get_target_inputs())
    own = new.get_node()
    for reader in readers:
        if reader.get_node().get_friendly_name() != own.get_friendly_name():
            reader.replace_source_output(new)
    old.set_names(set())
    new.add_names(names)
