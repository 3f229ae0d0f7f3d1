"""Methods without gradients, against their definitions written out slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from graphs import Builder, residual
from ov_recipro import Explainer, ReciproError
from ov_recipro.images.reading import read_image
from ov_recipro.methods import METHODS, NotApplicable, Subject, find_methods
from ov_recipro.methods.perturbation import RISE_MASKS, _random_masks
from ov_recipro.metrics import correlation, upsampled
from ov_recipro.saliency import saliency_maps
from places import SCENE_VIT
from transformers import Form
from transformers import save as save_transformer

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def subject(explainer: Explainer) -> Subject:
    return Subject(explainer)


@pytest.fixture(scope="module")
def image(subject: Subject, cat: Path) -> Array:
    return subject.prepare(read_image(cat))[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Subject, Array]:
    """A network of three convolutions, and an image that excites it."""
    path = residual(tmp_path_factory.mktemp("small") / "m.onnx")
    image = np.random.default_rng(5).standard_normal((3, 16, 16)).astype(np.float32)
    return path, Subject(Explainer(path)), image


def run_onnx(path: Path, image: Array) -> tuple[Array, Array]:
    """Return the feature map [K,H,W] and the logits of a small network."""
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("block", 1, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, features = session.run(["scores", "block"], {"image": image[None]})
    return features[0], logits[0]


def scaled(values: Array) -> Array:
    return np.asarray(saliency_maps(np.asarray(values, np.float64)[None])[0])


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def test_the_tails_weights_are_found_by_running_it(subject: Subject, lite0: Path) -> None:
    model = onnx.load(lite0)
    (stored,) = (
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if sorted(tensor.dims) == [1000, 1280]
    )
    stored = stored.astype(np.float32)
    expected = stored if stored.shape[0] == 1000 else stored.T
    np.testing.assert_allclose(subject.pooled_weights(), expected, atol=1e-5)


def test_recipro_of_logits_is_cam_where_the_tail_is_linear(subject: Subject, image: Array) -> None:
    """The closed form: a cell's logit is w A[:,u,v] / (H W) + b."""
    for index in (281, 285):
        ours = METHODS["recipro-logit"](subject, image, index)
        np.testing.assert_allclose(scaled(METHODS["cam"](subject, image, index)), ours, atol=1e-4)


def eq_19(features: Array, gradients: Array, factors: Array) -> Array:
    """Grad-CAM++'s weights [K] from derivatives of exp(logit), averaged over noisy inputs.

    Args:
        features: [K,H,W].
        gradients: of the logit, [K,H,W].
        factors: exp(logit) of each input, times any constant.
    """
    first, second, third = (factors.mean() * gradients**power for power in (1, 2, 3))
    below = 2 * second + (features * third).sum(axis=(1, 2), keepdims=True)
    alpha = np.divide(second, below, out=np.zeros_like(second), where=below != 0)
    return np.asarray((alpha * np.maximum(first, 0)).sum(axis=(1, 2)))


def test_grad_cams_closed_forms(subject: Subject, image: Array) -> None:
    features = subject.forward(image).features.astype(np.float64)
    weights = subject.pooled_weights()[285].astype(np.float64)
    gradients = np.broadcast_to(weights[:, None, None] / 49, features.shape)
    plain = np.maximum(np.tensordot(gradients.mean(axis=(1, 2)), features, 1), 0)
    found = METHODS["grad-cam"](subject, image, 285)
    np.testing.assert_allclose(scaled(found), scaled(plain), atol=1e-6)
    one = eq_19(features, gradients, np.array([1.0]))
    expected = np.maximum(np.tensordot(one, features, 1), 0)
    found = METHODS["grad-cam++"](subject, image, 285)
    np.testing.assert_allclose(scaled(found), scaled(expected), atol=1e-6)
    random = np.random.default_rng(0)
    noisy = [image + 0.3 * random.standard_normal(image.shape).astype("f4") for _ in range(4)]
    logits = np.array([subject.forward(each).logits[285] for each in noisy], np.float64)
    smooth = eq_19(features, gradients, np.exp(logits - logits.max()))
    expected = np.maximum(np.tensordot(smooth, features, 1), 0)
    found = METHODS["smooth-grad-cam++"](subject, image, 285)
    np.testing.assert_allclose(scaled(found), scaled(expected), atol=1e-6)


