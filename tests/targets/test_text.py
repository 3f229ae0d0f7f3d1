"""Regions and positions on PaddleOCR's detector (a segmentation) and recogniser (a sequence)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from oracle import Oracle
from ov_recipro import Explainer, OptionError, TargetError
from ov_recipro.images.preprocess import Image, Preprocessing, prepare
from ov_recipro.targets.regions import Region
from ov_recipro.targets.sequences import Position
from places import TEXT_MODELS

DETECTOR, RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
WORD = "CAFE"


def model(name: str) -> Path:
    path = TEXT_MODELS / name
    if not path.is_file():
        pytest.skip("rapidocr's models are not there; 'make test' installs them")
    return path


def drawn(size: tuple[int, int], places: dict[str, tuple[int, int]], scale: float) -> Image:
    image = np.full((*size, 3), 230, np.uint8)
    for word, place in places.items():
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, word, place, font, scale, (0, 0, 0), 3, cv2.LINE_AA)
    return image


@pytest.fixture(scope="module")
def detector() -> Explainer:
    how = Preprocessing(size=(160, 160), resize="standard", channels="BGR")
    return Explainer(model(DETECTOR), input_shape=(1, 3, 160, 160), preprocessing=how)


@pytest.fixture(scope="module")
def signs() -> Image:
    return drawn((160, 160), {"EXIT": (8, 40), "open": (60, 130)}, 1.2)


@pytest.fixture(scope="module")
def recogniser() -> Explainer:
    how = Preprocessing((48, 160), "standard", mean=(127.5,) * 3, scale=(127.5,) * 3,
                        channels="BGR")  # fmt: skip
    return Explainer(model(RECOGNISER), input_shape=(1, 3, 48, 160), preprocessing=how)


@pytest.fixture(scope="module")
def word() -> Image:
    return drawn((48, 160), {WORD: (8, 36)}, 1.3)


@pytest.mark.parametrize("region", [None, (60, 100, 90, 40), (30, 25, 1, 1)])
def test_a_regions_map_equals_the_oracles(
    region: tuple[int, int, int, int] | None, detector: Explainer, signs: Image
) -> None:
    """Dropping one cell at a time in the whole model, the mean probability over the region."""
    manifest = detector.bundle.manifest
    assert (manifest.task, detector.mask) == ("segmentation", "drop")
    found = detector(signs, region=region)
    oracle = Oracle(model(DETECTOR), manifest.cut.tensor, drop=True)
    tensor = prepare(signs, detector.preprocessing)[0].astype(np.float32)
    whole = oracle.plain(tensor).reshape(160, 160).astype(np.float64)
    mask = whole > 0.5
    if region is not None:
        x, y, width, height = region
        mask = np.zeros((160, 160), bool)
        mask[y : y + height, x : x + width] = True
    dropped = oracle.logits(tensor, manifest.cut.grid).reshape(-1, 160, 160).astype(np.float64)
    expected = whole[mask].mean() - dropped[:, mask].mean(axis=1)
    (target,) = found.targets
    assert isinstance(target, Region)
    assert target.score == pytest.approx(whole[mask].mean(), abs=1e-5)
    np.testing.assert_allclose(found.raw[0].ravel(), expected, atol=2e-5)
    assert target.pixels == mask.sum()


def test_each_word_has_its_own_map(detector: Explainer, signs: Image) -> None:
    """What decides about a word lies on that word."""
    upper = detector(signs, region=(8, 10, 90, 35))
    lower = detector(signs, region=(60, 95, 95, 40))
    rows = [found.maps[0].sum(axis=1) for found in (upper, lower)]
    half = len(rows[0]) // 2
    assert rows[0][:half].sum() > 2 * rows[0][half:].sum()
    assert rows[1][half:].sum() > 2 * rows[1][:half].sum()
    for found in (upper, lower):
        (target,) = found.targets
        assert isinstance(target, Region)
        assert target.context is not None
        assert 0 <= target.context < 0.9


def test_wrong_regions(detector: Explainer, signs: Image) -> None:
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"region": (0, 0, -5, 50)}, "above 0"),
        ({"region": (0, float("nan"), 5, 50)}, "--region must be finite"),
        ({"pixel": (float("inf"), 1)}, "--pixel must be finite"),
        ({"region": (0, 0, 5, 5), "pixel": (1, 1)}, "not both"),
    ]
    for wrong, message in wrongs:
        with pytest.raises(OptionError, match=message):
            detector(signs, **wrong)
    with pytest.raises(TargetError, match=r"200,200,210,210 lies outside .* 0,0,160,160"):
        detector(signs, region=(200, 200, 10, 10))
    blank = np.full((160, 160, 3), 230, np.uint8)
    with pytest.raises(TargetError, match="The model predicts no pixel of this image as any class"):
        detector(blank)
    with pytest.raises(TargetError, match="no pixel of this image as 'class 0'"):
        detector(blank, 0)
    assert detector(blank, pixel=(80, 80)).targets[0].score < 0.5


def test_a_letters_map_equals_the_oracles(recogniser: Explainer, word: Image) -> None:
    manifest = recogniser.bundle.manifest
    assert manifest.task == "sequence"
    assert manifest.labels is not None
    assert len(manifest.labels) == manifest.classes
    read = [p.label for p in recogniser(word, position=0).predictions]
    letters = [(at, label) for at, label in enumerate(read) if label != "blank"]
    assert "".join(str(label) for _, label in letters) == WORD
    position, letter = letters[1]
    found = recogniser(word, position=position)
    (target,) = found.targets
    assert isinstance(target, Position)
    assert (target.label, target.position) == (letter, position)
    cells = np.random.default_rng(0).permutation(manifest.cut.cells.count)[:12]
    tensor, _ = prepare(word, recogniser.preprocessing)
    oracle = Oracle(model(RECOGNISER), manifest.cut.tensor)
    scores = oracle.logits(tensor.astype(np.float32), manifest.cut.grid, cells.tolist())
    expected = scores.reshape(len(cells), -1, manifest.classes)[:, position, target.index]
    np.testing.assert_allclose(found.raw[0].ravel()[cells], expected, atol=2e-5)


def test_letters_are_found_where_they_stand(word: Image, recogniser: Explainer) -> None:
    """Dropping cells, the first letter's map lies left of the last one's."""
    dropping = Explainer(recogniser.bundle, mask="drop", preprocessing=recogniser.preprocessing)
    read = dropping(word, position=0).predictions
    letters = [at for at, each in enumerate(read) if each.label != "blank"]
    columns = [int(dropping(word, position=at).maps[0].sum(axis=0).argmax()) for at in letters]
    assert columns == sorted(columns)
    assert columns[-1] - columns[0] > dropping.bundle.manifest.cut.grid[1] / 4


def test_wrong_positions(recogniser: Explainer, word: Image) -> None:
    with pytest.raises(TargetError, match=r"0 to 19.*--position.* C"):
        recogniser(word)
    with pytest.raises(TargetError, match="no position 20"):
        recogniser(word, position=20)
    assert recogniser(word, position=-1).targets[0].index == 0
