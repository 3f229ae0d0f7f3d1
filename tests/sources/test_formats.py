"""OpenVINO IR, and models in 8 and 16 bits, on real weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest

from graphs import Builder, residual
from oracle import Oracle
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.metrics import rank_correlation
from ov_recipro.sources.openvino_models import core
from ov_recipro.splitting.split import open_source


@pytest.mark.parametrize("form", ["ir", "ir16"])
@pytest.mark.parametrize(
    ("layer", "exact"),
    [("auto", False), ("/blocks.14/depthwise_conv/Conv_output_0", True), ("blocks.12", False)],
)
def test_an_ir_gives_the_maps_of_its_onnx_model(
    form: str, layer: str, exact: bool, models: dict[str, Path], lite0: Path, cat: Path
) -> None:
    """Names that survive conversion lead to the same layer in both formats."""
    how = Explainer(lite0).preprocessing
    expected = Explainer(models["float"], layer=layer, exact=exact, preprocessing=how)
    explainer = Explainer(models[form], layer=layer, exact=exact, preprocessing=how)
    assert explainer.bundle.head.suffix == ".xml"
    assert explainer.bundle.manifest.cut.tensor == expected.bundle.manifest.cut.tensor
    assert explainer.bundle.manifest.cut.bypass == expected.bundle.manifest.cut.bypass
    assert explainer.bundle.manifest.any_batch
    tolerance = 1e-4 if form == "ir" else 0.02  # weights stored in float16
    np.testing.assert_allclose(explainer(cat, 285).maps, expected(cat, 285).maps, atol=tolerance)


def test_ir_maps_equal_the_oracle(models: dict[str, Path], lite0: Path, cat: Path) -> None:
    how = Explainer(lite0).preprocessing
    explainer = Explainer(models["ir"], layer="blocks.14/Add_output_0", preprocessing=how)
    tensor, _ = prepare(read_image(cat), how)
    oracle = Oracle(models["float"], "/blocks.14/Add_output_0")
    expected = oracle.maps(tensor.astype(np.float32), (7, 7), [285, 281])
    np.testing.assert_allclose(explainer(cat, [285, 281]).maps, expected, atol=1e-4)


@pytest.mark.parametrize("form", ["qdq", "qoperator", "dynamic", "float16", "ir8"])
@pytest.mark.parametrize("layer", ["auto", "/blocks.12/project_conv"])
def test_models_in_low_precision_get_a_float32_tail(
    form: str, layer: str, models: dict[str, Path], explainer: Explainer, cat: Path
) -> None:
    if form == "ir8" and layer != "auto":
        layer = "-10"  # convolutions lose their names on the way
    other = Explainer(models[form], layer=layer, preprocessing=explainer.preprocessing)
    manifest = other.bundle.manifest
    assert manifest.deployed_scores
    assert manifest.deviation is not None
    assert manifest.any_batch
    explanation = other(cat, 285)
    cells = manifest.cut.grid[0] * manifest.cut.grid[1]
    assert explanation.targets[0].distinct_values >= 0.9 * cells
    if layer == "auto":
        r = rank_correlation(explanation.raw, explainer(cat, 285).raw)
        assert r is not None
        assert r > 0.9


def test_the_float32_tail_keeps_what_the_8_bit_tail_loses(
    models: dict[str, Path], explainer: Explainer, cat: Path
) -> None:
    ours = Explainer(models["qdq"], preprocessing=explainer.preprocessing)
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    eight_bit = Oracle(models["qdq"], ours.bundle.manifest.cut.tensor)
    lost = eight_bit.logits(tensor.astype(np.float32), (7, 7))[:, 285]
    assert len(np.unique(lost)) < 25
    assert ours(cat, 285).targets[0].distinct_values > 40


@pytest.mark.parametrize("form", ["qdq", "qoperator", "dynamic", "float16"])
def test_predictions_are_the_deployed_models(
    form: str, models: dict[str, Path], explainer: Explainer, cat: Path
) -> None:
    """They are what OpenVINO makes of the deployed file, whose 8 bits differ between processors."""
    other = Explainer(models[form], preprocessing=explainer.preprocessing, score="none")
    session = ort.InferenceSession(models[form], providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    dtype = "float16" if "float16" in entry.type else "float32"
    tensor, _ = prepare(read_image(cat), explainer.preprocessing, dtype=dtype)
    logits = session.run(None, {entry.name: tensor})[0][0].astype(np.float64)
    got = [target.score for target in other(cat, range(1000)).targets]
    assert np.corrcoef(got, logits)[0, 1] > 0.9
    readable = models["qdq" if form == "qoperator" else form]  # its twin, which OpenVINO reads
    deployed = core().compile_model(readable, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(got, deployed(tensor)[0][0], atol=1e-3)


def test_a_cut_at_an_integer_tensor_is_one_at_its_float_value(
    models: dict[str, Path], explainer: Explainer, cat: Path
) -> None:
    """Masked means the zero point there, which is 0 once dequantised."""
    how = explainer.preprocessing
    steps = Explainer(
        models["qdq"], layer="/swish_1/Clip_output_0_QuantizeLinear_Output", preprocessing=how
    )
    plain = Explainer(models["qdq"], preprocessing=how)
    np.testing.assert_allclose(steps(cat, 285).maps, plain(cat, 285).maps, atol=1e-5)


def test_a_model_in_memory(models: dict[str, Path], explainer: Explainer, cat: Path) -> None:
    how = explainer.preprocessing
    model = ov.Core().read_model(models["ir"])
    expected = Explainer(models["ir"], preprocessing=how)(cat, 285)
    np.testing.assert_array_equal(Explainer(model, preprocessing=how)(cat, 285).raw, expected.raw)


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_truncated_ir(part: float, models: dict[str, Path], tmp_path: Path) -> None:
    text = models["ir"].read_text()
    (tmp_path / "m.xml").write_text(text[: int(part * len(text))])
    shutil.copy(models["ir"].with_suffix(".bin"), tmp_path / "m.bin")
    with pytest.raises(ReciproError, match="not a readable OpenVINO IR"):
        open_source(tmp_path / "m.xml")


def test_ir_without_its_weights(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(models["ir"], tmp_path / "m.xml")
    with pytest.raises(ReciproError, match=r"m\.xml"):
        open_source(tmp_path / "m.xml")


def test_model_info_of_an_ir(models: dict[str, Path], tmp_path: Path, cat: Path) -> None:
    model = ov.Core().read_model(models["ir"])
    model.set_rt_info("127 127 127", ["model_info", "mean_values"])
    model.set_rt_info("128 128 128", ["model_info", "scale_values"])
    model.set_rt_info("True", ["model_info", "reverse_input_channels"])
    model.set_rt_info("crop", ["model_info", "resize_type"])
    names = [f"class_{index}" for index in range(1000)]
    model.set_rt_info(" ".join(names), ["model_info", "labels"])
    ov.save_model(model, tmp_path / "m.xml")
    explainer = Explainer(tmp_path / "m.xml")
    assert explainer.preprocessing.resize == "crop"
    assert explainer(cat).predictions[0].label == "class 285"


def test_changed_weights_beside_a_model_are_noticed(tmp_path: Path) -> None:
    """The cache knows an .xml by its text, and its weights by size and time of change."""
    ov.save_model(ov.convert_model(residual(tmp_path / "m.onnx")), tmp_path / "m.xml")
    text = (tmp_path / "m.xml").read_bytes()
    image = np.ones((1, 3, 16, 16), np.float32)
    before = Explainer(tmp_path / "m.xml").explain_tensor(image, 0).raw
    ov.save_model(ov.convert_model(residual(tmp_path / "m.onnx", seed=1)), tmp_path / "m.xml")
    (tmp_path / "m.xml").write_bytes(text)
    after = Explainer(tmp_path / "m.xml").explain_tensor(image, 0).raw
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_inputs_beside_the_image_take_constants(suffix: str, tmp_path: Path) -> None:
    b = Builder()
    b.channels["gain"] = 4
    feature = b.add("Relu", b.conv("image", 4), output="feature")
    b.head(b.add("Mul", feature, "gain"))
    path = b.save(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
    )
    onnx.save(model, path)
    if suffix == ".xml":
        ov.save_model(ov.convert_model(path), tmp_path / "m.xml")
        path = tmp_path / "m.xml"
    with pytest.raises(ReciproError, match="--const gain=VALUE"):
        split(path, tmp_path / "b.recipro")
    with pytest.raises(ReciproError, match="no input 'gian'"):
        split(path, tmp_path / "b.recipro", constants={"gian": 1})
    bundle = split(path, tmp_path / "b.recipro", constants={"gain": 3.0}, layer="feature")
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = compiled({"image": image, "gain": np.full((1, 1, 1, 1), 3, np.float32)})[0][0]
    scores = Explainer(bundle, score="none").explain_tensor(image, "top5").predictions
    assert {s.index: s.score for s in scores} == pytest.approx(dict(enumerate(expected)), rel=1e-4)
