"""Awkward graphs, one test a situation: split, proven, and the maps equal the oracle's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from graphs import Builder
from oracle import Oracle, features_of, run
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.cut.points import cut_points, find_cut
from ov_recipro.splitting.split import open_source


def check(
    path: Path, layer: str = "auto", exact: bool = False, grid: int | None = None
) -> Explainer:
    """Compare the maps of all five classes at a layer with the oracle's."""
    folder = path.with_suffix(".recipro")
    explainer = Explainer(split(path, folder, layer=layer, exact=exact, force=True))
    manifest = explainer.bundle.manifest
    image = np.random.default_rng(1).standard_normal(manifest.image.shape).astype(np.float32)
    expected = Oracle(path, manifest.cut.tensor).maps(image, manifest.cut.grid, list(range(5)))
    got = explainer.explain_tensor(image, list(range(5))).maps
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert grid is None or manifest.cut.grid == (grid, grid)
    return explainer


def test_dense_connections(tmp_path: Path) -> None:
    b = Builder()
    features = b.conv("image", 4, strides=[2, 2], output="stem")
    for index in range(3):
        made = b.conv(b.add("Relu", features), 3, output=f"conv{index}x")
        features = b.add("Concat", features, made, axis=1, output=f"cat{index}")
        b.channels[features] = 4 + 3 * (index + 1)
    b.head(b.add("Relu", features, output="last"))
    path = b.save(tmp_path / "m.onnx")
    check(path, grid=8)
    inner = check(path, "conv1x", exact=True)
    assert inner.bundle.manifest.cut.bypass == ("cat0",)
    assert find_cut(open_source(path).graph, "conv1x").point.tensor == "cat1"


def test_inception_branches(tmp_path: Path) -> None:
    b = Builder()
    stem = b.add("Relu", b.conv("image", 4, strides=[2, 2]))
    branches = [
        b.conv(stem, 3, kernel=1, output="one"),
        b.conv(b.conv(stem, 2, kernel=1), 3, kernel=3, output="three"),
        b.conv(b.add("MaxPool", stem, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]), 2, 1),
    ]
    joined = b.add("Concat", *branches, axis=1, output="joined")
    b.channels[joined] = 8
    b.head(b.conv(b.add("Relu", joined), 6))
    path = b.save(tmp_path / "m.onnx")
    for layer in ("one", "three"):
        inner = check(path, layer, exact=True)
        assert len(inner.bundle.manifest.cut.bypass) == 2 if layer == "one" else True
    check(path, "joined")


def test_split_and_shuffle(tmp_path: Path) -> None:
    b = Builder()
    stem = b.add("Relu", b.conv("image", 8, strides=[2, 2]), output="stem")
    b.nodes.append(helper.make_node("Split", [stem], ["left", "right"], axis=1, name="/split"))
    b.channels |= {"left": 4, "right": 4}
    right = b.conv(b.conv("right", 4, kernel=3, group=4, output="depthwise"), 4, kernel=1)
    joined = b.add("Concat", "left", right, axis=1)
    shuffled = b.add("Reshape", joined, b.constant([1, 2, 4, 8, 8], np.int64))
    shuffled = b.add("Transpose", shuffled, perm=[0, 2, 1, 3, 4])
    shuffled = b.add("Reshape", shuffled, b.constant([1, 8, 8, 8], np.int64), output="shuffled")
    b.channels[shuffled] = 8
    b.head(b.add("Relu", b.conv(shuffled, 6)))
    path = b.save(tmp_path / "m.onnx")
    assert check(path).bundle.manifest.any_batch
    assert check(path, "stem").bundle.manifest.any_batch
    assert check(path, "depthwise", exact=True).bundle.manifest.cut.bypass == ("left",)


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "GlobalMaxPool"])
def test_squeeze_and_excitation_gates(pool: str, tmp_path: Path) -> None:
    b = Builder()
    stem = b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="stem")
    expanded = b.add("Relu", b.conv(stem, 6), output="expanded")
    gate = b.conv(b.add("Relu", b.conv(b.add(pool, expanded), 2, 1)), 6, 1)
    gated = b.add("Mul", expanded, b.add("Sigmoid", gate), output="gated")
    b.head(b.add("Add", b.conv(gated, 4, kernel=1, output="project"), stem, output="sum"))
    path = b.save(tmp_path / "m.onnx")
    for layer, exact in (("auto", False), ("expanded", True), ("gated", True), ("stem", False)):
        check(path, layer, exact)


