"""Embedding into ONNX: the model's own graph, followed by the explaining part in standard ops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ov_recipro.cut.bundle import Bundle, Manifest
from ov_recipro.cut.recognition import FEATURE_VECTOR, SALIENCY_CLASSES, SALIENCY_MAP
from ov_recipro.embedding.common import (
    SPATIAL_AXES,
    Classes,
    Maps,
    Scaling,
    check_classes,
    check_count,
    check_new,
    described,
    indices_of,
    model_info,
)
from ov_recipro.embedding.onnx_cells import PREFIX, CellScores, of_variant, scored
from ov_recipro.embedding.scoring import count_of, scoring_of
from ov_recipro.embedding.variant_scores import variant_scores
from ov_recipro.errors import ModelError, OptionError
from ov_recipro.images.preprocess import Preprocessing
from ov_recipro.options import Cut, Targets, cut_from
from ov_recipro.output import write_whole
from ov_recipro.plans.onnx_graph import LEAST_OPSET, Graph, opset_of
from ov_recipro.saliency import Score
from ov_recipro.sources.onnx_file import load_again
from ov_recipro.sources.references import located
from ov_recipro.splitting.opening import opened

_TO_THE_END = 1 << 62
_LARGEST = 1 << 30  # bytes of weights; a model in memory has 2 GiB at most
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_WORTH_SHARING = 1024  # numbers from which sharing a constant pays


def embed_onnx(
    path: str | Path,
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
    method: Maps = "recipro",
    **options: Any,
) -> onnx.ModelProto:
    """Return an ONNX model with an added output `saliency_map`, for ONNX Runtime and Triton.

    Arguments, outputs and errors are those of `ov_recipro.embed`. The explaining part uses
    standard operations only: the sparse plan where it applies, else the tail on batches of
    masked maps in a Scan. Detectors are refused.
    """
    path = located(path)
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
    model = _loaded(path)
    opset = opset_of(model)
    if opset < LEAST_OPSET:
        raise ModelError(
            f"{path} has opset {opset}; embedding as ONNX needs {LEAST_OPSET} or later. "
            "onnx.version_converter can raise it."
        )
    scoring = scoring_of(bundle, score, targets)
    check_classes(classes, manifest)
    if method == "recipro":
        cells = scored(bundle, scoring, opset, batch_memory)
    else:
        cells = of_variant(variant_scores(bundle, method, scoring, batch_memory), opset)
    sources = list(cells.sources)
    if isinstance(classes, int):
        check_count(classes, manifest)
        sources.append(manifest.output)
    _complete(model, sources, bundle, path)
    count = count_of(manifest, scoring)
    branch = _Branch(manifest, model, cells, count, classes, scaling, feature_vector)
    graph, single = Graph(PREFIX, opset), _is_single(model, manifest)
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
    for key, value in model_info(manifest, scoring.recorded, method).items():
        if f"model_info {key}" not in recorded:
            model.metadata_props.add(key=f"model_info {key}", value=value)
    return model


def _loaded(path: Path) -> onnx.ModelProto:
    """Read a model that was already found to be valid."""
    try:
        if sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) > _LARGEST:
            raise ModelError(f"{path} is too large to be embedded as ONNX; embed it as OpenVINO.")
        return load_again(path)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error


@dataclass(frozen=True)
class _Branch:
    """The explaining part.

    Attributes:
        manifest: of the bundle; model: what is extended.
        cells: what each cell scores; count: the number of targets where all are explained.
        classes, scaling, feature_vector: see `embed`.
    """

    manifest: Manifest
    model: onnx.ModelProto
    cells: CellScores
    count: int
    classes: Classes
    scaling: Scaling
    feature_vector: bool

    def explain(self, graph: Graph, sources: list[str]) -> dict[str, str]:
        """Append what explains one image; return its tensors by output name."""
        manifest = self.manifest
        height, width = self.cells.grid
        scores = self.cells.append(graph, sources[: len(self.cells.sources)])
        _share_weights(graph, self.model)
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
        body = Graph(f"{PREFIX}image/", graph.opset)
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
            count = self.count
        else:
            count = len(indices_of(self.classes, manifest))
        maps = TensorProto.UINT8 if self.scaling == "uint8" else TensorProto.FLOAT
        known: dict[str, tuple[int, list[int | str]]] = {
            SALIENCY_MAP: (maps, [batch, count, *self.cells.grid]),
            SALIENCY_CLASSES: (TensorProto.INT64, [batch, count]),
            FEATURE_VECTOR: (TensorProto.FLOAT, [batch, manifest.cut.shape[0]]),
        }
        ordered = [name for name in known if name in outputs]
        return [helper.make_tensor_value_info(name, *known[name]) for name in ordered]

    def _scaled(self, graph: Graph, scores: str) -> str:
        """Append the scaling of scores [N,T] (Eq. 6)."""
        if self.scaling == "raw":
            return scores
        if self.cells.from_zero:
            scores, low = graph.add("Relu", scores), graph.constant(0, np.float32)
        else:
            low = graph.reduced("ReduceMin", scores, [0], keep=True)
        span = graph.add("Sub", graph.reduced("ReduceMax", scores, [0], keep=True), low)
        positive = graph.add("Greater", span, graph.constant(0, np.float32))
        safe = graph.add("Where", positive, span, graph.constant(1, np.float32))
        maps = graph.add("Div", graph.add("Sub", scores, low), safe)
        if self.scaling == "float":
            return maps
        levels = graph.add("Round", graph.add("Mul", maps, graph.constant(255, np.float32)))
        return graph.add("Cast", levels, to=TensorProto.UINT8)


def _complete(model: onnx.ModelProto, sources: Sequence[str], bundle: Bundle, path: Path) -> None:
    """Add the tensors that the bundle's head gives in float32 and the model in fewer bits.

    For each of them the head ends in one Cast or DequantizeLinear.
    """
    own = {name for node in model.graph.node for name in node.output}
    missing = set(sources) - own
    if not missing:
        return
    head = load_again(bundle.head).graph
    held = {tensor.name for tensor in model.graph.initializer}
    for node in head.node:
        if node.output[0] in missing and node.input[0] in own:
            model.graph.node.append(node)
            read = set(node.input) - held
            model.graph.initializer.extend(each for each in head.initializer if each.name in read)
            missing.remove(node.output[0])
    if missing:
        names = ", ".join(f"'{name}'" for name in sorted(missing))
        raise ModelError(f"{path} can't be embedded as ONNX: it does not contain {names}.")


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
