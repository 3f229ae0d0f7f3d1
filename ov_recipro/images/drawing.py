"""Drawing a saliency map back onto the image that it explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.errors import OptionError
from ov_recipro.images.preprocess import Image, Window
from ov_recipro.saliency import Floats

Colormap = Literal["inferno", "magma", "plasma", "viridis", "cividis", "turbo"]
"""All but the last rise evenly in lightness, and can be told apart without red or green."""

COLORMAPS: tuple[Colormap, ...] = get_args(Colormap)
_CONTOURS = (0.25, 0.5, 0.75)
_SIGNED_CONTOURS = tuple(sign * level for level in _CONTOURS for sign in (-1, 1))
_ANCHORS = (0x0571B0, 0x92C5DE, 0xF7F7F7, 0xFDB863, 0xE66101)
"""Blue to orange: the halves of ColorBrewer's RdBu and PuOr that people tell apart without red and
green."""
Rectangle: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""

_LINE = cv2.LINE_AA
_FAINT = 0.4  # share of the edges of boxes that are not explained
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_SOFT = np.array([1, 2, 1], np.float32) / 4


@dataclass(frozen=True)
class Style:
    """How a map is drawn.

    Attributes:
        colormap: from low to high saliency.
        alpha: the heat's share of each pixel, 0..1.
        cells: draw the feature map's cells as they are, instead of smoothly.
        contour: draw lines at a quarter, half and three quarters of the range onto the image,
            instead of heat.
        legend: add a strip below the image: the colours, between the least and greatest score
            that they stand for.
        signed: draw maps of -1..1: what speaks for a target in orange, what against in blue, the
            less the nearer to 0, onto the image in grey. `colormap` has no effect then.
    """

    colormap: Colormap = "inferno"
    alpha: float = 0.5
    cells: bool = False
    contour: bool = False
    legend: bool = False
    signed: bool = False

    def __post_init__(self) -> None:
        if self.colormap not in COLORMAPS:
            raise OptionError(f"Colormap '{self.colormap}' is not one of {', '.join(COLORMAPS)}.")
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"Alpha must be between 0 and 1, not {self.alpha}.")


DEFAULT = Style()


def overlay(image: Image, saliency: Floats, window: Window, style: Style = DEFAULT) -> Image:
    """Blend a saliency map into its image.

    Args:
        image: uint8 [H,W,3] BGR.
        saliency: float32 [h,w], 0..1, or -1..1 if the style is signed.
        window: the part of the image that the model saw; the rest stays as it is.
        style: how it is drawn.

    Returns:
        uint8 [H,W,3] BGR of the image's size.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = (round(edge) for edge in window)
    enlarged = cv2.resize(
        np.asarray(saliency, np.float32),
        (max(1, right - left), max(1, bottom - top)),
        interpolation=cv2.INTER_NEAREST if style.cells else cv2.INTER_LINEAR,
    )
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    heat = np.asarray(enlarged[y0 - top : y1 - top, x0 - left : x1 - left], np.float32)
    drawn = image.copy()
    if style.contour:
        _draw_contours(drawn[y0:y1, x0:x1], heat, style)
        return drawn
    if style.signed:
        drawn[y0:y1, x0:x1] = _blend_signed(image[y0:y1, x0:x1], heat, style.alpha)
        return drawn
    coloured = cv2.LUT(_as_bgr(np.rint(255 * heat).astype(np.uint8)), palette(style.colormap))
    drawn[y0:y1, x0:x1] = cv2.addWeighted(
        coloured, style.alpha, image[y0:y1, x0:x1], 1 - style.alpha, 0
    )
    return drawn


def outline(image: Image, box: Rectangle, others: Sequence[Rectangle] = ()) -> None:
    """Draw the edges of a box onto an image, and faintly those of others.

    Args:
        image: uint8 [H,W,3] BGR; it is changed.
        box, others: left, top, width and height in pixels.
    """
    width = max(1, round(max(image.shape[:2]) / 300))
    faint = image.copy()
    for each in others:
        cv2.rectangle(faint, *_corners(each, image), _WHITE, width, _LINE)
    cv2.addWeighted(faint, _FAINT, image, 1 - _FAINT, 0, dst=image)
    for colour, thickness in ((_BLACK, 3 * width), (_WHITE, width)):
        cv2.rectangle(image, *_corners(box, image), colour, thickness, _LINE)


