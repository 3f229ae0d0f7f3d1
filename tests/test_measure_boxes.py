"""The tool that measures maps of boxes: it resumes, and its table is of what it measured."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from boxes import SCENE_MODEL, tool, write_scenes

measure_boxes = tool("measure_boxes")
ROWS = ("recipro, 10x10", "recipro, 5x5", "keep, 10x10", "last level alone, 5x5", "occlusion",
        "d-rise, 1000 masks", "aise", "votes", "gauss-in-box", "random")  # fmt: skip

MEASURED = ("recipro, 10x10", "votes", "gauss-in-box", "random")  # here; all of them take long


def test_a_table_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_scenes(tmp_path / "scenes", 2), tmp_path / "boxes.json"
    defined = measure_boxes.definitions

    @cache
    def definitions(model: Path) -> dict[str, Any]:
        subject = measure_boxes.Subject(measure_boxes.Explainer(model, plan="stream"))
        found = defined(subject, model)
        assert tuple(found) == ROWS
        return {name: found[name] for name in MEASURED}

    monkeypatch.setattr(measure_boxes, "definitions", lambda _, model: definitions(model))

    def measured(boxes: int, *more: str) -> dict[str, Any]:
        arguments = [SCENE_MODEL, folder, "-o", output, "--boxes", boxes, "--max-boxes", 1, *more]
        monkeypatch.setattr("sys.argv", ["measure_boxes.py", *map(str, arguments)])
        measure_boxes.main()
        found: dict[str, Any] = json.loads(output.read_bytes())
        return found

    first = measured(1)
    log = output.with_suffix(".jsonl")
    begun = log.read_bytes()
    assert (first["photographs"], first["boxes"]) == (1, 1)
    second = measured(2)
    assert log.read_bytes().startswith(begun)
    assert (second["photographs"], second["boxes"]) == (2, 2)
    names = [row[0] for row in second["figures"]]
    assert names == ["map", *MEASURED]
    last = log.read_bytes()
    assert measured(2) == second
    assert log.read_bytes() == last
    log.write_bytes(last[:-20])  # killed while it wrote
    assert measured(2) == second
    assert log.read_bytes() == last
    with pytest.raises(SystemExit, match="other settings"):
        measured(2, "--threshold", "0.6")
    assert log.read_bytes() == last
    assert "| gauss-in-box |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="No photograph"):
        measure_boxes.table([], ROWS)


def test_verdicts_are_those_of_the_rule() -> None:
    box = measure_boxes.BoxMeasurement(0.9, 0.1, 0.7, 0.2, 0.5, 0.8, True, False)  # 0.3 inside
    better = measure_boxes.BoxMeasurement(0.9, 0.1, 0.7, 0.2, 0.9, 0.8, True, False)
    rows = {"recipro": better, "gauss-in-box": box}
    seen = measure_boxes.Measured("ring", 0.9, 0.1, rows, ((0.5, 0.5), (0.5, 0.6)))
    found = measure_boxes.verdicts([measure_boxes.Photograph("a", (seen, seen))], tuple(rows))
    assert found[1] == ("recipro", "100 %", "0 %", "0 %", "0 %")
    assert found[2] == ("gauss-in-box", "0 %", "0 %", "100 %", "0 %")
