"""AISE on scores whose place is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from rectangles import LEFT, RIGHT, WHITE, Array, counted, highest, inside, mean_of

from ov_recipro import ImageError, OptionError, TargetError
from ov_recipro.black_boxes import aise

BOXES = [(0.0, 8.0, 36.0, 40.0), (46.0, 30.0, 76.0, 58.0)]


def test_each_target_has_its_maximum_at_its_place() -> None:
    for boxes in (None, BOXES):
        left, right = aise(mean_of(LEFT, RIGHT), WHITE, boxes)
        assert inside(highest(left.raw), LEFT)
        assert inside(highest(right.raw), RIGHT)
        assert left.reliability is None


def test_a_box_takes_fifty_windows_of_each_width() -> None:
    run, batches = counted(mean_of(LEFT, RIGHT))
    told: list[tuple[int, int]] = []
    found = aise(run, WHITE, BOXES, progress=lambda *each: told.append(each))
    assert [each.runs for each in found] == [150, 150]
    assert batches == [1] * 301
    assert told == [(done, 300) for done in range(1, 301)]


def test_windows_stay_in_the_box_and_half_a_box_round_it() -> None:
    places: list[tuple[int, int]] = []

    def run(inputs: Array) -> Array:
        if inputs.min() < 0.99:  # not the plain image
            places.append(highest(inputs[0, 0]))
        return np.full((len(inputs), 1), 0.5)

    aise(run, WHITE, [(30.0, 20.0, 50.0, 30.0)])
    columns, rows = np.array(places).T
    assert columns.min() >= 20
    assert columns.max() <= 60
    assert rows.min() >= 15
    assert rows.max() <= 35
    assert columns.max() - columns.min() > 30  # and go everywhere in it
    assert rows.max() - rows.min() > 15


def test_the_maximum_is_the_highest_score_kept() -> None:
    scores: list[float] = []
    model = mean_of(LEFT)

    def run(inputs: Array) -> Array:
        found = np.asarray(model(inputs))
        if inputs.min() < 0.99:
            scores.append(found[0, 0])
        return found

    (found,) = aise(run, WHITE, BOXES[:1])
    assert found.raw.max() == pytest.approx(max(scores))
    assert 0 < max(scores) < 1


def test_a_score_of_nothing_gives_zeros() -> None:
    for value in (0.0, -1.0):
        (found,) = aise(lambda x, value=value: np.full((len(x), 1), value), WHITE)  # type: ignore[misc]
        assert not found.raw.any()


def test_the_same_each_time() -> None:
    one, again = (aise(mean_of(LEFT), WHITE, BOXES[:1])[0] for _ in range(2))
    np.testing.assert_array_equal(one.raw, again.raw)


def test_scipy_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(OptionError, match=r"needs SciPy .*pip install 'ov-recipro\[aise\]'"):
        aise(mean_of(LEFT), WHITE)


def test_a_box_outside_is_refused() -> None:
    with pytest.raises(TargetError, match="lies outside"):
        aise(mean_of(LEFT), WHITE, [(0.0, 70.0, 9.0, 90.0)])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ImageError])
@pytest.mark.parametrize("at", [1, 2, 40])
def test_what_ends_a_run_ends_the_search(failure: type[BaseException], at: int) -> None:
    model, calls = mean_of(LEFT), []

    def run(inputs: Array) -> Array:
        calls.append(len(inputs))
        if len(calls) == at:
            raise failure
        return np.asarray(model(inputs))

    with pytest.raises(failure):
        aise(run, WHITE)
    assert len(calls) == at
