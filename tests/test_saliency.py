"""Scores, maps and plans, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ov_recipro.output import file_stems
from ov_recipro.plans.stream import plan_stream
from ov_recipro.saliency import (
    Score,
    class_scores,
    default_score,
    saliency_maps,
    target_scores,
)


def test_maps_are_min_max_scaled_by_class() -> None:
    raw = np.array([[[1, 2], [3, 5]], [[0.1, 0.1], [0.1, 0.3]]])
    expected = np.array([[[0, 0.25], [0.5, 1]], [[0, 0], [0, 1]]])
    np.testing.assert_allclose(saliency_maps(raw), expected, atol=1e-7)
    assert saliency_maps(raw).dtype == np.float32


def test_a_flat_map_is_zero_not_nan() -> None:
    assert (saliency_maps(np.full((1, 2, 2), 0.3)) == 0).all()


def test_softmax_stands_large_logits() -> None:
    np.testing.assert_allclose(class_scores(np.array([1000.0, 1000.0]), "softmax"), [0.5, 0.5])
    np.testing.assert_allclose(class_scores(np.array([-1000.0, 0.0]), "sigmoid"), [0, 0.5])


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "none"])
def test_scores_of_some_classes_are_those_of_all(score: Score) -> None:
    logits = np.random.default_rng(0).normal(size=(49, 1000), scale=4).astype(np.float32)
    expected = class_scores(logits, score)[:, [3, 999, 0]]
    np.testing.assert_allclose(target_scores(logits, score, [3, 999, 0]), expected, rtol=1e-6)


def test_default_scores() -> None:
    assert default_score("none", 1000) == "softmax"
    assert default_score("sigmoid", 20) == "sigmoid"
    assert default_score("none", 1) == "sigmoid"


@pytest.mark.parametrize("cells", [1, 7, 49, 169, 196, 784])
@pytest.mark.parametrize("memory", [0, 1, 10, 60, 1000])
def test_every_cell_is_run_once_within_the_memory(cells: int, memory: int) -> None:
    plan = plan_stream(cells, bytes_per_cell=1, batch_memory=memory)
    batches = list(plan.batches())
    assert all(len(batch) == plan.batch <= max(1, memory) for batch in batches)
    flat = np.concatenate(batches)
    np.testing.assert_array_equal(flat[:cells], np.arange(cells))
    assert len(flat) - cells < len(batches)


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["a/x.jpg", "a/y.jpg"], ["x", "y"]),
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["a_x.jpg", "b_x.jpg", "y"]),
        (["a/x.jpg", "a/x.png"], ["x.jpg", "x.png"]),
        (["a/x.jpg", "a/x.281.jpg"], ["x.jpg", "x.281.jpg"]),
        (["a/b/x.jpg", "a_b/x.jpg", "a/b_x.jpg"], ["a_b_x.jpg", "a_b_x.jpg_2", "b_x"]),
    ],
)
def test_images_of_one_stem_do_not_share_files(paths: list[str], stems: list[str]) -> None:
    assert file_stems([Path(path) for path in paths]) == stems
