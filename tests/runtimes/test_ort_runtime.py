"""ONNX Runtime gives the maps that OpenVINO and the slow oracle give, on every device there is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphs import Builder
from oracle import Oracle, run
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import DeviceError
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.options import Running
from ov_recipro.plans import onnx_emission
from ov_recipro.plans.onnx_graph import LEAST_OPSET
from ov_recipro.runtimes import describe_devices, onnx_models, ort_device
from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime
from ov_recipro.runtimes.ort_runtime import ONNXRuntime


@pytest.fixture(params=["ort-cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "cuda" and not any(d.device == name and d.available for d in describe_devices()):
        pytest.skip("no NVIDIA GPU with ONNX Runtime's CUDA here")
    return name


@pytest.mark.parametrize(
    ("layer", "exact", "plan"),
    [
        ("auto", False, "rows"),
        ("auto", False, "stream"),
        ("blocks.14/depthwise_conv/Conv", True, "stream"),
        ("blocks.12", False, "rows"),
    ],
)
def test_maps_equal_the_oracle(
    layer: str, exact: bool, plan: str, device: str, lite0: Path, cat: Path
) -> None:
    wanted: Any = "stream" if plan == "stream" else "auto"
    explainer = Explainer(lite0, layer=layer, exact=exact, device=device, plan=wanted)
    assert explainer.plan.name == plan
    explanation = explainer(cat, "top3")
    cut = explainer.bundle.manifest.cut
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    classes = [target.index for target in explanation.targets]
    expected = Oracle(lite0, cut.tensor).maps(tensor.astype(np.float32), cut.grid, classes)
    np.testing.assert_allclose(explanation.maps, expected, atol=1e-4)


@pytest.mark.parametrize("mask", ["cell", "spread", "weight", "drop"])
@pytest.mark.parametrize("layer", ["auto", "blocks.14/depthwise_conv/Conv"])
def test_masks_equal_openvinos(mask: Any, layer: str, device: str, lite0: Path, cat: Path) -> None:
    options: dict[str, Any] = {"layer": layer, "exact": True, "mask": mask}
    expected = Explainer(lite0, **options)(cat, "top3")
    got = Explainer(lite0, device=device, **options)(cat, "top3")
    np.testing.assert_allclose(got.maps, expected.maps, atol=1e-4)
    assert got.predictions[0].score == pytest.approx(expected.predictions[0].score, rel=1e-4)


def test_the_batch_and_the_hint_do_not_change_the_maps(device: str, lite0: Path, cat: Path) -> None:
    expected = Explainer(lite0, device=device)(cat).maps
    wanted: list[dict[str, Any]] = [
        {"batch_memory": 1 << 20, "plan": "stream"},
        {"hint": "throughput"},
    ]
    for options in wanted:
        got = Explainer(lite0, device=device, **options)(cat).maps
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.fixture
def pointwise(tmp_path: Path) -> Bundle:
    """A tail with a bias, a norm and activations before its pool: p(0) is not zero."""
    b = Builder()
    x = b.add("Tanh", b.conv("image", 4, strides=[2, 2]), output="feature")
    x = b.conv(x, 6, kernel=1)
    x = b.add("BatchNormalization", x, *(b.constant(b.random.uniform(0.5, 1.5, 6)) for _ in "abcd"))
    b.channels[x] = 6
    b.head(b.add("Add", b.add("Sigmoid", x), b.constant(b.random.normal(size=(6, 1, 1)))) or "")
    return split(b.save(tmp_path / "m.onnx"), tmp_path / "b.recipro", layer="feature")


@pytest.mark.parametrize("least", [LEAST_OPSET, 99])
def test_the_head_and_the_plan_in_one_model_or_two(
    least: int, pointwise: Bundle, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_models, "LEAST_OPSET", least)
    runtime = ONNXRuntime(pointwise, Running(device))
    assert runtime.plan.name == "rows"
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    plain, cells = run(runtime, image)
    expected_plain, expected = run(OpenVINORuntime(pointwise, Running(plan="stream")), image)
    np.testing.assert_allclose(cells, expected, atol=1e-5)
    np.testing.assert_allclose(plain, expected_plain, atol=1e-5)


def test_what_onnx_has_no_counterpart_of_is_named(
    pointwise: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(vars(onnx_emission)["_SAME"], "Sigmoid")
    runtime = ONNXRuntime(pointwise, Running("ort-cpu"))
    assert runtime.plan.name == "stream"
    assert runtime.reason == "ONNX has no counterpart of OpenVINO's 'Sigmoid'"


def test_nan_features_are_an_error(tmp_path: Path, device: str) -> None:
    b = Builder()
    x = b.add("Sqrt", b.conv("image", 4, strides=[2, 2]), output="feature")
    b.head(b.add("Relu", x))
    path = b.save(tmp_path / "m.onnx")
    model = onnx.load(path)
    for weight in model.graph.initializer[:2]:  # positive while it is proven, not below
        values = np.abs(onnx.numpy_helper.to_array(weight))
        weight.CopyFrom(onnx.numpy_helper.from_array(values * 1e-9 + 1, weight.name))
    onnx.save(model, path)
    image = np.full((1, 3, 16, 16), -9, np.float32)
    with pytest.raises(ReciproError, match="NaN"):
        Explainer(_split_anyhow(path), device=device).explain_tensor(image)


def _split_anyhow(path: Path) -> Bundle:
    """Split with images for the proof that are positive."""
    patch = pytest.MonkeyPatch()
    ones = [np.full((1, 3, 16, 16), value, np.float32) for value in (1, 2)]
    patch.setattr("ov_recipro.splitting.proof.random_images", lambda *_: ones)
    try:
        return split(path, path.with_suffix(".recipro"), layer="feature")
    finally:
        patch.undo()


def test_what_can_not_run_is_said(
    pointwise: Bundle, lite0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino as ov

    with pytest.raises(ReciproError, match="'tokens' can't be used"):
        ONNXRuntime(pointwise, Running("ort-cpu", plan="tokens"))
    ir = tmp_path / "m.xml"
    ov.save_model(ov.convert_model(lite0), ir)
    with pytest.raises(ReciproError, match="does not read OpenVINO models"):
        Explainer(ir, device="ort-cpu")
    with pytest.raises(ReciproError, match="no device 'cuda:one'"):
        ONNXRuntime(pointwise, Running("cuda:one"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ReciproError, match=r"pip install 'ov-recipro\[ort\]'"):
        ONNXRuntime(pointwise, Running("ort-cpu"))


def test_a_missing_gpu_is_an_error_and_no_other_device(
    pointwise: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the library has no CUDA, or has it and quietly falls back to the CPU."""
    if any(d.device == "cuda" and d.available for d in describe_devices()):
        pytest.skip("there is a GPU here")
    with pytest.raises(ReciproError, match="'cuda' can't be used"):
        ONNXRuntime(pointwise, Running("cuda"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [vars(ort_device)["_CUDA"]])
    before = ort.InferenceSession

    def falling_back(source: Any, options: Any, providers: Any) -> Any:
        assert providers[0][0] == "CUDAExecutionProvider"
        return before(source, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", falling_back)
    with pytest.raises(ReciproError, match="finds no such NVIDIA GPU"):
        ONNXRuntime(pointwise, Running("cuda"))


@pytest.mark.parametrize("plan", ["auto", "stream"])
@pytest.mark.parametrize("name", ["total", "cells"])
def test_a_models_own_names_do_not_collide(name: str, plan: Any, tmp_path: Path) -> None:
    b = Builder()
    x = b.add("Relu", b.conv("image", 4, strides=[2, 2]), output=name)
    b.head(b.add("Relu", b.conv(x, 6), output="feature"))
    path = b.save(tmp_path / "m.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    for layer in (name, "feature"):
        ours, theirs = (
            Explainer(path, layer=layer, plan=plan, device=device).explain_tensor(image).maps
            for device in ("CPU", "ort-cpu")
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_device_that_fails_streams_and_is_asked_again(
    pointwise: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:

        def failing(*_: Any) -> Any:
            raise DeviceError("out of memory")

        patch.setattr("ov_recipro.plans.sparse.logits_of", lambda run: lambda x: run([x]))
        patch.setattr(ONNXRuntime, "_opened", lambda *_: failing)
        runtime = ONNXRuntime(pointwise, Running("ort-cpu"))
        assert (runtime.plan.name, runtime.reason) == ("stream", "out of memory")
    assert ONNXRuntime(pointwise, Running("ort-cpu")).plan.name == "rows"


def test_a_plan_that_is_too_large_streams(
    pointwise: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_models, "_LARGEST", 16)
    runtime = ONNXRuntime(pointwise, Running("ort-cpu"))
    assert runtime.reason == "the plan is too large for one ONNX model"
