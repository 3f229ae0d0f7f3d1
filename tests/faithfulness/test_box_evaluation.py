"""`ov-recipro evaluate` of a detector."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from boxes import SCENE_MODEL, printed, refusal, write_scenes, write_two_stages
from graphs import Builder
from ov_recipro import Explainer
from ov_recipro.cli import cli
from ov_recipro.cli.evaluation_tables import box_csv, box_table
from ov_recipro.faithfulness.box_evaluation import (
    BoxEvaluation,
    BoxMeasuring,
    BoxRow,
    find_photographs,
)
from ov_recipro.faithfulness.box_measure import BoxLimits
from ov_recipro.faithfulness.box_tally import BoxDifference, BoxMeans, BoxSummary
from ov_recipro.faithfulness.kept import settings_line
from ov_recipro.methods import Subject
from ov_recipro.metrics import Mean
from ov_recipro.targets.boxes import BoxTarget

MODEL = ("-m", SCENE_MODEL)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "photographs", 3)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(Explainer(SCENE_MODEL))


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_controls_stand_beside_every_method(tmp_path: Path, photographs: Path) -> None:
    command = ("evaluate", photographs, *MODEL, "-o", tmp_path / "out")
    result = CliRunner().invoke(cli, list(map(str, command)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert lines == [
        *("method", "recipro", "- difference from gauss-in-box", "- difference from random"),
        *("gauss-in-box", "- difference from random"),
        *("random", "- difference from gauss-in-box"),
    ]
    for part in ("over the images", "0.4 or more", "1 to 45 %", "at most 2", "sha256", "160x160"):
        assert part in result.stderr
    record = table(tmp_path / "out")
    assert record["limits"]["max_boxes"] == 2
    ours, _, noise = record["methods"]
    assert [each["method"] for each in record["methods"]] == ["recipro", "gauss-in-box", "random"]
    assert ours["summary"]["images"] == 3
    assert 3 <= ours["summary"]["boxes"] <= 6
    for name in ("margin", "energy", "inner_margin"):
        values = [each["summary"]["means"][name]["value"] for each in (ours, noise)]
        above = ours["above"]["random"]["means"][name]
        assert above["value"] == pytest.approx(values[0] - values[1])
        assert above["low"] <= above["value"] <= above["high"]
    assert ours["above"]["random"]["means"]["margin"]["low"] > 0
    assert ours["above"]["random"]["boxes"] == ours["summary"]["boxes"]
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["difference_from"]) for row in rows] == [
        *(("recipro", ""), ("recipro", "gauss-in-box"), ("recipro", "random")),
        *(("gauss-in-box", ""), ("gauss-in-box", "random")),
        *(("random", ""), ("random", "gauss-in-box")),
    ]
    assert float(rows[0]["energy"]) == ours["summary"]["means"]["energy"]["value"]
    assert float(rows[1]["margin"]) == ours["above"]["gauss-in-box"]["means"]["margin"]["value"]
    assert {row["images"] for row in rows} == {"3"}
    assert {row["margin_low"] for row in rows} == {""}  # too few images for intervals
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert text.startswith("| method | energy ↑ | pointing ↑ | deletion ↓ |")


def test_intervals_need_several_images() -> None:
    means = BoxMeans(*[Mean(0.5, 0.25, 0.75)] * 8)
    for images, cell, low in ((4, "50.00", ""), (5, "50.00 (25.0-75.0)", "0.25")):
        above = {"random": BoxDifference(images, 6, means)}
        rows = [BoxRow("recipro", BoxSummary(images, 7, 0, means), None, above)]
        _, own, difference = box_table(rows)
        assert own[1] == cell
        assert difference[1].startswith("+50.00")
        assert (own[-3:], difference[-3:]) == (("0", "7", str(images)), ("", "6", str(images)))
        written = list(csv.DictReader(box_csv(rows).splitlines()))
        assert [each["energy_low"] for each in written] == [low, low]
        assert [each["boxes"] for each in written] == ["7", "6"]


def test_a_run_resumes(tmp_path: Path, photographs: Path, subject: Subject) -> None:
    def measured(methods: list[str], max_boxes: int = 2, by: Subject = subject) -> tuple[int, Any]:
        measuring = BoxMeasuring(by, methods, BoxLimits(max_boxes=max_boxes))
        evaluation = BoxEvaluation(measuring, find_photographs(photographs), tmp_path)
        return sum(len(each.records) for each in evaluation.run(2)), evaluation.rows()

    first, again = measured(["votes"]), measured(["votes"])
    assert (first[0], again[0]) == (9, 0)
    assert first[1] == again[1]
    assert measured(["votes", "random"])[0] == 0
    black_box = Subject(Explainer(SCENE_MODEL, method="occlusion"))
    assert measured(["votes"], by=black_box)[0] == 0  # whatever else the explainer was made for
    assert settings_line({"mean": (0, 1)}) == settings_line({"mean": [0.0, 1.0]})
    assert measured(["votes"], max_boxes=1)[0] == 9  # other settings begin afresh


def test_a_record_says_which_boxes(tmp_path: Path, photographs: Path, subject: Subject) -> None:
    measuring = BoxMeasuring(subject, ["recipro"], BoxLimits(max_boxes=3))
    evaluation = BoxEvaluation(measuring, find_photographs(photographs), tmp_path)
    outcome = next(evaluation.run(1))
    explanation = subject.explainer(photographs / outcome.image, box="all")
    record = outcome.records["recipro"]
    predicted = {
        (target.index, tuple(np.round(target.edges, 2))): found.score
        for target, found in zip(explanation.scored, explanation.targets, strict=True)
        if isinstance(target, BoxTarget)
    }
    assert len(record.measured) > 1
    for box, index, measured in zip(record.boxes, record.classes, record.measured, strict=True):
        assert measured.score == pytest.approx(predicted[index, tuple(np.round(box, 2))], abs=1e-3)


def test_black_boxes(tmp_path: Path, photographs: Path) -> None:
    arguments = ("--methods", "occlusion", "--limit", 1, "--max-boxes", 1, "--json", "-q")
    record = json.loads(printed("evaluate", photographs, *MODEL, "-o", tmp_path / "o", *arguments))
    assert (record["method"], record["plan"]) == ("occlusion", "whole")
    assert [row["method"] for row in record["methods"]] == ["occlusion", "gauss-in-box", "random"]
    assert record["methods"][0]["summary"]["boxes"] == 1


def test_a_detector_that_can_not_be_cut(tmp_path: Path, photographs: Path) -> None:
    model = write_two_stages(tmp_path / "stages.onnx")
    command = ("evaluate", photographs, "-m", model, "--limit", 1, "--max-boxes", 1, "--json", "-q")

    def rows(methods: str) -> dict[str, Any]:
        found = json.loads(printed(*command, "-o", tmp_path / "out", "--methods", methods))
        return {row["method"]: row for row in found["methods"]}

    found = rows("recipro,occlusion")
    assert list(found) == ["recipro", "occlusion", "gauss-in-box", "random"]
    assert found["recipro"]["not_applicable"] == "the model can't be cut"
    assert all(found[name]["summary"]["boxes"] == 1 for name in list(found)[1:])
    assert list(rows("random")) == ["random", "gauss-in-box"]
    assert "--method occlusion" in refusal(*command, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "Detectors are evaluated on a folder of images; none is not a folder."),
        (("empty",), "no images"),
        (("scenes", "--methods", "cam"), "There is no method 'cam'; the methods are: recipro"),
        (("scenes", "--step", "3"), "--step is for a classifier; this model is a detector"),
        (("scenes", "--profile", "poppi"), "--profile is for a classifier"),
        (("scenes", "--engine", "ray"), "--engine ray measures only classifiers"),
        (("scenes", "--methods", "random", "--threshold", "1"), "No image has a box that scores"),
        (("scenes", "--threshold", "-1"), "--threshold and --nms"),
        (("scenes", "--methods", "all", "--layer", "nowhere"), "nowhere"),
        (("scenes", "--nms", "5"), "--threshold and --nms"),
        (("scenes", "--box-size", "45,1"), "needs 0 <= LOW < HIGH <= 100, not 45,1"),
        (("scenes", "--box-size=-5,nan"), "needs 0 <= LOW < HIGH <= 100, not -5,nan"),
    ],
)
def test_what_a_user_can_get_wrong(
    tmp_path: Path,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "scenes").symlink_to(photographs)
    assert message in refusal("evaluate", *arguments, *MODEL)


def test_an_option_for_detectors(tmp_path: Path, photographs: Path) -> None:
    command = ("evaluate", photographs, "-o", tmp_path / "out", "--max-boxes", "3")
    assert "--max-boxes is for a detector; this model is a classifier" in refusal(*command)


def test_models_of_other_kinds(tmp_path: Path, photographs: Path) -> None:
    b = Builder(shape=(1, 3, 32, 32))
    feature = b.add("Relu", b.conv("image", 4, strides=[2, 2]))
    for _ in range(2):
        feature = b.add("Relu", b.conv(feature, 4))
    b.conv(feature, 6, output="scores")
    b.save(tmp_path / "segmentation.onnx")
    model = tmp_path / "segmentation.onnx"
    for command in (("evaluate", photographs, "-m", model), ("compare", model, model, photographs)):
        message = refusal(*command, "-o", tmp_path / "out", "--task", "segmentation")
        assert "classifiers and detectors" in message
        assert "is a segmentation" in message
