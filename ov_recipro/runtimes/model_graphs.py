"""A bundle's model and its parts as OpenVINO graphs, ready to be compiled."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Bundle
from ov_recipro.plans import sparse
from ov_recipro.plans.nodes import macs_of
from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.sparse import SparsePlan
from ov_recipro.plans.stream import Mask, StreamPlan, batched, plan_stream
from ov_recipro.plans.stream.stream_openvino import activation_bytes, masked
from ov_recipro.sources.openvino_models import core, read


def plain_model(bundle: Bundle) -> ov.Model:
    """Return the model from the image to the logits alone."""
    model = whole_model(bundle)
    return ov.Model([model.get_results()[-1]], model.get_parameters(), "plain")


def whole_model(bundle: Bundle, tail: ov.Model | None = None) -> ov.Model:
    """Return the model from the image to the head's outputs and, last, the logits.

    Args:
        bundle: what `split` made.
        tail: a tail to use instead of the bundle's; it is consumed, and its other outputs come
            between.
    """
    head = _head(bundle)
    if bundle.manifest.deployed_scores:
        return head
    tail = tail or tail_at(bundle, batch=1)
    for result, parameter in zip(head.get_results(), tail.get_parameters(), strict=True):
        source = result.input(0).get_source_output()
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source)
    return ov.Model([*head.get_results(), *tail.get_results()], head.get_parameters(), "model")


def _head(bundle: Bundle) -> ov.Model:
    return read(bundle.head, [bundle.manifest.image.shape])


def tail_at(bundle: Bundle, batch: int) -> ov.Model:
    """Read the tail with its feature map and bypass tensors at this batch."""
    return read(bundle.tail, [batched(shape, batch) for shape in bundle.manifest.boundary_shapes])


def stream_model(bundle: Bundle, memory: int, mask: Mask) -> tuple[ov.Model, StreamPlan]:
    """Return the tail from a feature map, bypass tensors and cell numbers to their logits."""
    plan = stream_plan(bundle, memory)
    return masked(tail_at(bundle, plan.batch), bundle.manifest, plan.batch, mask), plan


def stream_plan(bundle: Bundle, memory: int) -> StreamPlan:
    """Choose how many cells run at once."""
    return plan_stream(
        cells=bundle.manifest.cut.cells.count,
        bytes_per_cell=activation_bytes(tail_at(bundle, batch=1)),
        batch_memory=memory if bundle.manifest.any_batch else 1,
    )


def sparse_model(
    bundle: Bundle, mask: Mask, memory: int, plain: bool = True
) -> tuple[ov.Model, SparsePlan]:
    """Return the sparse plan from a feature map to logits, and these logits' plan.

    They are [N+1,classes], the whole feature map's last, or [N,classes] if not `plain`.
    """
    feature = ops.parameter(list(bundle.manifest.boundary_shapes[0]), np.float32, name="feature")
    logits, plan = _built(bundle, mask, _head(bundle), feature.output(0), memory, plain)
    return ov.Model([ops.result(logits)], [feature], plan.name), plan


def fused_model(bundle: Bundle, mask: Mask, memory: int) -> tuple[ov.Model, SparsePlan]:
    """Return the head with the sparse plan built on it.

    Its outputs are the logits [N+1,classes] of the cells and, last, of the image, the
    `saliency.softmax_terms` of both, and the sum of the feature map, which is finite where all of
    it is.
    """
    head = _head(bundle)
    results = [result.input_value(0) for result in head.get_results()]
    deployed = bundle.manifest.deployed_scores
    logits, plan = _built(bundle, mask, head, results[0], memory, plain=not deployed)
    if deployed:
        flat = ops.reshape(results[-1], np.array([1, -1]), False)
        logits = ops.concat([logits, ops.convert(flat, np.float32)], 0).output(0)
    total = ops.reduce_sum(results[0], np.arange(len(results[0].shape)), False)
    outputs = [ops.result(port) for port in (logits, _softmax_terms(logits), total)]
    return ov.Model(outputs, head.get_parameters(), "fused"), plan


def joint_model(bundle: Bundle, mask: Mask, memory: int) -> tuple[ov.Model, Scattered, SparsePlan]:
    """Return a detector's plan from its feature maps to values (see `sparse.build_joint`)."""
    tail, macs = _tail_and_macs(bundle, _head(bundle))
    return sparse.build_joint(bundle.manifest, mask, tail, core(), memory, macs)


def _softmax_terms(logits: ov.Output) -> ov.Node:
    """Return `saliency.softmax_terms` of logits [N,classes] as a graph."""
    over, zero = np.array([1]), np.float32(0)
    highest = ops.reduce_max(logits, over, True)
    change = ops.subtract(logits, highest)
    below = ops.convert(ops.less(change, zero), np.float32)
    others = ops.reduce_sum(ops.multiply(ops.exp(change), below), over, True)
    count = ops.reduce_sum(below, over, True)
    ties = ops.subtract(np.float32(logits.shape[1]), count)
    return ops.concat([highest, others, ties], 1)


def _built(
    bundle: Bundle, mask: Mask, head: ov.Model, feature: ov.Output, memory: int, plain: bool
) -> tuple[ov.Output, SparsePlan]:
    tail, macs = _tail_and_macs(bundle, head)
    return sparse.build(bundle.manifest, mask, tail, feature, core(), memory, macs, plain)


def _tail_and_macs(bundle: Bundle, head: ov.Model) -> tuple[ov.Model, int]:
    """Return the tail, and the multiply-accumulates of one plain inference."""
    tail = tail_at(bundle, batch=1)
    models = [head] if bundle.manifest.deployed_scores else [head, tail]
    return tail, sum(macs_of(node) for model in models for node in model.get_ordered_ops())
