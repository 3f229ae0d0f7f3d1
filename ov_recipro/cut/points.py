"""Where a model can be cut, and which of these points a user means by ``--layer``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ov_recipro.cut.cells import Cells
from ov_recipro.cut.graph import Graph, descendants
from ov_recipro.errors import ModelError, OptionError

CONVOLUTIONS = frozenset(
    {"Conv", "ConvInteger", "QLinearConv", "Convolution", "GroupConvolution", "ConvTranspose"}
)
_MAX_EXTRA_TOKENS = 8  # class, distillation and register tokens
_MIN_TOKEN_LAYERS = 8  # two blocks; a convolutional network may end in fewer
_STAGE = re.compile(r"conv([1-5])")


@dataclass(frozen=True)
class CutPoint:
    """A 4-D tensor at which the model can be cut into head and tail.

    Attributes:
        tensor: the tensor's name in the file.
        node: name of the node that makes it; `op`: that node's operation.
        shape: (C, H, W).
        stride: input height over feature height, to the nearest whole number.
        bypass: tensors that carry the image around this one; empty for a clean cut.
        channels_last: the tensor is [N,H,W,C] in the model.
    """

    tensor: str
    node: str
    op: str
    shape: tuple[int, int, int]
    stride: int
    bypass: tuple[str, ...]
    channels_last: bool = False

    @property
    def clean(self) -> bool:
        """Whether every path from the image to the scores passes through this tensor."""
        return not self.bypass

    @property
    def cells(self) -> Cells:
        """The cells that are kept one at a time."""
        return Cells(self.shape[1:])

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the cells, and so of a saliency map."""
        return self.cells.grid


@dataclass(frozen=True)
class FoundCut:
    """The cut that a ``--layer`` led to.

    Attributes:
        asked: what the user asked for.
        named: the tensor that this names.
        point: where the model is cut: `named` itself, or the end of its block.
    """

    asked: str
    named: str
    point: CutPoint

    @property
    def moved(self) -> bool:
        """Whether the cut is at the end of the named tensor's block, not at the tensor."""
        return self.named != self.point.tensor


def cut_points(graph: Graph) -> tuple[CutPoint, ...]:
    """List the feature maps that can be explained at, from the image to the scores.

    These are the clean 4-D tensors and all convolutions' outputs, of more than one cell.
    """
    clean = set(graph.clean_tensors)
    return tuple(
        _point(graph, name)
        for node in graph.path_nodes
        for name in node.outputs
        if name in graph.path_tensors
        and _is_feature_map(graph, name)
        and (name in clean or node.op in CONVOLUTIONS)
        and node.op != "QuantizeLinear"  # the same map, dequantised, comes next
    )


def find_cut(graph: Graph, layer: str = "auto", exact: bool = False) -> FoundCut:
    """Resolve `layer` to the tensor to cut at.

    Args:
        graph: the model.
        layer: "auto"; a tensor, node or module name, in full, by unique suffix or by glob; an index
            into `cut_points` (-1 the last); or "conv1" to "conv5", the last clean tensor at
            stride 2, 4, 8, 16 or 32.
        exact: cut at the named tensor even where other tensors go around it, instead of at the
            nearest clean tensor downstream of the same height and width.

    Raises:
        OptionError: no tensor, or more than one, has that name, or it can't be cut there.
        ModelError: "auto" finds no clean feature map, or the model works on tokens.
    """
    points = cut_points(graph)
    clean = [point for point in points if point.clean]
    if layer == "auto":
        if not clean:
            raise ModelError(_why_no_clean_cut(points))
        _refuse_tokens(graph, clean[-1])
        return FoundCut(layer, clean[-1].tensor, clean[-1])
    named = _resolve(graph, layer, points)
    if exact or named in graph.clean_tensors:
        return FoundCut(layer, named, _point(graph, named))
    return FoundCut(layer, named, _end_of_block(graph, layer, named))


def _resolve(graph: Graph, layer: str, points: tuple[CutPoint, ...]) -> str:
    """Return the name of the feature map that `layer` means."""
    names = _names(graph)
    stage = _STAGE.fullmatch(layer)
    matchers: list[Callable[[str], bool]] = [lambda name: name == layer]
    index = int(layer) if re.fullmatch(r"[+-]?\d+", layer) else None
    if not stage and index is None:  # many names end in these by chance
        matchers += [lambda name: _is_suffix(layer, name), lambda name: fnmatchcase(name, layer)]
    for matches in matchers:
        found = {tensor: name for name, tensor in names if matches(name)}
        if len(found) > 1:
            listed = ", ".join(sorted(found.values())[:6])
            raise OptionError(
                f"Layer '{layer}' is ambiguous: it matches {len(found)} tensors ({listed}"
                f"{', ...' if len(found) > 6 else ''}). Give more of the name, or an index "
                "from 'ov-recipro layers'."
            )
        if found:
            return _checked(graph, layer, next(iter(found)))
    if index is not None:
        if not -len(points) <= index < len(points):
            raise OptionError(
                f"Layer index {index} is out of range: the model has {len(points)} cut points "
                "(see 'ov-recipro layers')."
            )
        return points[index].tensor
    if stage:
        stride = 2 ** int(stage[1])
        at_stride = [p for p in points if p.clean and _is_stride(graph, p, stride)]
        if at_stride:
            return at_stride[-1].tensor
        raise OptionError(
            f"Layer '{layer}' means the last clean tensor at stride {stride}, and this model has "
            "none (see 'ov-recipro layers')."
        )
    raise OptionError(f"No layer '{layer}' in this model.{_closest(layer, names)}")


