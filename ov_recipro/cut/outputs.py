"""Which tensor of a model its targets are scored by, and what follows that tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.detectors import find_layout, of_suppression
from ov_recipro.cut.graph import Graph, Node, Shape, Task, descendants, over_classes
from ov_recipro.cut.layout import channels_last, chw
from ov_recipro.cut.recognition import (
    NORMALISATIONS,
    OWN_OUTPUTS,
    Finding,
    Output,
    is_vector,
    named_as_boxes,
    recognise,
    with_article,
)
from ov_recipro.errors import ModelError, OptionError
from ov_recipro.options import TaskName
from ov_recipro.saliency import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "Softmax": "softmax",
    "SoftMax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
}
_TRANSPARENT = frozenset(
    {
        "Cast",
        "Convert",
        "DequantizeLinear",
        "FakeQuantize",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
    }
)
_BEHIND_MAPS = _TRANSPARENT | {"ArgMax", "Interpolate", "Resize", "TopK", "Upsample"}
_LINEAR = frozenset({"Conv", "Convolution", "FullyConnected", "Gemm", "MatMul"})
_KINDS: dict[TaskName, Task] = {
    "classifier": "classifier",
    "detector": "detector",
    "segmentation": "segmentation",
    "sequence": "sequence",
}
SUPPRESSIONS = frozenset({"NonMaxSuppression", "MatrixNms", "MulticlassNms"})
JOINED = "ov_recipro/candidates"
"""The tensor that holds a detector's candidates where several outputs do."""

_BEHIND_LINEAR = _TRANSPARENT | {"Add", *_ACTIVATIONS}


