"""What each cell scores, appended to an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper

from ov_recipro.cut.bundle import Bundle
from ov_recipro.embedding.scoring import Scoring, scored_in_onnx
from ov_recipro.embedding.variant_scores import VariantScores
from ov_recipro.errors import OptionError
from ov_recipro.plans import sparse
from ov_recipro.plans.onnx_emission import emit
from ov_recipro.plans.onnx_graph import Graph
from ov_recipro.plans.stream.stream_onnx import add_mask
from ov_recipro.plans.stream.stream_plan import is_batched
from ov_recipro.plans.verdict import TOLERANCE, PlanRefused, verdict_file
from ov_recipro.runtimes.model_graphs import sparse_model, stream_plan
from ov_recipro.runtimes.onnx_models import as_onnx
from ov_recipro.runtimes.openvino_runtime import dense_runner
from ov_recipro.sources.onnx_file import load_again
from ov_recipro.sources.openvino_models import core, runner

PREFIX = "explain/"
"""What the names of all that is appended begin with."""

_Append: TypeAlias = Callable[[Graph, list[str]], str]
"""Appends numbers of all cells, from the tensors that they depend on; returns their name."""


@dataclass(frozen=True)
class CellScores:
    """What each cell scores.

    Attributes:
        append: appends the scores [N,T] of all cells.
        sources: the model's tensors that they depend on, the feature map of the cut first.
        grid: of the cells; from_zero: whether maps begin at 0 (see `saliency.begins_at_zero`).
    """

    append: _Append
    sources: tuple[str, ...]
    grid: tuple[int, int]
    from_zero: bool = False


def scored(bundle: Bundle, scoring: Scoring, opset: int, memory: int) -> CellScores:
    """Return what each cell scores alone."""
    manifest = bundle.manifest
    logits = _sparse(bundle, opset, memory) or _streamed(bundle, memory)

    def append(graph: Graph, sources: list[str]) -> str:
        flat = graph.add("Reshape", logits(graph, sources), graph.constant([-1, manifest.values]))
        ends = [graph.constant([place]) for place in (0, manifest.cut.cells.count, 0)]
        return scored_in_onnx(graph, graph.add("Slice", flat, *ends), scoring)

    sources = manifest.head.outputs[: len(manifest.tail.inputs)]
    return CellScores(append, sources, manifest.cut.grid)


def of_variant(variant: VariantScores, opset: int) -> CellScores:
    """Return what a variant gives each cell.

    Raises:
        OptionError: ONNX has no counterpart of an operation, or its numbers differ.
    """
    name = variant.model.get_friendly_name()
    try:
        _check_emitted(variant.model, opset)
    except PlanRefused as failure:
        raise OptionError(f"Method '{name}' can't be embedded as ONNX: {failure}.") from failure
    append = _emitted(variant.model)
    return CellScores(append, variant.sources, variant.grid, variant.from_zero)


def _check_emitted(model: ov.Model, opset: int) -> None:
    """Raise PlanRefused where a model's numbers are others in ONNX, for random feature maps."""
    random = np.random.default_rng(0)
    maps = [random.standard_normal(list(each.shape)).astype(np.float32) for each in model.inputs]
    proto = as_onnx(model, ["values"], opset).SerializeToString()
    found = runner(core().read_model(proto))(maps)[0]
    expected = runner(model.clone())(maps)[0]
    error, span = float(np.abs(found - expected).max()), float(np.ptp(expected))
    if not error <= TOLERANCE * max(span, float(np.finfo(np.float32).tiny)):
        raise PlanRefused(f"its numbers differ by {error:.1e}")


def _emitted(model: ov.Model) -> _Append:
    """Return what appends a model of one output, which reads feature maps as float32."""

    def append(graph: Graph, sources: list[str]) -> str:
        features = [graph.add("Cast", name, to=TensorProto.FLOAT) for name in sources]
        (end,) = emit(graph, model, features)
        return end

    return append


def _sparse(bundle: Bundle, opset: int, memory: int) -> _Append | None:
    """Return what appends the logits of all cells by the sparse plan, where it applies."""
    if sparse.applies(bundle.manifest, "cell") is not None:
        return None
    file = verdict_file(bundle.manifest, "cell, embedded in ONNX", "CPU", memory)
    if sparse.refusal(file, lambda: _error(bundle, opset, memory)) is not None:
        return None
    rows, _ = sparse_model(bundle, "cell", memory, plain=False)
    return _emitted(rows)


def _error(bundle: Bundle, opset: int, memory: int) -> float:
    """Compare the sparse plan, as ONNX, with the dense tail; return the error."""
    rows, plan = sparse_model(bundle, "cell", memory)
    proto = as_onnx(rows, ["logits"], opset)
    run = runner(core().read_model(proto.SerializeToString()))
    dense = dense_runner(bundle, "CPU", memory)
    return sparse.error(bundle.manifest, plan.name, lambda _: sparse.logits_of(run), dense)


def _streamed(bundle: Bundle, memory: int) -> _Append:
    """Return what appends a Scan of the tail over batches of cells."""
    manifest, plan = bundle.manifest, stream_plan(bundle, memory)
    part = onnx.compose.add_prefix(load_again(bundle.tail), f"{PREFIX}tail/")

    def logits(graph: Graph, sources: list[str]) -> str:
        graph.constants.extend(part.graph.initializer)
        end = part.graph.output[0].name
        body = Graph(f"{PREFIX}cells/", graph.opset)
        cells = f"{body.prefix}numbers"
        inputs = {}
        for index, (value, source) in enumerate(zip(part.graph.input, sources, strict=True)):
            kind, shape = value.type.tensor_type.elem_type, manifest.boundary_shapes[index]
            inputs[value.name] = feature = graph.add("Cast", source, to=kind)
            if index == 0:
                masked = f"{body.prefix}masked"
                add_mask(body, feature, kind, masked, manifest, "cell", shape, cells)
                inputs[value.name] = masked
            elif is_batched(shape):
                size = body.constant([plan.batch, *shape[1:]])
                inputs[value.name] = body.add("Expand", feature, size)
        body.nodes.extend(_reading(part, inputs))
        scan = helper.make_graph(
            body.nodes,
            "cells",
            [helper.make_tensor_value_info(cells, TensorProto.INT64, [plan.batch])],
            [helper.make_empty_tensor_value_info(end)],
            body.constants,
        )
        numbers = graph.constant(np.stack(list(plan.batches())))
        made = f"{graph.prefix}masked logits"
        graph.nodes.append(
            helper.make_node("Scan", [numbers], [made], body=scan, num_scan_inputs=1)
        )
        return made

    return logits


def _reading(part: onnx.ModelProto, sources: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Return the part's nodes, reading `sources` in place of its inputs."""
    nodes = []
    for node in part.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [sources.get(name, name) for name in node.input]
        nodes.append(copy)
    return nodes
