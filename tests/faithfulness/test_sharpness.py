"""Maps drawn as sharp as still suffices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from command import fails, run
from ov_recipro import Explainer
from ov_recipro.faithfulness.sharpness import sharpness
from ov_recipro.methods import Subject


def test_the_sharpest_that_suffices(explainer: Explainer, coffee: Path) -> None:
    subject = Subject(explainer)
    found = explainer(coffee, "top2")
    everything = replace(found, maps=np.ones_like(found.maps))
    nothing = replace(found, maps=np.zeros_like(found.maps))
    assert sharpness(subject, everything) == [2.0, 2.0]
    assert sharpness(subject, nothing) == [0.8, 0.8]


def test_only_the_drawing_changes(tmp_path: Path, coffee: Path) -> None:
    for name, words in (("plain", ()), ("sharp", ("--sharp",))):
        done = run("explain", coffee, "-o", name, "--save-maps", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    plain, sharp = (
        json.loads((tmp_path / name / "explanations.json").read_text())["images"][0]
        for name in ("plain", "sharp")
    )
    power = sharp["targets"][0].pop("sharpness")
    assert power in (2.0, 1.3, 0.8)
    assert sharp["targets"] == plain["targets"]
    maps = [np.load(tmp_path / name / "coffee.npz")["maps"] for name in ("plain", "sharp")]
    np.testing.assert_array_equal(*maps)
    pictures = [(tmp_path / name / "coffee.png").read_bytes() for name in ("plain", "sharp")]
    assert pictures[0] != pictures[1]
    fails(run("explain", coffee, "--sharp", "--signed", cwd=tmp_path), "--sharp does not", code=2)
