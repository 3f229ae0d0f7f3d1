"""Splitting real and awkward files: head, tail, proof and bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx.external_data_helper import set_external_data

from graphs import Builder, residual
from ov_recipro import Explainer, ReciproError, open_bundle, split
from ov_recipro.options import Cut
from ov_recipro.plans.stream import StreamPlan
from ov_recipro.sources.onnx_source import open_onnx
from places import LIGHT

LIGHT_MODELS = [
    "resnet50",
    "densenet121",
    "squeezenet",
    "shufflenet",
    "inception_v1",
    "inception_v2",
    "zfnet512",
    "bvlc_alexnet",
]


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_models_split_at_auto(name: str, tmp_path: Path) -> None:
    bundle = split(LIGHT / f"light_{name}.onnx", tmp_path / "b.recipro")
    assert bundle.manifest.cut.clean
    assert bundle.manifest.any_batch
    assert bundle.manifest.classes == 1000
    assert bundle.manifest.activation == ("none" if name == "densenet121" else "softmax")
    assert open_bundle(bundle.folder) == bundle


def test_tail_of_head_is_the_model(lite0: Path, tmp_path: Path) -> None:
    bundle = split(lite0, tmp_path / "b.recipro", layer="blocks.8")
    core = ov.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    feature = core.compile_model(bundle.head, "CPU", options)(image)[0]
    got = core.compile_model(bundle.tail, "CPU", options)(feature)[0]
    expected = core.compile_model(lite0, "CPU", options)(image)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert bundle.manifest.parity < 1e-5


def frozen(path: Path, opset: int = 17, squeeze: bool = False) -> Path:
    """Write a model whose tail reshapes to a constant [1, 4], or squeezes all axes of size 1."""
    b = Builder(opset=opset)
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    pooled = b.add("GlobalAveragePool", feature)
    if squeeze:
        flat = b.add("Reshape", b.add("Squeeze", pooled), b.constant([1, 4], np.int64))
    else:
        flat = b.add("Reshape", pooled, b.constant([1, 4], np.int64))
    b.linear(flat, 4)
    return b.save(path)


@pytest.mark.parametrize(("opset", "squeeze"), [(17, False), (11, True), (17, True)])
def test_a_frozen_batch_is_freed(opset: int, squeeze: bool, tmp_path: Path) -> None:
    bundle = split(frozen(tmp_path / "m.onnx", opset, squeeze), tmp_path / "b.recipro")
    assert bundle.manifest.any_batch


def test_a_batch_read_from_the_input_shape_is_no_leak(tmp_path: Path) -> None:
    """Exports of x.view(x.size(0), -1) read Shape(image) behind every cut."""
    b = Builder(shape=("N", 3, 16, 16))
    size = b.add("Gather", b.add("Shape", "image"), b.constant(0, np.int64), axis=0)
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    pooled = b.add("GlobalAveragePool", feature)
    first = b.add("Unsqueeze", size, b.constant([0], np.int64))
    target = b.add("Concat", first, b.constant([-1], np.int64), axis=0)
    b.linear(b.add("Reshape", pooled, target), 4)
    bundle = split(b.save(tmp_path / "m.onnx"), tmp_path / "b.recipro")
    assert bundle.manifest.cut.tensor == "feature"
    assert bundle.manifest.any_batch


def test_a_batch_that_cannot_be_freed_runs_cell_by_cell(tmp_path: Path) -> None:
    """The batch is moved to the last axis and frozen there: found out by running, and said so."""
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="feature")
    pooled = b.add("GlobalAveragePool", feature)
    turned = b.add("Transpose", pooled, perm=[1, 2, 3, 0])
    flat = b.add("Reshape", turned, b.constant([1, 4], np.int64))
    b.linear(flat, 4)
    path = b.save(tmp_path / "m.onnx")
    bundle = split(path, tmp_path / "b.recipro")
    assert not bundle.manifest.any_batch
    explainer = Explainer(bundle)
    assert isinstance(explainer.plan, StreamPlan)
    assert explainer.plan.batch == 1
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    from oracle import Oracle

    expected = Oracle(path, "feature").maps(image, (4, 4), [0, 1])
    np.testing.assert_allclose(explainer.explain_tensor(image, [0, 1]).maps, expected, atol=1e-4)


def test_exact_cut_carries_what_goes_round_it(tmp_path: Path) -> None:
    bundle = split(residual(tmp_path / "m.onnx"), tmp_path / "b.recipro", layer="b", exact=True)
    assert bundle.manifest.head.outputs == ("b", "stem_relu")
    assert bundle.manifest.tail.inputs == ("b", "stem_relu")


@pytest.mark.parametrize(
    ("op", "activation"),
    [("Softmax", "softmax"), ("LogSoftmax", "log_softmax"), ("Sigmoid", "sigmoid")],
)
def test_a_closing_activation_is_not_applied_twice(
    op: str, activation: str, tmp_path: Path
) -> None:
    b = Builder()
    b.add(op, b.head(b.conv("image", 4), output="logits"), output="scores")
    explainer = Explainer(split(b.save(tmp_path / "m.onnx"), tmp_path / "b.recipro"))
    assert explainer.bundle.manifest.activation == activation
    image = np.zeros((1, 3, 16, 16), np.float32)
    expected = ov.Core().compile_model(tmp_path / "m.onnx", "CPU")(image)[0][0]
    if op == "LogSoftmax":
        expected = np.exp(expected)
    got = {p.index: p.score for p in explainer.explain_tensor(image, "top5").predictions}
    assert got == pytest.approx(dict(enumerate(expected)), rel=1e-2)


def test_rank_4_scores_are_squeezed(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4), output="feature")
    b.conv(b.add("GlobalAveragePool", feature), 7, kernel=1, output="scores")
    bundle = split(b.save(tmp_path / "m.onnx"), tmp_path / "b.recipro")
    assert bundle.manifest.classes == 7


def test_channels_last_input_with_channels_first_features(tmp_path: Path) -> None:
    b = Builder(shape=(1, 16, 16, 3))
    turned = b.add("Transpose", "image", perm=[0, 3, 1, 2])
    b.channels[turned] = 3
    b.head(b.add("Relu", b.conv(turned, 4, strides=[2, 2]), output="feature"))
    path = b.save(tmp_path / "m.onnx")
    explainer = Explainer(split(path, tmp_path / "b.recipro"))
    assert explainer.bundle.manifest.image.channels_last
    assert explainer.bundle.manifest.cut.stride == 2
    picture = np.random.default_rng(0).integers(0, 255, (30, 20, 3)).astype(np.uint8)
    assert explainer(picture, 0).maps.shape == (1, 8, 8)


def test_several_outputs_want_a_name(tmp_path: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4), output="feature")
    b.head(feature, output="scores")
    b.head(feature, output="other")
    path = b.save(tmp_path / "m.onnx", "scores", "other")
    with pytest.raises(ReciproError, match=r"--output-name: scores .*, other"):
        split(path, tmp_path / "b.recipro")
    bundle = split(path, tmp_path / "b.recipro", output="other")
    assert bundle.manifest.output == "other"


def test_an_open_input_shape_is_asked_for(tmp_path: Path) -> None:
    b = Builder(shape=("N", 3, "H", "W"))
    b.head(b.add("Relu", b.conv("image", 4), output="feature"))
    path = b.save(tmp_path / "m.onnx")
    with pytest.raises(ReciproError, match="--input-shape"):
        open_onnx(path, Cut())
    bundle = split(path, tmp_path / "b.recipro", image_shape=(1, 3, 32, 24))
    assert bundle.manifest.cut.grid == (32, 24)
    with pytest.raises(ReciproError, match=r"is \[1,3,16,16\], not"):
        split(residual(path), tmp_path / "c.recipro", image_shape=(1, 3, 32, 32))


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "a/../../b", "C:\\x.bin"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    path = residual(tmp_path / "inside" / "m.onnx")
    model = onnx.load(path)
    set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ReciproError, match="outside the model's folder"):
        split(path, tmp_path / "b.recipro")
    assert not (tmp_path / "b.recipro").exists()


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    path = residual(tmp_path / "inside" / "m.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    split(path, tmp_path / "b.recipro")  # data inside the folder is fine
    (path.parent / "m.data").unlink()
    (path.parent / "m.data").symlink_to("../secret.bin")
    with pytest.raises(ReciproError, match="outside the model's folder"):
        split(path, tmp_path / "c.recipro")


def test_missing_external_data(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").write_bytes(b"short")
    with pytest.raises(ReciproError, match="does not fit into its place"):
        split(path, tmp_path / "b.recipro")
    (tmp_path / "m.data").unlink()
    with pytest.raises(ReciproError, match="can't be read"):
        split(path, tmp_path / "b.recipro")


def test_a_wrong_tail_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is no formality: a tail with another bias is refused, and nothing is left."""
    from ov_recipro.sources import onnx_source as source

    save = source._save

    def broken(model: object, path: Path) -> None:
        save(model, path)  # type: ignore[arg-type]
        if path.name == "tail.onnx":
            proto = onnx.load(path)
            bias = next(t for t in proto.graph.initializer if tuple(t.dims) == (5,))
            values = onnx.numpy_helper.to_array(bias) + 0.01
            bias.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), bias.name))
            onnx.save(proto, path)

    monkeypatch.setattr(source, "_save", broken)
    with pytest.raises(ReciproError, match="more than rounding"):
        split(residual(tmp_path / "m.onnx"), tmp_path / "out" / "b.recipro")
    assert list((tmp_path / "out").iterdir()) == []