def test_heads_that_read_several_levels(tmp_path: Path) -> None:
    """No clean cut of more than one cell but the stem: --exact carries the other levels."""
    b = Builder()
    high = b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="high")
    low = b.add("Relu", b.conv(high, 6, strides=[2, 2]), output="low")
    pooled = [b.add("GlobalAveragePool", level) for level in (high, low)]
    joined = b.add("Concat", *pooled, axis=1)
    b.linear(b.add("Flatten", joined), 10)
    path = b.save(tmp_path / "m.onnx")
    assert check(path).bundle.manifest.cut.tensor == "high"
    assert len(check(path, "low", exact=True).bundle.manifest.cut.bypass) == 1


def test_a_batch_norm_between_convolution_and_activation_matters(tmp_path: Path) -> None:
    """Rule 3: the maps at convolution and activation differ there, and agree for a plain ReLU."""

    def model(path: Path, with_norm: bool) -> Path:
        b = Builder()
        x = b.conv("image", 4, strides=[4, 4], output="conv")
        if with_norm:
            parameters = [b.constant(b.random.uniform(0.5, 1.5, 4)) for _ in range(4)]
            x = b.add("BatchNormalization", x, *parameters)
        b.head(b.add("Relu", x, output="activation"))
        return b.save(path)

    for with_norm in (True, False):
        path = model(tmp_path / f"{with_norm}.onnx", with_norm)
        image = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
        before, after = (
            check(path, layer).explain_tensor(image, 0).maps for layer in ("conv", "activation")
        )
        assert np.allclose(before, after, atol=1e-4) is not with_norm


def test_local_functions(tmp_path: Path) -> None:
    b = Builder()
    first = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="first")
    activated = b.add("Gate", first, domain="local", output="activated")
    b.head(activated)
    path = b.save(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("local", 1))
    body = [
        helper.make_node("Sigmoid", ["x"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["x", "s"], ["y"], name="mul"),
    ]
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Gate", ["x"], ["y"], body, imports))
    onnx.save(model, path)
    check(path)
    check(path, "first")


def test_an_if_that_captures_outer_tensors(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    other = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="other")
    branches = {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Mul")):
        node = helper.make_node(op, [feature, other], [f"{name}_out"], name=name)
        value = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, 4, 4, 4])
        branches[name] = helper.make_graph([node], name, [], [value])
    b.head(b.add("If", b.constant(True, np.bool_), output="chosen", **branches) or "")
    b.channels["chosen"] = 4
    b.nodes, b.weights = b.nodes[:-3], b.weights[:-2]
    b.head("chosen")
    path = b.save(tmp_path / "m.onnx")
    graph = open_source(path).graph
    assert graph.bypass("feature") == ("other",)
    bundle = split(path, tmp_path / "b.recipro", layer="feature", exact=True)
    explainer = Explainer(bundle)
    image = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    features, (logits, cells) = features_of(bundle, image), run(explainer._runtime, image)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": image})[0][0], logits, atol=1e-5)
    tail = ort.InferenceSession(bundle.tail, providers=["CPUExecutionProvider"])
    masked = np.zeros_like(features[0])
    masked[:, :, 1, 2] = features[0][:, :, 1, 2]
    expected = tail.run(None, {"feature": masked, "other": features[1]})[0][0]
    np.testing.assert_allclose(cells[1 * 4 + 2], expected, atol=1e-5)


