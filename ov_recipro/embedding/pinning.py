"""Keeping the explaining part in float32 on devices that run the rest in 16 bits.

In an IR each operation can be marked to keep its precision. OpenVINO 2026.4 forgets the mark of an
operation that it replaces by another, so the explaining part is first written in a form that it
leaves alone.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_moc_transformations
from openvino.utils.node_factory import NodeFactory

from ov_recipro.plans.nodes import ELEMENTWISE
from ov_recipro.sources.openvino_models import core

_WITH_NUMBERS = frozenset({"Add", "Multiply", "Subtract"})


def pinned(branch: ov.Model) -> ov.Model:
    """Return the model with every operation marked to keep its precision, as in an IR.

    A device that runs the rest in bfloat16 or float16 then computes these in float32.
    """
    _repeat_numbers(branch)
    _resize_as_before(branch)
    for node in branch.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            _keep_apart(node)
    apply_moc_transformations(branch, cf=False)  # what these would replace loses no mark later
    _repeat_numbers(branch)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "branch.xml"
        ov.save_model(branch, path, compress_to_fp16=False)
        tree = ElementTree.parse(path)  # noqa: S314 - just written
        for layer in tree.iter("layer"):
            if layer.get("type") in ("Const", "Parameter", "Result"):
                continue
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                place = 1 if layer.find("data") is not None else 0
                layer.insert(place, info)
            ElementTree.SubElement(info, "attribute", name="precise", version="0")
        xml = ElementTree.tostring(tree.getroot())
        return core().read_model(xml, path.with_suffix(".bin").read_bytes())


def copied(feature: ov.Output) -> ov.Output:
    """Return a copy of a feature map [N,C,h,w] that no optimisation takes for the map itself."""
    channels = feature.get_partial_shape()[1].get_length()
    ones = np.ones((channels, 1, 1, 1, 1), np.float32)
    copy = ops.group_convolution(feature, ones, [1, 1], [0, 0], [0, 0], [1, 1])
    return copy.output(0)


def _resize_as_before(branch: ov.Model) -> None:
    """Write resizing as opset 4 does, where it can: OpenVINO would replace that of opset 11."""
    for node in branch.get_ordered_ops():
        if node.get_type_name() != "Interpolate" or node.get_type_info().version_id != "opset11":
            continue
        source, factors, *rest = node.input_values()
        before, after = np.array(list(source.shape)), np.array(list(node.output(0).shape))
        axes = rest[0] if rest else ops.constant(np.arange(len(before))).output(0)
        settings = node.get_attributes()
        if axes.get_node().get_type_name() != "Constant" or "pillow" in settings["mode"]:
            continue
        along = np.asarray(axes.get_node().data)
        if settings["shape_calculation_mode"] == "sizes":
            factors = ops.constant((after / before)[along].astype(np.float32)).output(0)
        inputs = [source, ops.constant(after[along]).output(0), factors, axes]
        resized = NodeFactory("opset4").create("Interpolate", inputs, settings)
        node.output(0).replace(resized.output(0))


def _keep_apart(product: ov.Node) -> None:
    """Give what acts on a product's numbers one axis more, so that it is not made part of it.

    The axis is taken away only behind all such operations: OpenVINO would move one that comes later
    in front of that.
    """
    for reader in list(product.output(0).get_target_inputs()):
        node = reader.get_node()
        sizes = list(node.output(0).shape)
        acts = node.get_type_name() == "Add" or _acts_by_value(node, reader.get_index(), sizes)
        if not acts or sizes != list(product.output(0).shape):
            continue
        end, later = product.output(0), [reader]
        while len(later) == 1:
            after, place = later[0].get_node(), later[0].get_index()
            if after is not node and not _acts_by_value(after, place, sizes):
                break
            for index, source in enumerate(after.input_values()):
                if index != place or after is node:
                    after.input(index).replace_source_output(_with_axis(source))
                else:
                    after.input(index).replace_source_output(end)
            after.validate_and_infer_types()
            later = list(after.output(0).get_target_inputs())
            end = after.output(0)
        narrow = ops.reshape(end, np.array(sizes, np.int64), False)
        for each in later:
            each.replace_source_output(narrow.output(0))


def _with_axis(port: ov.Output) -> ov.Output:
    """Return a tensor with an axis of size 1 behind its others; a single number as it is."""
    shape = list(port.shape)
    if not shape:
        return port
    return ops.reshape(port, np.array([*shape, 1], np.int64), False).output(0)


def _acts_by_value(node: ov.Node, place: int, sizes: list[int]) -> bool:
    """Whether an operation changes each number of the input at `place`, all else being constant.

    Its output must have the shape `sizes` of that input.
    """
    others = [value.get_node() for i, value in enumerate(node.input_values()) if i != place]
    is_elementwise = node.get_type_name() in ELEMENTWISE - {"PRelu"}
    constant = all(other.get_type_name() == "Constant" for other in others)
    return is_elementwise and constant and list(node.output(0).shape) == sizes


def _repeat_numbers(branch: ov.Model) -> None:
    """Repeat single numbers along the last axis: OpenVINO has other operations for those."""
    for node in branch.get_ordered_ops():
        if node.get_type_name() not in _WITH_NUMBERS:
            continue
        shape = list(node.output(0).shape)
        last = [*[1] * (len(shape) - 1), *shape[-1:]] if shape and shape[-1] > 1 else []
        for index, port in enumerate(node.input_values()):
            source = port.get_node()
            if source.get_type_name() == "Constant" and source.data.size == 1 and last:
                repeated = np.full(last, np.ravel(source.data)[0], source.data.dtype)
                node.input(index).replace_source_output(ops.constant(repeated).output(0))
