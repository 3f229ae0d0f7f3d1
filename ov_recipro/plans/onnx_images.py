"""Convolutions, pools and resizing of images, from OpenVINO's operations into ONNX's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov

from ov_recipro.plans.onnx_graph import Graph
from ov_recipro.plans.rows.windows import Window, window_of
from ov_recipro.plans.verdict import PlanRefused

_RESIZES = {"nearest": "nearest", "linear": "linear", "linear_onnx": "linear", "cubic": "cubic"}
_DILATED_AVERAGES = 19  # the opset from which average pools have dilations


def number_of(node: ov.Node, index: int) -> np.ndarray:
    """Return the values of a constant that a node reads."""
    source = node.input_value(index).get_node()
    if source.get_type_name() != "Constant":
        raise PlanRefused(f"an input of '{node.get_type_name()}' is not constant")
    return np.asarray(source.data)


def _window(node: ov.Node) -> tuple[Window, dict[str, Any]]:
    """Return a window, and what ONNX's convolutions and pools have in common.

    Pads are written as they turn out, since ONNX Runtime rounds and pads otherwise by itself.
    """
    if len(node.input_value(0).shape) != 4:
        raise PlanRefused(f"'{node.get_type_name()}' is not two-dimensional")
    window = window_of(node)
    ends = [
        max(0, begin + (kernel - 1) * dilation + 1 - size)
        for begin, kernel, dilation, size in zip(
            _last_begins(window), window.kernel, window.dilation, window.source, strict=True
        )
    ]
    return window, {
        "kernel_shape": list(window.kernel),
        "strides": list(window.stride),
        "pads": [*window.pad, *ends],
    }


def _last_begins(window: Window) -> list[int]:
    """Return where the last window begins along each axis."""
    return [
        (count - 1) * step - pad
        for count, step, pad in zip(window.target, window.stride, window.pad, strict=True)
    ]


def convolution(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    """Append a convolution."""
    window, settings = _window(node)
    weight = [int(size) for size in node.input_value(1).shape]
    if node.get_type_name() == "GroupConvolution":
        settings["group"] = weight[0]
        weight = [weight[0] * weight[1], *weight[2:]]
        inputs = [inputs[0], graph.add("Reshape", inputs[1], graph.constant(weight))]
    return graph.add("Conv", *inputs, dilations=list(window.dilation), **settings)


def pool(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    """Append a pool."""
    kind, attributes = node.get_type_name(), node.get_attributes()
    window, settings = _window(node)
    if any(begin >= size for begin, size in zip(_last_begins(window), window.source, strict=True)):
        raise PlanRefused(f"the last window of '{kind}' begins outside its input")
    if any(pad >= size for pad, size in zip(settings["pads"], window.kernel * 2, strict=True)):
        raise PlanRefused(f"'{kind}' has more padding than ONNX Runtime takes")
    if kind == "MaxPool" and len(node.outputs()) > 1 and node.output(1).get_target_inputs():
        raise PlanRefused("the indices of 'MaxPool' are used")
    if kind == "MaxPool" or graph.opset >= _DILATED_AVERAGES:
        settings["dilations"] = list(window.dilation)
    elif window.dilation != (1, 1):
        raise PlanRefused(f"'AveragePool' has no dilations before opset {_DILATED_AVERAGES}")
    if kind == "MaxPool":
        return graph.add("MaxPool", *inputs, **settings)
    included = not attributes["exclude-pad"]
    automatic = str(attributes.get("auto_pad", "explicit")).lower()
    declared = [0, 0] if automatic == "valid" else attributes["pads_end"]
    ends = zip(settings["pads"][2:], declared, strict=True)
    if included and not automatic.startswith("same") and any(made > own for made, own in ends):
        raise PlanRefused("the last window of 'AvgPool' ends outside the padding that it counts")
    return graph.add("AveragePool", *inputs, count_include_pad=int(included), **settings)


def resize(graph: Graph, node: ov.Node, inputs: list[str]) -> str:
    """Append a resizing."""
    settings = node.get_attributes()
    mode, nearest = _RESIZES.get(str(settings["mode"])), str(settings["nearest_mode"])
    coordinates = str(settings["coordinate_transformation_mode"])
    shape = [int(size) for size in node.output(0).shape]
    lacking = None
    if mode is None:
        lacking = f"by '{settings['mode']}'"
    elif settings["antialias"]:
        lacking = "with antialiasing"
    elif any([*settings["pads_begin"], *settings["pads_end"]]):
        lacking = "with padding"
    elif coordinates == "tf_half_pixel_for_nn":
        lacking = f"by '{coordinates}'"
    elif _has_own_scales(node, settings):
        lacking = "by scales that do not match its sizes"
    elif mode == "nearest" and nearest == "simple":
        source = [int(size) for size in node.input_value(0).shape]
        if any(made < size for made, size in zip(shape, source, strict=True)):
            lacking = "to fewer pixels by 'simple'"
    if lacking is not None:
        raise PlanRefused(f"ONNX has no counterpart of resizing {lacking}")
    return graph.add(
        "Resize",
        *(inputs[0], "", "", graph.constant(shape)),
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor" if nearest == "simple" else nearest,
        cubic_coeff_a=float(settings["cube_coeff"]),
    )


def _has_own_scales(node: ov.Node, settings: Mapping[str, Any]) -> bool:
    """Whether a tensor is resized by other factors than its old and new sizes give."""
    if str(settings["shape_calculation_mode"]) != "scales":
        return False
    values = node.input_values()
    newer = node.get_type_info().version_id == "opset11"
    scales = number_of(node, 1 if newer else 2).reshape(-1)
    axes = number_of(node, len(values) - 1) if len(values) > (2 if newer else 3) else None
    places = range(len(scales)) if axes is None else axes.reshape(-1).tolist()
    old, new = node.input_value(0).shape, node.output(0).shape
    return any(
        abs(float(scale) * int(old[place]) - int(new[place])) > 1e-4
        for place, scale in zip(places, scales, strict=True)
    )