def test_custom_domains_are_carried_until_a_runtime_refuses_them(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    special = b.add("Special", feature, domain="com.example", output="special")
    b.head(special)
    path = b.save(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    tensors = [point.tensor for point in cut_points(open_source(path).graph)]
    assert tensors[-1] == "feature"
    with pytest.raises(ReciproError, match=r"Special|com\.example"):
        split(path, tmp_path / "b.recipro")
    assert not (tmp_path / "b.recipro").exists()


def test_sparse_initialisers(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    b.head(feature)
    path = b.save(tmp_path / "m.onnx")
    model = onnx.load(path)
    dense = next(t for t in model.graph.initializer if list(t.dims) == [4, 5])
    values = onnx.numpy_helper.to_array(dense).astype(np.float32)
    flat = np.flatnonzero(values.reshape(-1)).astype(np.int64)
    sparse = helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(values.reshape(-1)[flat], dense.name),
        onnx.numpy_helper.from_array(flat, "indices"),
        [4, 5],
    )
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, path)
    check(path)


def test_old_reshape_with_its_shape_as_attribute(tmp_path: Path) -> None:
    b = Builder(opset=4)
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    pooled = b.add("GlobalAveragePool", feature)
    flat = b.add("Reshape", pooled, shape=[1, 4])
    weight = b.constant(b.random.normal(size=(4, 5)))
    b.add("MatMul", flat, weight, output="scores")
    explainer = Explainer(split(b.save(tmp_path / "m.onnx"), tmp_path / "b.recipro"))
    assert explainer.bundle.manifest.any_batch


def test_resize_to_constant_sizes(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    larger = b.add(
        "Resize",
        feature,
        "",
        "",
        b.constant([1, 4, 8, 8], np.int64),
        mode="nearest",
        output="large",
    )
    b.head(b.add("Relu", b.conv(larger, 4)))
    path = b.save(tmp_path / "m.onnx")
    assert check(path, "feature").bundle.manifest.any_batch


def test_a_class_token_that_is_expanded_to_the_batch(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    tokens = b.add("Reshape", feature, b.constant([1, 4, 16], np.int64))
    size = b.add(
        "Slice", b.add("Shape", tokens), b.constant([0], np.int64), b.constant([1], np.int64)
    )
    token = b.constant(b.random.normal(size=(1, 4, 1)))
    shape = b.add("Concat", size, b.constant([4, 1], np.int64), axis=0)
    joined = b.add("Concat", b.add("Expand", token, shape), tokens, axis=2)
    mean = b.add("ReduceMean", joined, axes=[2], keepdims=0)
    b.linear(b.add("Relu", mean), 4)
    assert check(b.save(tmp_path / "m.onnx")).bundle.manifest.any_batch


def test_channels_last_features(tmp_path: Path) -> None:
    """A linear layer over the last axis tells that a 4-D tensor is [N,H,W,C]."""
    b = Builder()
    turned = b.add("Transpose", b.conv("image", 6, strides=[4, 4]), perm=[0, 2, 3, 1])
    mixed = b.add("MatMul", turned, b.constant(b.random.normal(size=(6, 7))), output="mixed")
    last = b.add("Relu", mixed, output="last")
    b.linear(b.add("ReduceMean", last, axes=[1, 2], keepdims=0), 7)
    path = b.save(tmp_path / "m.onnx")
    bundle = split(path, tmp_path / "b.recipro")
    assert bundle.manifest.cut.tensor == "last"
    assert bundle.manifest.cut.layout == "NHWC"
    assert bundle.manifest.cut.shape == (7, 4, 4)
    explainer = Explainer(bundle, score="none")
    image = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    features = features_of(bundle, image)
    tail = ort.InferenceSession(bundle.tail, providers=["CPUExecutionProvider"])
    masked = np.zeros_like(features[0])
    masked[:, 2, 3] = features[0][:, 2, 3]
    expected = tail.run(None, {"last": masked})[0][0]
    raw = explainer.explain_tensor(image, list(range(5))).raw[:, 2, 3]
    np.testing.assert_allclose(raw, expected, atol=1e-5)
