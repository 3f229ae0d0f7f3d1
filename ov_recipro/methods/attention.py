"""Maps from a transformer's attention, which no class is asked about."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Bundle
from ov_recipro.methods.subject import AnyTarget, NotApplicable, Subject
from ov_recipro.runtimes.model_graphs import whole_model
from ov_recipro.saliency import Floats


def class_attention(subject: Subject, image: Floats, target: AnyTarget) -> Floats:  # noqa: ARG001
    """What the class token reads in the last block, averaged over the heads."""
    matrices = _attention(subject, image)
    if subject.explainer.bundle.manifest.cut.prefix == 0:
        raise NotApplicable("the model has no class token")
    return _on_grid(subject, matrices[-1][0])


def rollout(subject: Subject, image: Floats, target: AnyTarget) -> Floats:  # noqa: ARG001
    """Attention rollout (Abnar & Zuidema, 2020): attention of all blocks, multiplied.

    Each block's matrix, averaged over the heads, is averaged with the identity for the residual
    connection. The class token's row is the map; without one, the mean over all rows.
    """
    matrices = _attention(subject, image)
    reached = np.eye(len(matrices[0]))
    for matrix in matrices:
        reached = (matrix + np.eye(len(matrix))) / 2 @ reached
    prefix = subject.explainer.bundle.manifest.cut.prefix
    return _on_grid(subject, reached[0] if prefix else reached.mean(axis=0))


def _attention(subject: Subject, image: Floats) -> list[Floats]:
    """Return each block's attention [T,T], from those that ask to those that are asked."""
    cut = subject.explainer.bundle.manifest.cut
    if cut.layout != "NTC":
        raise NotApplicable("the cut is a feature map, not tokens")
    return subject.outputs_of(attention_model, image)


def _on_grid(subject: Subject, row: Floats) -> Floats:
    cut = subject.explainer.bundle.manifest.cut
    return np.asarray(row[cut.prefix :].reshape(cut.grid))


def attention_model(bundle: Bundle) -> ov.Model:
    """Return the deployed model from the image to the attention [T,T] of each block in turn.

    Raises:
        NotApplicable: there is none over all tokens.
    """
    model = whole_model(bundle)
    cut = bundle.manifest.cut
    count = cut.prefix + cut.cells.count
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Softmax":
            weights = node
            if int(node.get_attributes()["axis"]) % len(node.output(0).shape) < 2:
                continue
        elif node.get_type_name() == "ScaledDotProductAttention":
            weights = _weights(node)
        else:
            continue
        sizes = list(weights.output(0).shape)
        if sizes[-2:] == [count, count]:
            heads = np.arange(len(sizes) - 2)
            found.append(ops.result(ops.reduce_mean(weights, heads, False)))
    if len(found) != cut.blocks:
        raise NotApplicable(
            f"attention over all tokens was found in {len(found)} of {cut.blocks} blocks"
        )
    return ov.Model(found, model.get_parameters(), "attention")


def _weights(node: ov.Node) -> ov.Node:
    """Return the weights inside an operation that does all of attention."""
    query, key, _, *more = (port.get_source_output() for port in node.inputs())
    scale = np.float32(int(query.shape[-1]) ** -0.5)
    scores = ops.matmul(query, key, False, True)
    scores = ops.multiply(scores, more[1] if len(more) > 1 else scale)
    if len(more) > 0 and more[0].get_element_type() == ov.Type.boolean:
        scores = ops.select(more[0], scores, ops.constant(np.float32(-np.inf)))
    elif len(more) > 0:
        scores = ops.add(scores, more[0])
    return ops.softmax(scores, len(scores.output(0).shape) - 1)
