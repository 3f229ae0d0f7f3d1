"""Measuring a box's map: against the definitions, and on maps whose worth is known."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from boxes import SCENE_MODEL, make_scenes
from ov_recipro import Explainer, OptionError, TargetError
from ov_recipro.faithfulness.box_measure import (
    INNER_STEPS,
    STEPS,
    BoxCurves,
    BoxLimits,
    BoxMeasurement,
    chosen_boxes,
)
from ov_recipro.images.preprocess import Window
from ov_recipro.methods import Subject
from ov_recipro.methods.box_methods import gaussian_in
from ov_recipro.saliency import Floats
from ov_recipro.targets.boxes import BoxTarget

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(Explainer(SCENE_MODEL))


@pytest.fixture(scope="module")
def seen(subject: Subject) -> tuple[Floats, Window]:
    return subject.prepare(make_scenes(1)[0].image)


@pytest.fixture(scope="module")
def target(subject: Subject, seen: tuple[Floats, Window]) -> BoxTarget:
    return chosen_boxes(subject, *seen, BoxLimits())[0]


def trapezoid(scores: list[float]) -> float:
    return (sum(scores) - (scores[0] + scores[-1]) / 2) / (len(scores) - 1)


def test_by_hand(subject: Subject, seen: tuple[Floats, Window], target: BoxTarget) -> None:
    """All curves from their definitions, the score by the explainer, one image at a time."""
    image, _ = seen
    saliency = RANDOM.random((10, 10), np.float32)
    found = BoxCurves(subject, image, target).measure(saliency)

    def score(x: Floats) -> float:
        return subject.explainer.explain_scored(x[None], [target]).targets[0].score

    size = image.shape[1:]
    large = cv2.resize(saliency, size[::-1], interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    left, top, right, bottom = target.edges
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), size[0] / 20) for plane in image])
    grey = np.full_like(image, 114 / 255)  # the model's padding
    plain = score(image)
    assert found.score == pytest.approx(plain, rel=1e-4)
    for steps, among, names in (
        (STEPS, np.ones_like(inside), ("deletion", "insertion")),
        (INNER_STEPS, inside, ("inner_deletion", "inner_insertion")),
    ):
        rank = np.full(size, 10**6)
        order = [n for n in np.argsort(-large.ravel(), kind="stable") if among.ravel()[n]]
        rank.ravel()[order] = np.arange(len(order))
        curves: tuple[list[float], list[float]] = ([], [])
        for number in range(steps + 1):
            turned = rank < min(len(order), number * -(-len(order) // steps))
            left_over = np.where(among, blurred, image)
            deleted, inserted = np.where(turned, grey, image), np.where(turned, image, left_over)
            for curve, changed in zip(curves, (deleted, inserted), strict=True):
                curve.append(min(1.0, score(changed.astype(np.float32)) / plain))
        for name, curve in zip(names, curves, strict=True):
            assert getattr(found, name) == pytest.approx(trapezoid(curve), abs=2e-3)
    assert found.margin == found.insertion - found.deletion
    assert found.energy == pytest.approx(large[inside].sum() / large.sum(), rel=1e-4)
    place = np.unravel_index(int(large.argmax()), size)
    assert found.pointing == inside[place]


def test_maps_of_known_worth(
    subject: Subject, seen: tuple[Floats, Window], target: BoxTarget
) -> None:
    image, _ = seen
    curves = BoxCurves(subject, image, target)
    drawn = gaussian_in(target.edges, (160, 160))
    good, bad, flat = (curves.measure(each) for each in (drawn, 1 - drawn, np.zeros((5, 5))))
    assert good.pointing
    assert not bad.pointing
    assert good.energy > 0.8 > 0.2 > bad.energy
    assert good.margin > 0.3 > 0 > bad.margin
    assert (flat.flat, flat.energy, flat.pointing) == (True, 0, False)
    assert not good.flat


def test_pixels_outside_the_box_do_not_matter_inside(
    subject: Subject, seen: tuple[Floats, Window], target: BoxTarget
) -> None:
    image, _ = seen
    curves = BoxCurves(subject, image, target)
    one = RANDOM.random((160, 160), np.float32)
    left, top, right, bottom = (round(edge) for edge in target.edges)
    other = RANDOM.random((160, 160), np.float32)
    other[top : bottom + 1, left : right + 1] = one[top : bottom + 1, left : right + 1]
    assert curves.inner(one) == curves.inner(other)
    assert curves.measure(one).deletion != curves.measure(other).deletion


def test_what_a_measurement_costs(
    subject: Subject,
    seen: tuple[Floats, Window],
    target: BoxTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, _ = seen
    runs: list[Floats] = []
    run = subject.outputs

    def counted(each: Floats) -> Floats:
        runs.append(each)
        return run(each)

    monkeypatch.setattr(subject, "outputs", counted)
    curves = BoxCurves(subject, image, target)
    curves.inner(RANDOM.random((10, 10)))
    assert len(runs) == 1 + 2 + 10
    for _ in range(2):
        curves.measure(RANDOM.random((10, 10)))
    assert len(runs) == 5 + 10 + 2 * 40


def test_which_boxes_are_measured(subject: Subject) -> None:
    image, window = subject.prepare(make_scenes(8)[-1].image)
    every = chosen_boxes(subject, image, window, BoxLimits(max_boxes=9, smallest=0, largest=1))
    assert len(every) > 1
    shares = []
    for target in every:
        left, top, right, bottom = target.edges
        shares.append((right - left) * (bottom - top) / 160**2)
    best = chosen_boxes(subject, image, window, BoxLimits(max_boxes=1, smallest=0, largest=1))
    assert [each.edges for each in best] == [every[0].edges]
    limit = (min(shares) + max(shares)) / 2
    large = chosen_boxes(subject, image, window, BoxLimits(max_boxes=9, smallest=limit, largest=1))
    assert 0 < len(large) < len(every)
    scores = [subject.score(image, target) for target in every]
    assert scores == sorted(scores, reverse=True)
    least = BoxLimits(threshold=scores[0] - 1e-6, max_boxes=9, smallest=0, largest=1)
    assert len(chosen_boxes(subject, image, window, least)) == 1
    nothing = np.full_like(image, 0.5)
    assert chosen_boxes(subject, nothing, window, BoxLimits()) == []


@pytest.mark.parametrize(
    "limits",
    [
        *({"threshold": value} for value in (-1, 0, 1.1, np.nan)),
        *({"nms": value} for value in (5, 0, np.nan)),
        *({"smallest": low, "largest": high} for low, high in ((0.45, 0.01), (-0.05, np.nan))),
        {"largest": 1.5},
        {"max_boxes": 0},
    ],
)
def test_limits_out_of_range(limits: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        BoxLimits(**limits)  # type: ignore[arg-type]


def test_boxes_that_can_not_be_measured(
    subject: Subject, seen: tuple[Floats, Window], target: BoxTarget
) -> None:
    image, window = seen
    between = replace(target, edges=(50.6, 50.6, 51.4, 51.4))  # no pixel has its centre there
    with pytest.raises(TargetError, match="covers no pixel"):
        BoxCurves(subject, image, between)
    empty = np.full_like(image, 0.5)
    unseen = replace(target, edges=(150.0, 150.0, 160.0, 160.0), anchors=np.array([], np.int64))
    with pytest.raises(TargetError, match="scores 0"):
        BoxCurves(subject, empty, unseen)
    everything = BoxLimits(max_boxes=99, smallest=0, largest=1)
    for each in chosen_boxes(subject, image, window, everything):
        BoxCurves(subject, image, each)


def test_margins() -> None:
    measured = BoxMeasurement(0.9, 0.1, 0.7, 0.2, 0.5, 0.8, True, False)
    assert measured.margin == pytest.approx(0.6)
    assert measured.inner_margin == pytest.approx(0.3)
