"""The variants by their names: what runs the model, and how its runs become maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import OptionError
from ov_recipro.options import Running
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes.pair_runtime import PairInference, PairRuntime
from ov_recipro.runtimes.pooled_runtime import PooledInference, PooledRuntime
from ov_recipro.runtimes.runtime import Inference, Runtime
from ov_recipro.saliency import Floats, Score
from ov_recipro.targets.base import ScoredTarget
from ov_recipro.targets.classes import ClassTarget
from ov_recipro.variants.aumann import aumann
from ov_recipro.variants.pair import pair


def open_variant(name: str, bundle: Bundle, running: Running, mask: Mask, signed: bool) -> Runtime:
    """Make a bundle ready to run on a device, for a variant.

    Args:
        name: of the variant.
        bundle, running: see `Explainer`; so are `mask` and `signed`, which are for Recipro-CAM.

    Raises:
        OptionError: the variant is not for this model, or an option is not for it.
        DeviceError: the device is missing or can't run the model.
    """
    if mask != "cell" or signed:
        raise OptionError("--mask and --signed are for --method recipro.")
    if name == "recipro-pair":
        return PairRuntime(bundle, running)
    return PooledRuntime(bundle, running)


def details(runtime: Runtime) -> dict[str, str]:
    """Return what else a record says of a variant's maps: the layer that it also looks at."""
    return {"second_layer": runtime.layer} if isinstance(runtime, PairRuntime) else {}


def variant_maps(
    inference: Inference,
    targets: Sequence[ScoredTarget],
    scores: Callable[[Floats, Floats | None], npt.NDArray[np.float64]],
    whole: npt.NDArray[np.float64],
    score: Score,
) -> npt.NDArray[np.float64]:
    """Return the maps [T,h,w] of classes, by the variant that an inference is of.

    Args:
        inference: of a runtime that `open_variant` made.
        targets: the classes.
        scores: from logits [N,classes] and their softmax terms to the targets' scores [N,T].
        whole: their scores of the whole image, [T].
        score: how logits become scores.

    Raises:
        OptionError: a target is not a class.
    """
    classes = [target.index for target in targets if isinstance(target, ClassTarget)]
    if len(classes) < len(targets):
        raise OptionError("Methods 'recipro-pair' and 'recipro-aumann' explain only classes.")
    logits = np.concatenate([logits for logits, _ in inference.masked(None)])
    if isinstance(inference, PooledInference):
        shares = aumann(logits, inference.empty, classes, score)
        return np.asarray(inference.cells.as_maps(shares))
    if not isinstance(inference, PairInference):
        raise TypeError("this inference does not belong to a variant")
    kept = inference.earlier.as_maps(scores(inference.kept, None))
    (empty,) = scores(inference.empty[None], None)
    return pair(kept, empty, inference.later.as_maps(scores(logits, None)), whole)
