"""The grid pointing game: mosaics of a dataset's own images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from command import fails, run
from ov_recipro import Explainer
from ov_recipro.faithfulness.datasets import Sample
from ov_recipro.faithfulness.mosaics import companions, mosaic
from ov_recipro.images.reading import read_image
from ov_recipro.methods import CONTROLS, Subject


@pytest.fixture(scope="module")
def subject(explainer: Explainer) -> Subject:
    return Subject(explainer)


def samples(count: int, labels: bool = True) -> list[Sample]:
    return [Sample(f"{n}.jpg", f"folder/{n}.jpg", n // 2 if labels else None) for n in range(count)]


def test_companions_are_others_of_other_classes() -> None:
    found = companions(samples(8))
    assert found == companions(samples(8))
    for number in range(8):
        paths = found[f"{number}.jpg"]
        assert len(set(paths)) == 3
        assert all(int(Path(path).stem) // 2 != number // 2 for path in paths)
    assert not companions(samples(3))
    rare = [Sample(f"{n}.jpg", f"folder/{n}.jpg", int(n < 100)) for n in range(103)]
    assert sorted(companions(rare)["0.jpg"]) == [f"folder/{n}.jpg" for n in (100, 101, 102)]
    assert len(companions(samples(4, labels=False))) == 4


def test_the_image_is_in_its_quarter(
    subject: Subject, cat: Path, coffee: Path, tmp_path: Path
) -> None:
    noise = tmp_path / "noise.png"
    cv2.imwrite(str(noise), np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
    image, _ = subject.prepare(read_image(coffee))
    index = int(subject.scores(image).argmax())
    found = mosaic(subject, image, index, [str(cat), str(noise), str(cat)])
    assert found is not None
    assert found.image.shape == image.shape
    left, top, right, bottom = (round(edge) for edge in found.quarter)
    assert (right - left, bottom - top) == (112, 112)
    inner = found.image[:, top:bottom, left:right]
    small = np.stack([cv2.resize(p, (112, 112), interpolation=cv2.INTER_AREA) for p in image])
    np.testing.assert_allclose(inner, small, atol=1e-5)


def test_without_a_sure_class_of_its_own_there_is_none(
    subject: Subject, cat: Path, coffee: Path
) -> None:
    image, _ = subject.prepare(read_image(coffee))
    index = int(subject.scores(image).argmax())
    assert mosaic(subject, image, index, [str(coffee)] * 3) is None
    assert mosaic(subject, image, (index + 1) % 1000, [str(cat)] * 3) is None


def test_the_command_plays_it(tmp_path: Path, cat: Path, coffee: Path) -> None:
    for number, path in enumerate((coffee, cat, cat, cat)):
        picture = read_image(path)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture[number:])
    words = ("evaluate", tmp_path, "--step", "50176", "--mosaics", "-o", tmp_path / "out")
    names = ("--methods", "recipro,gaussian", "--paired", "recipro,gaussian")
    done = run(*words, *names[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "grid AUC ↑ (50)" in done.stdout
    assert "recipro - gaussian" in done.stdout
    assert "images needed" in (tmp_path / "out" / "evaluation.md").read_text()
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [each["method"] for each in record["methods"]] == ["recipro", *CONTROLS]
    summary = record["methods"][0]["summary"]
    assert f"4 images, of which {summary['grids']} have a mosaic" in done.stderr
    assert 0 < summary["grids"] < summary["images"] == 4
    assert summary["saco"] is not None
    for wrong in ("recipro", "recipro,cam", "recipro,gaussian,random"):
        fails(run(*words, *names[:2], "--paired", wrong, cwd=tmp_path), "--paired takes two")
