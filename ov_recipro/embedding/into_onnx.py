"""Embedding into ONNX: the model's own graph, followed by the explaining part in standard ops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ov_recipro.cut.bundle import Bundle, Manifest
from ov_recipro.cut.recognition import FEATURE_VECTOR, SALIENCY_CLASSES, SALIENCY_MAP
from ov_recipro.embedding.common import (
    SPATIAL_AXES,
    Classes,
    Scaling,
    check_classes,
    check_count,
    check_new,
    described,
    indices_of,
    model_info,
)
from ov_recipro.embedding.scoring import Scoring, count_of, scored_in_onnx, scoring_of
from ov_recipro.errors import ModelError, OptionError
from ov_recipro.images.preprocess import Preprocessing
from ov_recipro.options import Cut, Targets, cut_from
from ov_recipro.output import write_whole
from ov_recipro.plans import sparse
from ov_recipro.plans.onnx_emission import emit
from ov_recipro.plans.onnx_graph import LEAST_OPSET, Graph, opset_of
from ov_recipro.plans.stream.stream_onnx import add_mask
from ov_recipro.plans.stream.stream_plan import is_batched
from ov_recipro.plans.verdict import verdict_file
from ov_recipro.runtimes.model_graphs import sparse_model, stream_plan
from ov_recipro.runtimes.onnx_models import as_onnx
from ov_recipro.runtimes.openvino_runtime import dense_runner
from ov_recipro.saliency import Score
from ov_recipro.sources.openvino_models import core, runner
from ov_recipro.splitting.opening import opened

_PREFIX = "explain/"
_TO_THE_END = 1 << 62
_LARGEST = 1 << 30  # bytes of weights; a model in memory has 2 GiB at most
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_WORTH_SHARING = 1024  # numbers from which sharing a constant pays

_Logits: TypeAlias = Callable[[Graph, list[str]], str]
"""Appends the logits of all cells, from the tensors that the tail reads; returns their name."""


def embed_onnx(
    path: Path,
    *,
    layer: str | Cut = "auto",
    classes: Classes = "all",
    scaling: Scaling = "uint8",
    score: Score | None = None,
    feature_vector: bool = False,
    batch_memory: int = 256 << 20,
    preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None = None,
    labels: Sequence[str] | None = None,
    targets: Targets = Targets(),
    **options: Any,
) -> onnx.ModelProto:
    """Return an ONNX model with an added output `saliency_map`, for ONNX Runtime and Triton.

    Arguments, outputs and errors are those of `ov_recipro.embed`. The explaining part uses
    standard operations only: the sparse plan where it applies, else the tail on batches of
    masked maps in a Scan. Detectors are refused.
    """
    if path.suffix != ".onnx":
        raise OptionError(f"{path} is not an ONNX model, which embedding as ONNX needs.")
    cut = cut_from(layer, options)
    bundle = opened(path, cut)
    bundle = described(bundle, preprocessing, labels)
    manifest = bundle.manifest
    if manifest.task == "detector":
        raise OptionError(
            "A detector's maps can be embedded as OpenVINO only: name an .xml file for the output."
        )
    if sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) > _LARGEST:
        raise ModelError(f"{path} is too large to be embedded as ONNX; embed it as OpenVINO.")
    model = onnx.load(path)
    opset = opset_of(model)
    if opset < LEAST_OPSET:
        raise ModelError(
            f"{path} has opset {opset}; embedding as ONNX needs {LEAST_OPSET} or later. "
            "onnx.version_converter can raise it."
        )
    sources = list(manifest.head.outputs[: len(manifest.tail.inputs)])
    if isinstance(classes, int):
        check_count(classes, manifest)
        sources.append(manifest.output)
    _complete(model, sources, bundle)
    scoring = scoring_of(bundle, score, targets)
    check_classes(classes, manifest)
    logits = _sparse(bundle, opset, batch_memory) or _streamed(bundle, batch_memory)
    branch = _Branch(manifest, model, logits, classes, scaling, scoring, feature_vector)
    graph, single = Graph(_PREFIX, opset), _is_single(model, manifest)
    if single:
        outputs = branch.explain(graph, sources)
        for name, port in outputs.items():
            graph.add("Identity", port, output=name)
    else:
        outputs = branch.explain_each(graph, sources)
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants)
    model.graph.output.extend(branch.declared(outputs, 1 if single else "batch"))
    recorded = {entry.key for entry in model.metadata_props}
    for key, value in model_info(manifest, scoring.recorded).items():
        if f"model_info {key}" not in recorded:
            model.metadata_props.add(key=f"model_info {key}", value=value)
    return model


@dataclass(frozen=True)
class _Branch:
    """The explaining part.

    Attributes:
        manifest: of the bundle; model: what is extended.
        logits: appends the logits of all cells.
        classes, scaling, feature_vector: see `embed`; scoring: how outputs become scores.
    """

    manifest: Manifest
    model: onnx.ModelProto
    logits: _Logits
    classes: Classes
    scaling: Scaling
    scoring: Scoring
    feature_vector: bool

    def explain(self, graph: Graph, sources: list[str]) -> dict[str, str]:
        """Append what explains one image; return its tensors by output name."""
        manifest = self.manifest
        height, width = manifest.cut.grid
        count = len(manifest.tail.inputs)
        end = self.logits(graph, sources[:count])
        _share_weights(graph, self.model)
        flat = graph.add("Reshape", end, graph.constant([-1, manifest.values]))
        ends = [graph.constant([place]) for place in (0, manifest.cut.cells.count, 0)]
        scores = scored_in_onnx(graph, graph.add("Slice", flat, *ends), self.scoring)
        tensors = {}
        if isinstance(self.classes, int):
            flat = graph.add("Reshape", sources[-1], graph.constant([1, -1]))
            values, best = f"{graph.prefix}values", f"{graph.prefix}best"
            k = graph.constant([self.classes])
            graph.nodes.append(helper.make_node("TopK", [flat, k], [values, best], axis=1))
            tensors[SALIENCY_CLASSES] = best
            index = graph.add("Reshape", best, graph.constant([-1]))
            scores = graph.add("Gather", scores, index, axis=1)
        elif self.classes != "all":
            index = graph.constant(indices_of(self.classes, manifest))
            scores = graph.add("Gather", scores, index, axis=1)
        by_class = graph.add("Transpose", self._scaled(graph, scores), perm=[1, 0])
        shape = graph.constant([1, -1, height, width])
        tensors[SALIENCY_MAP] = graph.add("Reshape", by_class, shape)
        if self.feature_vector:
            source = graph.add("Cast", sources[0], to=TensorProto.FLOAT)
            axes = SPATIAL_AXES[manifest.cut.layout]
            if manifest.cut.prefix:
                ends = [graph.constant([n]) for n in (manifest.cut.prefix, _TO_THE_END, 1)]
                source = graph.add("Slice", source, *ends)
            tensors[FEATURE_VECTOR] = graph.reduced("ReduceMean", source, axes, keep=False)
        return tensors

    def explain_each(self, graph: Graph, sources: list[str]) -> dict[str, str]:
        """Append a Scan that explains a batch image by image."""
        body = Graph(f"{_PREFIX}image/", graph.opset)
        inputs, images = [], []
        for index in range(len(sources)):
            slice_ = f"{body.prefix}slice:{index}"
            inputs.append(helper.make_empty_tensor_value_info(slice_))
            size = body.add("Concat", body.constant([1]), body.add("Shape", slice_), axis=0)
            images.append(body.add("Reshape", slice_, size))
        made = self.explain(body, images)
        outputs = []
        for name, port in made.items():
            inner = body.add("Squeeze", port, body.constant([0]), output=f"{body.prefix}{name}")
            outputs.append(helper.make_empty_tensor_value_info(inner))
        scan = helper.make_graph(body.nodes, "image", inputs, outputs, body.constants)
        graph.nodes.append(
            helper.make_node("Scan", sources, list(made), body=scan, num_scan_inputs=len(sources))
        )
        return made

    def declared(self, outputs: dict[str, str], batch: int | str) -> list[onnx.ValueInfoProto]:
        """Return the outputs' names, types and shapes."""
        manifest = self.manifest
        if isinstance(self.classes, int):
            count = self.classes
        elif self.classes == "all":
            count = count_of(manifest, self.scoring)
        else:
            count = len(indices_of(self.classes, manifest))
        maps = TensorProto.UINT8 if self.scaling == "uint8" else TensorProto.FLOAT
        known: dict[str, tuple[int, list[int | str]]] = {
            SALIENCY_MAP: (maps, [batch, count, *manifest.cut.grid]),
            SALIENCY_CLASSES: (TensorProto.INT64, [batch, count]),
            FEATURE_VECTOR: (TensorProto.FLOAT, [batch, manifest.cut.shape[0]]),
        }
        ordered = [name for name in known if name in outputs]
        return [helper.make_tensor_value_info(name, *known[name]) for name in ordered]

    def _scaled(self, graph: Graph, scores: str) -> str:
        """Append the scaling of scores [N,T] (Eq. 6)."""
        if self.scaling == "raw":
            return scores
        low = graph.reduced("ReduceMin", scores, [0], keep=True)
        span = graph.add("Sub", graph.reduced("ReduceMax", scores, [0], keep=True), low)
        positive = graph.add("Greater", span, graph.constant(0, np.float32))
        safe = graph.add("Where", positive, span, graph.constant(1, np.float32))
        maps = graph.add("Div", graph.add("Sub", scores, low), safe)
        if self.scaling == "float":
            return maps
        levels = graph.add("Round", graph.add("Mul", maps, graph.constant(255, np.float32)))
        return graph.add("Cast", levels, to=TensorProto.UINT8)


