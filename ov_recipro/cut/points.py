"""Where a model can be cut, and which of these points a user means by ``--layer``."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.graph import CONVOLUTIONS, Graph, descendants
from ov_recipro.cut.joint import joined, joint_points
from ov_recipro.cut.layout import Layout, chw
from ov_recipro.cut.tokens import MAX_PREFIX, Tokens, find_tokens
from ov_recipro.errors import ModelError, OptionError

_FEWEST_PRODUCTS = 8  # two blocks; a convolutional network may end in fewer
_STAGE = re.compile(r"conv([1-5])")
_BLOCK = re.compile(r"blocks\.(-?\d+)")


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
    """List the tensors that can be explained at, from the image to the scores.

    These are the clean 4-D tensors and all convolutions' outputs, of more than one cell; and the
    tokens that each block of a transformer reads. A detector has joint cuts instead, where its
    levels part.
    """
    joint = joint_points(graph) if graph.task == "detector" else ()
    if joint:
        return joint
    tokens = _tokens_of(graph)
    clean = set(graph.clean_tensors)
    if tokens is not None:  # what is 4-D behind them are the heads of attention
        clean = set(itertools.takewhile(lambda name: name != tokens.first, graph.clean_tensors))
    return tuple(
        _point(graph, tokens, name)
        for node in graph.path_nodes
        for name in node.outputs
        if name in graph.path_tensors
        and (
            (tokens is not None and name in tokens.cuts)
            or (
                _is_feature_map(graph, name)
                and (name in clean or node.op in CONVOLUTIONS)
                and node.op != "QuantizeLinear"  # the same map, dequantised, comes next
            )
        )
    )


def find_cut(graph: Graph, layer: str = "auto", exact: bool = False) -> FoundCut:
    """Resolve `layer` to the tensor to cut at.

    Args:
        graph: the model.
        layer: "auto", the last clean feature map or the tokens that the first block reads; a
            tensor, node or module name, in full, by unique suffix or by glob; an index into
            `cut_points` (-1 the last); "conv1" to "conv5", the last clean tensor at stride 2, 4,
            8, 16 or 32; "blocks.0", "blocks.-1" and so on, the tokens that a block reads; or
            several of these with commas between them: a joint cut, by the first one's cells.
        exact: cut at the named tensor even where other tensors go around it, instead of at the
            nearest clean tensor downstream of the same height and width.

    Raises:
        OptionError: no tensor, or more than one, has that name, or it can't be cut there.
        ModelError: "auto" finds no clean cut.
    """
    tokens = _tokens_of(graph)
    points = cut_points(graph)
    clean = [point for point in points if point.clean]
    if layer == "auto":
        if not clean:
            raise ModelError(_why_no_clean_cut(points))
        if graph.task == "detector":
            point = clean[0] if clean[0].joined else clean[-1]
            return FoundCut(layer, point.tensor, point)
        if tokens is None:
            _refuse_tokens(graph, clean[-1])
        point = clean[-1] if tokens is None else _point(graph, tokens, tokens.blocks[0])
        return FoundCut(layer, point.tensor, point)
    joint = _joint(graph, tokens, layer, exact, points)
    if joint is not None:
        return FoundCut(layer, joint.tensor, joint)
    named = _resolve(graph, tokens, layer, points)
    if exact or named in graph.clean_tensors:
        return FoundCut(layer, named, _point(graph, tokens, named))
    return FoundCut(layer, named, _end_of_block(graph, tokens, layer, named))


def _tokens_of(graph: Graph) -> Tokens | None:
    """Return the tokens that a model can be cut at; a detector's are not places of its boxes."""
    return None if graph.task == "detector" else find_tokens(graph)


