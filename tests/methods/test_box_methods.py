"""Methods for boxes: the explainer's own, and the controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from boxes import SCENE_MODEL, make_scenes
from ov_recipro import Explainer
from ov_recipro.black_boxes.attribution import Method
from ov_recipro.faithfulness.box_measure import BoxLimits, chosen_boxes
from ov_recipro.methods import BOX_METHODS, METHODS, NotApplicable, Subject
from ov_recipro.methods.box_methods import CONTROLS, gaussian_in, noise
from ov_recipro.saliency import Floats
from ov_recipro.targets.boxes import BoxTarget


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(Explainer(SCENE_MODEL))


@pytest.fixture(scope="module")
def seen(subject: Subject) -> tuple[Floats, list[BoxTarget]]:
    scene = next(each for each in make_scenes(9) if len(each.objects) > 1)
    image, window = subject.prepare(scene.image)
    return image, chosen_boxes(subject, image, window, BoxLimits())


@pytest.mark.parametrize("method", ["recipro", "occlusion", "votes"])
def test_the_explainers_maps(
    subject: Subject, seen: tuple[Floats, list[BoxTarget]], method: Method
) -> None:
    image, targets = seen
    explainer = Explainer(SCENE_MODEL, method=method)
    expected = explainer.explain_scored(subject.tensor(image), targets).maps
    np.testing.assert_allclose(BOX_METHODS[method](subject, image, targets), expected, atol=1e-5)


def test_controls_know_the_box_alone(
    subject: Subject, seen: tuple[Floats, list[BoxTarget]]
) -> None:
    image, targets = seen
    assert set(CONTROLS) < set(BOX_METHODS)
    for saliency, target in zip(BOX_METHODS["gauss-in-box"](subject, image, targets), targets,
                                strict=True):  # fmt: skip
        row, column = np.unravel_index(int(saliency.argmax()), saliency.shape)
        left, top, right, bottom = target.edges
        assert abs(column + 0.5 - (left + right) / 2) <= 0.5 + 1e-3
        assert abs(row + 0.5 - (top + bottom) / 2) <= 0.5 + 1e-3
    edge, middle = gaussian_in((0, 0, 41, 80), (80, 41))[40, [0, 20]]
    assert edge / middle == pytest.approx(np.exp(-2 * (40 / 41) ** 2), rel=1e-4)  # two sigmas


def test_noise_is_the_same_for_the_same_box(
    subject: Subject, seen: tuple[Floats, list[BoxTarget]]
) -> None:
    image, (one, *_) = seen
    many = noise(image, one, 3)
    np.testing.assert_array_equal(noise(image, one, 1), many[:1])
    np.testing.assert_array_equal(BOX_METHODS["random"](subject, image, [one])[0], many[0])
    left, top, right, bottom = one.edges
    moved = replace(one, edges=(left + 1, top, right + 1, bottom))
    for different in (noise(image, moved, 1), noise(image + 1, one, 1)):
        assert different.shape == many[:1].shape
        assert np.abs(different - many[:1]).max() > 0.1


def test_noise_is_as_fine_as_the_box_is_large(seen: tuple[Floats, list[BoxTarget]]) -> None:
    """Whatever the grid of the maps beside it, and wherever the model is cut."""
    image, (target, *_) = seen
    for edges, expected in (
        ((20, 30, 60, 40), (16, 16)),
        ((20, 30, 40, 110), (8, 8)),
        ((0, 0, 160, 160), (4, 4)),
        ((5, 5, 7, 7), (160, 160)),
    ):
        assert noise(image, replace(target, edges=edges), 2).shape == (2, *expected)
    wide = noise(np.zeros((3, 80, 160), np.float32), replace(target, edges=(0, 0, 40, 40)), 1)
    assert wide.shape == (1, 8, 16)


def test_methods_for_classes_do_not_apply(subject: Subject) -> None:
    image = np.zeros((3, 160, 160), np.float32)
    for method in ("cam", "eigen-cam", "ablation-cam"):
        with pytest.raises(NotApplicable, match="detector"):
            METHODS[method](subject, image, 0)


def test_what_is_scored(subject: Subject, seen: tuple[Floats, list[BoxTarget]]) -> None:
    """A subject's scores are the explainer's."""
    image, targets = seen
    explanation = subject.explainer.explain_scored(subject.tensor(image), targets)
    for target, record in zip(targets, explanation.targets, strict=True):
        assert subject.score(image, target) == pytest.approx(record.score, abs=1e-4)
        assert subject.curve([image, image * 0], target)[0] == pytest.approx(record.score, abs=1e-4)
