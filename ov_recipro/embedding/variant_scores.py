"""The variants' values as graphs, from feature maps to all classes and cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from ov_recipro.cut.bundle import Bundle
from ov_recipro.embedding.scoring import Scoring, scored_in_openvino
from ov_recipro.errors import OptionError
from ov_recipro.plans import sparse
from ov_recipro.runtimes.model_graphs import sparse_model
from ov_recipro.runtimes.openvino_runtime import sparse_refusal
from ov_recipro.runtimes.pair_graph import find_earlier, looks
from ov_recipro.runtimes.pair_runtime import pair_refusal
from ov_recipro.runtimes.pooled_tail import empty_logits
from ov_recipro.saliency import Score, begins_at_zero
from ov_recipro.variants import Variant
from ov_recipro.variants.aumann import POINTS

_DEVICE = "CPU"  # on which plans are checked


@dataclass(frozen=True)
class VariantScores:
    """What a variant gives each cell.

    Attributes:
        model: from feature maps to values [N,classes].
        sources: the deployed model's names of these feature maps, the one of the cut first.
        grid: of the cells.
        from_zero: whether maps begin at 0 (see `saliency.begins_at_zero`).
    """

    model: ov.Model
    sources: tuple[str, ...]
    grid: tuple[int, int]
    from_zero: bool


def variant_scores(bundle: Bundle, method: Variant, scoring: Scoring, memory: int) -> VariantScores:
    """Return a variant's values as a graph.

    Args:
        bundle: what `split` made.
        method: the variant; scoring: how logits become scores.
        memory: bytes that activations may take.

    Raises:
        OptionError: the model does not allow the variant, or something else than classes is asked.
    """
    if (
        scoring.against is not None
        or scoring.reference is not None
        or (scoring.candidates is not None)
    ):
        raise OptionError(f"Method '{method}' explains only classes.")
    if method == "recipro-pair":
        return _pair(bundle, scoring, memory)
    return _aumann(bundle, scoring, memory)


def _aumann(bundle: Bundle, scoring: Scoring, memory: int) -> VariantScores:
    """Return `variants.aumann.aumann` as a graph."""
    empty = empty_logits(bundle)[None]
    refusal = sparse.applies(bundle.manifest, "cell")
    refusal = refusal or sparse_refusal(bundle, "cell", _DEVICE, memory)
    if refusal is not None:
        raise OptionError(f"Method 'recipro-aumann' can't be embedded: {refusal}.")
    model, _ = sparse_model(bundle, "cell", memory, plain=False)
    alone = ops.subtract(model.get_results()[0].input_value(0), empty).output(0)
    times = ((np.arange(POINTS, dtype=np.float32) + 0.5) / POINTS)[:, None]
    total = ops.reduce_sum(alone, np.array([0]), True)
    path = ops.add(ops.multiply(total, times), empty).output(0)
    scores = scored_in_openvino(path, scoring)
    shares: ov.Node = alone.get_node()
    if scoring.score == "sigmoid":
        slopes = ops.multiply(scores, _sigmoid(path.get_node()))
        shares = ops.multiply(alone, ops.reduce_mean(slopes, np.array([0]), True))
    elif scoring.score == "softmax":
        own = ops.multiply(alone, ops.reduce_mean(scores, np.array([0]), True))
        others = ops.matmul(ops.matmul(alone, scores, False, True), scores, False, False)
        shares = ops.subtract(own, ops.multiply(others, np.float32(1 / POINTS)))
    made = ov.Model([ops.result(shares)], model.get_parameters(), "recipro-aumann")
    sources = bundle.manifest.head.outputs[:1]
    from_zero = begins_at_zero("recipro-aumann", "cell")
    return VariantScores(made, sources, bundle.manifest.cut.grid, from_zero)


def _pair(bundle: Bundle, scoring: Scoring, memory: int) -> VariantScores:
    """Return `variants.pair.pair` as a graph."""
    manifest = bundle.manifest
    found = find_earlier(bundle)
    refusal = pair_refusal(bundle, found.earlier, _DEVICE, memory)
    if refusal is not None:
        raise OptionError(f"Method 'recipro-pair' can't be embedded: {refusal}.")
    earlier, later = (
        ops.parameter(list(shape), np.float32, name=name)
        for name, shape in (
            ("earlier", found.earlier.shape),
            ("later", manifest.boundary_shapes[0]),
        )
    )
    kept, dropped, _ = looks(bundle, found, earlier.output(0), later.output(0), memory)
    together = ops.concat([kept, found.earlier.empty()[None]], 0).output(0)
    gained = _above_last(together, scoring.score)
    lost = ops.negative(_above_last(dropped, scoring.score))
    grids = found.earlier.shape[2], found.earlier.shape[3]
    sides = manifest.cut.grid
    grid = max(grids[0], sides[0]), max(grids[1], sides[1])
    both = ops.add(
        _enlarged(ops.sqrt(_above_zero(gained)), grids, grid),
        _enlarged(_above_zero(lost), sides, grid),
    )
    made = ov.Model([ops.result(both)], [later, earlier], "recipro-pair")
    sources = manifest.head.outputs[0], found.earlier.name
    return VariantScores(made, sources, grid, begins_at_zero("recipro-pair", "cell"))


def _above_last(logits: ov.Output, score: Score) -> ov.Node:
    """Return how far the scores of the first rows of logits [N+1,classes] exceed the last one's.

    Scores close to 1 differ by less than float32 holds. So their distances q to 1 are computed
    too, and the difference p - p' as p q' - p' q, which is 0 for equal logits.
    """
    count = int(logits.shape[0]) - 1

    def parts(values: ov.Node) -> tuple[ov.Node, ov.Node]:
        first, last = (
            ops.slice(values, *(np.array([each]) for each in (begin, end, 1, 0)))
            for begin, end in ((0, count), (count, count + 1))
        )
        return first, last

    if score == "none":
        return ops.subtract(*parts(logits.get_node()))
    if score == "sigmoid":
        near, far = _sigmoid(ops.negative(logits)), _sigmoid(logits.get_node())
    else:
        near, far = _softmax_and_rest(logits)
    (own, other), (own_rest, other_rest) = parts(near), parts(far)
    return ops.subtract(ops.multiply(own, other_rest), ops.multiply(other, own_rest))


def _sigmoid(negative: ov.Node) -> ov.Node:
    """Return the sigmoid of a tensor's negative; ONNX Runtime's own is inexact from 18 on."""
    one = np.float32(1)
    return ops.divide(one, ops.add(one, ops.exp(negative)))


def _softmax_and_rest(logits: ov.Output) -> tuple[ov.Node, ov.Node]:
    """Return the softmax of logits [N,classes], and what each class leaves to all others."""
    over, one = np.array([1]), np.float32(1)
    below = ops.subtract(logits, ops.reduce_max(logits, over, True))
    powers = ops.exp(below)
    best = ops.relu(ops.add(ops.multiply(below, np.float32(1e30)), one))  # 1 for the best, else 0
    lesser = ops.multiply(powers, ops.subtract(one, best))
    others = ops.subtract(ops.reduce_sum(best, over, True), best)  # that are as good, exactly
    rest = ops.add(others, ops.subtract(ops.reduce_sum(lesser, over, True), lesser))
    total = ops.add(powers, rest)
    return ops.divide(powers, total), ops.divide(rest, total)


def _above_zero(values: ov.Node) -> ov.Node:
    """Return each class's values [N,classes] above 0 by their maximum; 0 where there are none."""
    above = ops.relu(values)
    highest = ops.reduce_max(above, np.array([0]), True)
    return ops.divide(above, ops.maximum(highest, np.finfo(np.float32).tiny))


def _enlarged(values: ov.Node, old: tuple[int, int], new: tuple[int, int]) -> ov.Node:
    """Return maps [h w,classes] on a finer grid, as `metrics.upsampled` makes them."""
    if old == new:
        return values
    classes = int(values.output(0).shape[1])
    by_class = ops.transpose(values, np.array([1, 0]))
    maps = ops.reshape(by_class, np.array([1, classes, *old]), False)
    settings = {
        "mode": "linear_onnx", "shape_calculation_mode": "sizes",
        "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor",
        "pads_begin": [0] * 4, "pads_end": [0] * 4, "antialias": False, "cube_coeff": -0.75,
    }  # fmt: skip
    ends = [ops.constant(np.array(each)).output(0) for each in (new, (2, 3))]
    made = NodeFactory("opset11").create("Interpolate", [maps.output(0), *ends], settings)
    flat = ops.reshape(made, np.array([classes, -1]), False)
    return ops.transpose(flat, np.array([1, 0]))
