"""Methods that weigh the channels of a feature map.

For a tail of global average pool and linear layer, with A the feature map [K,H,W] and w the class's
row of weights, the gradient of the logit is w_k / (H W) at every cell of channel k: what needs
gradients elsewhere has a closed form here.
"""

from __future__ import annotations

import numpy as np

from ov_recipro.methods.subject import AnyTarget, Subject, class_of
from ov_recipro.saliency import Floats

_CHUNK = 64  # feature maps made at once


def _gradient(subject: Subject, target: AnyTarget) -> Floats:
    """Return the gradient of a class's logit by the feature map, [K]; all cells share it."""
    _, height, width = subject.explainer.bundle.manifest.cut.shape
    weights = np.asarray(subject.pooled_weights()[class_of(target)], np.float64)
    return weights / (height * width)


def _weighted(features: Floats, weights: Floats) -> Floats:
    return np.asarray(np.tensordot(weights, features.astype(np.float64), 1))


def cam(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Class activation mapping (Zhou et al., 2016): the channels, weighted for the class."""
    return _weighted(subject.forward(image).features, _gradient(subject, target))


def grad_cam(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Grad-CAM (Selvaraju et al., 2017): the same sum, negative values set to 0."""
    return np.maximum(cam(subject, image, target), 0)


def grad_cam_plus_plus(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Grad-CAM++ (Chattopadhyay et al., 2018), Eq. 19 with the exponential score.

    The second and third derivatives of exp(logit) are its first times the gradient g and
    times g squared, so that exp(logit) cancels in alpha and only scales the map.
    """
    features = subject.forward(image).features
    gradient = _gradient(subject, target)
    denominator = 2 + gradient * features.sum(axis=(1, 2), dtype=np.float64)
    alpha = 1 / np.where(denominator == 0, 1, denominator)
    weights = alpha * np.maximum(gradient, 0)
    return np.maximum(_weighted(features, weights), 0)


def smooth_grad_cam_plus_plus(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Smooth Grad-CAM++ (Omeiza et al., 2019), the derivatives averaged over noisy images.

    For this kind of tail the gradient of the logit is the same for every image; the average of
    exp(logit) is a factor that cancels as in Grad-CAM++, so the two maps are the same.
    """
    return grad_cam_plus_plus(subject, image, target)


def eigen_cam(subject: Subject, image: Floats, target: AnyTarget) -> Floats:  # noqa: ARG001
    """Eigen-CAM (Muhammad & Yeasin, 2020): the features along their first principal direction.

    The features [H W,K] are not centred, as in the paper; of the direction's two signs, the one
    that makes the map's sum positive is taken. The map is the same for every class.
    """
    features = subject.forward(image).features
    cells = features.reshape(len(features), -1).T.astype(np.float64)
    left, values, _ = np.linalg.svd(cells, full_matrices=False)
    along = left[:, 0] * values[0]
    return np.asarray((along if along.sum() >= 0 else -along).reshape(features.shape[1:]))


def ablation_cam(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Ablation-CAM (Desai & Ramaswamy, 2020): channels by what the logit loses without them.

    The weight is (y - y_k) / y, where y_k is the logit without channel k; negative values of the
    map are set to 0.
    """
    run, index = subject.forward(image), class_of(target)
    logit = float(subject.tail(run.features[None], run)[0, index])
    without = []
    for start in range(0, len(run.features), _CHUNK):
        chosen = range(start, min(start + _CHUNK, len(run.features)))
        maps = np.repeat(run.features[None], len(chosen), axis=0)
        for row, channel in enumerate(chosen):
            maps[row, channel] = 0
        without.append(subject.tail(maps, run)[:, index])
    weights = (logit - np.concatenate(without).astype(np.float64)) / logit
    return np.maximum(_weighted(run.features, weights), 0)
