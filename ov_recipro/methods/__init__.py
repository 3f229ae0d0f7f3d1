"""Methods to compare: each makes a map of an image and a class from forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from ov_recipro.errors import OptionError
from ov_recipro.methods import activation, attention, perturbation, sanity
from ov_recipro.methods.box_methods import BOX_METHODS
from ov_recipro.methods.subject import AnyTarget, NotApplicable, Subject, class_of
from ov_recipro.plans.stream import Mask
from ov_recipro.saliency import Floats, Score
from ov_recipro.variants import Variant

Method: TypeAlias = Callable[[Subject, Floats, AnyTarget], Floats]
"""From a model, an image [C,H,W] in its input's units and a target to a map [h,w] of any range.

Raises NotApplicable where the model does not allow it.
"""


def _recipro(
    mask: Mask, score: Score | None, subject: Subject, image: Floats, target: AnyTarget
) -> Floats:
    return subject.reciprocal(image, target, mask, score)


def _contrast(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    return subject.contrast(image, target)


def _variant(method: Variant, subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    class_of(target)
    return subject.own(image, target, method)


METHODS: dict[str, Method] = {
    "recipro": partial(_recipro, "cell", None),
    "recipro-logit": partial(_recipro, "cell", "none"),
    "recipro-spread": partial(_recipro, "spread", None),
    "recipro-spread-logit": partial(_recipro, "spread", "none"),
    "recipro-weight": partial(_recipro, "weight", None),
    "recipro-weight-logit": partial(_recipro, "weight", "none"),
    "recipro-drop": partial(_recipro, "drop", None),
    "recipro-drop-logit": partial(_recipro, "drop", "none"),
    "recipro-contrast": _contrast,
    "recipro-pair": partial(_variant, "recipro-pair"),
    "recipro-aumann": partial(_variant, "recipro-aumann"),
    "cam": activation.cam,
    "grad-cam": activation.grad_cam,
    "grad-cam++": activation.grad_cam_plus_plus,
    "smooth-grad-cam++": activation.smooth_grad_cam_plus_plus,
    "eigen-cam": activation.eigen_cam,
    "ablation-cam": activation.ablation_cam,
    "attention": attention.class_attention,
    "rollout": attention.rollout,
    "score-cam": perturbation.score_cam,
    "rise": perturbation.rise,
    "fake-cam": sanity.fake_cam,
    "gaussian": sanity.centre_gaussian,
    "fit-gaussian": sanity.fit_gaussian,
    "random": sanity.random_map,
}
"""The methods, by the names that users give."""

CONTROLS = ("gaussian", "fit-gaussian", "random")
"""Methods that do not look for where the model looks: a map must beat them to say anything."""


def find_methods(names: Sequence[str], methods: Mapping[str, Any] = METHODS) -> list[str]:
    """Return the methods that `names` stand for, each once; "all" stands for every one.

    Args:
        names: of methods.
        methods: those there are.

    Raises:
        OptionError: there is no such method.
    """
    found: dict[str, None] = {}
    for name in names:
        if name == "all":
            found.update(dict.fromkeys(methods))
        elif name in methods:
            found[name] = None
        else:
            raise OptionError(
                f"There is no method '{name}'; the methods are: {', '.join(methods)}."
            )
    return list(found)


__all__ = [
    "BOX_METHODS",
    "CONTROLS",
    "METHODS",
    "AnyTarget",
    "Method",
    "NotApplicable",
    "Subject",
    "find_methods",
]
