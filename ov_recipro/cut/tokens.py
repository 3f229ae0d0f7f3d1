"""The tokens of vision transformers and mixers: which tensors hold them, and on which grid.

Such a model turns a feature map, its *patch embedding*, into one token for each cell, often behind
*prefix* tokens that stand for no place (class, distillation and register tokens). A *block* mixes
tokens; all else works on each token by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ov_recipro.cut.graph import Graph, Node, Shape
from ov_recipro.cut.layout import chw

MAX_PREFIX = 16
_LEAST_TENSORS = 3  # clean token tensors of one block; a convolutional network may end in fewer
_ATTENTIONS = frozenset(
    {"Attention", "GroupQueryAttention", "MultiHeadAttention", "ScaledDotProductAttention"}
)
_PRODUCTS = frozenset({"Einsum", "Gemm", "MatMul"})
_SELECTIONS = frozenset(
    {"Gather", "GatherElements", "Slice", "Split", "StridedSlice", "VariadicSplit"}
)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a model.

    Attributes:
        grid: (height, width) of the patch embedding.
        prefix: number of tokens in front of the cells'.
        first: the first clean tensor [1,T,C] of tokens.
        streams: the clean tensors [1,T,C] from which every cell's token still reaches the scores.
        blocks: of these, the one that each block reads.
        end: the tokens behind the last block, where all of them are read; None where the scores
            come from prefix tokens alone.
    """

    grid: tuple[int, int]
    prefix: int
    first: str
    streams: tuple[str, ...]
    blocks: tuple[str, ...]
    end: str | None

    @property
    def count(self) -> int:
        """T, the number of tokens."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def cuts(self) -> tuple[str, ...]:
        """Where the model is best cut: what each block reads, and the end."""
        return self.blocks if self.end is None else (*self.blocks, self.end)

    def holds(self, shape: Shape | None) -> bool:
        """Whether a tensor of this shape is [1,T,C]."""
        return shape is not None and len(shape) == 3 and shape[:2] == (1, self.count)


def find_tokens(graph: Graph) -> Tokens | None:
    """Return the tokens of a model whose last feature map is a patch embedding, else None."""
    clean = graph.clean_tensors
    maps = [i for i, name in enumerate(clean) if _is_map(graph, name)]
    if not maps:
        return None
    embedding = clean[maps[-1]]
    _, height, width = chw(graph.shapes[embedding], embedding in graph.channels_last)
    cells = height * width
    later = clean[maps[-1] + 1 :]
    counts = Counter(
        shape[1]
        for name in later
        if len(shape := graph.shapes.get(name, ())) == 3
        and shape[0] == 1
        and cells <= shape[1] <= cells + MAX_PREFIX
    )
    if counts.total() < _LEAST_TENSORS:
        return None
    ((count, _),) = counts.most_common(1)
    held = [name for name in later if graph.shapes.get(name, ())[:2] == (1, count)]
    held = [name for name in held if len(graph.shapes[name]) == 3]
    held = [name for name in held if not _is_flattened(graph, name)]
    order = {name: index for index, name in enumerate(clean)}
    blocks: dict[str, None] = {}  # what each block reads
    is_read, last = False, 0
    counted = {count, cells}
    for start, end, nodes in _segments(graph):
        if order[start] < order[held[0]]:
            continue
        mixes, holds = _follow(graph, nodes, start, end, counted)
        if mixes:
            last = order[start]
            before = [name for name in held if order[name] <= last]
            if holds:
                blocks[before[-1]] = None
            else:
                is_read = True
        if not holds:
            break
    if not blocks:
        return None
    streams = tuple(name for name in held if order[name] <= last)
    behind = [name for name in streams if order[name] > order[next(reversed(blocks))]]
    return Tokens(
        grid=(height, width),
        prefix=count - cells,
        first=held[0],
        streams=streams,
        blocks=tuple(blocks),
        end=_end(graph, behind) if is_read else None,
    )


def _is_map(graph: Graph, name: str) -> bool:
    """Whether a tensor has channels, height and width; the heads of a pooled token have not."""
    shape = graph.shapes.get(name, ())
    return (
        len(shape) == 4
        and shape[0] == 1
        and _has_area(chw(shape, name in graph.channels_last))
        and name not in graph.attention_heads
        and name != graph.image
    )


def _has_area(sizes: tuple[int, int, int]) -> bool:
    channels, height, width = sizes
    return channels > 1 and height * width > 1


def _is_flattened(graph: Graph, name: str) -> bool:
    """Whether a tensor is a feature map with its height and width joined, [1,C,HW]."""
    node = graph.producers[name]
    source = next((each for each in node.inputs if each in graph.path_tensors), "")
    shape = graph.shapes.get(source, ())
    return (
        node.op in ("Reshape", "Flatten")
        and len(shape) == 4
        and source not in graph.channels_last
        and graph.shapes[name][1] == shape[1]
    )


def _segments(graph: Graph) -> list[tuple[str, str, list[Node]]]:
    """Return each two neighbours among the clean tensors, and the nodes from one to the other."""
    clean = set(graph.clean_tensors)
    segments: list[tuple[str, str, list[Node]]] = []
    start, nodes = graph.image, list[Node]()
    for node in graph.path_nodes:
        nodes.append(node)
        end = next((name for name in node.outputs if name in clean), None)
        if end is not None:
            segments.append((start, end, nodes))
            start, nodes = end, []
    return segments


def _follow(
    graph: Graph, nodes: Sequence[Node], start: str, end: str, counts: set[int]
) -> tuple[bool, bool]:
    """Follow the cells' tokens from one clean tensor to the next.

    Args:
        graph: the model.
        nodes: what lies between the two.
        start: a tensor that holds them; `end`: the next clean tensor.
        counts: the number of all tokens, and of those that stand for cells.

    Returns:
        Whether the nodes mix tokens, and whether `end` still holds the cells' tokens. Picking out
        prefix tokens does neither.
    """

    def axes(name: str) -> int:
        return sum(size in counts for size in graph.shapes.get(name, ()))

    held, mixes = {start}, False
    for node in nodes:
        sources = held.intersection(node.inputs)
        if not sources:
            continue
        selects = node.op in _SELECTIONS
        least = max(axes(name) for name in sources) if selects else 1
        kept = {name for name in node.outputs if name not in graph.shapes or axes(name) >= least}
        joins = node.op in _PRODUCTS and len(sources) > 1
        mixes = mixes or node.op in _ATTENTIONS or joins or not (kept or selects)
        held |= kept
    return mixes, end in held


def _end(graph: Graph, behind: Sequence[str]) -> str | None:
    """Return the residual sum that the last block ends in, or else the last of the tensors."""
    for name in reversed(behind):
        node = graph.producers[name]
        if node.op == "Add" and graph.path_tensors.issuperset(node.inputs):
            return name
    return behind[-1] if behind else None
