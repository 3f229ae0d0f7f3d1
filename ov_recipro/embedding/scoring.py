"""Targets inside a graph: from what each cell gives to the scores that become maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.bundle import Bundle, Manifest
from ov_recipro.embedding.class_losses import ClassLosses
from ov_recipro.embedding.common import Scaling
from ov_recipro.errors import OptionError, TargetError
from ov_recipro.explainer import Explainer
from ov_recipro.options import Targets
from ov_recipro.plans.onnx_graph import Graph
from ov_recipro.saliency import Score, default_score
from ov_recipro.sources.labels import class_index
from ov_recipro.targets.contrast import NEXT
from ov_recipro.targets.finding import Finder
from ov_recipro.targets.similarity import Reference

_ROUNDING = 1e-5  # share of a class's best score
_TINY = np.float32(1e-30)  # beside a squared length: a vector of zeros is like nothing


@dataclass(frozen=True)
class Scoring:
    """How outputs become scores.

    Attributes:
        score: how logits become class scores.
        against: a class whose logit, times `gamma`, is subtracted from all others; None for none.
        reference: what vectors are compared with; None for classes.
        candidates: how a detector's outputs hold its candidates, of whose scores each class's
            largest loss is explained; None for others.
    """

    score: Score
    against: int | None = None
    gamma: float = 1.0
    reference: Reference | None = None
    candidates: BoxLayout | None = None

    @property
    def direction(self) -> np.ndarray:
        """What a unit vector is multiplied by, [D,1]."""
        assert self.reference is not None  # noqa: S101 - only asked then
        like, unlike = self.reference.like, self.reference.unlike
        return np.asarray(like if unlike is None else like - unlike, np.float32)[:, None]

    @property
    def recorded(self) -> str:
        """The score's name, as a file records it."""
        if self.reference is not None:
            return "cosine"
        if self.candidates is not None:
            return "largest loss of a box"
        return str(self.score) if self.against is None else f"against class {self.against}"


def scoring_of(bundle: Bundle, score: Score | None, targets: Targets) -> Scoring:
    """Return how a model's outputs become scores.

    Args:
        bundle: the model; its labels are those that classes are named by.
        score: see `embed`; targets: what is asked besides classes.

    Raises:
        OptionError: a target can't be embedded.
        TargetError: there is no such class.
    """
    manifest = bundle.manifest
    if manifest.task == "detector":
        return Scoring("none", candidates=_fixed_candidates(manifest, targets))
    if manifest.task not in ("classifier", "embedding"):
        raise OptionError(
            f"A {manifest.task}'s maps can't be embedded: what is asked about it is not known "
            "beforehand."
        )
    if manifest.task == "embedding":
        explainer = Explainer(bundle)
        found = explainer.find_targets(targets)
        return Scoring("none", reference=found.similar_to)
    if not np.isfinite(targets.gamma):
        raise OptionError("--gamma must be finite.")
    own = score or default_score(manifest.activation, manifest.classes)
    if targets.against is None:
        return Scoring(own)
    if targets.against == NEXT:
        raise OptionError("Embedded maps can't contrast with 'next': name a class with --against.")
    if manifest.classes < 2:
        raise TargetError("The model has one class: there is none to contrast it with.")
    against = class_index(targets.against, manifest.labels, manifest.classes)
    return Scoring("none", against, targets.gamma)


def _fixed_candidates(manifest: Manifest, targets: Targets) -> BoxLayout:
    """Return a detector's layout, if its candidates do not depend on the image."""
    Finder(manifest, manifest.labels, "none").check(targets)
    if targets.box is not None:
        raise OptionError(
            "A detector's maps are embedded by class: which boxes it finds is not known beforehand."
        )
    if manifest.boxes is None or manifest.boxes.suppressed:
        raise OptionError(
            "The detector chooses its candidates by the image, so that its maps can't be embedded; "
            "'ov-recipro explain' makes them."
        )
    return manifest.boxes


