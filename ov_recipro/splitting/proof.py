"""The proof of a split: head and tail, run one after the other, equal the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ov_recipro.cut.bundle import ModelFile
from ov_recipro.cut.graph import Graph
from ov_recipro.errors import ModelError, ReciproError
from ov_recipro.saliency import Array, close_scores
from ov_recipro.sources import openvino_models as openvino
from ov_recipro.sources.source import Source, SplitFiles

TOLERANCE = 1e-4
"""Largest error, as a fraction of the largest score: float32 rounding in another order."""

_LEAST_SCALE = 1e-2  # of a kind of number that is close to 0 everywhere

LEAST_AGREEMENT = 0.5
"""Least correlation of a deployed model's scores with those of its float32 tail."""


@dataclass(frozen=True)
class Proof:
    """What running the head and the tail showed.

    Attributes:
        parity: max |tail(head(x)) - model(x)| over the inputs, before a closing activation (behind
            a saturated Softmax, rounding can look like an error, and an error like rounding). For
            a model in 8 or 16 bits this is about its float32 form, of which the tail is a part.
        deviation: for such a model, max |tail(head(x)) - deployed logits|: what its low precision
            costs; None for any other.
        any_batch: whether the tail, given two feature maps at once, scores them as it does one by
            one.
        values: the numbers that the tail gives for the first input, in a row.
    """

    parity: float
    deviation: float | None
    any_batch: bool
    values: Array


def prove(source: Source, files: SplitFiles, folder: Path) -> Proof:
    """Run the model, and the head and tail in `folder`, on two random images.

    A model in pieces (see `SplitFiles.reference`) is run piece by piece, each released before the
    next.

    Raises:
        ModelError: they differ from the model by more than rounding.
    """
    graph = source.graph
    images = random_images(source.image_shape, source.image_dtype)
    boundary = files.tail.inputs
    head = None
    if len(files.reference) < 2 or files.low_precision:
        run = _runner(folder / files.head.file, [source.image_shape], files.head.outputs)
        head = [run([image]) for image in images]
    if files.reference:
        widened = [image.astype(np.float32) for image in images] if files.low_precision else images
        values = _run_in_a_row(source, [(folder / p.file, p) for p in files.reference], widened)
    else:
        ends = graph.joined or (graph.scores, graph.output)
        model = ModelFile(source.path.name, (graph.image,), ends)
        values = _run_in_a_row(source, [(source.path, model)], images)
        if graph.joined:
            for each in values:
                each[graph.scores] = np.concatenate([each[name].ravel() for name in ends])[None]
    if head is None or files.low_precision:
        features = [[each[name] for name in boundary] for each in values]
    else:
        features = head

    tail = _runner(
        folder / files.tail.file, [graph.shapes[name] for name in boundary], files.tail.outputs
    )
    got = [tail(feature)[0].reshape(-1) for feature in features]
    parity = _check_parity(source, got, values)
    deviation = None
    if files.low_precision and head is not None:
        ours = [tail(each[:-1])[0].reshape(-1) for each in head]
        deviation = _check_deviation(source, ours, [each[-1].reshape(-1) for each in head])
    any_batch = _takes_batches(folder / files.tail.file, files.tail.outputs, features, got)
    return Proof(parity, deviation, any_batch, got[0])


def _run_in_a_row(
    source: Source, models: Sequence[tuple[Path, ModelFile]], images: Sequence[Array]
) -> list[dict[str, Array]]:
    """Run models one after the other on each image; return all tensors between them by name."""
    values: list[dict[str, Array]] = [{source.graph.image: image} for image in images]
    for path, part in models:
        shapes = [source.graph.shapes[name] for name in part.inputs]
        run = _runner(path, shapes, part.outputs)
        for each in values:
            results = run([each[name] for name in part.inputs])
            each.update(zip(part.outputs, results, strict=True))
        del run
    return values


def _check_parity(
    source: Source, got: Sequence[Array], values: Sequence[dict[str, Array]]
) -> float:
    """Compare the tail's logits with the model's, and these, activated, with its output."""
    graph = source.graph
    logits = [np.ravel(each[graph.scores]) for each in values]
    if not all(each.size for each in logits):
        raise ModelError(f"{source.path} gives no numbers for a random image.")
    if graph.task == "detector":
        return _check_candidates(source, got, logits)
    output = [np.ravel(each[graph.output]) for each in values]
    if not all(np.isfinite(each).all() for each in (*logits, *output)):
        raise ModelError(f"{source.path} gives NaN or infinite numbers for a random image.")
    parity, largest = _largest_error(got, logits)
    if not parity <= TOLERANCE * largest:
        raise ModelError(
            f"{source.path}: head and tail differ from the model by {parity:.3g} where its largest "
            f"score is {largest:.3g}. That is more than rounding; nothing was written."
        )
    closed = [_closed(graph, each[graph.scores]) for each in values]
    if graph.task != "classifier" and closed[0].size != output[0].size:
        return parity  # the output is enlarged, or a choice of classes
    error, largest = _largest_error(closed, output)
    if not error <= TOLERANCE * largest:
        raise ModelError(
            f"{source.path}: output '{graph.output}' is not the {graph.activation} of "
            f"'{graph.scores}': they differ by {error:.3g}."
        )
    return parity


