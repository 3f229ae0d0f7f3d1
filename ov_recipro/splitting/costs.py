"""What explaining at a layer costs, estimated from the graph alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import openvino as ov
from openvino._offline_transformations import apply_moc_transformations

from ov_recipro.cut.bundle import Cost
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.points import cut_points
from ov_recipro.options import Running
from ov_recipro.plans import tokens
from ov_recipro.plans.nodes import Key, key_of
from ov_recipro.plans.rows import (
    FROZEN_BATCH,
    NO_SAVING,
    Estimate,
    Reach,
    Step,
    downstream,
    estimate,
    estimates,
    inapplicable,
    steps_of,
    sum_of,
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
    names = source.graph.joined or (source.graph.scores,)
    ends = {key_of(_made(tensors[name])) for name in names if name in tensors}
    found: list[Cost | None] = []
    for point in points:
        ports = [tensors.get(name) for name in point.masked]
        if None in ports or plain == 0:
            found.append(None)
            continue
        starts = {key_of(_made(port)): port for port in ports if port is not None}
        tail = _between(steps, set(starts), ends)
        stream = 1 + point.cells.count * sum(step.macs for step in tail) / plain
        if on_tokens is not None and point.layout == "NTC":
            found.append(on_tokens.cost(point, source.graph.scores, plain, stream))
            continue
        reason = inapplicable(point)
        if reason is None:
            is_joint = bool(point.joined) or source.graph.task == "detector"
            rows = _rows(tail, starts, point, plain, is_joint)
            if not rows.is_worth_it(plain):
                reason = NO_SAVING
            elif is_joint and rows.dense_from is not None:
                reason = f"no rule covers '{rows.dense_from}'"
            elif not any_batch and rows.dense_from is not None:
                reason = FROZEN_BATCH
            else:
                found.append(Cost("rows", 1 + rows.rows / plain, stream, None))
                continue
        found.append(Cost("stream", stream, stream, reason))
    return found


def _made(port: ov.Output) -> ov.Output:
    """Return the tensor itself, where a name that it shares with a result led to the result."""
    node = port.get_node()
    if node.get_type_name() != "Result":
        return port
    source: ov.Output = node.input(0).get_source_output()
    return source


def _between(steps: Sequence[Step], starts: Set[Key], ends: Set[Key]) -> list[Step]:
    """Return the operations that lead from some tensors to others, without passing the first.

    Without ends, they are all that depend on them.
    """
    needed, kept = set(ends) - starts, list[Step]()
    if not ends:
        return downstream(steps, starts)
    for step in reversed(steps):
        if not needed.isdisjoint(step.outputs):
            needed.update(key for key in step.inputs if key not in starts)
            kept.append(step)
    return downstream(kept[::-1], starts)


def _rows(
    tail: Sequence[Step], starts: Mapping[Key, ov.Output], point: CutPoint, plain: int, joint: bool
) -> Estimate:
    """Estimate what plan `rows` costs from feature maps `starts` on."""
    cells = point.cells
    if not joint:
        reached = {key: Reach.of(cells, cells.grid) for key in starts}
        return estimate(tail, reached, cells.count)
    sizes = {key: (int(port.shape[2]), int(port.shape[3])) for key, port in starts.items()}
    memory = Running().batch_memory
    return sum_of([cost for _, cost in estimates(tail, sizes, cells, memory, plain)])


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
            return point.name, cost
    return None