def test_the_gradient_is_the_logits_change(subject: Subject, image: Array) -> None:
    """By finite differences through the real tail."""
    features = subject.forward(image).features
    weights = subject.pooled_weights()[285]
    for k, u, v in ((0, 0, 0), (17, 3, 6), (640, 6, 2)):
        moved = features.copy()
        moved[k, u, v] += 49
        change = subject.tail(np.stack([features, moved]))[:, 285]
        assert change[1] - change[0] == pytest.approx(weights[k], abs=1e-4)


def test_ablation_cam(small: tuple[Path, Subject, Array]) -> None:
    path, subject, image = small
    features, logits = run_onnx(path, image)
    weight = subject.pooled_weights()[2].astype(np.float64)
    weights = weight * features.mean(axis=(1, 2)) / logits[2]
    expected = np.maximum(np.tensordot(weights, features, 1), 0)
    found = METHODS["ablation-cam"](subject, image, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_score_cam(small: tuple[Path, Subject, Array]) -> None:
    path, subject, image = small
    features, _ = run_onnx(path, image)
    logits, used = [], []
    for channel in features:
        large = upsampled(channel, (16, 16), "bilinear")
        if large.max() > large.min():
            mask = (large - large.min()) / (large.max() - large.min())
            logits.append(run_onnx(path, image * mask)[1][1])
            used.append(channel)
    weights = softmax(np.array(logits, np.float64))
    expected = np.maximum(sum(w * a for w, a in zip(weights, used, strict=True)), 0)
    found = METHODS["score-cam"](subject, image, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rise(small: tuple[Path, Subject, Array]) -> None:
    path, subject, image = small
    masks = [mask.copy() for mask in _random_masks(image.shape)]
    assert len(masks) == RISE_MASKS
    assert {mask.shape for mask in masks} == {(16, 16)}
    assert np.mean(masks) == pytest.approx(0.5, abs=0.02)
    assert min(mask.min() for mask in masks) >= 0
    total = sum(softmax(run_onnx(path, image * mask)[1])[1] * mask for mask in masks)
    found = METHODS["rise"](subject, image, 1)
    np.testing.assert_allclose(found, total / (RISE_MASKS * 0.5), rtol=1e-4)


def test_eigen_cam(subject: Subject, image: Array) -> None:
    features = subject.forward(image).features.astype(np.float64)
    cells = features.reshape(1280, 49).T
    _, vectors = np.linalg.eigh(cells.T @ cells)
    direction = vectors[:, -1] * np.sign(vectors[:, -1].sum())
    found = METHODS["eigen-cam"](subject, image, 0)
    np.testing.assert_allclose(scaled(found), scaled((cells @ direction).reshape(7, 7)), atol=1e-4)


def test_sanity_maps(subject: Subject, image: Array) -> None:
    fake = METHODS["fake-cam"](subject, image, 0)
    assert (fake.sum(), fake[0, 0]) == (224 * 224 - 1, 0)
    gaussian = METHODS["gaussian"](subject, image, 0)
    assert gaussian.argmax() in (111 * 224 + 111, 111 * 224 + 112, 112 * 224 + 111)
    np.testing.assert_allclose(gaussian, gaussian[::-1, ::-1])
    one = METHODS["random"](subject, image, 0)
    np.testing.assert_array_equal(one, METHODS["random"](subject, image, 0))
    r = correlation(one, METHODS["random"](subject, image, 1))
    assert r is not None
    assert abs(r) < 0.5


def test_the_masks_variants_differ(subject: Subject, image: Array) -> None:
    maps = [METHODS[name](subject, image, 285) for name in METHODS if name.startswith("recipro")]
    assert len(maps) == 11
    for a in range(11):
        assert maps[a].shape == (7, 7)
        for b in range(a):
            assert np.abs(maps[a] - maps[b]).max() > 0.01


@pytest.mark.parametrize("form", ["two layers", "no pool", "bypass"])
def test_gradients_of_other_tails_are_not_applicable(form: str, tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, output="a", strides=[2, 2]), output="feature")
    if form == "two layers":
        pooled = b.add("Flatten", b.add("GlobalAveragePool", feature))
        hidden = b.add("Relu", b.linear(pooled, 4, 6, output="hidden"))
        b.linear(hidden, 6)
    elif form == "no pool":
        b.linear(b.add("Flatten", feature), 4 * 64)
    else:
        b.head(b.add("Add", b.conv(feature, 4, output="inner"), feature))
    path = b.save(tmp_path / "m.onnx")
    options: dict[str, Any] = {"layer": "inner", "exact": True} if form == "bypass" else {}
    subject = Subject(Explainer(path, **({"layer": "feature"} | options)))
    image = np.random.default_rng(0).standard_normal((3, 16, 16)).astype(np.float32)
    reasons = {"two layers": "linear", "no pool": "pool", "bypass": "bypass"}
    for name in ("cam", "grad-cam", "grad-cam++", "smooth-grad-cam++"):
        with pytest.raises(NotApplicable, match=reasons[form]):
            METHODS[name](subject, image, 0)
    for name in ("ablation-cam", "eigen-cam", "recipro"):
        assert METHODS[name](subject, image, 0).shape == (8, 8)


def test_names() -> None:
    assert find_methods(["all"]) == list(METHODS)
    assert find_methods(["rise", "recipro", "rise"]) == ["rise", "recipro"]
    with pytest.raises(ReciproError, match="no method 'lime'"):
        find_methods(["lime"])


def test_a_device_of_another_runtime(lite0: Path) -> None:
    with pytest.raises(ReciproError, match="'ort-cpu' is not one of them"):
        Subject(Explainer(lite0, device="ort-cpu"))


def attention_by_hand(path: Path, image: Array) -> list[Array]:
    """Return every block's attention [T,T], averaged over the heads, from the file's Softmaxes."""
    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in names]
    model.graph.output.extend(values)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [each[0].mean(axis=0) for each in session.run(names, {"image": image[None]})]


