from __future__ import annotations

import pickle
from itertools import chain

import numpy as np
import pytest

from ov_recipro import metrics
from ov_recipro.faithfulness.tally import Tally
from ov_recipro.metrics import Measurement

# Drop, coherency, complexity, ADCC of the Recipro-CAM rows of the paper's Table 1, in percent
TABLE_1 = {
    "VGG-16": (21.51, 92.24, 27.48, 80.27),
    "ResNet-18": (20.68, 97.38, 33.60, 79.08),
    "ResNet-50": (15.69, 96.68, 32.90, 80.84),
    "ResNet-101": (15.07, 97.21, 32.45, 81.38),
    "ResNeXt-50": (13.70, 96.37, 37.36, 79.10),
    "ResNeXt-101": (12.03, 97.50, 35.62, 80.74),
}


@pytest.mark.parametrize("model", TABLE_1)
def test_adcc_of_the_papers_rows(model: str) -> None:
    drop, coherency, complexity, expected = TABLE_1[model]
    found = metrics.adcc(drop / 100, coherency / 100, complexity / 100)
    assert 100 * found == pytest.approx(expected, abs=0.04)


def test_adcc_of_a_useless_map_is_zero() -> None:
    assert metrics.adcc(0.1, 1.0, 1.0) == 0
    assert metrics.adcc(1.0, 1.0, 0.5) == 0


def test_drop() -> None:
    assert metrics.drop(0.8, 0.6) == pytest.approx(0.25)
    assert metrics.drop(0.6, 0.8) == 0
    assert metrics.drop(0.0, 0.0) == 0


def test_correlations() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((2, 7, 7))
    assert metrics.correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert metrics.coherency(a, 3 * a + 1) == pytest.approx(1)
    assert metrics.coherency(a, -a) == pytest.approx(0)
    assert metrics.coherency(a, np.zeros_like(a)) is None
    assert metrics.rank_correlation(a, np.exp(5 * a)) == pytest.approx(1)
    ties = metrics.rank_correlation(np.array([1, 2, 2, 3.0]), np.array([1, 2, 3, 4.0]))
    assert ties == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])


def test_maps_grow_with_half_pixel_centres() -> None:
    row = np.array([[0, 1]], np.float32)
    large = metrics.upsampled(row, (1, 4), "bilinear")
    np.testing.assert_allclose(large, [[0, 0.25, 0.75, 1]])
    assert metrics.upsampled(row, (1, 8), "bicubic").min() < 0  # it may overshoot


def test_the_blur_is_an_impulse_smoothed_with_a_mirrored_border() -> None:
    """The least, greatest and total weight are those of scipy.ndimage.gaussian_filter."""
    impulse = np.zeros((1, 41, 41), np.float32)
    impulse[0, 20, 20] = 1
    kernel = metrics.blurred(impulse)[0]
    inside = kernel[15:26, 15:26]
    assert kernel.sum() == pytest.approx(inside.sum()) == pytest.approx(1, abs=1e-6)
    assert inside.max() == pytest.approx(0.008832628)
    assert inside.min() == pytest.approx(0.007736635)
    assert inside[5, 5] == inside.max()


def test_the_blur_fills_with_zeros() -> None:
    ones = metrics.blurred(np.ones((2, 30, 30), np.float32))
    assert ones[1, 15, 15] == pytest.approx(1)
    assert ones[0, 0, 0] < 0.5


def test_pixels_turn_by_decreasing_saliency_ties_in_raster_order() -> None:
    saliency = np.array([[0.1, 0.9, 0.5], [0.5, 0.0, 0.9]], np.float32)
    assert metrics.by_saliency(saliency).tolist() == [1, 5, 2, 3, 0, 4]
    image = np.arange(1, 13, dtype=np.float32).reshape(2, 2, 3)
    order = metrics.by_saliency(saliency)
    steps = [step.copy() for step in metrics.replaced(image, np.zeros_like(image), order, 4)]
    assert len(steps) == 3
    np.testing.assert_array_equal(steps[0], image)
    np.testing.assert_array_equal(steps[1], [[[1, 0, 0], [0, 5, 0]], [[7, 0, 0], [0, 11, 0]]])
    assert not steps[2].any()


def test_a_boxs_pixels_alone_are_ordered() -> None:
    saliency = np.array([[0.1, 0.9, 0.5], [0.5, 0.0, 0.9]], np.float32)
    assert metrics.by_saliency_inside(saliency, (0.5, 0, 3, 2)).tolist() == [1, 5, 2, 3, 0, 4]
    assert metrics.by_saliency_inside(saliency, (0.6, 0, 9, 2)).tolist() == [1, 5, 2, 4]
    assert metrics.by_saliency_inside(saliency, (0, 1, 2.5, 1.6)).tolist() == [3, 4]
    assert metrics.inside((2, 3), (0.5, 0, 1.5, 2)).tolist() == [[True, False, False]] * 2


