"""Verdicts on maps, and what methods cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from command import fails, run
from graphs import Builder
from ov_recipro import Explainer, ReciproError
from ov_recipro.faithfulness.verification import (
    RANDOM_MAPS,
    RULE,
    deviations_above,
    judge,
    random_maps,
    verify,
)
from ov_recipro.methods import Subject
from ov_recipro.metrics import Measurement


def test_the_rule() -> None:
    random = [(0.3, 0.5), (0.3, 0.6), (0.3, 0.7)]  # margins 0.2, 0.3, 0.4: mean 0.3, deviation 0.1
    assert deviations_above((0.2, 0.7), random) == pytest.approx(2)
    assert deviations_above((0.3, 0.5), random) == pytest.approx(-1)
    assert deviations_above((0.1, 0.9), [(0.2, 0.2)] * 3) == 0
    assert [judge(2.1), judge(2.0), judge(1.0)] == ["supported", "weak", "no better than random"]


def test_in_the_record_and_in_words(tmp_path: Path, coffee: Path) -> None:
    result = run("explain", coffee, "--verify", "-t", "espresso", "-t", "cup", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "  espresso: supported (insertion 0." in result.stdout
    record = json.loads((tmp_path / "explanations" / "explanations.json").read_text())
    espresso, cup = (target["verification"] for target in record["images"][0]["targets"])
    assert espresso["verdict"] == "supported"
    assert espresso["rule"] == RULE
    for found in (espresso, cup):
        pairs = list(zip(found["random_deletion"], found["random_insertion"], strict=True))
        assert len(pairs) == RANDOM_MAPS
        measured = found["measured"]
        above = deviations_above((measured["deletion"], measured["insertion"]), pairs)
        assert found["deviations"] == pytest.approx(above)
        assert found["verdict"] == judge(above)


def test_a_flat_map_is_no_better_than_random(tmp_path: Path, cat: Path) -> None:
    b = Builder()
    b.head(b.add("Mul", b.conv("image", 4, output="feature", strides=[2, 2]), b.constant(0)))
    explainer = Explainer(b.save(tmp_path / "m.onnx"), layer="feature")
    explanation = explainer(cat)
    assert explanation.targets[0].flat
    (found,) = verify(Subject(explainer), explanation)
    assert isinstance(found.measured, Measurement)
    assert (found.verdict, found.measured.coherency) == ("no better than random", None)
    assert found.measured.complexity == 0


def test_random_maps_are_the_same_for_the_same_image(explainer: Explainer) -> None:
    subject = Subject(explainer)
    image = np.random.default_rng(0).standard_normal((3, 224, 224)).astype(np.float32)
    one, again = random_maps(subject, image), random_maps(subject, image)
    np.testing.assert_array_equal(one, again)
    assert len({each.tobytes() for each in one}) == RANDOM_MAPS
    assert np.abs(one[0] - random_maps(subject, image + 1)[0]).max() > 0.1


def test_a_tensors_explanation_has_no_image(explainer: Explainer) -> None:
    image = np.zeros((1, 3, 224, 224), np.float32)
    with pytest.raises(ReciproError, match="tensor"):
        verify(Subject(explainer), explainer.explain_tensor(image))


def test_another_runtimes_device(tmp_path: Path, cat: Path) -> None:
    fails(run("explain", cat, "--verify", "-d", "ort-cpu", cwd=tmp_path), "OpenVINO's devices")


def test_what_methods_cost(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="feature")
    b.linear(b.add("Flatten", feature), 4 * 64)
    b.save(tmp_path / "m.onnx")
    names = "recipro,score-cam,grad-cam"
    arguments = ["bench", "-m", "m.onnx", "--methods", names, "--runs", "3"]
    result = run(*arguments, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ours, masks, none = json.loads(result.stdout)
    assert (ours["method"], ours["runs"], ours["layer"]) == ("recipro", 3, "feature")
    assert ours["ratio"] == pytest.approx(ours["method_ms"] / ours["plain_ms"])
    assert masks["method_ms"] > 0
    assert none["ratio"] is None
    assert "pool" in none["not_applicable"]
    shown = run(*arguments, "--markdown", cwd=tmp_path).stdout
    assert shown.startswith("| method | layer |")
    assert "not applicable: the tail does not begin" in shown
