"""The black-box methods by their names, on the targets of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.black_boxes.hidden_patches import occlusion
from ov_recipro.black_boxes.masked_image import Attribution, MaskedImage, Progress
from ov_recipro.black_boxes.moving_windows import aise
from ov_recipro.black_boxes.random_masks import d_rise, rise
from ov_recipro.errors import OptionError
from ov_recipro.images.preprocess import Preprocessing
from ov_recipro.metrics import Box
from ov_recipro.saliency import Array, Floats
from ov_recipro.targets.base import ScoredTarget
from ov_recipro.targets.boxes import edges_of, is_missed, signed_losses
from ov_recipro.targets.votes import votes
from ov_recipro.variants import VARIANTS, Variant

BlackBox = Literal["occlusion", "rise", "d-rise", "aise", "votes"]
Method = Literal["recipro"] | Variant | BlackBox
"""How an image is explained: by masks on feature maps, by a black box, or by candidates' votes."""

BLACK_BOXES: tuple[BlackBox, ...] = get_args(BlackBox)
METHOD_NAMES: tuple[Method, ...] = ("recipro", *VARIANTS, *BLACK_BOXES)

_LONGEST = 128  # lines or columns of a map that is kept
_GREY = 127.5


def check_method(method: str, task: str) -> None:
    """Raise where a method is not one for models of a kind.

    Raises:
        OptionError: it is for detectors alone, or not for them.
    """
    is_detector = task == "detector"
    if method in VARIANTS and task != "classifier":
        raise OptionError(f"Method '{method}' explains only classes; this model has none.")
    if method in ("d-rise", "votes") and not is_detector:
        raise OptionError(f"Method '{method}' explains only boxes; this model has none.")
    if method == "rise" and is_detector:
        raise OptionError("Method 'rise' does not explain boxes; 'd-rise' does.")


def attributions(
    method: str,
    run: Callable[[Array], Floats],
    image: MaskedImage,
    boxes: Sequence[Box] | None,
    progress: Progress | None = None,
) -> list[Attribution]:
    """Return what a method finds for each target of an image.

    Args:
        method: its name.
        run: from one input [1,C,H,W] or [1,H,W,C] to the scores of the targets, [1,T].
        image: the input, and what hides its parts.
        boxes: the targets' boxes, in pixels of the model's input; None where they have none.
        progress: see `masked_image.Progress`.

    Raises:
        ReciproError: see the methods.
    """

    def of_all(images: Array) -> Floats:
        return np.concatenate([run(images[[number]]) for number in range(len(images))])

    match method:
        case "rise":
            return rise(of_all, image, progress=progress)
        case "d-rise":
            return d_rise(of_all, image, progress=progress)
        case "occlusion":
            return occlusion(of_all, image, boxes, progress=progress)
        case "aise":
            return aise(of_all, image, boxes, progress=progress)
    raise TypeError(f"'{method}' is not a black box")


def losses(
    method: str,
    run: Callable[[Array], Floats],
    tensor: Array,
    channels_last: bool,
    targets: Sequence[ScoredTarget],
    progress: Progress | None,
    outputs: Floats,
) -> tuple[npt.NDArray[np.float64], list[dict[str, Any]]]:
    """Return what targets lose, [T,h,w], and for each how much that rests on.

    Args:
        method, run, progress: see `attributions`.
        tensor: the input; channels_last: whether it is [1,H,W,C].
        targets: what is explained.
        outputs: of the model for the input, in a row.

    Raises:
        OptionError: the method is not for one of them.
    """
    if method == "votes":
        return votes(targets, outputs), [{"runs": 0} for _ in targets]
    if method == "aise" and any(map(is_missed, targets)):
        raise OptionError("Method 'aise' explains boxes that the model predicts, no others.")
    image = MaskedImage(tensor, mean_colour(tensor, channels_last), channels_last)
    found = attributions(method, run, image, edges_of(targets), progress)
    lost = np.stack([coarse(each.raw) for each in found], axis=-1)
    cells = np.moveaxis(signed_losses(targets, lost.astype(np.float64)), -1, 0)
    return cells, [{"runs": each.runs, "reliability": each.reliability} for each in found]


def coarse(raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a map [H,W] at 128 lines and columns at most."""
    height, width = raw.shape
    factor = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(raw, size, interpolation=cv2.INTER_AREA), np.float32)


def fill_of(how: Preprocessing) -> npt.NDArray[np.float32]:
    """Return what stands for nothing in a model's input, float32 [3].

    That is its padding where it pads images, the mean colour that it subtracts, or else grey.
    """
    mean, scale = np.array(how.mean, np.float32), np.array(how.scale, np.float32)
    pixel = mean if mean.any() else np.full(3, _GREY, np.float32)
    if how.resize.startswith("fit_to_window"):
        pixel = np.full(3, how.pad_value, np.float32)
    return np.asarray((pixel - mean) / scale, np.float32)


def mean_colour(tensor: Array, channels_last: bool) -> npt.NDArray[np.float32]:
    """Return an input's mean colour, float32 [C]: it stands out nowhere, whatever is hidden.

    A fixed grey can look like an object of its own, or like the very one that it hides.
    """
    axes = (0, 1, 2) if channels_last else (0, 2, 3)
    return np.asarray(tensor.mean(axis=axes), np.float32)
