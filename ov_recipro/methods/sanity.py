"""Maps that ignore the model: how a metric rates these shows what the metric is worth."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from ov_recipro.methods.subject import AnyTarget, Subject
from ov_recipro.metrics import complexity, drop
from ov_recipro.saliency import Floats, saliency_maps


def fake_cam(subject: Subject, image: Floats, target: AnyTarget) -> Floats:  # noqa: ARG001
    """Fake-CAM (Poppi et al., 2021): ones except for one pixel."""
    saliency = np.ones(image.shape[1:], np.float32)
    saliency[0, 0] = 0
    return saliency


def centre_gaussian(subject: Subject, image: Floats, target: AnyTarget) -> Floats:  # noqa: ARG001
    """A Gaussian in the image's middle, its sigma a quarter of each side."""
    height, width = image.shape[1:]
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    return np.asarray(np.exp(-8 * (y[:, None] ** 2 + x[None] ** 2)))


def fit_gaussian(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """The same Gaussian, as sharp as serves it best: what sharpness alone does for a score.

    Of its powers of 2.5, 1 and 0.65 it is the one with the least sum of the score's drop and the
    map's mean, for which the model is asked three times; its position never depends on the model.
    """
    score, gaussian = subject.score(image, target), centre_gaussian(subject, image, target)

    def cost(saliency: Floats) -> float:
        explained = subject.score(np.asarray(image * saliency, np.float32), target)
        return drop(score, explained) + complexity(saliency)

    powers = np.array([2.5, 1.0, 0.65])[:, None, None]
    return min(saliency_maps(gaussian**powers), key=cost)


def random_map(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Uniform noise on the feature map's grid, different for each image and class."""
    generator = np.random.default_rng([crc32(image.tobytes()), _number(target)])
    return generator.random(subject.explainer.bundle.manifest.cut.grid)


def _number(target: AnyTarget) -> int:
    return target if isinstance(target, int) else target.index