def _joint(
    graph: Graph, tokens: Tokens | None, layer: str, exact: bool, points: tuple[CutPoint, ...]
) -> CutPoint | None:
    """Return the joint cut that `layer` means; None where it means a single tensor."""
    if (index := _index(layer)) is not None:
        found = points[index] if -len(points) <= index < len(points) else None
        return found if found is not None and found.joined else None
    if stage := _STAGE.fullmatch(layer):
        stride = 2 ** int(stage[1])
        return next((p for p in points if p.joined and _is_stride(graph, p, stride)), None)
    if "," not in layer or layer in graph.path_tensors:
        return None
    asked = [each.strip() for each in layer.split(",")]
    if not all(asked):
        raise OptionError(f"Layer '{layer}' has an empty name between its commas.")
    names = [_resolve(graph, tokens, each, points) for each in asked]
    maps = [_point(graph, tokens, name) for name in dict.fromkeys(names)]
    for point in maps:
        if point.layout != "NCHW":
            raise OptionError(
                f"Layer '{point.tensor}' can't be joined: it is not a feature map [1,C,H,W]."
            )
    found = joined(graph, maps)
    if found.bypass and not exact:
        raise OptionError(
            f"Layers '{layer}' are not a clean cut (bypassed by {', '.join(found.bypass[:3])}); "
            "--exact cuts there anyway."
        )
    return found


def _index(layer: str) -> int | None:
    return int(layer) if re.fullmatch(r"[+-]?\d+", layer) else None


def _resolve(graph: Graph, tokens: Tokens | None, layer: str, points: tuple[CutPoint, ...]) -> str:
    """Return the name of the tensor that `layer` means."""
    names = _names(graph, tokens)
    stage, block = _STAGE.fullmatch(layer), _BLOCK.fullmatch(layer)
    matchers: list[Callable[[str], bool]] = [lambda name: name == layer]
    index = _index(layer)
    if not stage and index is None:  # many names end in these by chance
        matchers += [lambda name: _is_suffix(layer, name), lambda name: fnmatchcase(name, layer)]
    for matches in matchers:
        found = {tensor: name for name, tensor in names if matches(name)}
        if len(found) > 1 and not (block and tokens is not None):
            listed = ", ".join(sorted(found.values())[:6])
            raise OptionError(
                f"Layer '{layer}' is ambiguous: it matches {len(found)} tensors ({listed}"
                f"{', ...' if len(found) > 6 else ''}). Give more of the name, or an index "
                "from 'ov-recipro layers'."
            )
        if len(found) == 1:
            return _checked(graph, tokens, layer, next(iter(found)))
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
    if block and tokens is not None:
        number = int(block[1])
        if not -len(tokens.cuts) <= number < len(tokens.cuts):
            raise OptionError(
                f"Layer '{layer}' is out of range: there are blocks.0 to "
                f"blocks.{len(tokens.cuts) - 1} (see 'ov-recipro layers')."
            )
        return tokens.cuts[number]
    raise OptionError(f"No layer '{layer}' in this model.{_closest(layer, names)}")


def _names(graph: Graph, tokens: Tokens | None) -> list[tuple[str, str]]:
    """Pair each name a user may type with the tensor that it names, in graph order.

    A module's name stands for the last feature map made inside it, or for the tokens that it reads:
    what is explained is the block that looks at them. So does each leading part of a
    slash-separated node name, which is how one of PyTorch's exporters spells modules.
    """
    exact: list[tuple[str, str]] = []
    modules: dict[str, str] = {}
    read: str | None = None  # the last clean tokens so far
    for node in graph.path_nodes:
        outputs = [name for name in node.outputs if name in graph.path_tensors]
        for name in outputs:
            exact.append((name, name))
        if not outputs or not _can_be_masked(graph, tokens, outputs[0]):
            continue
        if node.name:
            exact.append((node.name, outputs[0]))
        parts = node.name.split("/")[:-1]
        paths = ["/".join(parts[: i + 1]) for i in range(len(parts)) if parts[i]]
        scope = node.scope.split(".") if node.scope else []
        paths += [".".join(scope[: i + 1]) for i in range(len(scope))]
        for path in paths:
            if read is None:
                modules[path] = outputs[0]
            else:
                modules.setdefault(path, read)
        if tokens is not None and outputs[0] in tokens.streams:
            read = outputs[0]
    exact += [(alias, name) for alias, name in graph.aliases.items() if name in graph.path_tensors]
    taken = {name for name, _ in exact}
    return exact + [(name, tensor) for name, tensor in modules.items() if name not in taken]


def _is_suffix(asked: str, name: str) -> bool:
    """Whether `name` ends in `asked` where one of its words begins."""
    return name.endswith(asked) and not name[: -len(asked)][-1:].isalnum()


