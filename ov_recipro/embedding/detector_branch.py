"""The explaining part of a detector: the feature maps' cells emptied, by plan `rows`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.recognition import SALIENCY_MAP
from ov_recipro.embedding.class_losses import class_losses
from ov_recipro.embedding.common import Scaling, indices_of
from ov_recipro.embedding.pinning import copied
from ov_recipro.embedding.scoring import scaled_losses
from ov_recipro.errors import ModelError
from ov_recipro.plans import sparse
from ov_recipro.plans.nodes import constant, macs_of, prepared, reshape
from ov_recipro.plans.rows.joint_compiler import LoweredJoint, lower_joint
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.runtimes.model_graphs import tail_at
from ov_recipro.runtimes.openvino_runtime import sparse_refusal
from ov_recipro.sources.openvino_models import core, read


def detector_branch(
    bundle: Bundle,
    layout: BoxLayout,
    classes: Sequence[int | str] | None,
    scaling: Scaling,
    memory: int,
) -> tuple[ov.Model, tuple[str, ...]]:
    """Return the explaining part of one image, and its output's name.

    Its inputs are the feature maps [1,C,h,w] that the tail reads; its output `saliency_map`
    [1,T,H,W] holds what each class loses (see `class_losses`).

    Args:
        bundle: the detector.
        layout: how its outputs hold candidates.
        classes: those to explain, by index or name; None for all.
        scaling: see `embed`; memory: bytes that the activations of some cells may take at once.

    Raises:
        ModelError: plan `rows` does not apply.
        TargetError: there are no such classes.
    """
    manifest = bundle.manifest
    chosen = np.arange(manifest.classes) if classes is None else indices_of(classes, manifest)
    reason = sparse.applies(manifest, "drop") or sparse_refusal(bundle, "drop", "CPU", memory)
    if reason is not None:
        raise _refused(reason)
    try:
        features, lowered = _rows(bundle, memory)
        found = class_losses(lowered, layout, chosen)
    except PlanRefused as failure:
        raise _refused(str(failure)) from failure
    scaled = scaled_losses(found, scaling)
    by_class = ops.transpose(scaled, constant([1, 0], np.int32)).output(0)
    maps = reshape(by_class, [1, len(chosen), *manifest.cut.grid])
    return ov.Model([ops.result(maps)], features, "explaining"), (SALIENCY_MAP,)


def _rows(bundle: Bundle, memory: int) -> tuple[list[ov.Node], LoweredJoint]:
    """Return inputs for the feature maps, and the tail as rows that are built on copies of them.

    Part of these is the plain tail. On the maps themselves OpenVINO would take it and the model's
    own for one, so that the model's would run in float32.
    """
    manifest = bundle.manifest
    tail = tail_at(bundle, batch=1)
    models = [read(bundle.head, [manifest.image.shape]), tail]
    own = models[:1] if manifest.deployed_scores else models
    macs = sum(macs_of(node) for model in own for node in model.get_ordered_ops())
    features = [
        ops.parameter(list(port.shape), np.float32, name=port.get_node().get_friendly_name())
        for port in tail.inputs
    ]
    ports = [copied(feature.output(0)) for feature in features]
    cells = manifest.cut.cells
    return features, lower_joint(prepared(tail), ports, cells, core(), memory, macs, "drop")


def _refused(reason: str) -> ModelError:
    return ModelError(
        f"A detector's maps are embedded by plan rows, which can't be used here: {reason}. "
        "'ov-recipro explain' makes them by another plan."
    )