@dataclass(frozen=True)
class Ending:
    """How a model ends.

    Attributes:
        task: what the model is for; why: how that is known, in words.
        scores: the tensor that targets are scored by, before a closing activation; class_axis: its
            axis of classes, or of an embedding's numbers.
        activation: what the model applies to that.
        output: the model's output that this leads to.
        boxes: of a detector, how the scores hold its candidate boxes.
        joined: the tensors whose numbers in a row the scores are, where these are several.
    """

    task: Task
    why: str
    scores: str
    class_axis: int
    activation: Activation
    output: str
    boxes: BoxLayout | None = None
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """A model's outputs, and the way back from them.

    Attributes:
        nodes: the model's nodes, in topological order; names: of the model's outputs.
        shapes: shapes at batch 1, where known; image: (height, width) of the model's input.
        channels_last: the 4-D tensors laid out [N,H,W,C].
        declared: what the file says about itself; classes: how many it names.
        x_first: whether its exporter gives suppression corners with x first, against the operator's
            definition, as PyTorch's does.
    """

    nodes: Sequence[Node]
    names: Sequence[str]
    shapes: Mapping[str, Shape]
    image: tuple[int, int]
    channels_last: frozenset[str] = frozenset()
    declared: Finding | None = None
    classes: int | None = None
    x_first: bool = False

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs}

    def ending(self, asked: str | None = None, task: TaskName = "auto") -> Ending:
        """Find what targets are scored by.

        Args:
            asked: the output that the user named; for vectors, any tensor.
            task: what the user says that the model is.

        Raises:
            OptionError: there is no such output, or the user must name the one that is meant.
            ModelError: the model is for something else.
        """
        wants_vector = task in ("embedding", "features", "similarity")
        if asked is not None and asked not in self.names:
            if not wants_vector or asked not in self._producers:
                raise OptionError(f"No output '{asked}'; the model has: {', '.join(self.names)}.")
            return self._vector(asked, task, Finding("embedding", "--task"))
        found = self._recognised(asked)
        if task != "auto":
            if wants_vector:
                name = self._choose(asked, "the vector")
                return self._vector(name, "embedding" if asked == name else task, found)
            if task != found.kind:
                found = Finding(_KINDS[task], f"--task {task}")
        if found.kind == "classifier":
            return self._classifier(asked, found.why)
        if found.kind == "embedding":
            return self._vector(self._choose(asked, "the vector"), "embedding", found)
        if found.kind in ("segmentation", "sequence"):
            return self._many(asked, found)
        if found.kind == "detector":
            return self._detector(asked, found)
        raise self._refusal(found)

    def _recognised(self, asked: str | None) -> Finding:
        if self.declared is not None and asked is None:
            return self.declared
        suppressing = [node.op for node in self.nodes if node.op in SUPPRESSIONS]
        if suppressing and asked is None:
            return Finding("detector", f"its operator {suppressing[0]}")
        names = list(self.names) if asked is None else [asked]
        if not names:
            raise ModelError("The model has no outputs.")
        known = {
            name: Output(self.shapes[name], self._closing(name), name in self.channels_last)
            for name in names
            if name in self.shapes
        }
        if len(known) < len(names) and (why := named_as_boxes(names)) is not None:
            return Finding("detector", why)
        if not known:
            return Finding("classifier", f"output '{names[0]}'")  # only its own runtime knows it
        return recognise(known, self.image)

    def _closing(self, name: str) -> str:
        """Return the operation that makes a tensor, apart from casts and reshapes."""
        while (node := self._producers.get(name)) is not None and node.inputs:
            if node.op == "Div" and self._is_length(node.inputs[-1]):
                return "LpNormalization"
            if node.op not in _TRANSPARENT:
                return node.op
            name = node.inputs[0]
        return ""

    def _is_length(self, name: str) -> bool:
        """Whether a tensor is the length of a vector, as PyTorch's normalize computes it."""
        while (node := self._producers.get(name)) is not None and node.inputs:
            if node.op in NORMALISATIONS:
                return True
            if node.op not in ("Clip", "Clamp", "Max", "Maximum", "Expand", "Broadcast"):
                return False
            name = node.inputs[0]
        return False

    def _detector(self, asked: str | None, found: Finding) -> Ending:
        """Return where the candidate boxes are: in outputs, or in front of what removes some."""
        names = [n for n in self.names if n not in OWN_OUTPUTS] if asked is None else [asked]
        shapes = {name: self.shapes[name] for name in names if name in self.shapes}
        layout = self._layout(shapes) if len(shapes) == len(names) else None
        why = found.why
        if layout is None or layout.suppressed:
            inside = self._before_suppression()
            if inside is not None:
                layout, why = inside, f"{why}; its candidates, '{inside.outputs[0]}'"
        if layout is None:
            raise ModelError(
                f"The model is a detector ({found.why}) with candidate boxes laid out in a way "
                f"that is not known: {self._listed()}. If it is something else, say so with --task."
            )
        joined = layout.outputs if len(layout.outputs) > 1 else ()
        scores = JOINED if joined else layout.outputs[0]
        return Ending("detector", why, scores, 1, "none", ", ".join(names), layout, joined)

    def _layout(self, shapes: Mapping[str, Shape]) -> BoxLayout | None:
        return find_layout(shapes, self.image, classes=self.classes)

    def _before_suppression(self) -> BoxLayout | None:
        """Return the candidates inside a model that removes overlapping boxes itself.

        They are the last tensor that is laid out as the only output of a detector is, or else what
        the operator that suppresses boxes reads.
        """
        for node in reversed(self.nodes):
            for name in node.outputs:
                shape = self.shapes.get(name, ())
                layout = self._layout({name: shape}) if len(shape) == 3 else None
                if layout is not None and not layout.suppressed and layout.grids:
                    return layout
        for node in self.nodes:
            boxes, scores = (*node.inputs, "", "")[:2]
            both = [self.shapes.get(name, ()) for name in (boxes, scores)]
            if node.op in SUPPRESSIONS and [len(each) for each in both] == [3, 3]:
                x_first = self.x_first or node.op != "NonMaxSuppression"
                return of_suppression(
                    (boxes, both[0]), (scores, both[1]), node.centred, self.image, x_first=x_first
                )
        return None

    def _refusal(self, found: Finding) -> ModelError:
        if found.kind == "unknown":
            return ModelError(
                f"The model has {found.why}: neither class scores [1,classes] nor a vector, a map "
                "of classes or a sequence of them. Say what it is with --task."
            )
        what = {
            "anomaly": "anomaly detector",
            "instances": "instance segmentation",
            "keypoints": "keypoint detector",
        }.get(found.kind, found.kind)
        return ModelError(
            f"The model is {with_article(what)} ({found.why}); only classifiers, detectors, "
            "embeddings, segmentations and sequences can be explained. If it is one of these, say "
            "so with --task."
        )

    def _choose(self, asked: str | None, what: str) -> str:
        """Return the one output that is a vector."""
        if asked is not None:
            return asked
        fitting = [n for n in self.names if n in self.shapes and is_vector(self.shapes[n])]
        if len(fitting) == 1:
            return fitting[0]
        if len(self.names) == 1 and self.names[0] not in self.shapes:
            return self.names[0]  # behind an operation that only its own runtime knows
        if len(self.names) == 1:
            shape = list(self.shapes[self.names[0]])
            expected = "class scores [1,classes]" if what != "the vector" else "a vector [1,D]"
            raise ModelError(f"The output '{self.names[0]}' has shape {shape}: not {expected}.")
        raise OptionError(
            f"Which output holds {what}? Name it with --output-name: {self._listed()}."
        )

    def _listed(self) -> str:
        return ", ".join(
            f"{n} {list(self.shapes[n]) if n in self.shapes else '?'}" for n in self.names
        )

    def _classifier(self, asked: str | None, why: str) -> Ending:
        output = self._choose(asked, "the class scores")
        tensor = output
        while (node := self._producers.get(tensor)) is not None and node.inputs:
            tensor = node.inputs[0]
            if node.op in _ACTIVATIONS and over_classes(node, self.shapes.get(tensor)):
                return Ending("classifier", why, tensor, 1, _ACTIVATIONS[node.op], output)
            if node.op not in _TRANSPARENT:
                break
        return Ending("classifier", why, output, 1, "none", output)

    def _vector(self, name: str, task: TaskName, found: Finding) -> Ending:
        """Return an embedding's vector, or the one that a classifier's last layer reads."""
        why = found.why
        if task == "features" or (task == "similarity" and found.kind == "classifier"):
            name = self._features(name)
            why = f"the vector '{name}' that its last layer reads"
        if name not in self.shapes or not is_vector(self.shapes[name]):
            shape = list(self.shapes.get(name, ()))
            raise OptionError(f"'{name}' has shape {shape}: not a vector [1,D].")
        return Ending("embedding", why, name, 1, "none", name)

    def _features(self, output: str) -> str:
        tensor = output
        while (node := self._producers.get(tensor)) is not None and node.inputs:
            carried = [name for name in node.inputs if name in self._producers]
            if node.op in _LINEAR and carried:
                return carried[0]
            if node.op not in _BEHIND_LINEAR or not carried:
                break
            tensor = carried[0]
        raise OptionError(
            f"Before output '{output}' there is no linear layer whose input could be compared; "
            "--task embedding compares the output itself, --output-name another vector."
        )

    def _many(self, asked: str | None, found: Finding) -> Ending:
        """Return the class scores [1,K,h,w] of pixels, or [1,T,K] of positions.

        Choices of the best class, enlarging and activations behind them are left out.
        """
        kind: Task = "sequence"
        rank, passed = 3, _TRANSPARENT
        ranks: tuple[int, ...] = (3,)
        if found.kind == "segmentation":
            kind, rank, ranks, passed = "segmentation", 4, (3, 4), _BEHIND_MAPS
        output = self._of_rank(asked, ranks, kind)
        activation: Activation = "none"
        scores = tensor = output
        while (node := self._producers.get(tensor)) is not None and node.inputs:
            if node.op in _ACTIVATIONS and activation == "none":
                axis = self._class_axis(node.inputs[0], rank)
                if node.op != "Sigmoid" and node.axes != (axis,):
                    break
                activation = _ACTIVATIONS[node.op]
            elif node.op not in passed:
                break
            tensor = node.inputs[0]
            if len(self.shapes.get(tensor, ())) == rank:
                scores = tensor
        if len(self.shapes.get(scores, ())) != rank:
            raise ModelError(f"Output '{output}' is not computed from class scores.")
        axis = self._class_axis(scores, rank)
        return Ending(kind, found.why, scores, axis, activation, output)

    def _class_axis(self, name: str, rank: int) -> int:
        return (3 if name in self.channels_last else 1) if rank == 4 else 2

    def _of_rank(self, asked: str | None, ranks: tuple[int, ...], kind: str) -> str:
        names = [asked] if asked is not None else list(self.names)
        fitting = [n for n in names if len(self.shapes.get(n, ())) in ranks]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            raise ModelError(f"The model has no output of a {kind}: {self._listed()}.")
        raise OptionError(
            f"Which output is the {kind}? Name it with --output-name: {self._listed()}."
        )


