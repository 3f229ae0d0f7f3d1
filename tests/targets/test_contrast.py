"""Contrast: a class against another, on logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from command import fails, run
from ov_recipro import Explainer, OptionError, TargetError
from ov_recipro.targets.contrast import Contrast, other_class

CAT, TIGER_CAT = 285, 282


def test_the_difference_of_two_logits(explainer: Explainer, lite0: Path, cat: Path) -> None:
    logits = Explainer(lite0, score="none")(cat, [CAT, TIGER_CAT])
    found = explainer(cat, CAT, against="tiger cat", gamma=0.5)
    (target,) = found.targets
    assert isinstance(target, Contrast)
    assert target.against is not None
    assert (target.against.index, target.against.label, target.gamma) == (282, "tiger cat", 0.5)
    assert target.score == pytest.approx(logits.targets[0].score - logits.targets[1].score / 2)
    np.testing.assert_allclose(found.raw[0], logits.raw[0] - logits.raw[1] / 2, atol=1e-5)
    record = found.record()["targets"][0]
    assert record["against"]["label"] == "tiger cat"
    assert found.id != explainer(cat, CAT, against=TIGER_CAT).id != explainer(cat, CAT).id


def test_next_is_the_strongest_other(explainer: Explainer, cat: Path) -> None:
    found = explainer(cat, ["top1", TIGER_CAT], against="next").targets
    rivals = [each.against.index for each in found if isinstance(each, Contrast) and each.against]
    assert rivals == [TIGER_CAT, CAT]


def test_a_best_class_that_is_the_other_is_left_out(explainer: Explainer, cat: Path) -> None:
    found = explainer(cat, "top3", against=TIGER_CAT).targets
    assert TIGER_CAT not in [each.index for each in found]
    assert len(found) == 2
    with pytest.raises(TargetError):
        explainer(cat, against="")
    with pytest.raises(OptionError, match="--gamma is the weight"):
        explainer(cat, gamma=2.0)
    with pytest.raises(OptionError, match="--gamma must be finite"):
        explainer(cat, against="next", gamma=float("nan"))


def test_no_other_class(explainer: Explainer, cat: Path) -> None:
    with pytest.raises(TargetError, match="with itself"):
        explainer(cat, CAT, against=CAT)
    with pytest.raises(TargetError, match="one class"):
        other_class(0, None, np.zeros(1, np.float32))


def test_on_the_command_line(tmp_path: Path, cat: Path) -> None:
    done = run("explain", cat, "--against", "next", "--save-maps", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fails(run("explain", cat, "--against", "no such", cwd=tmp_path), "no class 'no such'")
    fails(
        run("explain", cat, "--position", "1", cwd=tmp_path),
        "--position is for a sequence; this model is a classifier",
    )
