"""Where a model of pixels or of a sequence is cut by default: before it spreads what it found."""

from __future__ import annotations

from collections.abc import Sequence

from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.graph import CONVOLUTIONS, Graph, descendants

UPSAMPLING = frozenset(
    {
        "ConvTranspose",
        "ConvolutionBackpropData",
        "DepthToSpace",
        "Interpolate",
        "Resize",
        "Upsample",
    }
)
_FEWEST_BEHIND = 2  # convolutions behind the cut: with one, a cell speaks of its own pixel alone


def automatic(graph: Graph, points: Sequence[CutPoint]) -> CutPoint | None:
    """Return the default cut of a segmentation or sequence; None where no point fits.

    In a segmentation that is the last tensor of the coarsest feature map in front of any
    upsampling, a clean one if there is one; in a sequence the last clean feature map that still has
    a height.

    Args:
        graph: the model.
        points: see `points.cut_points`.
    """
    fitting = [point for point in points if _convolutions_behind(graph, point) >= _FEWEST_BEHIND]
    if graph.task == "sequence":
        clean = [point for point in fitting if point.clean]
        tall = [point for point in clean if point.grid[0] > 1]
        return _last(tall or clean)
    upsampled = {
        name for node in graph.path_nodes if node.op in UPSAMPLING for name in node.outputs
    }
    impure = descendants(graph.path_nodes, upsampled)
    pure = [point for point in fitting if point.tensor not in impure] or fitting
    coarsest = min((point.cells.count for point in pure), default=0)
    pure = [point for point in pure if point.cells.count == coarsest]
    return _last([point for point in pure if point.clean] or pure)


def _last(points: Sequence[CutPoint]) -> CutPoint | None:
    return points[-1] if points else None


def _convolutions_behind(graph: Graph, point: CutPoint) -> int:
    tail = descendants(graph.path_nodes, {point.tensor})
    behind = [node for node in graph.path_nodes if tail.intersection(node.inputs)]
    return sum(node.op in CONVOLUTIONS for node in behind)