def read_graph(
    nodes: Sequence[Node],
    image: str,
    names: Sequence[str],
    shapes: Mapping[str, Shape],
    *,
    declared: Finding | None,
    classes: int | None,
    asked: str | None,
    task: TaskName,
    aliases: Mapping[str, str] | None = None,
    x_first: bool = False,
) -> Graph:
    """Return a model as a graph, with what its targets are scored by.

    Args:
        nodes: the model's nodes, in topological order; image: name of its image input.
        names, shapes, declared, classes, x_first: see `Outputs`; asked, task: see `Outputs.ending`.
        aliases: see `Graph`.

    Raises:
        OptionError, ModelError: see `Outputs.ending`.
    """
    last = channels_last(nodes, image, shapes, frozenset(descendants(nodes, {image})))
    _, height, width = chw(shapes[image], image in last)
    outputs = Outputs(nodes, names, shapes, (height, width), last, declared, classes, x_first)
    ending = outputs.ending(asked, task)
    if ending.joined:
        parts = [prod(shapes[name]) for name in ending.joined]
        rows = {f"{JOINED}/{number}": (1, count) for number, count in enumerate(parts)}
        shapes = {**shapes, **rows, JOINED: (1, sum(parts))}
        nodes = [*nodes, Node(JOINED, "Concat", ending.joined, (JOINED,))]
    return Graph(
        nodes=tuple(nodes),
        image=image,
        scores=ending.scores,
        activation=ending.activation,
        output=ending.output,
        shapes=shapes,
        channels_last=last,
        aliases=aliases or {},
        task=ending.task,
        why=ending.why,
        class_axis=ending.class_axis,
        boxes=ending.boxes,
        joined=ending.joined,
    )
