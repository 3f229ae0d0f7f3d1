"""How feature maps are laid out, and which 4-D tensors of a model are [N,H,W,C]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ov_recipro.cut.graph import ON_MAPS, Node, Shape

Layout = Literal["NCHW", "NHWC", "NTC"]
"""The axes of a tensor in order: batch, channels, height, width and tokens."""

_CHANNELS_FIRST = ON_MAPS | {"DepthToSpace", "InstanceNormalization"}
_LINEAR = frozenset({"Gemm", "MatMul"})
_NORMALISATIONS = frozenset({"LayerNormalization", "MVN", "ReduceMean"})


def chw(shape: Shape, is_channels_last: bool) -> tuple[int, int, int]:
    """Return (C, H, W) of a feature map's shape [1,C,H,W] or [1,H,W,C]."""
    _, a, b, c = shape
    return (c, a, b) if is_channels_last else (a, b, c)


def channels_last(
    nodes: Sequence[Node], image: str, shapes: Mapping[str, Shape], carried: frozenset[str]
) -> frozenset[str]:
    """Return the 4-D tensors laid out [N,H,W,C].

    Convolutions and pools take and give [N,C,H,W]. A linear layer or a normalisation over the last
    axis shows that channels are there; a Transpose changes the layout; all else passes it on.

    Args:
        nodes: the model's nodes, in topological order.
        image: name of the image input; its axis of three colours shows its layout.
        shapes: shapes at batch 1, where known.
        carried: the tensors that the image reaches.
    """
    last = {image: shapes[image][1] != 3}
    for node in nodes:
        if node.op == "Reshape" and _spreads_tokens(node, shapes):
            last.update(dict.fromkeys(node.outputs, True))
            continue
        sources = [n for n in node.inputs if n in carried and len(shapes.get(n, ())) == 4]
        if not sources:
            continue
        source = sources[0]
        if node.op in _CHANNELS_FIRST:
            last.update(dict.fromkeys([source, *node.outputs], False))
        elif (node.op in _LINEAR and len(sources) == 1) or (
            node.op in _NORMALISATIONS and node.axes == (3,)
        ):
            last.update(dict.fromkeys([source, *node.outputs], True))
        elif node.op == "Transpose":
            last.update(dict.fromkeys(node.outputs, node.axes == (0, 2, 3, 1)))
        elif any(last.get(name, False) for name in sources):
            last.update(dict.fromkeys(node.outputs, _same_rank(node, shapes)))
    return frozenset(name for name, is_last in last.items() if is_last)


def _spreads_tokens(node: Node, shapes: Mapping[str, Shape]) -> bool:
    """Whether a reshape spreads tokens [1,T,C] over height and width, [1,H,W,C]."""
    before = next((shapes[name] for name in node.inputs if name in shapes), ())
    after = shapes.get(node.outputs[0], ())
    if len(before) != 3 or len(after) != 4:
        return False
    batch, count, channels = before
    return (batch, count, channels) == (after[0], after[1] * after[2], after[3]) and after[2] > 1


def _same_rank(node: Node, shapes: Mapping[str, Shape]) -> bool:
    return node.op not in ("Reshape", "Flatten") and len(shapes.get(node.outputs[0], ())) == 4
