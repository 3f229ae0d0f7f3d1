"""Targets inside a graph: from what each cell gives to the scores that become maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Bundle, Manifest
from ov_recipro.errors import OptionError, TargetError
from ov_recipro.explainer import Explainer
from ov_recipro.options import Targets
from ov_recipro.plans.stream.stream_onnx import Graph
from ov_recipro.saliency import Score, default_score
from ov_recipro.sources.labels import class_index
from ov_recipro.targets.contrast import NEXT
from ov_recipro.targets.similarity import Reference

_TINY = np.float32(1e-30)  # beside a squared length: a vector of zeros is like nothing


@dataclass(frozen=True)
class Scoring:
    """How outputs become scores.

    Attributes:
        score: how logits become class scores.
        against: a class whose logit, times `gamma`, is subtracted from all others; None for none.
        reference: what vectors are compared with; None for classes.
    """

    score: Score
    against: int | None = None
    gamma: float = 1.0
    reference: Reference | None = None

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
        raise OptionError("Embedded maps contrast with a class that is named, not with 'next'.")
    if manifest.classes < 2:
        raise TargetError("The model has one class: there is none to contrast it with.")
    against = class_index(targets.against, manifest.labels, manifest.classes)
    return Scoring("none", against, targets.gamma)


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
