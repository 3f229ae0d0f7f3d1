"""A model's graph without its file format, and which of its tensors cut it in two.

Terms (see also `ov_recipro.cut.points`): a tensor *depends on the image* when its pixels reach
it; reading only an image's shape does not count. A tensor is *clean* when every path from the
image to the class scores passes through it. The tensors that go around an unclean one are its
*bypass*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

from ov_recipro.saliency import Activation

if TYPE_CHECKING:
    from ov_recipro.cut.box_layout import BoxLayout

Shape: TypeAlias = tuple[int, ...]
Task = Literal["classifier", "detector", "embedding", "segmentation", "sequence"]
"""What a model is for, and so what its targets are."""

ON_MAPS = frozenset(
    {
        "AveragePool",
        "AvgPool",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Convolution",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GroupConvolution",
        "MaxPool",
    }
)
"""Operations that take and give feature maps [N,C,H,W]."""

CONVOLUTIONS = frozenset(
    {"Conv", "ConvInteger", "QLinearConv", "Convolution", "GroupConvolution", "ConvTranspose"}
)

SHAPE_READERS = frozenset({"Shape", "Size", "ShapeOf"})


@dataclass(frozen=True)
class Node:
    """One operation. `inputs` name every tensor it reads, captures of its subgraphs included."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scope: str = ""
    """Module path of the exporting framework, '' where the file does not say."""
    axes: tuple[int, ...] = ()
    """Axes, counted from 0, that a Softmax or a normalisation runs over; a Transpose's order."""
    centred: bool = False
    """Whether an operator that suppresses boxes takes them by centre and size."""


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order between one image and the class scores.

    Attributes:
        nodes: every node of the model, in topological order.
        image: name of the image input.
        scores: name of the class scores before a closing Softmax or Sigmoid; of other models, the
            tensor that targets are scored by.
        activation: the closing activation that `scores` is the input of, or "none".
        output: name of the model output that the scores lead to.
        shapes: static shapes at batch 1 of the tensors whose shape is known.
        channels_last: tensors [N,H,W,C]; all other 4-D tensors are [N,C,H,W].
        aliases: further names of tensors, each with the tensor it names.
        task: what the model is for; why: how that is known, in words.
        class_axis: the axis of `scores` that counts classes, or an embedding's numbers.
        boxes: of a detector, how its candidate boxes are laid out.
        joined: tensors whose numbers in a row are `scores`, which is then a tensor of its own;
            empty where `scores` is one of the model's.
    """

    nodes: tuple[Node, ...]
    image: str
    scores: str
    activation: Activation
    output: str
    shapes: Mapping[str, Shape]
    channels_last: frozenset[str] = field(default_factory=frozenset)
    aliases: Mapping[str, str] = field(default_factory=dict)
    task: Task = "classifier"
    why: str = ""
    class_axis: int = 1
    boxes: BoxLayout | None = None
    joined: tuple[str, ...] = ()

    @cached_property
    def path_nodes(self) -> tuple[Node, ...]:
        """The nodes on some path from the image to the scores."""
        downstream = descendants(self.nodes, {self.image})
        needed = {self.scores}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs) and downstream.intersection(node.inputs):
                kept.append(node)
                needed.update(downstream.intersection(node.inputs))
        return tuple(reversed(kept))

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes each tensor on the way from the image to the scores."""
        return {name: node for node in self.path_nodes for name in node.outputs}

    @cached_property
    def path_tensors(self) -> frozenset[str]:
        """The tensors that carry the image towards the scores, the image and scores included."""
        read = {name for node in self.path_nodes for name in node.inputs}
        return frozenset(
            name for name in (*self.producers, self.image) if name in read or name == self.scores
        )

    @cached_property
    def clean_tensors(self) -> tuple[str, ...]:
        """The clean tensors, in order from the image (included) to the scores (included).

        Every node is an ancestor or a descendant of a clean tensor, so in any topological order
        the clean tensor is the only one alive right after it is made. One sweep finds them all.
        """
        readers: dict[str, int] = {}
        for node in self.path_nodes:
            for name in set(node.inputs) & self.path_tensors:
                readers[name] = readers.get(name, 0) + 1
        alive = {self.image}
        clean = [self.image]
        for node in self.path_nodes:
            for name in set(node.inputs) & alive:
                readers[name] -= 1
                if readers[name] == 0 and name != self.scores:
                    alive.discard(name)
            alive.update(self.path_tensors.intersection(node.outputs))
            if len(alive) == 1:
                clean.extend(alive.difference(clean[-1:]))
        return tuple(clean)

    @cached_property
    def attention_heads(self) -> frozenset[str]:
        """Tensors of four axes and more, one of which counts the heads of attention.

        They have no height and width: a reshape has divided the channels of tokens [1,T,C]. What
        leads from such a reshape to a convolution or pool is a feature map all the same.
        """
        made_by = {name: node.op for node in self.nodes for name in node.outputs}
        origin: dict[str, str] = {}  # the output of the reshape that each tensor comes from
        maps: set[str] = set()
        for node in self.nodes:
            starts = {origin[name] for name in node.inputs if name in origin}
            if node.op in ON_MAPS or node.op == "Resize":
                maps |= starts
                continue
            for name in node.outputs:
                after = self.shapes.get(name, ())
                if len(after) < 4:
                    continue
                if starts and (node.op != "Reshape" or self.shapes[min(starts)][1] in after):
                    origin[name] = min(starts)
                elif node.op == "Reshape":
                    source = next((name for name in node.inputs if name in self.shapes), "")
                    if made_by.get(source) != "Transpose" and self._divides_channels(source, name):
                        origin[name] = name
        return frozenset(name for name, start in origin.items() if start not in maps)

    def _divides_channels(self, source: str, made: str) -> bool:
        """Whether a reshape turns tokens [1,T,C] or [T,C] into [1,T,...] with C divided."""
        *front, channels = self.shapes.get(source, (0,))
        after = self.shapes[made]
        tokens = prod(front)
        divided = (1, tokens, channels) == (*after[:2], prod(after[2:]))
        return len(front) in (1, 2) and tokens > 1 and divided and after[2] > 1

    def bypass(self, *tensors: str) -> tuple[str, ...]:
        """Return the tensors that carry the image around `tensors`, as late as possible.

        With `tensors` masked, everything downstream of them is computed anew, up to one that is
        masked itself; what that part reads from outside and depends on the image is the bypass.
        Empty where every path from the image to the scores passes through one of them.
        """
        cut, needed = set(tensors), {self.scores}
        kept: list[Node] = []
        for node in reversed(self.path_nodes):
            if needed.intersection(node.outputs) - cut:
                kept.append(node)
                needed.update(self.path_tensors.intersection(node.inputs))
        tail = descendants(reversed(kept), cut)
        outside: dict[str, None] = {}
        for node in reversed(kept):
            if tail.intersection(node.inputs):
                for name in node.inputs:
                    if name in self.path_tensors and name not in tail:
                        outside[name] = None
        return tuple(outside)


def descendants(nodes: Iterable[Node], sources: set[str]) -> set[str]:
    """Return `sources` and every tensor that their values, not only their shapes, reach."""
    reached = set(sources)
    for node in nodes:
        if node.op not in SHAPE_READERS and reached.intersection(node.inputs):
            reached.update(node.outputs)
    return reached


def over_classes(node: Node, shape: Shape | None) -> bool:
    """Whether a Softmax runs over all classes; a Sigmoid has no axis."""
    if shape is None or node.op == "Sigmoid":
        return shape is not None
    return prod(shape[axis] for axis in node.axes) == prod(shape)
