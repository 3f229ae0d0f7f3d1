"""Which tensor of a model holds the class scores, and what activation closes the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ov_recipro.cut.graph import Node, Shape
from ov_recipro.errors import ModelError, OptionError
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


def find_scores(
    nodes: Sequence[Node],
    outputs: Sequence[str],
    shapes: Mapping[str, Shape],
    asked: str | None = None,
) -> tuple[str, Activation, str]:
    """Find the class scores.

    Args:
        nodes: the model's nodes, in topological order.
        outputs: names of the model's outputs.
        shapes: shapes at batch 1, where known.
        asked: the output that the user named.

    Returns:
        The tensor that holds the logits, the activation that closes the model behind it, and the
        output that this leads to.

    Raises:
        OptionError: there is no such output, or the user must name the one that is meant.
        ModelError: the only output is not class scores.
    """
    output = _choose(outputs, shapes, asked)
    producers = {name: node for node in nodes for name in node.outputs}
    tensor = output
    while (node := producers.get(tensor)) is not None and node.inputs:
        tensor = node.inputs[0]
        if node.op in _ACTIVATIONS and _over_classes(node, shapes.get(tensor)):
            return tensor, _ACTIVATIONS[node.op], output
        if node.op not in _TRANSPARENT:
            break
    return output, "none", output


def _choose(outputs: Sequence[str], shapes: Mapping[str, Shape], asked: str | None) -> str:
    if asked is not None:
        if asked not in outputs:
            raise OptionError(f"No output '{asked}'; the model has: {', '.join(outputs)}.")
        return asked
    fitting = [name for name in outputs if name in shapes and _is_scores(shapes[name])]
    if len(fitting) == 1:
        return fitting[0]
    if len(outputs) == 1 and outputs[0] not in shapes:
        return outputs[0]  # behind an operation that only its own runtime knows
    if len(outputs) == 1:
        raise ModelError(
            f"The output '{outputs[0]}' has shape {list(shapes[outputs[0]])}: not class scores "
            "[1,classes]."
        )
    listed = ", ".join(f"{n} {list(shapes[n]) if n in shapes else '?'}" for n in outputs)
    raise OptionError(f"Which output holds the class scores? Name it with --output-name: {listed}.")


def _is_scores(shape: Shape) -> bool:
    """[K], [1,K], [1,K,1,1] or [1,1,1,K]."""
    return len(shape) in (1, 2) or (
        len(shape) == 4 and shape[0] == 1 and prod(shape) == max(shape[1], shape[3])
    )


def _over_classes(node: Node, shape: Shape | None) -> bool:
    """Whether a Softmax runs over all classes; a Sigmoid has no axis."""
    if shape is None or node.op == "Sigmoid":
        return shape is not None
    return prod(shape[axis] for axis in node.axes) == prod(shape)