def _names(graph: Graph) -> list[tuple[str, str]]:
    """Pair each name a user may type with the tensor that it names, in graph order.

    A module's name stands for the last feature map made inside it; so does each leading part
    of a slash-separated node name, which is how one of PyTorch's exporters spells modules.
    """
    exact: list[tuple[str, str]] = []
    modules: dict[str, str] = {}
    for node in graph.path_nodes:
        outputs = [name for name in node.outputs if name in graph.path_tensors]
        for name in outputs:
            exact.append((name, name))
        if not outputs or not _is_feature_map(graph, outputs[0]):
            continue
        if node.name:
            exact.append((node.name, outputs[0]))
        parts = node.name.split("/")[:-1]
        paths = ["/".join(parts[: i + 1]) for i in range(len(parts)) if parts[i]]
        scope = node.scope.split(".") if node.scope else []
        paths += [".".join(scope[: i + 1]) for i in range(len(scope))]
        for path in paths:
            modules[path] = outputs[0]
    exact += [(alias, name) for alias, name in graph.aliases.items() if name in graph.path_tensors]
    taken = {name for name, _ in exact}
    return exact + [(name, tensor) for name, tensor in modules.items() if name not in taken]


def _is_suffix(asked: str, name: str) -> bool:
    """Whether `name` ends in `asked` where one of its words begins."""
    return name.endswith(asked) and not name[: -len(asked)][-1:].isalnum()


def _checked(graph: Graph, layer: str, tensor: str) -> str:
    if not _is_feature_map(graph, tensor):
        shape = graph.shapes.get(tensor)
        dimensions = "unknown" if shape is None else "x".join(map(str, shape))
        raise OptionError(
            f"Layer '{layer}' has no spatial grid to explain on: tensor '{tensor}' has shape "
            f"{dimensions}, not [1,C,H,W] with more than one cell."
        )
    return tensor


def _end_of_block(graph: Graph, layer: str, named: str) -> CutPoint:
    """Return the nearest clean tensor downstream of `named` with the same height and width."""
    order = [name for node in graph.path_nodes for name in node.outputs]
    grid = _point(graph, named).grid
    clean = set(graph.clean_tensors)
    for name in order[order.index(named) + 1 :]:
        if name in clean and _is_feature_map(graph, name):
            point = _point(graph, name)
            if point.grid == grid:
                return point
    bypass = ", ".join(graph.bypass(named)[:3])
    raise OptionError(
        f"Layer '{layer}' is not a clean cut (bypassed by {bypass}) and no clean tensor of "
        f"{grid[0]}x{grid[1]} cells follows; --exact cuts there anyway."
    )


def _is_feature_map(graph: Graph, name: str) -> bool:
    shape = graph.shapes.get(name)
    if shape is None or len(shape) != 4 or shape[0] != 1:
        return False
    _, height, width = _chw(shape, name in graph.channels_last)
    return height * width > 1


def _chw(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int, int]:
    _, a, b, c = shape
    return (c, a, b) if channels_last else (a, b, c)


def _point(graph: Graph, name: str) -> CutPoint:
    node = graph.producers[name]
    channels_last = name in graph.channels_last
    shape = _chw(graph.shapes[name], channels_last)
    return CutPoint(
        tensor=name,
        node=node.name,
        op=node.op,
        shape=shape,
        stride=max(1, round(_image_height(graph) / shape[1])),
        bypass=graph.bypass(name),
        channels_last=channels_last,
    )


def _image_height(graph: Graph) -> int:
    return _chw(graph.shapes[graph.image], graph.image in graph.channels_last)[1]


def _is_stride(graph: Graph, point: CutPoint, stride: int) -> bool:
    """Whether the point's stride rounds to `stride` among powers of two (borders shift it)."""
    return round(math.log2(_image_height(graph) / point.shape[1])) == math.log2(stride)


def _refuse_tokens(graph: Graph, last: CutPoint) -> None:
    """Raise for a vision transformer or mixer, whose features after its stem are tokens.

    Its last feature map is the patch embedding: it can be masked, but the map would say next
    to nothing about what the network made of the image.
    """
    cells = last.grid[0] * last.grid[1]
    tail = descendants(graph.path_nodes, {last.tensor})
    tokens = [
        graph.shapes[node.outputs[0]]
        for node in graph.path_nodes
        if node.op in ("MatMul", "Gemm") and node.outputs[0] in tail & graph.shapes.keys()
    ]
    tokens = [
        shape
        for shape in tokens
        if len(shape) == 3 and any(cells <= size <= cells + _MAX_EXTRA_TOKENS for size in shape)
    ]
    if len(tokens) >= _MIN_TOKEN_LAYERS:
        raise ModelError(
            f"After '{last.tensor}', its patch embedding, this model works on tokens "
            f"{list(tokens[-1])} (a vision transformer or mixer): they have no height and width "
            "to mask, and masking tokens is not supported yet."
        )


def _why_no_clean_cut(points: tuple[CutPoint, ...]) -> str:
    if not points:
        return (
            "The model has no 4-D feature map [1,C,H,W] of more than one cell between its image "
            "and its scores, so there is nothing to explain on."
        )
    last = points[-1]
    return (
        "No tensor of this model is a clean cut. The last convolution is "
        f"'{last.tensor}' (bypassed by {', '.join(last.bypass[:3])}): "
        f"--layer '{last.tensor}' --exact cuts there."
    )


def _closest(layer: str, names: list[tuple[str, str]]) -> str:
    close = difflib.get_close_matches(layer, [name for name, _ in names], n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else " See 'ov-recipro layers'."
