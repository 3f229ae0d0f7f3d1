"""The page of file formats names each field that is written, and no others."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ov_recipro import Explainer, Preprocessing, Target
from ov_recipro.batch import Batch, find_inputs
from ov_recipro.cluster.results import schema
from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.faithfulness.comparison import Comparison
from ov_recipro.faithfulness.tally import Summary
from ov_recipro.faithfulness.verification import BoxVerification
from ov_recipro.metrics import Measurement
from places import ROOT

PAGE = (ROOT / "docs" / "reference" / "formats.md").read_text()
ADDED = {"overlay", "maps", "zero", "sharpness", "verification", "reference_overlay", "reverse"}
"""To a target's own fields; some only with some options."""


def named(heading: str) -> set[str]:
    """The names in the first column of the first table below a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, maxsplit=1, flags=re.M)[1]
    table = re.search(r"^\|.*?(?=\n\n)", section, re.M | re.S)
    assert table is not None
    rows = re.findall(r"^\|(.*?)\|", table[0], re.M)
    return {name for row in rows for name in re.findall(r"`(.+?)`", row)}


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("A verification", BoxVerification),
        ("A measurement", Measurement),
        ("recipro.json", Manifest),
        ("A cut", CutPoint),
        ("Preprocessing", Preprocessing),
        ("A summary", Summary),
        ("A comparison", Comparison),
    ],
)
def test_dataclasses(heading: str, kind: type) -> None:
    assert named(heading) == {each.name for each in dataclasses.fields(kind)}


def test_explanations(explainer: Explainer, cat: Path, tmp_path: Path) -> None:
    batch = Batch(explainer, find_inputs([str(cat)]), tmp_path, ["top1"], save_maps=True)
    list(batch.run())
    record = json.loads(batch.write())
    assert named("explanations.json") == {*record, "second_layer", "source"}
    (image,) = record["images"]
    assert named("An image") == set(image)
    assert named("A target") == {each.name for each in dataclasses.fields(Target)} | ADDED
    assert set(image["targets"][0]) <= named("A target")
    with np.load(tmp_path / image["targets"][0]["maps"]) as saved:
        assert named(".npz") == {*saved, "zeros"}


def test_parquet() -> None:
    assert named("Parquet") == set(schema((1280, 7, 7), "float32").names)