def test_only_bundles_are_replaced_and_only_by_force(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    bundle = split(path, tmp_path / "b.recipro")
    with pytest.raises(ReciproError, match="--force"):
        split(path, tmp_path / "b.recipro")
    split(path, tmp_path / "b.recipro", layer="stem", force=True)
    assert open_bundle(bundle.folder).manifest.cut.tensor == "stem"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ReciproError, match="left alone"):
        split(path, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "file").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"classes": "many"}, "malformed"),
        ({"head": {"file": "../x", "inputs": [], "outputs": []}}, "not a complete bundle"),
    ],
)
def test_damaged_bundles(change: dict[str, object], message: str, tmp_path: Path) -> None:
    bundle = split(residual(tmp_path / "m.onnx"), tmp_path / "b.recipro")
    manifest = bundle.folder / "recipro.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ReciproError, match=message):
        open_bundle(bundle.folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ReciproError, match="can't be written"):
        split(residual(tmp_path / "m.onnx"), tmp_path / "closed" / "b.recipro")


def test_a_damaged_bundle_in_the_cache_is_made_anew(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx", seed=5)
    first = Explainer(path).bundle
    (first.folder / "recipro.json").write_text("{}")
    assert Explainer(path).bundle == first
    (first.folder / "tail.onnx").unlink()
    assert Explainer(path).bundle == first


def test_processes_that_split_at_once_share_the_bundle(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx", seed=6)
    code = "import sys, ov_recipro; print(ov_recipro.Explainer(sys.argv[1]).bundle.folder)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    folders = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(folders) == 1


def test_a_second_explainer_takes_the_bundle_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = residual(tmp_path / "m.onnx")
    first = Explainer(path).bundle
    monkeypatch.setattr("ov_recipro.splitting.split.split", None)
    assert Explainer(path).bundle == first


def test_a_split_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Wherever objects happen to lie in memory."""
    found = set()
    kept = []
    path = LIGHT / "light_squeezenet.onnx"
    for number in range(4):
        kept.append([object() for _ in range(1000 * number)])
        bundle = split(path, tmp_path / str(number))
        found.add(tuple((bundle.folder / name).read_bytes() for name in ("head.onnx", "tail.onnx")))
    assert len(found) == 1
