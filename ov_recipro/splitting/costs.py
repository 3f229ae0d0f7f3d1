"""What explaining at a layer costs, estimated from the graph alone."""

from __future__ import annotations

from collections.abc import Sequence

import openvino as ov
from openvino._offline_transformations import apply_moc_transformations

from ov_recipro.cut.bundle import Cost
from ov_recipro.cut.points import CutPoint, cut_points
from ov_recipro.plans import tokens
from ov_recipro.plans.nodes import key_of
from ov_recipro.plans.rows import (
    FROZEN_BATCH,
    NO_SAVING,
    downstream,
    estimate,
    inapplicable,
    steps_of,
)
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.sources.openvino_models import tensor_names
from ov_recipro.sources.source import Source


def costs(source: Source, points: Sequence[CutPoint], any_batch: bool = True) -> list[Cost | None]:
    """Estimate the cost of explaining at each of a model's cut points, bypass kept.

    Args:
        source: the model.
        points: where it is cut.
        any_batch: whether the tails are assumed to score several feature maps at once.

    Returns:
        None for a tensor that the model, as OpenVINO reads it, does not have.
    """
    model, tensors = source.outline()
    on_tokens = _TokensOutline(model) if any(point.layout == "NTC" for point in points) else None
    # shapes are constants at batch 1
    steps = [step for step in steps_of(model) if step.node.get_type_name() != "ShapeOf"]
    plain = sum(step.macs for step in steps)
    found: list[Cost | None] = []
    for point in points:
        port = tensors.get(point.tensor)
        if port is None or plain == 0:
            found.append(None)
            continue
        height, width = point.grid
        start = key_of(port)
        tail = downstream(steps, [start])
        stream = 1 + height * width * sum(step.macs for step in tail) / plain
        if on_tokens is not None and point.layout == "NTC":
            found.append(on_tokens.cost(point, source.graph.scores, plain, stream))
            continue
        reason = inapplicable(point) if any_batch else FROZEN_BATCH
        if reason is None:
            rows = estimate(tail, start, (height, width))
            if rows.is_worth_it(plain):
                found.append(Cost("rows", 1 + rows.rows / plain, stream, None))
                continue
            reason = NO_SAVING
        found.append(Cost("stream", stream, stream, reason))
    return found


class _TokensOutline:
    """A model's outline, as plan `tokens` reads it: with what OpenVINO can fuse fused."""

    def __init__(self, model: ov.Model) -> None:
        self._model = model.clone()
        apply_moc_transformations(self._model, cf=True)
        self._tensors = tensor_names(self._model)

    def cost(self, point: CutPoint, scores: str, plain: int, stream: float) -> Cost:
        """Return the cost at a cut of tokens."""
        reason = tokens.inapplicable(point)
        start, end = self._tensors.get(point.tensor), self._tensors.get(scores)
        if reason is None and (start is None or end is None):
            reason = "OpenVINO fuses the tensor with others"
        if reason is None and start is not None and end is not None:
            try:
                added = tokens.added_macs(self._model, start, end, point)
            except PlanRefused as failure:
                reason = str(failure)
        if reason is None:
            return Cost("tokens", 1 + added / plain, stream, None)
        return Cost("stream", stream, stream, reason)


def cheaper_layer(source: Source, tensor: str, max_cost: float) -> tuple[str, Cost] | None:
    """Return the first clean layer after a tensor that costs at most `max_cost` an image."""
    points = cut_points(source.graph)
    index = next((i for i, point in enumerate(points) if point.tensor == tensor), -1)
    later = [point for point in points[index + 1 :] if point.clean]
    for point, cost in zip(later, costs(source, later), strict=True):
        if cost is not None and cost.inferences <= max_cost:
            return point.tensor, cost
    return None
