"""Verdicts on boxes' maps: pixels inside the box decide, and a drawn Gaussian is no evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxes import SCENE_MODEL, make_scenes, write_scenes
from command import run
from ov_recipro import Explainer, ReciproError
from ov_recipro.explanation import Explanation
from ov_recipro.faithfulness.box_measure import BoxMeasurement
from ov_recipro.faithfulness.verification import (
    BOX_RULE,
    RANDOM_MAPS,
    BoxVerification,
    deviations_above,
    judge_box,
    reference_maps,
    verify,
)
from ov_recipro.methods import Subject
from ov_recipro.methods.box_methods import gaussian_in, noise
from ov_recipro.targets.boxes import BoxTarget


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(SCENE_MODEL)


@pytest.fixture(scope="module")
def explanation(explainer: Explainer) -> Explanation:
    return explainer(make_scenes(1)[0].image, box=1)


def test_the_rule() -> None:
    drawn = BoxMeasurement(0.9, 0.1, 0.7, 0.2, 0.5, 0.8, True, False)  # 0.3 inside
    better = replace(drawn, inner_insertion=0.6)
    assert judge_box(better, drawn, 2.1) == "supported"
    assert judge_box(better, drawn, 2.0) == "weak"
    assert judge_box(better, drawn, 1.0) == "no better than random"
    assert judge_box(drawn, drawn, 2.1) == "no better than a Gaussian"
    assert judge_box(drawn, better, 1.5) == "no better than a Gaussian"
    assert judge_box(drawn, better, 0.5) == "no better than random"
    assert judge_box(replace(better, flat=True), drawn, 5) == "no better than random"


def test_the_evidence(explainer: Explainer, explanation: Explanation) -> None:
    (found,) = verify(Subject(explainer), explanation)
    assert isinstance(found, BoxVerification)
    assert isinstance(found.measured, BoxMeasurement)
    assert found.gaussian is not None
    assert found.rule == BOX_RULE
    pairs = list(zip(found.random_deletion, found.random_insertion, strict=True))
    assert len(pairs) == RANDOM_MAPS
    own = (found.measured.inner_deletion, found.measured.inner_insertion)
    assert found.deviations == pytest.approx(deviations_above(own, pairs))
    assert found.verdict == judge_box(found.measured, found.gaussian, found.deviations)
    assert found.measured.score == pytest.approx(explanation.targets[0].score, abs=1e-3)


def test_a_gaussian_is_no_better_than_itself(
    explainer: Explainer, explanation: Explanation
) -> None:
    target = explanation.scored[0]
    drawn = gaussian_in(target.edges, (160, 160))[None]
    subject = Subject(explainer)
    (found,) = verify(subject, replace(explanation, maps=drawn))
    assert found.verdict in ("no better than a Gaussian", "no better than random")
    assert isinstance(found, BoxVerification)
    assert found.measured == found.gaussian
    (flat,) = verify(subject, replace(explanation, maps=np.zeros((1, 10, 10), np.float32)))
    assert flat.verdict == "no better than random"


def test_a_map_of_the_part_is_better_than_both_controls(explainer: Explainer) -> None:
    """The dot decides a plate's class."""
    found = []
    subject = Subject(explainer)
    for scene in make_scenes(16, seed=1):
        explained = explainer(scene.image, box="all")
        for target, record in zip(explained.scored, explained.targets, strict=True):
            for each in scene.objects:
                if each.part and each.class_index == target.index and inside(each.box, target):
                    dot = gaussian_in(each.part, (160, 160))[None]
                    one = replace(explained, scored=(target,), targets=(record,), maps=dot)
                    found.append(verify(subject, one)[0].verdict)
    assert len(found) >= 4
    assert np.mean([verdict in ("supported", "weak") for verdict in found]) > 0.5


def inside(box: tuple[int, ...], target: BoxTarget) -> bool:
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, top, right, bottom = target.edges
    return left < middle[0] < right and top < middle[1] < bottom


def test_reference_maps_are_not_the_control(explainer: Explainer, explanation: Explanation) -> None:
    subject = Subject(explainer)
    image, _ = subject.prepare(make_scenes(1)[0].image)
    target = explanation.scored[0]
    maps = reference_maps(image, target)
    assert len(maps) == RANDOM_MAPS
    control = noise(image, target, 1)[0]
    assert all(np.abs(each - control).max() > 0.1 for each in maps)


def test_a_missed_box(explainer: Explainer) -> None:
    image = make_scenes(1)[0].image
    everywhere = explainer(image, box="all")
    boxes = [target.edges for target in everywhere.scored]
    free = next(
        (x, y)
        for x in range(0, 130, 10)
        for y in range(0, 130, 10)
        if all(x + 30 < b[0] or x > b[2] or y + 30 < b[1] or y > b[3] for b in boxes)
    )
    explained = explainer(image, ["ring"], box=(*free, 30, 30))
    assert explained.scored[0].missed
    with pytest.raises(ReciproError, match="does not predict this box"):
        verify(Subject(explainer), explained)


def test_in_the_record_and_in_words(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 1)
    result = run("explain", folder, "-m", SCENE_MODEL, "--box", "1", "--verify", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "explanations" / "explanations.json").read_text())
    found = record["images"][0]["targets"][0]["verification"]
    assert found["rule"] == BOX_RULE
    assert found["verdict"] in result.stdout
    assert found["gaussian"]["energy"] > 0.5
