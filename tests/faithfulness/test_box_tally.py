"""Means over boxes: their intervals are of photographs, their differences paired."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ov_recipro.faithfulness.box_measure import BoxMeasurement
from ov_recipro.faithfulness.box_tally import above, summary

BOX = BoxMeasurement(0.9, 0.1, 0.7, 0.2, 0.5, 0.8, True, False)


def with_energy(*values: float) -> list[BoxMeasurement]:
    return [replace(BOX, energy=value) for value in values]


def test_means_are_of_boxes() -> None:
    measured = {"a": with_energy(1, 1, 1), "b": with_energy(0), "empty": []}
    measured["b"].append(replace(BOX, energy=0.5, flat=True, pointing=False))
    found = summary(measured)
    assert found is not None
    assert (found.images, found.boxes, found.flat) == (2, 5, 1)
    assert found.means.energy.value == pytest.approx(3.5 / 5)
    assert found.means.pointing.value == pytest.approx(0.8)
    assert found.means.margin.value == pytest.approx(0.6)
    assert found.means.inner_margin.value == pytest.approx(0.3)
    assert summary(dict(reversed(measured.items()))) == found
    assert summary({"empty": []}) is None


def test_photographs_are_drawn_not_boxes() -> None:
    """Of two photographs one is drawn twice every other time, however many boxes it has."""
    found = summary({"a": with_energy(*[1] * 30), "b": with_energy(0)})
    assert found is not None
    assert (found.means.energy.low, found.means.energy.high) == (0, 1)
    alike = summary({str(number): with_energy(0, 1) for number in range(10)})
    assert alike is not None
    assert alike.means.energy.low == alike.means.energy.high == 0.5


def test_differences_are_paired() -> None:
    """What makes a box hard for both methods cancels."""
    hard = {str(number): with_energy(number / 20, number / 40) for number in range(10)}
    easier = {
        name: with_energy(*(each.energy + 0.1 for each in boxes)) for name, boxes in hard.items()
    }
    found, back = above(easier, hard), above(hard, easier)
    assert found is not None
    assert back is not None
    for end in (found.means.energy.value, found.means.energy.low, found.means.energy.high):
        assert end == pytest.approx(0.1)
    assert back.means.energy.value == pytest.approx(-0.1)
    assert found.means.deletion.value == 0
    assert (found.images, found.boxes) == (10, 20)
    alone = above({"0": easier["0"], "x": with_energy(1)}, hard)
    assert alone is not None
    assert (alone.images, alone.boxes) == (1, 2)
    assert alone.means.energy.value == pytest.approx(0.1)
    assert above({"0": with_energy(1)}, {"0": with_energy(1, 1)}) is None
    assert above({"a": []}, {"a": []}) is None
