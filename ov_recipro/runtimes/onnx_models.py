"""A bundle's model and its sparse plan as ONNX models."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import openvino as ov
from onnx import TensorProto, helper

from ov_recipro.cut.bundle import Bundle
from ov_recipro.plans.onnx_emission import emit
from ov_recipro.plans.onnx_graph import IR_VERSION, LEAST_OPSET, OPSET, Graph, opset_of
from ov_recipro.plans.sparse import SparsePlan
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.stream.stream_onnx import TOTAL
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.runtimes.model_graphs import sparse_model
from ov_recipro.sources.onnx_file import load_again
from ov_recipro.sources.openvino_models import sizes_of

_LARGEST = 1 << 30  # bytes; a model in memory has 2 GiB at most
_TYPES = {ov.Type.f32: TensorProto.FLOAT, ov.Type.i32: TensorProto.INT32}


def as_onnx(model: ov.Model, outputs: Sequence[str], opset: int = OPSET) -> onnx.ModelProto:
    """Return a sparse plan's model in ONNX, its inputs under the names that they have.

    Args:
        model: the plan's.
        outputs: names for its outputs, in order.
        opset: `LEAST_OPSET` or later.

    Raises:
        PlanRefused: ONNX has no counterpart of an operation, or the plan is too large.
    """
    graph = Graph("rows/", opset)
    names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    for name, made in zip(outputs, emit(graph, model, names), strict=True):
        graph.add("Identity", made, output=name)
    inputs = []
    for name, parameter in zip(names, model.get_parameters(), strict=True):
        kind, sizes = parameter.get_element_type(), sizes_of(parameter.output(0))
        inputs.append(helper.make_tensor_value_info(name, _TYPES[kind], sizes))
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    if sum(len(tensor.raw_data) for tensor in graph.constants) > _LARGEST:
        raise PlanRefused("the plan is too large for one ONNX model")
    return helper.make_model(
        helper.make_graph(graph.nodes, "rows", inputs, results, graph.constants),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
    )


def can_be_fused(bundle: Bundle, opset: int) -> bool:
    """Whether a plan can be built on a bundle's head, by the files' size and the head's `opset`."""
    if sum(file.stat().st_size for file in bundle.folder.iterdir()) > _LARGEST:
        return False
    return opset >= LEAST_OPSET


def fused(
    bundle: Bundle, mask: Mask, memory: int, logits: str
) -> tuple[onnx.ModelProto, SparsePlan]:
    """Return the head with the sparse plan built on it (see `can_be_fused`).

    Its outputs are `logits` [N+1,classes], of the cells and, last, of the image, and `TOTAL`. Where
    the deployed model gives the image's logits, these come last, and `logits` is [N,classes].

    Raises:
        PlanRefused: ONNX has no counterpart of an operation.
    """
    manifest = bundle.manifest
    rows, plan = sparse_model(bundle, mask, memory, plain=not manifest.deployed_scores)
    model = load_again(bundle.head)
    graph = Graph("rows/", opset_of(model))
    feature = graph.add("Cast", manifest.head.outputs[0], to=TensorProto.FLOAT)
    (made,) = emit(graph, rows, [feature])
    graph.add("Identity", made, output=logits)
    graph.add("ReduceSum", feature, output=TOTAL, keepdims=0)
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants)
    own = list(model.graph.output)
    del model.graph.output[:]
    for name in (logits, TOTAL):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    if manifest.deployed_scores:
        model.graph.output.extend(each for each in own if each.name == manifest.head.outputs[-1])
    return model, plan


def plain(bundle: Bundle) -> tuple[onnx.ModelProto, str]:
    """Return a bundle's whole model to its logits alone, and their name."""
    manifest = bundle.manifest
    model, tail = load_again(bundle.head), load_again(bundle.tail)
    tail = onnx.compose.add_prefix(tail, "tail/", rename_inputs=False)
    model.graph.node.extend(tail.graph.node)
    model.graph.initializer.extend(tail.graph.initializer)
    del model.graph.output[:]
    model.graph.output.extend(tail.graph.output)
    return model, f"tail/{manifest.tail.outputs[0]}"
