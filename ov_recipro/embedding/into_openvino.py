"""Embedding into OpenVINO: one model with saliency outputs beside its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

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
from ov_recipro.embedding.detector_branch import detector_branch
from ov_recipro.embedding.pinning import copied, pinned
from ov_recipro.embedding.scoring import Scoring, scaled, scored_in_openvino, scoring_of
from ov_recipro.embedding.variant_scores import VariantScores, variant_scores
from ov_recipro.errors import ModelError, OptionError, ReciproError
from ov_recipro.images.preprocess import Preprocessing
from ov_recipro.options import Cut, Targets, cut_from
from ov_recipro.plans import sparse
from ov_recipro.plans.stream.stream_openvino import masked
from ov_recipro.runtimes.model_graphs import sparse_model, stream_plan, tail_at
from ov_recipro.runtimes.openvino_runtime import sparse_refusal
from ov_recipro.saliency import Score
from ov_recipro.sources.openvino_models import as_file, name_of, ports, read, reason
from ov_recipro.splitting.opening import opened

_FLOATS = (ov.Type.f32, ov.Type.f16)
_WORTH_SHARING = 4096  # bytes from which sharing a constant pays


def embed(
    model: str | Path | ov.Model,
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
) -> ov.Model:
    """Return a model with an added output `saliency_map`; its own outputs stay as they are.

    Args:
        model: an ONNX file, an OpenVINO .xml file, either on a hub (see `sources.references`), or
            an openvino.Model, which is not changed.
        layer: where to cut, or a whole `Cut`.
        classes: what to explain: "all" classes, a number k for the model's own top k, or a list of
            classes by index or name; of a detector not its top k.
        scaling: "uint8" for maps of 0..255 (OpenVINO Model API's convention), "float" for float32
            maps of 0..1 (Eq. 6 of the paper), or "raw" for the scores y_c themselves. A detector's
            maps show losses of scores (see `class_losses`), each class's from 0 to its largest.
        score: how logits become class scores; by default the model's own closing activation, else
            softmax.
        feature_vector: also give the feature map's spatial mean, `feature_vector` [B,C].
        batch_memory: bytes that the explaining part's activations may take.
        preprocessing, labels: see `ov_recipro.split`; only recorded.
        targets: what is asked besides `classes`: a class that all are contrasted with, or what an
            embedding is compared with, which makes one map.
        method: "recipro", or for classes one of its variants (see `ov_recipro.Explainer`).
        options: single fields of `Cut`, such as ``exact=True``.

    Returns:
        The model. `saliency_map` is [B,T,H,W] for T classes; with the top k there is also
        `saliency_classes` int64 [B,T]. The explaining part computes in float32 whatever precision
        the rest runs in. What the model says about its labels and preprocessing is completed
        under `model_info`, never changed.

    Raises:
        ReciproError: the model can't be cut there or does not allow the method, there are no such
            classes, or plan `rows` does not apply to a detector.
    """
    cut = cut_from(layer, options)
    with as_file(model) as path:
        if path.is_dir():
            raise OptionError(f"{path} is a bundle; embedding takes the model it was made from.")
        bundle = opened(path, cut)
        extended = model.clone() if isinstance(model, ov.Model) else read(path)
    bundle = described(bundle, preprocessing, labels)
    manifest = bundle.manifest
    scoring = scoring_of(bundle, score, targets)
    check_classes(classes, manifest)
    known = _tensors(extended)
    if cut.input_shape is not None:
        extended.reshape({known[manifest.image.name]: ov.PartialShape(list(cut.input_shape))})
    variant, boundary = None, _boundary(manifest)
    if method != "recipro":
        variant = variant_scores(bundle, method, scoring, batch_memory)
        boundary = variant.sources
    sources = [_find(known, name, path) for name in boundary]
    if isinstance(classes, int):
        sources.append(_find(known, manifest.output, path))
    branch, names = _branch(
        bundle, classes, scaling, scoring, feature_vector, batch_memory, variant
    )
    branch = pinned(branch)
    _share_weights(branch, extended)
    for result in _attached(branch, names, sources):
        extended.add_results([result])
    extended.validate_nodes_and_infer_types()
    _complete(extended, model_info(manifest, scoring.recorded, method))
    return extended


def save(model: ov.Model, path: Path, force: bool = False, compress_to_fp16: bool = False) -> None:
    """Write a model as an .xml file with its .bin beside it; both are whole or not there.

    Raises:
        ReciproError: the file exists and `force` is not set, or it can't be written.
    """
    if path.suffix != ".xml":
        raise OptionError(f"{path}: an OpenVINO model's file name must end in .xml.")
    check_new(path, force)
    try:
        with TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
            work = Path(folder) / path.name
            ov.save_model(model, work, compress_to_fp16=compress_to_fp16)
            work.with_suffix(".bin").replace(path.with_suffix(".bin"))
            work.replace(path)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise ReciproError(f"{path} can't be written: {why}.") from error


def _boundary(manifest: Manifest) -> tuple[str, ...]:
    """Return the deployed model's names of the tensors that the tail reads."""
    return manifest.head.outputs[: len(manifest.tail.inputs)]


def _tensors(model: ov.Model) -> dict[str, ov.Output]:
    found: dict[str, ov.Output] = {}
    for node, port in ports(model):
        if node.get_type_name() != "Result":
            found |= dict.fromkeys([*port.get_names(), name_of(port)], port)
    return found


def _find(known: Mapping[str, ov.Output], name: str, path: Path) -> ov.Output:
    if name in known:
        return known[name]
    half = known.get(name.removesuffix("/float32"))  # which is converted where it is read
    if half is not None and half.get_element_type() == ov.Type.f16:
        return half
    raise ModelError(f"{path}: the model, as OpenVINO reads it, has no tensor '{name}'.")


def _branch(
    bundle: Bundle,
    classes: Classes,
    scaling: Scaling,
    scoring: Scoring,
    feature_vector: bool,
    memory: int,
    variant: VariantScores | None,
) -> tuple[ov.Model, tuple[str, ...]]:
    """Return the explaining part of one image, and its outputs' names.

    Its inputs are the tensors that the tail reads and, for the top k classes, the model's scores;
    its outputs are `saliency_map` and whatever else was asked for.
    """
    manifest = bundle.manifest
    if scoring.candidates is not None:
        if feature_vector:
            raise OptionError("--feature-vector is for models that are cut at one feature map.")
        chosen = None if classes == "all" or isinstance(classes, int) else classes
        return detector_branch(bundle, scoring.candidates, chosen, scaling, memory)
    if variant is None:
        logits, parameters = _masked_logits(bundle, memory)
        scores = scored_in_openvino(logits, scoring)
        height, width = manifest.cut.grid
    else:
        scores = variant.model.get_results()[0].input_value(0).get_node()
        parameters = list(variant.model.get_parameters())
        height, width = variant.grid
    from_zero = variant is not None and variant.from_zero
    extra: dict[str, ov.Output] = {}
    if isinstance(classes, int):
        check_count(classes, manifest)
        model_scores = ops.parameter([1, manifest.classes], np.float32, name="scores")
        parameters.append(model_scores)
        best = ops.topk(model_scores, np.int64(classes), 1, "max", "value", "i64", True)
        index = ops.reshape(best.output(1), _shape(classes), False)
        scores = ops.gather(scores, index, np.int64(1))
        extra[SALIENCY_CLASSES] = best.output(1)
    elif classes != "all":
        scores = ops.gather(scores, indices_of(classes, manifest), np.int64(1))
    count = int(scores.output(0).shape[1])
    by_class = ops.transpose(scaled(scores, scaling, from_zero), np.array([1, 0]))
    maps = ops.reshape(by_class, _shape(1, count, height, width), False)
    if feature_vector:
        features, axes = parameters[0], np.array(SPATIAL_AXES[manifest.cut.layout])
        if manifest.cut.prefix:
            count = manifest.cut.prefix + manifest.cut.cells.count
            ends = [_shape(each) for each in (manifest.cut.prefix, count, 1, 1)]
            features = ops.slice(features, *ends)
        extra[FEATURE_VECTOR] = ops.reduce_mean(features, axes, False).output(0)
    named = {SALIENCY_MAP: maps.output(0)} | extra
    results = [ops.result(port) for port in named.values()]
    return ov.Model(results, parameters, "explaining"), tuple(named)


def _masked_logits(bundle: Bundle, memory: int) -> tuple[ov.Output, list[ov.Node]]:
    """Return the logits [N,classes] of all cells, and the parameters that they come from."""
    manifest = bundle.manifest
    reason = sparse.applies(manifest, "cell") or sparse_refusal(bundle, "cell", "CPU", memory)
    if reason is None:
        model, _ = sparse_model(bundle, "cell", memory, plain=False)
        return model.get_results()[0].input_value(0), list(model.get_parameters())
    plan = stream_plan(bundle, memory)
    tail = tail_at(bundle, plan.batch)
    parameters = [
        ops.parameter(list(shape), each.get_element_type(), name=each.get_friendly_name())
        for each, shape in zip(tail.get_parameters(), manifest.boundary_shapes, strict=True)
    ]
    batches: list[ov.Output] = []
    for cells in plan.batches():
        model = masked(tail.clone(), manifest, plan.batch, "cell")
        sources = [*parameters, ops.constant(cells)]
        for old, new in zip(model.get_parameters(), sources, strict=True):
            for reader in old.output(0).get_target_inputs():
                reader.replace_source_output(new.output(0))
        end = model.get_results()[0].input_value(0)
        batches.append(ops.reshape(end, _shape(plan.batch, manifest.values), False).output(0))
    port = batches[0] if len(batches) == 1 else ops.concat(batches, 0).output(0)
    if len(batches) * plan.batch > plan.cells:  # the last batch repeats a cell
        ends = [np.array([each]) for each in (0, plan.cells, 1, 0)]
        port = ops.slice(port, *ends).output(0)
    return port, parameters


def _share_weights(branch: ov.Model, model: ov.Model) -> None:
    """Make the branch's large constants from those that the model already holds.

    A file stores equal constants once; this makes them equal where the branch has transposed a
    matrix, or widened 16 bits.
    """
    held: dict[int, list[ov.Node]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() in _FLOATS:
            held.setdefault(node.data.size, []).append(node)
    for node in branch.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        values = np.asarray(node.data)
        if values.nbytes < _WORTH_SHARING:
            continue
        for other in held.get(values.size, []):
            theirs = np.asarray(other.data)
            transposed = values.ndim == 2 and theirs.shape == values.shape[::-1]
            same = np.asarray(theirs.T if transposed else theirs, np.float32).reshape(-1)
            if not np.array_equal(same, values.reshape(-1)):
                continue
            port = ops.constant(theirs).output(0)
            if theirs.dtype != np.float32:
                port = ops.convert(port, ov.Type.f32).output(0)
            for reader in list(node.output(0).get_target_inputs()):
                _read_shared(reader, port, transposed, values.shape)
            break


def _read_shared(
    reader: ov.Input, port: ov.Output, transposed: bool, shape: tuple[int, ...]
) -> None:
    """Let an operation read a constant of the same numbers, in another order or shape."""
    product = reader.get_node()
    if transposed and product.get_type_name() == "MatMul":  # a Transpose would cost it its mark
        side = "ab"[reader.get_index()]
        product.set_attribute(
            f"transpose_{side}", not product.get_attributes()[f"transpose_{side}"]
        )
        reader.replace_source_output(port)
        product.validate_and_infer_types()
        return
    if transposed:
        port = ops.transpose(port, np.array([1, 0])).output(0)
    if tuple(port.shape) != shape:
        port = ops.reshape(port, _shape(*shape), False).output(0)
    reader.replace_source_output(port)


def _attached(
    branch: ov.Model, names: Sequence[str], sources: Sequence[ov.Output]
) -> list[ov.Node]:
    """Make the branch read the sources; return its results, under these names.

    A model whose batch is not 1 runs it image by image.
    """
    inputs = []
    for parameter, source in zip(branch.get_parameters(), sources, strict=True):
        shape = list(parameter.output(0).shape)
        if source.get_element_type() != parameter.get_element_type():
            source = ops.convert(source, parameter.get_element_type()).output(0)
        if len(source.get_partial_shape()) != len(shape):
            source = ops.reshape(source, _shape(-1, *shape[1:]), False).output(0)
        inputs.append(source)
    results = branch.get_results()
    if any(port.get_partial_shape()[0] != 1 for port in inputs):
        loop = ops.tensor_iterator()
        loop.set_body(branch)
        for parameter, port in zip(branch.get_parameters(), inputs, strict=True):
            loop.set_sliced_input(parameter, _detached(port), 0, 1, 1, -1, 0)
        ends = [loop.get_concatenated_slices(r.output(0), 0, 1, 1, -1, 0) for r in results]
    else:
        for parameter, port in zip(branch.get_parameters(), inputs, strict=True):
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(port)
        ends = [result.input_value(0) for result in results]
    named = []
    for name, end in zip(names, ends, strict=True):
        end.get_tensor().set_names({name})
        result = ops.result(end)
        result.set_friendly_name(name)
        named.append(result)
    return named


def _detached(port: ov.Output) -> ov.Output:
    """Return a copy of a feature map, so that the precision of what computes it stays as it was.

    OpenVINO 2026.4's CPU plugin keeps all that lies between a model's results and the last
    convolutions or products before them in float32, and does not look for those inside a loop. The
    copy is a convolution, so the model's own operations still round as before.
    """
    sizes = port.get_partial_shape()
    if len(sizes) != 4 or sizes[1].is_dynamic or port.get_element_type() != ov.Type.f32:
        return port
    return copied(port)


def _complete(model: ov.Model, info: Mapping[str, str]) -> None:
    """Add to `model_info` what is not yet recorded there."""
    for key, value in info.items():
        if not model.has_rt_info(["model_info", key]):
            model.set_rt_info(value, ["model_info", key])


def _shape(*sizes: int) -> np.ndarray:
    return np.array(sizes, np.int64)
