"""Several tensors of a model as one more tensor, their numbers in a row."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.sources.rewriting import shaping


def join_in_onnx(
    graph: ir.Graph, names: Sequence[str], shapes: Sequence[tuple[int, ...]], joined: str
) -> None:
    """Append the tensor `joined`, float [1,V], to a graph.

    Args:
        graph: the graph.
        names: the tensors, of float numbers; shapes: their shapes at batch 1.
        joined: the new tensor's name.
    """
    known = ir.convenience.create_value_mapping(graph)
    rows = []
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        size = shaping.constant(graph, f"{joined}/{number}/shape", np.array([1, prod(shape)]))
        row = ir.node("Reshape", [known[name], size], name=f"{joined}/{number}")
        row.outputs[0].name = f"{joined}/{number}"
        row.outputs[0].shape = ir.Shape([1, prod(shape)])
        row.outputs[0].dtype = ir.DataType.FLOAT
        rows.append(row)
    concat = ir.node("Concat", [row.outputs[0] for row in rows], {"axis": 1}, name=joined)
    concat.outputs[0].name = joined
    concat.outputs[0].shape = ir.Shape([1, sum(map(prod, shapes))])
    concat.outputs[0].dtype = ir.DataType.FLOAT
    graph.extend([*rows, concat])


def join_in_openvino(model: ov.Model, tensors: Sequence[ov.Output], joined: str) -> None:
    """Append the tensor `joined`, float32 [1,V], to a model, as one more result.

    Args:
        model: the model.
        tensors: of the model, at batch 1.
        joined: the new tensor's name.
    """
    rows = []
    for tensor in tensors:
        size = np.array([1, prod(tensor.shape)], np.int64)
        numbers = ops.convert(tensor, ov.Type.f32) if tensor.element_type != ov.Type.f32 else tensor
        rows.append(ops.reshape(numbers, size, False))
    concat = ops.concat(rows, 1)
    concat.set_friendly_name(joined)
    concat.output(0).set_names({joined})
    model.add_results([ops.result(concat)])