def test_a_defocused_image_keeps_its_light_alone() -> None:
    """Unlike RISE's blur it leaves no edge of an eighth of the image, and no dark border."""
    stripes = np.zeros((1, 80, 160), np.float32)
    stripes[:, :, ::16] = 16
    blurred = metrics.defocused(stripes)
    assert blurred[:, :, 32:96].mean() == pytest.approx(1, rel=0.02)
    assert np.ptp(blurred[:, :, 20:-20]) < 0.1 * np.ptp(metrics.blurred(stripes)[:, :, 20:-20])
    np.testing.assert_allclose(metrics.defocused(np.ones((3, 40, 30), np.float32)), 1, rtol=1e-5)


def test_images_are_drawn_with_all_their_values() -> None:
    values = np.array([[1.0, 5.0, 3.0]])
    one = metrics.resampled_means(values)
    np.testing.assert_allclose(metrics.resampled_means(values, np.ones(3)), one)
    pooled = metrics.resampled_means(np.array([[3.0, 0.0]]), np.array([3.0, 1.0]))
    assert set(np.round(pooled[0], 6)) == {0, 0.75, 1}


def test_boxes_of_cells_have_one_row_and_column_more() -> None:
    image = np.ones((1, 9, 8), np.float32)
    saliency = np.array([[0, 1], [0.5, 0.2]], np.float32)
    steps = [step.copy() for step in metrics.replaced_by_cell(image, 0 * image, saliency)]
    assert len(steps) == 5
    assert not steps[1][0, :5, 4:].any()
    assert steps[1].sum() == 72 - 5 * 4
    assert not steps[2][0, 4:, :5].any()
    assert steps[4].sum() == 0
    odd = [
        s.copy()
        for s in metrics.replaced_by_cell(
            np.ones((1, 12, 12)), np.zeros((1, 12, 12)), np.ones((3, 3))
        )
    ]
    assert odd[1].sum() == 144 - 25  # 12//3 = 4 pixels, and one more


def test_areas() -> None:
    assert metrics.area([0.5] * 11, 10) == pytest.approx(0.5)
    assert metrics.area([0, 1, 2, 3, 4], 4) == pytest.approx(2)
    assert metrics.area([1, 1, 1], 3) == pytest.approx(2 / 3)  # as Recipro-CAM's authors divide


def test_pointing_and_energy() -> None:
    saliency = np.zeros((4, 4), np.float32)
    saliency[1, 2] = 3
    saliency[3, 3] = 1
    assert metrics.points_inside(saliency, [(2, 1, 3, 2)])
    assert not metrics.points_inside(saliency, [(3, 3, 4, 4), (0, 0, 2, 4)])
    assert metrics.energy_inside(saliency, [(2, 1, 3, 2)]) == 0.75
    assert metrics.energy_inside(saliency, [(2, 1, 3, 2), (0, 0, 4, 4)]) == 1
    assert metrics.energy_inside(0 * saliency, [(0, 0, 4, 4)]) == 0


def measurements(count: int) -> dict[str, Measurement]:
    random = np.random.default_rng(1)
    made = {}
    for number in range(count):
        values = random.random(7)
        made[f"{number}.jpg"] = Measurement(
            score=values[0],
            explained=values[1],
            drop=metrics.drop(values[0], values[1]),
            increase=bool(values[1] > values[0]),
            coherency=None if number == 3 else values[2],
            complexity=values[3],
            deletion=values[4],
            insertion=values[5],
            flat=number == 3,
            pointing=bool(values[6] > 0.5) if number % 2 else None,
            energy=values[6] if number % 2 else None,
        )
    return made


def test_a_tally_depends_on_what_was_gathered_alone() -> None:
    made = measurements(21)
    whole, first, second = Tally(), Tally(), Tally()
    for name, measured in made.items():
        whole.update(name, measured)
    for name, measured in reversed(made.items()):
        (first if int(name[:-4]) % 3 else second).update(name, measured)
    second.merge(pickle.loads(pickle.dumps(first)))  # noqa: S301 - as from another process
    assert second.summary() == whole.summary()
    assert len(second) == 21


def test_means_and_intervals() -> None:
    made = measurements(21)
    tally = Tally()
    for name, measured in made.items():
        tally.update(name, measured)
    summary = tally.summary()
    values = list(made.values())
    assert summary.drop.value == pytest.approx(np.mean([m.drop for m in values]))
    assert summary.increase.value == pytest.approx(np.mean([m.increase for m in values]))
    assert summary.coherency.value == pytest.approx(np.mean([m.coherency or 0 for m in values]))
    assert (summary.undefined, summary.flat, summary.images, summary.boxed) == (1, 1, 21, 10)
    assert summary.energy is not None
    boxed = [m.energy for m in values if m.energy is not None]
    assert summary.energy.value == pytest.approx(np.mean(boxed))
    assert summary.adcc.value == metrics.adcc(
        summary.drop.value, summary.coherency.value, summary.complexity.value
    )
    complexity = np.array([m.complexity for m in values])
    spread = complexity.std() / np.sqrt(len(values))
    assert summary.complexity.low == pytest.approx(complexity.mean() - 1.96 * spread, abs=0.02)
    assert summary.complexity.high == pytest.approx(complexity.mean() + 1.96 * spread, abs=0.02)
    for mean in (summary.drop, summary.adcc, summary.energy, summary.insertion):
        assert mean.low < mean.value < mean.high


