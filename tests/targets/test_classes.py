"""Classes as targets: found by name, number or rank, and scored as `class_scores` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ov_recipro.errors import TargetError
from ov_recipro.saliency import Score, class_scores, softmax_terms
from ov_recipro.targets.classes import ClassTarget, find_classes

LABELS = ("cat", "dog", "tabby, tabby cat")


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("known", [False, True])
def test_a_targets_scores(score: Score, known: bool) -> None:
    logits = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    terms = softmax_terms(logits) if known else None
    got = ClassTarget(3, None, score).scores(logits, terms)
    np.testing.assert_allclose(got, class_scores(logits, score)[:, 3], rtol=1e-6)


def test_targets_are_found_once_and_in_order() -> None:
    logits = np.array([0.1, 3, 1], np.float32)
    assert find_classes(["tabby", "top2", 0], LABELS, 3, logits) == [2, 1, 0]
    assert find_classes(["dog", "top2"], LABELS, 3) == [1]  # checked before there are logits
    wrongs: list[Any] = [[], "mouse", 3, "-1"]
    for wrong in wrongs:
        with pytest.raises(TargetError):
            find_classes(wrong, LABELS, 3, logits)
    with pytest.raises(TargetError, match="no labels"):
        find_classes("cat", None, 3, logits)