def scored_in_openvino(outputs: ov.Output, scoring: Scoring) -> ov.Node:
    """Return the scores [N,T] of outputs [N,values]."""
    if scoring.reference is not None:
        centre = scoring.reference.centre
        if centre is not None:
            outputs = ops.add(outputs, -np.asarray(centre, np.float32)[None]).output(0)
        squares = ops.reduce_sum(ops.multiply(outputs, outputs), np.array([1]), True)
        lengths = ops.sqrt(ops.add(squares, _TINY))
        return ops.divide(ops.matmul(outputs, scoring.direction, False, False), lengths)
    if scoring.against is not None:
        other = ops.gather(outputs, np.array([scoring.against]), np.int64(1))
        return ops.add(outputs, ops.multiply(other, np.float32(-scoring.gamma)))
    if scoring.score == "softmax":
        return ops.softmax(outputs, 1)
    if scoring.score == "sigmoid":
        return ops.sigmoid(outputs)
    return outputs.get_node()


def scaled(scores: ov.Node, scaling: Scaling, from_zero: bool = False) -> ov.Node:
    """Scale the scores [N,T] of each class (Eq. 6); a class whose scores are all the same is 0.

    With `from_zero`, scores of 0 or less become 0, instead of the lowest score.
    """
    if scaling == "raw":
        return scores
    over, zero = np.array([0]), np.float32(0)
    if from_zero:
        scores = ops.relu(scores)
    low = ops.constant(zero) if from_zero else ops.reduce_min(scores, over, True)
    span = ops.subtract(ops.reduce_max(scores, over, True), low)
    safe = ops.select(ops.greater(span, zero), span, ops.constant(np.ones((1, 1), np.float32)))
    maps = ops.divide(ops.subtract(scores, low), safe)
    if scaling == "float":
        return maps
    return _in_levels(maps)


def scaled_losses(found: ClassLosses, scaling: Scaling) -> ov.Node:
    """Scale the losses [N,T] of each class from zero to their maximum.

    A class that loses no more than rounding makes is 0.
    """
    losses = found.losses
    if scaling == "raw":
        return losses.get_node()
    highest = ops.reduce_max(losses, np.array([0]), True)
    least = ops.multiply(found.best, np.float32(_ROUNDING))
    is_lost = ops.greater(highest, least)
    safe = ops.select(is_lost, highest, ops.constant(np.full((1, 1), np.inf, np.float32)))
    maps = ops.divide(losses, safe)
    return maps if scaling == "float" else _in_levels(maps)


def _in_levels(maps: ov.Node) -> ov.Node:
    """Return maps of 0..1 in 0..255."""
    return ops.convert(ops.round(ops.multiply(maps, np.float32(255)), "half_to_even"), ov.Type.u8)


def scored_in_onnx(graph: Graph, outputs: str, scoring: Scoring) -> str:
    """Append what turns outputs [N,values] into scores [N,T]."""
    if scoring.reference is not None:
        centre = scoring.reference.centre
        if centre is not None:
            outputs = graph.add("Sub", outputs, graph.constant(centre[None], np.float32))
        ones = graph.constant(np.ones((len(scoring.reference.like), 1)), np.float32)
        squares = graph.add("MatMul", graph.add("Mul", outputs, outputs), ones)
        lengths = graph.add("Sqrt", graph.add("Add", squares, graph.constant(_TINY, np.float32)))
        direction = graph.constant(scoring.direction, np.float32)
        return graph.add("Div", graph.add("MatMul", outputs, direction), lengths)
    if scoring.against is not None:
        other = graph.add("Gather", outputs, graph.constant([scoring.against]), axis=1)
        weight = graph.constant(scoring.gamma, np.float32)
        return graph.add("Sub", outputs, graph.add("Mul", other, weight))
    if scoring.score == "softmax":
        return graph.add("Softmax", outputs, axis=1)
    if scoring.score == "sigmoid":
        return graph.add("Sigmoid", outputs)
    return outputs


def count_of(manifest: Manifest, scoring: Scoring) -> int:
    """Return the number of targets where all are explained."""
    return 1 if scoring.reference is not None else manifest.classes