def test_differences_are_paired() -> None:
    """Two methods whose hard images are the same: the difference is surer than either."""
    random = np.random.default_rng(0)
    one, other = Tally(), Tally()
    for number in range(40):
        drop, coherency, complexity = random.random(3) / 2
        for tally, more in ((one, 0.0), (other, 0.02 + 0.005 * random.random())):
            measured = Measurement(
                0.5, 0.5, drop + more, False, 1 - coherency, complexity, 0.1, 0.5, False
            )
            tally.update(f"{number}.jpg", measured)
    above = one.adcc_above(other)
    assert above is not None
    assert above.value == pytest.approx(one.summary().adcc.value - other.summary().adcc.value)
    assert 0 < above.low < above.value < above.high
    assert above.high - above.low < 0.1 * (one.summary().adcc.high - one.summary().adcc.low)
    assert one.adcc_above(one) == metrics.Mean(0, 0, 0)
    assert one.adcc_above(Tally()) is None


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="an empty tally has no means"):
        Tally().summary()


def test_one_image_counts_once() -> None:
    (one, other) = measurements(2).values()
    tally = Tally()
    for measured in chain([one], [other]):
        tally.update("same.jpg", measured)
    assert (len(tally), tally.summary().deletion.value) == (1, other.deletion)


def test_saco_by_hand() -> None:
    """Three groups: the first two in order, the third costs more than the second."""
    saliency, drops = [3.0, 2.0, 0.5], [0.9, 0.1, 0.2]
    expected = ((3 - 2) + (3 - 0.5) - (2 - 0.5)) / ((3 - 2) + (3 - 0.5) + (2 - 0.5))
    assert metrics.saco(saliency, drops) == pytest.approx(expected)
    assert metrics.saco(saliency, [3, 2, 1]) == 1
    assert metrics.saco(saliency, [1, 2, 3]) == -1
    assert metrics.saco([1, 1, 1], drops) == 0


def test_auc_inside_is_a_chance_of_pairs() -> None:
    saliency = np.random.default_rng(0).integers(0, 4, (6, 6)).astype(float)
    box = (1.0, 2.0, 4.0, 5.0)
    within = metrics.inside((6, 6), box)
    pairs = [
        (a > b) + (a == b) / 2 for a in saliency[within].ravel() for b in saliency[~within].ravel()
    ]
    assert metrics.auc_inside(saliency, box) == pytest.approx(np.mean(pairs))


def measurement(**values: float) -> Measurement:
    known = {
        "score": 0.9, "explained": 0.8, "drop": 0.1, "increase": False, "coherency": 0.9,
        "complexity": 0.3, "deletion": 0.2, "insertion": 0.6, "flat": False, "saco": 0.5,
    }  # fmt: skip
    return Measurement(**(known | values))  # type: ignore[arg-type]


def test_every_mean_has_its_difference() -> None:
    random = np.random.default_rng(0)
    ours, theirs = Tally(), Tally()
    for number in range(40):
        hard = float(random.uniform(0, 1))
        theirs.update(str(number), measurement(deletion=hard))
        ours.update(str(number), measurement(deletion=hard - 0.02 + random.normal() / 100))
    ours.update("one more", measurement(deletion=9))
    found = ours.differences(theirs)
    assert found is not None
    deletion = found["deletion"]
    assert deletion.mean.value == pytest.approx(-0.02, abs=0.005)
    assert deletion.mean.high < 0
    assert deletion.needed is not None
    assert 1 <= deletion.needed <= 10  # (2.8 * 0.01 / 0.02)^2 = 2
    assert found["insertion"].mean.value == 0
    assert found["insertion"].needed is None
    assert "grid_auc" not in found
    assert Tally().differences(ours) is None


def test_grids_are_compared_where_both_have_one() -> None:
    ours, theirs = Tally(), Tally()
    for number in range(6):
        grid = {"grid_energy": 0.5, "grid_auc": 0.9, "grid_peak": True} if number % 2 else {}
        ours.update(str(number), measurement(**grid))
        theirs.update(str(number), measurement(**(grid | {"grid_auc": 0.6} if grid else {})))
    found = ours.differences(theirs)
    assert found is not None
    assert found["grid_auc"].mean.value == pytest.approx(0.3)
    summary = ours.summary()
    assert (summary.grids, summary.images) == (3, 6)
    assert summary.grid_peak is not None
    assert summary.grid_peak.value == 1
