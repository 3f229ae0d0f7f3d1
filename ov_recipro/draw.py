"""Drawing a saliency map back onto the image that it explains."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.preprocess import Image, Window

ALPHA = 0.5
COLORMAP = cv2.COLORMAP_INFERNO


def overlay(image: Image, saliency: npt.NDArray[np.float32], window: Window) -> Image:
    """Blend a saliency map into its image.

    Args:
        image: uint8 [H,W,3] BGR.
        saliency: float32 [h,w], 0..1.
        window: the part of the image that the model saw; the rest stays as it is.

    Returns:
        uint8 [H,W,3] BGR of the image's own size.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = (round(edge) for edge in window)
    heat = cv2.resize(
        np.asarray(saliency, np.float32),
        (max(1, right - left), max(1, bottom - top)),
        interpolation=cv2.INTER_LINEAR,
    )
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    heat = heat[y0 - top : y1 - top, x0 - left : x1 - left]
    coloured = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), COLORMAP)
    drawn = image.copy()
    drawn[y0:y1, x0:x1] = cv2.addWeighted(coloured, ALPHA, image[y0:y1, x0:x1], 1 - ALPHA, 0)
    return drawn