def _checked(graph: Graph, tokens: Tokens | None, layer: str, tensor: str) -> str:
    if not _can_be_masked(graph, tokens, tensor):
        shape = graph.shapes.get(tensor)
        dimensions = "unknown" if shape is None else "x".join(map(str, shape))
        wanted = "[1,C,H,W] with more than one cell"
        if tokens is not None:
            wanted = f"{wanted} or [1,{tokens.count},C]"
        raise OptionError(
            f"Layer '{layer}' has no spatial grid to explain on: tensor '{tensor}' has shape "
            f"{dimensions}, not {wanted}."
        )
    if (
        tokens is not None
        and tokens.holds(graph.shapes[tensor])
        and tensor in graph.clean_tensors
        and tensor not in tokens.streams
    ):
        raise OptionError(
            f"Layer '{layer}' can't be explained: behind tensor '{tensor}' the model reads "
            "only the prefix tokens, not those of the image."
        )
    return tensor


def _end_of_block(graph: Graph, tokens: Tokens | None, layer: str, named: str) -> CutPoint:
    """Return the nearest clean tensor downstream of `named` with the same height and width."""
    order = [name for node in graph.path_nodes for name in node.outputs]
    grid = _point(graph, tokens, named).grid
    usable = set(graph.clean_tensors)
    if tokens is not None:
        usable = {name for name in usable if _is_feature_map(graph, name)} | set(tokens.streams)
    for name in order[order.index(named) + 1 :]:
        if name in usable and _can_be_masked(graph, tokens, name):
            point = _point(graph, tokens, name)
            if point.grid == grid:
                return point
    bypass = ", ".join(graph.bypass(named)[:3])
    raise OptionError(
        f"Layer '{layer}' is not a clean cut (bypassed by {bypass}) and no clean tensor of "
        f"{grid[0]}x{grid[1]} cells follows; --exact cuts there anyway."
    )


def _is_feature_map(graph: Graph, name: str) -> bool:
    shape = graph.shapes.get(name)
    if shape is None or len(shape) != 4 or shape[0] != 1 or name in graph.attention_heads:
        return False
    _, height, width = chw(shape, name in graph.channels_last)
    return height * width > 1


def _can_be_masked(graph: Graph, tokens: Tokens | None, name: str) -> bool:
    """Whether a tensor has cells: a feature map, or tokens."""
    if tokens is not None and tokens.holds(graph.shapes.get(name)):
        return True
    return _is_feature_map(graph, name)


def _point(graph: Graph, tokens: Tokens | None, name: str) -> CutPoint:
    node = graph.producers[name]
    shape = graph.shapes[name]
    layout: Layout
    prefix, block, blocks = 0, None, 0
    if tokens is not None and tokens.holds(shape):
        layout, prefix = "NTC", tokens.prefix
        blocks = len(tokens.blocks)
        block = tokens.cuts.index(name) if name in tokens.cuts else None
        sizes = (shape[2], *tokens.grid)
    else:
        layout = "NHWC" if name in graph.channels_last else "NCHW"
        sizes = chw(shape, layout == "NHWC")
    return CutPoint(
        tensor=name,
        node=node.name,
        op=node.op,
        shape=sizes,
        stride=max(1, round(_image_height(graph) / sizes[1])),
        bypass=graph.bypass(name),
        layout=layout,
        prefix=prefix,
        block=block,
        blocks=blocks,
    )


def _image_height(graph: Graph) -> int:
    return chw(graph.shapes[graph.image], graph.image in graph.channels_last)[1]


def _is_stride(graph: Graph, point: CutPoint, stride: int) -> bool:
    """Whether the point's stride rounds to `stride` among powers of two (borders shift it)."""
    return round(math.log2(_image_height(graph) / point.shape[1])) == math.log2(stride)


def _refuse_tokens(graph: Graph, last: CutPoint) -> None:
    """Raise for a transformer or mixer whose tokens are laid out in a way that is not known.

    Its last feature map is the patch embedding: it can be masked, but the map would say next to
    nothing about what the network made of the image.
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
        if len(shape) == 3 and any(cells <= size <= cells + MAX_PREFIX for size in shape)
    ]
    if len(tokens) >= _FEWEST_PRODUCTS:
        raise ModelError(
            f"Behind its patch embedding, '{last.tensor}', this model works on tokens "
            f"{list(tokens[-1])} (a vision transformer or mixer) that can't be masked; only tokens "
            f"laid out [1,T,C], with at most {MAX_PREFIX} prefix tokens, can. --layer "
            f"'{last.tensor}' explains at the patch embedding."
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