def test_attention_and_rollout() -> None:
    path = SCENE_VIT / "textures.onnx"
    subject = Subject(Explainer(path, layer="blocks.-1"))
    image = np.random.default_rng(5).standard_normal((3, 80, 80)).astype(np.float32)
    matrices = attention_by_hand(path, image)
    got = METHODS["attention"](subject, image, 0)
    np.testing.assert_allclose(got, matrices[-1][0, 1:].reshape(10, 10), rtol=1e-3, atol=1e-6)
    product = np.eye(101)
    for matrix in matrices:
        product = (0.5 * matrix + 0.5 * np.eye(101)) @ product
    np.testing.assert_allclose(product.sum(axis=1), 1, atol=1e-5)
    got = METHODS["rollout"](subject, image, 3)
    np.testing.assert_allclose(got, product[0, 1:].reshape(10, 10), rtol=1e-3, atol=1e-7)


def test_attention_inside_one_operation(tmp_path: Path) -> None:
    """Weights that a graph does not hold are calculated from its queries and keys."""
    image = np.random.default_rng(5).standard_normal((3, 12, 16)).astype(np.float32)
    maps = []
    for attention in ("operator", "separate"):
        path = save_transformer(tmp_path / f"{attention}.onnx", Form(attention=attention))
        maps.append(METHODS["rollout"](Subject(Explainer(path)), image, 0))
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4)  # the same weights, drawn in one order


def test_methods_on_tokens() -> None:
    subject = Subject(Explainer(SCENE_VIT / "textures-mean.onnx"))
    image = np.random.default_rng(5).standard_normal((3, 80, 80)).astype(np.float32)
    for name in ("cam", "grad-cam", "grad-cam++", "smooth-grad-cam++"):
        with pytest.raises(NotApplicable, match="the cut is tokens"):
            METHODS[name](subject, image, 0)
    with pytest.raises(NotApplicable, match="no class token"):
        METHODS["attention"](subject, image, 0)
    for name in ("recipro", "recipro-weight", "eigen-cam", "ablation-cam", "rollout", "random"):
        assert METHODS[name](subject, image, 0).shape == (10, 10), name


def test_the_tail_of_tokens_keeps_the_prefix() -> None:
    subject = Subject(Explainer(SCENE_VIT / "textures.onnx", layer="blocks.3"))
    image = np.random.default_rng(5).standard_normal((3, 80, 80)).astype(np.float32)
    run = subject.forward(image)
    assert run.features.shape == (48, 10, 10)
    logits = subject.tail(np.stack([run.features, 0 * run.features]), run)
    np.testing.assert_allclose(logits[0], run.logits, rtol=1e-4, atol=1e-5)
    assert np.abs(logits[1] - run.logits).max() > 0.1


def test_no_attention_over_feature_maps(subject: Subject, image: Array) -> None:
    for name in ("attention", "rollout"):
        with pytest.raises(NotApplicable, match="a feature map, not tokens"):
            METHODS[name](subject, image, 0)
