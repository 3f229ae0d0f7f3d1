"""From an image's pixels to the model's input, and which pixels of the image the model saw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.errors import ImageError

Image: TypeAlias = npt.NDArray[np.uint8]
"""[H,W,3] uint8, BGR as OpenCV loads it."""

Window: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom) of the model's input in pixels of the original image."""

Resize = Literal[
    "standard",
    "crop",
    "fit_to_window",
    "fit_to_window_letterbox",
    "shorter_side_crop",
    "squash_crop",
]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a model expects its image.

    Attributes:
        size: (height, width) of the model's input.
        resize: how the image gets to that size. OpenVINO Model API's kinds: "standard" stretches,
            "crop" takes the largest centred part of the input's shape, "fit_to_window" keeps the
            aspect and pads right and below, "fit_to_window_letterbox" pads all sides. Besides
            these: "shorter_side_crop" resizes the shorter side to size / crop_fraction and takes
            the centre (timm, torchvision); "squash_crop" stretches to size / crop_fraction and
            takes the centre (the paper: 256x256, then 224).
        crop_fraction: see `resize`.
        interpolation: of the resize.
        mean, scale: the input is (pixel - mean) / scale per channel, pixels 0..255, in the
            model's order of channels.
        channels: the model's order of channels.
        pad_value: pixel value of the padding, 0..255.
        source: where these settings come from, in words.
    """

    size: tuple[int, int]
    resize: Resize = "shorter_side_crop"
    crop_fraction: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    scale: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channels: Literal["RGB", "BGR"] = "RGB"
    pad_value: int = 0
    source: str = "the ImageNet preset (assumed)"


def changed(
    found: Preprocessing,
    by: Preprocessing | Callable[[Preprocessing], Preprocessing] | None,
) -> Preprocessing:
    """Return `found`, its replacement, or what a function makes of it."""
    if by is None:
        return found
    return by if isinstance(by, Preprocessing) else by(found)


def prepare(
    image: Image, how: Preprocessing, channels_last: bool = False, dtype: str = "float32"
) -> tuple[npt.NDArray[np.generic], Window]:
    """Turn an image into the model's input.

    Args:
        image: uint8 [H,W,3], BGR.
        how: the model's preprocessing.
        channels_last: give [1,h,w,3] instead of [1,3,h,w].
        dtype: numpy name of the input's type.

    Returns:
        The input tensor, and the window of the image that it covers.

    Raises:
        ImageError: the image is something else.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ImageError(
            f"An image must be uint8 [H,W,3] in BGR, not {image.dtype} {list(image.shape)}."
        )
    pixels, window = _resized(image, how)
    ordered = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if how.channels == "RGB" else pixels
    mean, scale = np.array(how.mean, np.float32), np.array(how.scale, np.float32)
    # each of a pixel's 256 levels is normalised once
    levels = np.arange(256, dtype=np.float32)[None, :, None]
    values = cv2.LUT(ordered, np.asarray((levels - mean) / scale, np.float32))
    tensor = values if channels_last else values.transpose(2, 0, 1)
    if np.issubdtype(np.dtype(dtype), np.integer):
        limits = np.iinfo(np.dtype(dtype))
        tensor = np.clip(np.rint(tensor), limits.min, limits.max)
    return np.ascontiguousarray(tensor[None]).astype(dtype, copy=False), window


def _resized(image: Image, how: Preprocessing) -> tuple[Image, Window]:
    height, width = image.shape[:2]
    to_height, to_width = how.size
    if how.resize == "standard":
        return _scale(image, to_width, to_height, how), (0, 0, width, height)
    if how.resize == "crop":
        return _crop_then_scale(image, how)
    if how.resize in ("fit_to_window", "fit_to_window_letterbox"):
        return _pad_to_fit(image, how, centred=how.resize == "fit_to_window_letterbox")
    uncropped = [math.floor(side / how.crop_fraction + 1e-6) for side in (to_height, to_width)]
    if how.resize == "squash_crop":
        return _scale_then_crop(image, uncropped[1], uncropped[0], how)
    shorter = min(height, width)
    factor = max(uncropped) / shorter if to_height == to_width else None
    if factor is None:  # an input that is not square: cover it
        factor = max(uncropped[0] / height, uncropped[1] / width)
    return _scale_then_crop(image, round(width * factor), round(height * factor), how)


def _scale(image: Image, width: int, height: int, how: Preprocessing) -> Image:
    kind = _INTERPOLATIONS[how.interpolation]
    shrinks = width < image.shape[1] and height < image.shape[0]
    if how.resize in ("shorter_side_crop", "squash_crop") and shrinks and kind != cv2.INTER_NEAREST:
        kind = cv2.INTER_AREA  # the frameworks that use these kinds filter when they shrink
    return np.asarray(cv2.resize(image, (width, height), interpolation=kind), np.uint8)


def _crop_then_scale(image: Image, how: Preprocessing) -> tuple[Image, Window]:
    height, width = image.shape[:2]
    to_height, to_width = how.size
    aspect = to_width / to_height
    part_width = max(1, min(width, round(height * aspect)))
    part_height = max(1, min(height, round(width / aspect)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    part = image[top : top + part_height, left : left + part_width]
    window = (left, top, left + part_width, top + part_height)
    return _scale(part, to_width, to_height, how), window


def _scale_then_crop(
    image: Image, width: int, height: int, how: Preprocessing
) -> tuple[Image, Window]:
    to_height, to_width = how.size
    width, height = max(width, to_width), max(height, to_height)
    scaled = _scale(image, width, height, how)
    left, top = round((width - to_width) / 2), round((height - to_height) / 2)
    x, y = image.shape[1] / width, image.shape[0] / height
    window = (left * x, top * y, (left + to_width) * x, (top + to_height) * y)
    return scaled[top : top + to_height, left : left + to_width], window


def _pad_to_fit(image: Image, how: Preprocessing, centred: bool) -> tuple[Image, Window]:
    height, width = image.shape[:2]
    to_height, to_width = how.size
    factor = min(to_width / width, to_height / height)
    new_width, new_height = max(1, round(width * factor)), max(1, round(height * factor))
    scaled = _scale(image, new_width, new_height, how)
    left = (to_width - new_width) // 2 if centred else 0
    top = (to_height - new_height) // 2 if centred else 0
    canvas = np.full((to_height, to_width, 3), how.pad_value, np.uint8)
    canvas[top : top + new_height, left : left + new_width] = scaled
    x, y = width / new_width, height / new_height
    window = (-left * x, -top * y, (to_width - left) * x, (to_height - top) * y)
    return canvas, window