def _corners(box: Rectangle, image: Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the ends of a box, far outside the image no further than just outside."""
    rows, columns = image.shape[:2]
    x, y, width, height = box
    across = np.clip([x, x + width], -columns, 2 * columns)
    down = np.clip([y, y + height], -rows, 2 * rows)
    return (round(across[0]), round(down[0])), (round(across[1]), round(down[1]))


def softened(scores: Floats) -> Floats:
    """Return scores [h,w] averaged over 3x3 cells, weighted 1, 2, 1 each way."""
    values = np.asarray(scores, np.float32)
    soft = cv2.sepFilter2D(values, -1, _SOFT, _SOFT, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(soft, np.float32)


def as_png(image: Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    _, data = cv2.imencode(".png", image)
    return data.tobytes()


def shrink(image: Image, longest: int) -> Image:
    """Return an image, made smaller if its longer side has more than `longest` pixels."""
    height, width = image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def legend(width: int, scores: tuple[float, float], style: Style) -> Image:
    """Draw the strip that shows what the colours mean.

    Args:
        width: of the image that it belongs to, in pixels.
        scores: least and greatest score that the colours stand for; if the style is signed, the
            differences from zero, of which the middle colour stands for 0.
        style: how the map is drawn.

    Returns:
        uint8 [h,width,3] BGR, h even; on a narrow image the scale alone, without its numbers.
    """
    height = max(16, 2 * round(width / 50))
    margin = height // 4
    strip = np.full((height, width, 3), 255, np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, height / 44
    low, high = (f"{score:{'+' if style.signed else ''}.3g}" for score in scores)
    (low_width, _), _ = cv2.getTextSize(low, font, size, 1)
    (high_width, text_height), _ = cv2.getTextSize(high, font, size, 1)
    x0, x1 = low_width + 2 * margin, width - high_width - 2 * margin
    baseline = (height + text_height) // 2
    numbers = x1 - x0 >= width / 3
    if not numbers:
        x0, x1 = margin, width - margin
    else:
        for text, x in ((low, margin), (high, width - margin - high_width)):
            cv2.putText(strip, text, (x, baseline), font, size, (0, 0, 0), 1, _LINE)
    lowest, line = (-1, 0.04) if style.signed else (0, 0.02)
    values = np.linspace(lowest, 1, x1 - x0, dtype=np.float32)
    bar = strip[margin : height - margin, x0:x1]
    if style.contour:
        bar[:] = 0
        for level in _levels(style):
            bar[:, abs(values - level) < line] = _contour_colour(level, style)
    else:
        bar[:] = _colours(style)[0, _index(values, style)]
    if style.signed and numbers:
        (zero_width, _), _ = cv2.getTextSize("0", font, size, 1)
        ink = (255, 255, 255) if style.contour else (0, 0, 0)
        cv2.putText(strip, "0", ((x0 + x1 - zero_width) // 2, baseline), font, size, ink, 1, _LINE)
    return strip


def palette(colormap: Colormap) -> Image:
    """Return the colours of the values 0..255, uint8 [1,256,3] BGR."""
    kind = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    return np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], kind), np.uint8)


def signed_palette() -> Image:
    """Return the colours of -1..1 in 256 steps, uint8 [1,256,3] BGR."""
    channels = [
        np.interp(np.linspace(-1, 1, 256), np.linspace(-1, 1, len(_ANCHORS)), values)
        for values in ([anchor >> shift & 0xFF for anchor in _ANCHORS] for shift in (0, 8, 16))
    ]
    return np.asarray(np.rint(np.stack(channels, axis=-1)[None]), np.uint8)


def signed_index(values: Floats) -> npt.NDArray[np.intp]:
    """Return where the colours of values -1..1 are in `signed_palette`."""
    return np.asarray(np.rint(127.5 * (values + 1)), np.intp)


def _colours(style: Style) -> Image:
    return signed_palette() if style.signed else palette(style.colormap)


def _index(values: Floats, style: Style) -> npt.NDArray[np.intp]:
    return signed_index(values) if style.signed else np.asarray(np.rint(255 * values), np.intp)


def _blend_signed(image: Image, heat: Floats, alpha: float) -> Image:
    """Blend heat of -1..1 into an image without its colours, the less the nearer it is to 0."""
    share = alpha * np.sqrt(np.abs(heat))[..., None]
    coloured = signed_palette()[0, signed_index(heat)]
    grey = _as_bgr(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8))
    return np.asarray(np.rint(share * coloured + (1 - share) * grey), np.uint8)


def _as_bgr(values: Image) -> Image:
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_GRAY2BGR), np.uint8)


def _draw_contours(image: Image, heat: Floats, style: Style) -> None:
    """Draw lines of equal saliency, each with a dark rim so that it shows on any image."""
    width = max(1, round(max(image.shape[:2]) / 300))
    for level in _levels(style):
        inside = heat <= level if level < 0 else heat >= level
        lines, _ = cv2.findContours(
            np.asarray(inside, np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(image, lines, -1, (0, 0, 0), 3 * width, _LINE)
        cv2.drawContours(image, lines, -1, _contour_colour(level, style), width, _LINE)


def _levels(style: Style) -> tuple[float, ...]:
    return _SIGNED_CONTOURS if style.signed else _CONTOURS


def _contour_colour(level: float, style: Style) -> tuple[int, ...]:
    value = np.array([np.copysign(0.4 + 0.6 * abs(level), level)])
    return tuple(int(part) for part in _colours(style)[0, _index(value, style)][0])
