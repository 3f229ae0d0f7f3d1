"""Occlusion against a slow loop, and on scores whose place is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rectangles import LEFT, RIGHT, SIZE, WHITE, Array, counted, highest, inside, mean_of

from ov_recipro import TargetError
from ov_recipro.black_boxes import MaskedImage, occlusion

BOX = (20.0, 16.0, 60.0, 48.0)


def test_each_box_takes_121_runs_besides_the_plain_one() -> None:
    run, batches = counted(mean_of(LEFT, RIGHT))
    found = occlusion(run, WHITE, [BOX, BOX], batch=50)
    assert [each.runs for each in found] == [121, 121]
    assert batches == [1, 50, 50, 21, 50, 50, 21]


def test_patches_cover_the_box_and_a_quarter_on_each_side() -> None:
    (found,) = occlusion(mean_of((0, 0, SIZE[1], SIZE[0])), WHITE, [BOX])
    rows, columns = np.nonzero(found.raw)
    assert (columns.min(), columns.max() + 1) == (10, 70)
    assert (rows.min(), rows.max() + 1) == (8, 56)
    assert np.count_nonzero(found.raw) == 60 * 48


def test_equals_a_slow_loop() -> None:
    random = np.random.default_rng(0)
    tensor = random.random((1, 3, *SIZE), np.float32)
    weights = random.standard_normal((3, *SIZE))
    fill = np.array([0.1, 0.2, 0.3])
    box = (13.3, 20.1, 47.9, 55.2)

    def score(x: Array) -> float:
        return math.tanh(float((x * weights).sum()) / 100)

    def run(inputs: Array) -> Array:
        return np.array([[score(each)] for each in inputs])

    total, count = np.zeros(SIZE), np.zeros(SIZE)
    width, height = box[2] - box[0], box[3] - box[1]
    for i in range(11):
        for j in range(11):
            y, x = box[1] - height / 4 + i * height / 8, box[0] - width / 4 + j * width / 8
            top, bottom = (min(max(round(v), 0), SIZE[0]) for v in (y, y + height / 4))
            left, right = (min(max(round(v), 0), SIZE[1]) for v in (x, x + width / 4))
            hidden = tensor[0].copy()
            hidden[:, top:bottom, left:right] = fill[:, None, None]
            total[top:bottom, left:right] += score(tensor[0]) - score(hidden)
            count[top:bottom, left:right] += 1
    expected = np.divide(total, count, out=np.zeros(SIZE), where=count > 0)
    (found,) = occlusion(run, MaskedImage(tensor, fill), [box])
    assert found.raw.dtype == np.float32
    assert expected.min() < 0 < expected.max()
    np.testing.assert_allclose(found.raw, expected, atol=1e-6)


def test_each_target_loses_at_its_own_place() -> None:
    for boxes in (None, [(4.0, 12.0, 32.0, 40.0), (46.0, 30.0, 76.0, 58.0)]):
        left, right = occlusion(mean_of(LEFT, RIGHT), WHITE, boxes)
        assert inside(highest(left.raw), LEFT)
        assert inside(highest(right.raw), RIGHT)
        assert left.reliability is None


def test_without_boxes_all_targets_share_225_runs() -> None:
    run, batches = counted(mean_of(LEFT, RIGHT, LEFT))
    told: list[tuple[int, int]] = []
    found = occlusion(run, WHITE, batch=100, progress=lambda *each: told.append(each))
    assert [each.runs for each in found] == [225] * 3
    assert batches == [1, 100, 100, 25]
    assert told == [(100, 225), (200, 225), (225, 225)]
    np.testing.assert_array_equal(found[0].raw, found[2].raw)


def test_raw_values_are_what_the_score_loses() -> None:
    """A rectangle inside one patch: hidden by it, the mean falls from 1 to 0."""
    (found,) = occlusion(mean_of((25, 20, 26, 21)), WHITE, [(0.0, 0.0, 80.0, 64.0)])
    assert found.raw[20, 25] == pytest.approx(1)
    assert found.raw[60, 70] == 0


def test_the_batch_changes_nothing() -> None:
    maps = [occlusion(mean_of(LEFT), WHITE, [BOX], batch=size)[0].raw for size in (1, 7, 200)]
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_patches_outside_the_input_are_not_run() -> None:
    (found,) = occlusion(mean_of(LEFT), WHITE, [(0.0, 0.0, 40.0, 32.0)])
    assert found.runs == 10 * 10  # the first row and the first column end at the border
    assert np.isfinite(found.raw).all()


def test_a_box_of_a_pixel_is_covered() -> None:
    (found,) = occlusion(mean_of((30, 30, 31, 31)), WHITE, [(30.0, 30.0, 31.0, 31.0)])
    assert found.raw[30, 30] == pytest.approx(1)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5.0, 5.0, 5.0, 9.0), "The box 5,5,5,9 has no area."),
        ((5.0, float("nan"), 9.0, 9.0), "The box 5,nan,9,9 has no area."),
        ((90.0, 5.0, 99.0, 9.0), "The box 90,5,99,9 lies outside the model's input, 80x64."),
    ],
)
def test_boxes_that_cannot_be_explained(
    box: tuple[float, float, float, float], message: str
) -> None:
    with pytest.raises(TargetError) as caught:
        occlusion(mean_of(LEFT), WHITE, [box])
    assert str(caught.value) == message
