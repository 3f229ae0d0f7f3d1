"""RISE and D-RISE on scores whose place is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rectangles import (
    LEFT,
    RIGHT,
    SIZE,
    WHITE,
    Array,
    counted,
    highest,
    inside,
    mean_of,
    noise,
)

from ov_recipro.black_boxes import Attribution, Run, d_rise, rise
from ov_recipro.black_boxes.random_masks import _Stream

METHODS = [rise, d_rise]


def with_noise(run: Run) -> Run:
    """Return the run with one more target, of noise: every mask is needed."""
    random = noise()
    return lambda inputs: np.concatenate([run(inputs), random(inputs)], axis=1)


@pytest.mark.parametrize("method", METHODS)
def test_each_target_has_its_maximum_at_its_place(
    method: Callable[..., list[Attribution]],
) -> None:
    left, right = method(mean_of(LEFT, RIGHT), WHITE, masks=1000)
    assert inside(highest(left.raw), LEFT)
    assert inside(highest(right.raw), RIGHT)
    assert left.raw.dtype == np.float32
    assert left.raw.shape == SIZE


def test_far_from_the_rectangle_there_is_no_floor() -> None:
    found, _ = rise(with_noise(mean_of(LEFT)), WHITE, masks=3000)
    assert found.runs == 3000
    assert abs(found.raw[:, 50:].mean()) < 0.02 * found.raw.max()
    assert np.abs(found.raw[:, 50:]).max() < 0.1 * found.raw.max()


def test_a_constant_in_the_score_changes_nothing() -> None:
    run = mean_of(LEFT)
    (found,) = rise(run, WHITE, masks=200)
    (raised,) = rise(lambda inputs: run(inputs) + 1000, WHITE, masks=200)
    np.testing.assert_allclose(raised.raw, found.raw, atol=1e-6)


def test_is_the_covariance_of_mask_and_score() -> None:
    stream = _Stream(7, SIZE, 150, seed=3)
    masks = stream.masks(0, 150).astype(np.float64)
    (found,) = rise(mean_of(LEFT), WHITE, masks=150, seed=3)
    scores = mean_of(LEFT)(WHITE.through(masks))[:, 0]
    covariance = np.zeros(SIZE)
    variance = np.zeros(SIZE)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            pixel = masks[:, y, x]
            covariance[y, x] = np.cov(pixel, scores, bias=True)[0, 1]
            variance[y, x] = pixel.var()
    assert found.runs == 150
    np.testing.assert_allclose(found.raw, covariance / variance.mean(), rtol=1e-4, atol=1e-6)


def test_raw_values_are_in_units_of_the_score() -> None:
    """A score of 3 that a single pixel holds is lost with that pixel."""
    run = mean_of((40, 30, 41, 31))
    (found,) = d_rise(lambda inputs: 3 * run(inputs), WHITE, masks=2000)
    assert found.raw[30, 40] == pytest.approx(3, rel=0.15)


def test_every_pixel_is_masked_alike() -> None:
    """Borders too, where an enlarged grid would repeat its last cells."""
    masks = _Stream(7, (56, 56), 4000, seed=0).masks(0, 4000)
    assert (masks.min(), masks.max()) == (0, 1)
    np.testing.assert_allclose(masks.mean(axis=0), 0.5, atol=0.03)
    variance = masks.var(axis=0)
    np.testing.assert_allclose(variance, variance.mean(), rtol=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_a_strong_signal_stops_early(method: Callable[..., list[Attribution]]) -> None:
    run, batches = counted(mean_of(LEFT, RIGHT))
    told: list[tuple[int, int]] = []
    found = method(run, WHITE, progress=lambda *each: told.append(each))
    assert all(each.reliability is not None and each.reliability >= 0.9 for each in found)
    assert found[0].runs == found[1].runs == sum(batches) < 2000
    assert told[-1][0] == found[0].runs


@pytest.mark.parametrize("method", METHODS)
def test_noise_never_gets_reliable(method: Callable[..., list[Attribution]]) -> None:
    (found,) = method(noise(), WHITE, masks=1000)
    assert found.runs == 1000
    assert found.reliability is not None
    assert found.reliability < 0.5


def test_one_target_of_noise_keeps_the_masks_coming() -> None:
    both = rise(with_noise(mean_of(LEFT)), WHITE, masks=600)
    assert [each.runs for each in both] == [600, 600]
    reliabilities = [each.reliability or 0 for each in both]
    assert reliabilities[0] >= 0.9 > reliabilities[1]


def test_reliability_predicts_the_correlation_of_two_streams() -> None:
    """Six streams, each with masks of its own."""
    random = np.random.default_rng(1)
    signal = mean_of(LEFT, RIGHT)

    def run(inputs: Array) -> Array:
        scores = signal(inputs).sum(axis=1, keepdims=True)
        return np.asarray(scores + random.normal(scale=0.3, size=scores.shape))

    found = [d_rise(run, WHITE, masks=400, seed=seed)[0] for seed in range(6)]
    between = np.corrcoef([each.raw.ravel() for each in found])
    mean = between[np.triu_indices(6, 1)].mean()
    assert 0.2 < mean < 0.85
    assert np.mean([each.reliability or 0 for each in found]) == pytest.approx(mean, abs=0.12)


def test_a_score_that_never_changes_gives_zeros() -> None:
    (found,) = rise(lambda inputs: np.full((len(inputs), 1), 0.25), WHITE, masks=200)
    assert not found.raw.any()
    assert found.reliability == 0


def test_the_batch_changes_nothing_and_the_seed_does() -> None:
    one, other, again, different = (
        rise(mean_of(LEFT), WHITE, batch=batch, seed=seed)[0]
        for batch, seed in ((16, 0), (5, 0), (16, 0), (16, 1))
    )
    assert one.runs == other.runs
    assert one.reliability == pytest.approx(other.reliability)
    np.testing.assert_allclose(one.raw, other.raw, atol=1e-6)
    np.testing.assert_array_equal(one.raw, again.raw)
    assert not np.allclose(one.raw, different.raw, atol=1e-3)


def test_fewer_masks_are_the_first_of_more() -> None:
    few, many = _Stream(7, SIZE, 10, seed=0), _Stream(7, SIZE, 30, seed=0)
    np.testing.assert_array_equal(few.masks(0, 10), many.masks(0, 10))
