"""Whether a tail is a global average pool and a linear layer, found by running it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import OptionError
from ov_recipro.runtimes.model_graphs import tail_at
from ov_recipro.saliency import Floats
from ov_recipro.sources.openvino_models import runner

_TOLERANCE = 1e-4


def why_not_pooled(run: Callable[[Floats], Floats], shape: tuple[int, int, int]) -> str | None:
    """Return why a tail is not of this form; None where it is, whatever its operations.

    An affine tail for which the place of a value in its channel makes no difference is.

    Args:
        run: from feature maps [n,C,H,W] to logits [n,classes].
        shape: of a feature map, [C,H,W].
    """
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, *shape)).astype(np.float32)
    order = random.permutation(shape[1] * shape[2])
    moved = one.reshape(shape[0], -1)[:, order].reshape(one.shape)
    logits = run(np.stack([np.zeros_like(one), one, other, one + other, moved]))
    zero, first, second, both, shuffled = logits.astype(np.float64)
    tolerance = _TOLERANCE * max(np.abs(first - zero).max(), np.abs(second - zero).max())
    if not np.abs(both - first - second + zero).max() <= tolerance:
        return "the tail is not linear"
    if not np.abs(shuffled - first).max() <= tolerance:
        return "the tail does not begin with a global average pool"
    return None


def empty_logits(bundle: Bundle) -> Floats:
    """Return the logits [classes] of an empty feature map of a tail of this form.

    Raises:
        OptionError: the tail has another form.
    """
    manifest = bundle.manifest
    reason = None
    if len(manifest.boundary_shapes) > 1:
        reason = "tensors bypass the cut"
    elif manifest.cut.layout != "NCHW":
        reason = f"the cut is laid out {manifest.cut.layout}"
    if reason is None:
        run = runner(tail_at(bundle, batch=1))

        def logits(maps: Floats) -> Floats:
            return np.concatenate([run([each[None]])[0].reshape(1, -1) for each in maps])

        reason = why_not_pooled(logits, manifest.cut.shape)
        if reason is None:
            return np.asarray(logits(np.zeros((1, *manifest.cut.shape), np.float32))[0])
    raise OptionError(f"Method 'recipro-aumann' can't be used: {reason}.")