def _sparse(bundle: Bundle, opset: int, memory: int) -> _Logits | None:
    """Return what appends the sparse plan, where it applies."""
    if sparse.applies(bundle.manifest, "cell") is not None:
        return None
    file = verdict_file(bundle.manifest, "cell, embedded in ONNX", "CPU", memory)
    if sparse.refusal(file, lambda: _error(bundle, opset, memory)) is not None:
        return None
    rows, _ = sparse_model(bundle, "cell", memory, plain=False)

    def logits(graph: Graph, sources: list[str]) -> str:
        features = [graph.add("Cast", name, to=TensorProto.FLOAT) for name in sources]
        (end,) = emit(graph, rows, features)
        return end

    return logits


def _error(bundle: Bundle, opset: int, memory: int) -> float:
    """Compare the sparse plan, as ONNX, with the dense tail; return the error."""
    rows, plan = sparse_model(bundle, "cell", memory)
    proto = as_onnx(rows, ["logits"], opset)
    run = runner(core().read_model(proto.SerializeToString()))
    dense = dense_runner(bundle, "CPU", memory)
    return sparse.error(bundle.manifest, plan.name, lambda _: sparse.logits_of(run), dense)


def _streamed(bundle: Bundle, memory: int) -> _Logits:
    """Return what appends a Scan of the tail over batches of cells."""
    manifest, plan = bundle.manifest, stream_plan(bundle, memory)
    part = onnx.compose.add_prefix(onnx.load(bundle.tail), f"{_PREFIX}tail/")

    def logits(graph: Graph, sources: list[str]) -> str:
        graph.constants.extend(part.graph.initializer)
        end = part.graph.output[0].name
        body = Graph(f"{_PREFIX}cells/", graph.opset)
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


