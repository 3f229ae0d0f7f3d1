"""Plan `stream` on ONNX Runtime: masks made by a small model in front of the tail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from ov_recipro.cut.bundle import Manifest
from ov_recipro.plans.onnx_graph import IR_VERSION, OPSET, Graph
from ov_recipro.plans.stream.stream_plan import GAUSSIAN, Mask, is_batched

TOTAL = "ov_recipro/total"  # the output that is finite where all of the feature map is
CELLS = "ov_recipro/cells"


def mask_model(manifest: Manifest, types: list[int], mask: Mask) -> onnx.ModelProto:
    """Return a model from a feature map, its bypass tensors and cell numbers to masked maps.

    Args:
        manifest: of the bundle.
        types: ONNX element types of the feature map and the bypass tensors.
        mask: what is kept of the feature map.

    Returns:
        A model whose inputs are the tail's at batch 1 and `CELLS`, int64 [b]; its outputs are the
        tail's inputs at batch b, named "masked:" and the input's name, and `TOTAL`, float32 [].
    """
    graph = Graph()
    inputs = [helper.make_tensor_value_info(CELLS, TensorProto.INT64, ["b"])]
    outputs = [helper.make_tensor_value_info(TOTAL, TensorProto.FLOAT, [])]
    totals: list[str] = []
    for index, (name, shape, kind) in enumerate(
        zip(manifest.tail.inputs, manifest.boundary_shapes, types, strict=True)
    ):
        inputs.append(helper.make_tensor_value_info(name, kind, shape))
        masked = f"masked:{name}"
        if index < len(manifest.cut.masked):
            add_mask(graph, name, kind, masked, manifest, mask, shape)
            as_float = graph.add("Cast", name, to=TensorProto.FLOAT)
            totals.append(graph.add("ReduceSum", as_float, keepdims=0))
        elif is_batched(shape):
            count = graph.add("Shape", CELLS)
            rest = graph.constant(shape[1:])
            size = graph.add("Concat", count, rest, axis=0) if len(shape) > 1 else count
            graph.add("Expand", name, size, output=masked)
        else:
            graph.add("Identity", name, output=masked)
        dimensions = ["b" if is_batched(shape) else shape[0], *shape[1:]] if shape else []
        outputs.append(helper.make_tensor_value_info(masked, kind, dimensions))
    graph.add("Sum", *totals, output=TOTAL)
    masking = helper.make_graph(graph.nodes, "mask", inputs, outputs, graph.constants)
    return helper.make_model(
        masking, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def add_mask(
    graph: Graph,
    feature: str,
    kind: int,
    output: str,
    manifest: Manifest,
    mask: Mask,
    shape: Sequence[int],
    cells: str = CELLS,
) -> None:
    """Append the masking of a feature map of this shape at batch 1 by cell numbers `cells` [b].

    The number H*W stands for no cell: under "cell" none is kept, under "drop" all are.
    """
    cut = manifest.cut
    height, width = cut.grid
    count, channels = height * width, cut.shape[0]
    values = graph.constant([0, 1], np.float32)
    one_hot = graph.add("OneHot", cells, graph.constant(count), values, axis=-1)
    plane = graph.add("Reshape", one_hot, graph.constant([-1, 1, height, width]))
    if cut.joined:
        of_rows, of_columns = cut.cells.shares((shape[2], shape[3]))
        plane = graph.add("MatMul", graph.constant(of_rows.T, np.float32), plane)
        plane = graph.add("MatMul", plane, graph.constant(of_columns, np.float32))
    if mask == "drop":
        plane = graph.add("Sub", graph.constant(1, np.float32), plane)
    elif mask != "cell":
        kernel = graph.constant(GAUSSIAN[None, None], np.float32)
        plane = graph.add("Conv", plane, kernel, pads=[1, 1, 1, 1])
    if cut.layout != "NCHW":
        sizes = [-1, height, width, 1] if cut.layout == "NHWC" else [-1, count, 1]
        plane = graph.add("Reshape", plane, graph.constant(sizes))
    prefix = None
    if cut.prefix:
        ends = [graph.constant([n]) for n in (0, cut.prefix, cut.prefix + count)]
        axis = graph.constant([1])
        prefix = graph.add("Slice", feature, ends[0], ends[1], axis)
        feature = graph.add("Slice", feature, ends[1], ends[2], axis)
        batch = graph.add("Shape", cells)
        size = graph.add("Concat", batch, graph.constant([cut.prefix, channels]), axis=0)
        prefix = graph.add("Expand", prefix, size)
    if mask == "spread":
        rows = feature
        if cut.layout == "NCHW":
            rows = graph.add("Transpose", feature, perm=[0, 2, 3, 1])
        table = graph.add("Reshape", rows, graph.constant([count, channels]))
        centre = graph.add("MatMul", one_hot, graph.add("Cast", table, to=TensorProto.FLOAT))
        shape = {
            "NCHW": [-1, channels, 1, 1],
            "NHWC": [-1, 1, 1, channels],
            "NTC": [-1, 1, channels],
        }[cut.layout]
        centre = graph.add("Reshape", centre, graph.constant(shape))
        feature = graph.add("Cast", centre, to=kind)
    mask_values = graph.add("Cast", plane, to=kind)
    if prefix is None:
        graph.add("Mul", feature, mask_values, output=output)
    else:
        masked = graph.add("Mul", feature, mask_values)
        graph.add("Concat", prefix, masked, axis=1, output=output)
