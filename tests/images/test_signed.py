"""Maps of -1..1: orange speaks for, blue against."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from ov_recipro import Explainer, ReciproError
from ov_recipro.cli.terminal import heat, picture
from ov_recipro.images.drawing import Style, legend, overlay, palette, signed_palette

WHOLE = (0.0, 0.0, 140.0, 140.0)
ORANGE, BLUE = signed_palette()[0, -1], signed_palette()[0, 0]


def halves() -> np.ndarray:
    """A map that speaks against on the left, for on the right, and not at all between."""
    found = np.zeros((7, 7), np.float32)
    found[:, 0], found[:, -1] = -1, 1
    return found


def test_the_two_colours_can_be_told_apart_without_red_and_green() -> None:
    colours = np.asarray(signed_palette() / 255, np.float32)
    lightness, _, yellow = np.moveaxis(cv2.cvtColor(colours, cv2.COLOR_BGR2Lab)[0], -1, 0)
    assert (yellow[:100] < -5).all()
    assert (yellow[156:] > 5).all()
    assert np.ptp(signed_palette()[0, 127:129].astype(int)) < 6  # grey between them
    assert (np.diff(lightness[:128]) > -0.1).all()
    assert (np.diff(lightness[128:]) < 0.1).all()


def test_heat_on_the_image_in_grey() -> None:
    image = np.full((140, 160, 3), (200, 50, 20), np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[0, 0]
    drawn = overlay(image, halves(), WHOLE, Style(alpha=1, signed=True))
    np.testing.assert_array_equal(drawn[70, 5], BLUE)
    np.testing.assert_array_equal(drawn[70, 134], ORANGE)
    assert (drawn[:, 40:100] == grey).all()
    assert (drawn[:, 140:] == image[:, 140:]).all()
    half = overlay(image, halves() / 4, WHOLE, Style(alpha=0.5, signed=True))
    quarter = signed_palette()[0, round(127.5 * 1.25)]
    np.testing.assert_allclose(half[70, 134], 0.25 * quarter + 0.75 * grey, atol=1)
    cells = overlay(image, halves(), WHOLE, Style(cells=True, signed=True))
    assert (cells[:, :20] == cells[0, 0]).all()
    assert (cells[:, 20] == grey).all()


def test_lines_of_both_colours() -> None:
    image = np.full((140, 140, 3), 100, np.uint8)
    style = Style(contour=True, signed=True)
    lines = overlay(image, halves(), WHOLE, style).astype(int)
    blue, orange = (lines[..., 0] - lines[..., 2] > 60), (lines[..., 2] - lines[..., 0] > 60)
    assert blue[:, :40].any()
    assert not blue[:, 40:].any()
    assert orange[:, 100:].any()
    assert not orange[:, :100].any()
    assert (lines[:, 50:90] == 100).all()
    np.testing.assert_array_equal(overlay(image, 0 * halves(), WHOLE, style), image)


def test_a_legend_from_against_to_for() -> None:
    strip = legend(400, (-0.25, 0.25), Style(signed=True))
    bar = strip[5][np.ptp(strip[5].astype(int), axis=1) > 20]
    np.testing.assert_array_equal(bar[0], BLUE)
    np.testing.assert_array_equal(bar[-1], ORANGE)
    plain = legend(400, (-0.25, 0.25), Style())
    assert (strip[:, :12] != plain[:, :12]).any() or (strip[:, -60:] != plain[:, -60:]).any()  # +
    middle = legend(400, (-0.25, 0.25), Style(signed=True, contour=True))[:, 190:210]
    assert middle.min() == 0  # black,
    assert middle[4:-4].max() > 150  # and a white 0
    narrow = legend(20, (-0.25, 0.25), Style(signed=True))
    assert narrow.shape == (16, 20, 3)


def test_in_a_terminal(lite0: Path, explainer: Explainer, cat: Path) -> None:
    text = heat(np.array([[-1, 1]], np.float32), "viridis", signed=True)
    blue, orange = (f"rgb({red},{green},{b})" for b, green, red in (BLUE, ORANGE))
    assert [str(span.style) for span in text.spans] == [blue, orange]
    b, green, red = palette("viridis")[0, 0]
    unsigned = heat(np.array([[0, 1]], np.float32), "viridis")
    assert str(unsigned.spans[0].style) == f"rgb({red},{green},{b})"
    with pytest.raises(ReciproError, match="signed=True"):
        picture(explainer(cat), "viridis", signed=True)
    features = Explainer(lite0, task="features", signed=True)
    console = Console(width=200, file=StringIO())
    console.print(picture(features(cat, similar_to=cat), "viridis", signed=True))
    assert isinstance(console.file, StringIO)
    assert "chelsea.jpg 1" in console.file.getvalue()  # a vector predicts nothing