def _complete(model: onnx.ModelProto, sources: Sequence[str], bundle: Bundle) -> None:
    """Add the tensors that the bundle's head gives in float32 and the model in fewer bits."""
    own = {name for node in model.graph.node for name in node.output}
    missing = set(sources) - own
    if not missing:
        return
    head = onnx.load(bundle.head).graph
    held = {tensor.name for tensor in model.graph.initializer}
    for node in head.node:
        if node.output[0] in missing and node.input[0] in own:
            model.graph.node.append(node)
            read = set(node.input) - held
            model.graph.initializer.extend(each for each in head.initializer if each.name in read)
            missing.remove(node.output[0])
    if missing:
        names = ", ".join(sorted(missing))
        raise ModelError(f"The model can't be embedded as ONNX: it has no tensor '{names}' itself.")


def _share_weights(graph: Graph, model: onnx.ModelProto) -> None:
    """Make the graph's large constants from the model's own where these hold the same numbers."""
    wanted = {int(np.prod(tensor.dims)) for tensor in graph.constants}
    held: dict[bytes, tuple[onnx.TensorProto, bool]] = {}
    for tensor in model.graph.initializer:
        size = int(np.prod(tensor.dims))
        if size not in wanted or size < _WORTH_SHARING or tensor.data_type not in _FLOATS:
            continue
        values = np.asarray(numpy_helper.to_array(tensor), np.float32)
        held[_digest(values)] = tensor, False
        if values.ndim == 2:
            held.setdefault(_digest(values.T), (tensor, True))
    made, kept = Graph(f"{graph.prefix}shared/", graph.opset), []
    for tensor in graph.constants:
        if tensor.data_type not in _FLOATS or int(np.prod(tensor.dims)) < _WORTH_SHARING:
            kept.append(tensor)
            continue
        values = np.asarray(numpy_helper.to_array(tensor), np.float32)
        if (found := held.get(_digest(values))) is None:
            kept.append(tensor)
            continue
        theirs, transposed = found
        name = theirs.name
        if transposed:
            name = made.add("Transpose", name, perm=[1, 0])
        if theirs.data_type != tensor.data_type:
            name = made.add("Cast", name, to=tensor.data_type)
        made.add("Reshape", name, made.constant(list(tensor.dims)), output=tensor.name)
    graph.nodes[:0] = made.nodes
    graph.constants[:] = [*kept, *made.constants]


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()


def _reading(part: onnx.ModelProto, sources: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Return the part's nodes, reading `sources` in place of its inputs."""
    nodes = []
    for node in part.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [sources.get(name, name) for name in node.input]
        nodes.append(copy)
    return nodes


def _is_single(model: onnx.ModelProto, manifest: Manifest) -> bool:
    """Whether the model takes one image at a time."""
    (image,) = [value for value in model.graph.input if value.name == manifest.image.name]
    first = image.type.tensor_type.shape.dim[0]
    return bool(first.HasField("dim_value") and first.dim_value == 1)


def save_onnx(model: onnx.ModelProto, path: Path, force: bool = False) -> None:
    """Write an ONNX model; the file is whole or not there.

    Raises:
        ReciproError: the file exists and `force` is not set, or it can't be written.
    """
    check_new(path, force)
    write_whole(path, model.SerializeToString())
