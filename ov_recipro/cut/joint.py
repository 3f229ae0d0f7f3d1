"""Where a detector is cut: at several feature maps at once, one for each of its levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ov_recipro.cut.automatic import UPSAMPLING
from ov_recipro.cut.cut_point import CutPoint, JoinedMap
from ov_recipro.cut.graph import CONVOLUTIONS, Graph, Node, descendants
from ov_recipro.cut.layout import chw

_BEHIND_HEADS = frozenset(
    {"Flatten", "Reshape", "Slice", "Split", "StridedSlice", "Transpose", "VariadicSplit"}
)

_SQUARE = 1.6  # a pixel's sides, in a map whose last pixels reach beyond the image


def joint_points(graph: Graph) -> tuple[CutPoint, ...]:
    """List a detector's joint cuts, each by the cells of each of its feature maps.

    These are the backbone's maps that the neck reads, then the maps that the heads read. The first
    map of a cut has its cells; the default comes first.
    """
    maps = _Maps(graph)
    found: list[CutPoint] = []
    for tensors in (maps.frontier or maps.levels, maps.levels):
        if len(tensors) > 1 and not any(set(each.masked) == set(tensors) for each in found):
            found += _by_cells(graph, tensors)
    return tuple(each for each in found if each.clean)


def joined(graph: Graph, points: Sequence[CutPoint]) -> CutPoint:
    """Return the joint cut at several points; the first has the cells.

    Args:
        graph: the model.
        points: feature maps [1,C,H,W].
    """
    first, *others = points
    further = tuple(JoinedMap(each.tensor, each.shape) for each in others)
    return replace(first, joined=further, bypass=graph.bypass(*(p.tensor for p in points)))


def _by_cells(graph: Graph, tensors: Sequence[str]) -> list[CutPoint]:
    """Return joint cuts at the same maps: one for each grid, the second coarsest first.

    Inside a box, the coarsest cells order pixels no better than chance. Cells finer than the second
    coarsest cost more and show no more.
    """
    points = sorted((_plain_point(graph, name) for name in tensors), key=lambda p: p.cells.count)
    by_grid = {point.grid: point for point in reversed(points)}
    grids = sorted(by_grid, key=lambda grid: grid[0] * grid[1])
    order = [*grids[1:2], *grids[:1], *grids[2:]]
    return [
        joined(graph, [by_grid[grid], *(each for each in points if each is not by_grid[grid])])
        for grid in order
    ]


def _plain_point(graph: Graph, name: str) -> CutPoint:
    node = graph.producers[name]
    shape = chw(graph.shapes[name], False)
    height = chw(graph.shapes[graph.image], graph.image in graph.channels_last)[1]
    return CutPoint(name, node.name, node.op, shape, max(1, round(height / shape[1])), ())


@dataclass(frozen=True)
class _Maps:
    """The feature maps of a model at which its levels part."""

    graph: Graph

    def _is_map(self, name: str) -> bool:
        graph = self.graph
        shape = graph.shapes.get(name, ())
        return (
            len(shape) == 4
            and self._covers_image(shape[2], shape[3])
            and name in graph.path_tensors
            and name not in graph.channels_last
            and name not in graph.attention_heads
            and name != graph.image
        )

    def _covers_image(self, height: int, width: int) -> bool:
        """Whether pixels of that many rows and columns are about as tall as they are wide."""
        graph = self.graph
        rows, columns = chw(graph.shapes[graph.image], graph.image in graph.channels_last)[1:]
        aspect = rows / height / (columns / width)
        return height * width > 1 and 1 / _SQUARE <= aspect <= _SQUARE

    @cached_property
    def _readers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.graph.path_nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def _order(self) -> dict[str, int]:
        nodes = enumerate(self.graph.path_nodes)
        return {name: number for number, node in nodes for name in node.outputs}

    @cached_property
    def frontier(self) -> tuple[str, ...]:
        """The maps with nothing enlarged above them that a node with something enlarged reads."""
        nodes = self.graph.path_nodes
        enlarged = {name for node in nodes if node.op in UPSAMPLING for name in node.outputs}
        impure = descendants(nodes, enlarged)
        found: dict[str, None] = {}
        for node in nodes:
            if impure.intersection(node.outputs):
                pure = (name for name in node.inputs if name not in impure)
                found.update(dict.fromkeys(name for name in pure if self._is_map(name)))
        return tuple(found)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The last maps in front of flattening, where predictions still have a place."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = [self.graph.scores]
        while stack:
            name = stack.pop()
            node = self.graph.producers.get(name)
            if name in seen or node is None:
                continue
            seen.add(name)
            if self._is_map(name) and node.op not in _BEHIND_HEADS:
                found.add(name)
            else:
                stack += node.inputs
        return tuple(sorted(found, key=self._order.__getitem__))

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """The maps that the heads' first convolutions read, one for each size."""
        found: dict[tuple[int, ...], str] = {}
        for head in self.heads:
            name = self._read_by_heads(head)
            found.setdefault(self.graph.shapes[name][2:], name)
        return tuple(found.values())

    def _read_by_heads(self, name: str) -> str:
        """Walk back over maps of a head's own size to one that several convolutions read."""
        while True:
            node = self.graph.producers[name]
            size = self.graph.shapes[name][2:]
            same = [n for n in node.inputs if self._is_map(n) and self.graph.shapes[n][2:] == size]
            common = set.intersection(*map(self._upstream, same)) if same else set()
            if not common:
                return name
            name = max(common, key=self._order.__getitem__)
            if sum(reader.op in CONVOLUTIONS for reader in self._readers[name]) > 1:
                return name

    def _upstream(self, name: str) -> set[str]:
        """Return the maps of the same size that a map is made from, itself included."""
        size, found, stack = self.graph.shapes[name][2:], set[str](), [name]
        while stack:
            each = stack.pop()
            node = self.graph.producers.get(each)
            is_same = self._is_map(each) and self.graph.shapes[each][2:] == size
            if each not in found and is_same and node is not None:
                found.add(each)
                stack += node.inputs
        return found