def _check_candidates(source: Source, got: Sequence[Array], expected: Sequence[Array]) -> float:
    """Compare a detector's candidates with the model's, each kind of number by itself.

    A box's edges are hundreds of pixels; beside them an error of a score, of 1 at most, would pass.
    """
    if not all(np.isfinite(each).all() for each in expected):
        raise ModelError(f"{source.path} gives NaN or infinite numbers for a random image.")
    parity, largest = _largest_error(got, expected)
    if parity == np.inf:
        raise ModelError(
            f"{source.path}: head and tail give a different number of boxes from the model."
        )
    least = _LEAST_SCALE * min(1.0, largest)
    for ours, theirs in zip(got, expected, strict=True):
        kinds = zip(_by_kind(source.graph, ours), _by_kind(source.graph, theirs), strict=True)
        for mine, other in kinds:
            scales = np.maximum(np.abs(other).max(axis=1), least)
            share = float((np.abs(np.float64(mine) - other).max(axis=1) / scales).max())
            if not share <= TOLERANCE:
                raise ModelError(
                    f"{source.path}: the boxes or scores of head and tail differ from the model's "
                    f"by {share:.3g} of their largest value. That is more than rounding; nothing "
                    "was written."
                )
    return parity


def _by_kind(graph: Graph, values: Array) -> list[Array]:
    """Return candidates' numbers in a row as arrays [kinds,n], one for each tensor that they fill.

    Numbers along a tensor's longest axis, or over its height and width, are of one kind.
    """
    found, start = [], 0
    for name in graph.joined or (graph.scores,):
        shape = graph.shapes[name]
        part = values[start : start + math.prod(shape)].reshape(shape)
        start += part.size
        if part.ndim == 4:
            found.append(part.reshape(-1, part.shape[2] * part.shape[3]))
        else:
            last = np.moveaxis(part, int(np.argmax(shape)), -1)
            found.append(last.reshape(-1, last.shape[-1]))
    return found


def _closed(graph: Graph, scores: Array) -> Array:
    """Apply the closing activation over the classes; return all numbers in a row."""
    if graph.task == "classifier":
        return close_scores(np.ravel(scores), graph.activation)
    last = np.moveaxis(scores, graph.class_axis, -1)
    return np.ravel(np.moveaxis(close_scores(last, graph.activation), -1, graph.class_axis))


def _check_deviation(source: Source, ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """Compare the float32 tail's logits with the deployed model's in 8 or 16 bits."""
    agreement = float(np.corrcoef(np.concatenate(ours), np.concatenate(theirs))[0, 1])
    if not agreement >= LEAST_AGREEMENT:
        raise ModelError(
            f"{source.path}: at this cut the float32 tail and the deployed model disagree "
            f"(correlation of their scores {agreement:.2f}); nothing was written."
        )
    return _largest_error(ours, theirs)[0]


def _largest_error(got: Sequence[Array], expected: Sequence[Array]) -> tuple[float, float]:
    """Return max |got - expected| and max |expected|; infinite error where sizes differ."""
    pairs = list(zip(got, expected, strict=True))
    largest = max(float(np.abs(e).max()) for e in expected)
    if any(g.shape != e.shape for g, e in pairs):
        return float("inf"), largest
    return max(float(np.abs(np.float64(g) - np.float64(e)).max()) for g, e in pairs), largest


def random_images(shape: Sequence[int], dtype: str) -> list[Array]:
    """Return two inputs of this shape, the same each time."""
    random = np.random.default_rng(0)
    if np.issubdtype(np.dtype(dtype), np.integer):
        return [random.integers(0, 256, shape).astype(dtype) for _ in range(2)]
    return [random.standard_normal(shape).astype(dtype) for _ in range(2)]


def _runner(path: Path, shapes: Sequence[Sequence[int]], outputs: Sequence[str]) -> openvino.Runner:
    return openvino.runner(openvino.keep_outputs(openvino.read(path, shapes), outputs))


def _takes_batches(
    tail: Path, outputs: Sequence[str], features: list[list[Array]], logits: list[Array]
) -> bool:
    """Whether the tail scores two feature maps at once as it scores them one by one."""
    pair = [
        np.concatenate(each) if each[0].shape[:1] == (1,) else each[0]
        for each in zip(*features, strict=True)
    ]
    model = openvino.keep_outputs(openvino.read(tail), outputs)  # that may fail for other reasons
    try:
        model.reshape({i: list(each.shape) for i, each in enumerate(pair)})
        both = openvino.runner(model)(pair)[0]
    except (ReciproError, RuntimeError):
        return False  # OpenVINO finds the batch frozen into the graph
    if both.size != 2 * logits[0].size:
        return False
    singly = np.stack(logits)
    error = np.abs(both.reshape(singly.shape) - singly).max()
    return bool(error <= TOLERANCE * np.abs(singly).max())
