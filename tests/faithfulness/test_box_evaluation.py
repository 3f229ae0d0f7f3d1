"""`ov-recipro evaluate` of a detector."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxes import SCENE_DETECTOR, write_scenes
from command import fails, run
from graphs import Builder
from ov_recipro import Explainer, ImageError, OptionError
from ov_recipro.faithfulness.box_evaluation import BoxEvaluation, BoxMeasuring, find_photographs
from ov_recipro.faithfulness.box_measure import BoxLimits
from ov_recipro.methods import Subject

MODEL = ("-m", SCENE_DETECTOR)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "photographs", 3)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(Explainer(SCENE_DETECTOR))


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_controls_stand_beside_every_method(tmp_path: Path, photographs: Path) -> None:
    result = run("evaluate", photographs, *MODEL, "-o", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert lines == [
        *("method", "recipro", "- less gauss-in-box", "- less random"),
        *("gauss-in-box", "- less random", "random", "- less gauss-in-box"),
    ]
    for part in ("over the images", "0.4 or more", "1 to 45 %", "at most 2", "sha256", "160x160"):
        assert part in result.stderr
    record = table(tmp_path / "out")
    assert record["limits"]["most"] == 2
    ours, _, noise = record["methods"]
    assert [each["method"] for each in record["methods"]] == ["recipro", "gauss-in-box", "random"]
    assert ours["summary"]["images"] == 3
    assert 3 <= ours["summary"]["boxes"] <= 6
    for name in ("margin", "energy", "inner_margin"):
        values = [each["summary"]["means"][name]["value"] for each in (ours, noise)]
        above = ours["above"]["random"][name]
        assert above["value"] == pytest.approx(values[0] - values[1])
        assert above["low"] <= above["value"] <= above["high"]
    assert ours["above"]["random"]["margin"]["low"] > 0
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["less"]) for row in rows][:3] == [
        *(("recipro", ""), ("recipro", "gauss-in-box"), ("recipro", "random"))
    ]
    assert float(rows[0]["energy"]) == ours["summary"]["means"]["energy"]["value"]
    assert float(rows[1]["margin_low"]) == ours["above"]["gauss-in-box"]["margin"]["low"]
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert text.startswith("| method | energy ↑ | pointing ↑ | deletion ↓ |")


def test_a_run_resumes(tmp_path: Path, photographs: Path, subject: Subject) -> None:
    def measured(methods: list[str], most: int = 2) -> tuple[int, Any]:
        measuring = BoxMeasuring(subject, methods, BoxLimits(most=most))
        evaluation = BoxEvaluation(measuring, find_photographs(photographs), tmp_path)
        return sum(len(each.records) for each in evaluation.run(2)), evaluation.rows()

    first, again = measured(["votes"]), measured(["votes"])
    assert (first[0], again[0]) == (9, 0)
    assert first[1] == again[1]
    assert measured(["votes", "random"])[0] == 0
    assert measured(["votes"], most=1)[0] == 9  # other settings begin afresh


def test_a_record_says_which_boxes(tmp_path: Path, photographs: Path, subject: Subject) -> None:
    measuring = BoxMeasuring(subject, ["recipro"], BoxLimits(most=3))
    evaluation = BoxEvaluation(measuring, find_photographs(photographs), tmp_path)
    outcome = next(evaluation.run(1))
    explanation = subject.explainer(photographs / outcome.image, box="all")
    record = outcome.records["recipro"]
    assert len(record.boxes) == len(record.measured)
    for box, index, measured, target in zip(
        record.boxes, record.classes, record.measured, explanation.scored, strict=False
    ):
        np.testing.assert_allclose(box, target.edges, atol=1e-3)
        assert index == target.index
        assert measured.score == pytest.approx(explanation.predictions[0].score, abs=0.6)


def test_black_boxes(tmp_path: Path, photographs: Path) -> None:
    arguments = ["--methods", "occlusion", "--limit", "1", "--most-boxes", "1", "--json"]
    result = run("evaluate", photographs, *MODEL, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["method"], record["plan"]) == ("occlusion", "whole")
    assert [row["method"] for row in record["methods"]] == ["occlusion", "gauss-in-box", "random"]
    assert record["methods"][0]["summary"]["boxes"] == 1


def test_what_a_user_can_get_wrong(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = [
        (("none",), "none is not a folder of images"),
        (("empty",), "no images"),
        ((photographs, "--methods", "cam"), "There is no method 'cam'; the methods are: recipro"),
        ((photographs, "--step", "3"), "--step is for a classifier; this model is a detector"),
        ((photographs, "--profile", "poppi"), "--profile is for a classifier"),
        ((photographs, "--engine", "ray"), "--engine ray measures classifiers alone"),
        ((photographs, "--methods", "random", "--threshold", "1"), "No image has a box that score"),
    ]
    for arguments, message in wrong:
        fails(run("evaluate", *arguments, *MODEL, cwd=tmp_path), message)
    fails(
        run("evaluate", photographs, "--most-boxes", "3", cwd=tmp_path),
        "--most-boxes is for a detector; this model is a classifier",
    )
    with pytest.raises(OptionError, match="not a folder"):
        find_photographs(tmp_path / "none")
    with pytest.raises(ImageError, match="no images"):
        find_photographs(tmp_path / "empty")


def test_models_of_other_kinds(tmp_path: Path, photographs: Path) -> None:
    b = Builder(shape=(1, 3, 32, 32))
    feature = b.add("Relu", b.conv("image", 4, strides=[2, 2]))
    for _ in range(2):
        feature = b.add("Relu", b.conv(feature, 4))
    b.conv(feature, 6, output="scores")
    b.save(tmp_path / "segmentation.onnx")
    for command in ("evaluate", "compare"):
        model = "segmentation.onnx"
        named: list[str | Path] = [photographs, "-m", model]
        if command == "compare":
            named = [model, model, photographs]
        fails(
            run(command, *named, "--task", "segmentation", cwd=tmp_path),
            "classifiers and detectors",
            "is a segmentation",
        )
