"""Embedded models: their own outputs untouched, their maps those of the explainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from openvino import opset13 as ops

from command import fails, run
from graphs import Builder
from oracle import dense_logits
from ov_recipro import Bundle, Explainer, ReciproError, embed
from ov_recipro.embedding import embed_onnx, save
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.options import Targets
from ov_recipro.saliency import class_scores, saliency_maps
from ov_recipro.sources.openvino_models import core, keep_outputs
from ov_recipro.variants import VARIANTS
from places import SCENE_VIT

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def infer(model: Any, x: np.ndarray, **config: Any) -> dict[str, np.ndarray]:
    results = core().compile_model(model, "CPU", config or F32)(x)
    return {name: np.array(results[port]) for port in results for name in port.get_names()}


def at_batch_1(path: Path) -> ov.Model:
    model = core().read_model(path)
    model.reshape([1, 3, 224, 224])
    return model


@pytest.fixture(scope="module")
def image(explainer: Explainer, cat: Path) -> np.ndarray:
    return prepare(read_image(cat), explainer.preprocessing)[0].astype(np.float32)


@pytest.mark.parametrize(
    ("layer", "exact", "plan"),
    [
        ("auto", False, "rows"),
        ("blocks.14", False, "rows"),
        ("blocks.11/depthwise_conv", False, "stream"),
        ("blocks.14/depthwise_conv/Conv", True, "stream"),
    ],
)
def test_maps_are_the_explainers(
    layer: str, exact: bool, plan: str, lite0: Path, image: np.ndarray
) -> None:
    explainer = Explainer(lite0, layer=layer, exact=exact)
    assert explainer.plan.name == plan
    expected = explainer.explain_tensor(image, "top3")
    plain = core().read_model(lite0)
    options: dict[str, Any] = {"layer": layer, "exact": exact, "batch_memory": 8 << 20}
    got = infer(embed(lite0, **options), image)
    np.testing.assert_array_equal(got["logits"], infer(plain, image)["logits"])
    maps = got["saliency_map"]
    assert maps.dtype == np.uint8
    assert maps.shape[:2] == (1, 1000)
    classes = [target.index for target in expected.targets]
    np.testing.assert_allclose(maps[0, classes] / 255, expected.maps, atol=0.51 / 255)
    wide = infer(embed(lite0, scaling="float", **options), image)["saliency_map"]
    np.testing.assert_allclose(wide[0, classes], expected.maps, atol=1e-4)
    raw = infer(embed(lite0, scaling="raw", **options), image)["saliency_map"]
    np.testing.assert_allclose(raw[0, classes], expected.raw, rtol=1e-5)


def test_the_given_model_is_not_changed(lite0: Path) -> None:
    model = at_batch_1(lite0)
    embedded = embed(model)
    assert len(model.outputs) == 1
    assert [port.get_any_name() for port in embedded.outputs] == ["logits", "saliency_map"]


def test_batches_where_the_model_takes_them(lite0: Path, image: np.ndarray) -> None:
    model = embed(lite0, classes=3, feature_vector=True)
    three = np.concatenate([image, image[:, :, ::-1], image * 0.5])
    together = infer(model, three)
    shapes = {name: value.shape for name, value in together.items()}
    assert shapes == {
        "logits": (3, 1000),
        "saliency_map": (3, 3, 7, 7),
        "saliency_classes": (3, 3),
        "feature_vector": (3, 1280),
    }
    for number in range(3):
        alone = infer(model, three[number : number + 1])
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][number], value[0], rtol=1e-4, atol=1)
        np.testing.assert_array_equal(
            together["saliency_classes"][number], np.argsort(-together["logits"][number])[:3]
        )


def test_chosen_classes(lite0: Path, image: np.ndarray) -> None:
    whole = infer(embed(lite0), image)["saliency_map"]
    some = infer(embed(lite0, classes=["tabby", 282, "lynx"]), image)["saliency_map"]
    np.testing.assert_array_equal(some, whole[:, [281, 282, 287]])
    best = infer(embed(lite0, classes=2), image)
    np.testing.assert_array_equal(best["saliency_map"], whole[:, best["saliency_classes"][0]])
    for wrong in (["no such cat"], [1000], [], 0, 1001):
        with pytest.raises(ReciproError, match=r"class"):
            embed(lite0, classes=wrong)


def test_an_open_shape_is_given(tmp_path: Path) -> None:
    b = Builder(shape=("n", 3, "h", "w"))
    b.head(b.add("Relu", b.conv("image", 4, output="feature", strides=[2, 2])))
    path = b.save(tmp_path / "m.onnx")
    model = embed(path, layer="feature", image_shape=(1, 3, 12, 16), scaling="raw")
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 16)).astype(np.float32)
    explainer = Explainer(path, layer="feature", image_shape=(1, 3, 12, 16))
    expected = explainer.explain_tensor(x, range(5)).raw
    np.testing.assert_allclose(infer(model, x)["saliency_map"][0], expected, rtol=1e-4)


def test_a_flat_class_is_all_zeros(tmp_path: Path) -> None:
    b = Builder()
    b.head(b.add("Mul", b.conv("image", 4, output="feature"), b.constant(0)))
    x = np.ones((1, 3, 16, 16), np.float32)
    maps = infer(embed(b.save(tmp_path / "m.onnx"), layer="feature", scaling="float"), x)
    assert not maps["saliency_map"].any()


@pytest.mark.parametrize("batch", [1, -1])
@pytest.mark.parametrize("layer", ["auto", "blocks.14"])
def test_the_explaining_part_keeps_float32(
    layer: str, batch: int, lite0: Path, image: np.ndarray
) -> None:
    """Under the device's own precision: the same logits, and a feature map's maps in float32."""
    native = {"PERFORMANCE_HINT": "LATENCY"}
    model = core().read_model(lite0)
    model.reshape([batch, 3, 224, 224])
    embedded = embed(model, layer=layer, scaling="float")
    plain, got = infer(model, image, **native), infer(embedded, image, **native)
    np.testing.assert_array_equal(got["logits"], plain["logits"])
    own = {node.get_friendly_name() for node in model.get_ordered_ops()}
    added = {node.get_friendly_name() for node in embedded.get_ordered_ops()} - own
    kinds = precisions(core().compile_model(embedded, "CPU", native), added)
    assert len(kinds) > 10 if batch == 1 else kinds
    if batch == 1:  # in front of the loop over a batch is a copy in the head's precision
        assert "bf16" not in kinds.values(), kinds

    bundle = Explainer(lite0, layer=layer).bundle
    (name,) = bundle.manifest.head.outputs
    head = keep_outputs(model, [name])
    features = as_bfloat16(infer(head, image, **native)[name])
    part = reading(embedded, name, own, batch)
    maps = infer(part, features, **native)["saliency_map"][0]
    np.testing.assert_allclose(maps, maps_of(bundle, features), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layer"), [("textures", "blocks.0"), ("textures-mean", "blocks.-1")]
)
def test_tokens(name: str, layer: str) -> None:
    """In OpenVINO and ONNX maps are the explainer's; under bfloat16, those of the same tokens."""
    path = SCENE_VIT / f"{name}.onnx"
    x = np.random.default_rng(5).standard_normal((1, 3, 80, 80)).astype(np.float32)
    expected = Explainer(path, layer=layer).explain_tensor(x, range(6)).raw
    options: dict[str, Any] = {"layer": layer, "scaling": "raw", "feature_vector": True}
    embedded = embed(path, **options)
    got = infer(embedded, x)
    np.testing.assert_allclose(got["saliency_map"][0], expected, atol=1e-5)
    assert got["feature_vector"].shape == (1, 48)
    in_onnx = embed_onnx(path, **options).SerializeToString()
    session = ort.InferenceSession(in_onnx, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {"image": x}), strict=True))
    np.testing.assert_allclose(values["saliency_map"][0], expected, atol=1e-5)
    np.testing.assert_allclose(values["feature_vector"], got["feature_vector"], atol=1e-4)

    native = {"PERFORMANCE_HINT": "LATENCY"}
    model = core().read_model(path)
    own = {node.get_friendly_name() for node in model.get_ordered_ops()}
    again = embed(model, layer=layer, scaling="float")
    added = {node.get_friendly_name() for node in again.get_ordered_ops()} - own
    kinds = precisions(core().compile_model(again, "CPU", native), added)
    assert "bf16" not in kinds.values(), kinds
    (tokens,) = Explainer(path, layer=layer).bundle.manifest.head.outputs
    features = as_bfloat16(infer(keep_outputs(model, [tokens]), x, **native)[tokens])
    part = reading(again, tokens, own, 1)
    maps = infer(part, features, **native)["saliency_map"][0]
    np.testing.assert_allclose(maps, infer(part, features)["saliency_map"][0], atol=1e-4)


def precisions(model: ov.CompiledModel, names: set[str]) -> dict[str, str]:
    """Return the precision in which a compiled model runs the operations of these names."""
    kinds: dict[str, str] = {}
    for node in model.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        if names & set(info["originalLayersNames"].split(",")):
            kinds[info["originalLayersNames"]] = info["runtimePrecision"]
    return kinds


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 numbers to the nearest that bfloat16 holds."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def reading(embedded: ov.Model, feature: str, own: set[str], batch: int) -> ov.Model:
    """Return an embedded model's explaining part alone, as a model of the feature map."""
    port = tensors(embedded)[feature]
    entry = ops.parameter([batch, *list(port.get_partial_shape())[1:]], np.float32)
    for reader in port.get_target_inputs():
        if reader.get_node().get_friendly_name() not in own:
            reader.replace_source_output(entry.output(0))
    return ov.Model([embedded.output("saliency_map").get_node()], [entry], "explaining part")


def tensors(model: ov.Model) -> dict[str, ov.Output]:
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() != "Result"]
    return {name: port for node in nodes for port in node.outputs() for name in port.get_names()}


def maps_of(bundle: Bundle, features: np.ndarray) -> np.ndarray:
    """Return the maps [classes,H,W] of a feature map by the whole tail in float32, cell by cell."""
    cells, _ = dense_logits(bundle, "CPU", 64 << 20)(features)
    return saliency_maps(class_scores(cells, "softmax").T.reshape(-1, *bundle.manifest.cut.grid))


@pytest.mark.parametrize("compress", [False, True])
def test_saved_and_read_again(
    compress: bool, tmp_path: Path, lite0: Path, image: np.ndarray
) -> None:
    model = embed(lite0, layer="blocks.14")
    save(model, tmp_path / "m.xml", compress_to_fp16=compress)
    before, after = infer(model, image), infer(tmp_path / "m.xml", image)
    np.testing.assert_allclose(
        after["saliency_map"].astype(int), before["saliency_map"], atol=3 if compress else 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]


def test_the_file_grows_little(tmp_path: Path) -> None:
    """Weights that the model holds are shared, index tables are small."""
    b = Builder(shape=(1, 3, 28, 28))
    x = b.add("Relu", b.conv("image", 256, strides=[4, 4], output="feature"))
    for _ in range(2):
        x = b.add("Relu", b.conv(x, 256))
    b.head(x, classes=1000)
    path = b.save(tmp_path / "m.onnx")
    sizes = []
    for name, model in (("plain", core().read_model(path)), ("embedded", embed(path))):
        save(model, tmp_path / f"{name}.xml")
        sizes.append(sum(p.stat().st_size for p in tmp_path.glob(f"{name}.*")))
    assert sizes[0] > 5e6
    assert sizes[1] - sizes[0] < 0.3e6


def model_api(path: Path) -> Any:
    """Open a model as users of OpenVINO Model API do, in float32."""
    from model_api.adapters import OpenvinoAdapter, create_core
    from model_api.models import ClassificationModel

    adapter = OpenvinoAdapter(create_core(), str(path), device="CPU", plugin_config=F32)
    return ClassificationModel(adapter, preload=True)


def test_model_api_needs_nothing_of_ours(tmp_path: Path, lite0: Path, cat: Path) -> None:
    done = run("embed", lite0, "-o", "out/lite0.xml", "--feature-vector", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    client = model_api(tmp_path / "out" / "lite0.xml")
    pixels = read_image(cat)[20:244, 100:324]  # of the input's size: nothing is resized
    result = client(pixels)
    expected = Explainer(lite0)(pixels, "top1")
    target = expected.targets[0]
    assert result.top_labels[0].name == str(target.label).replace(" ", "_")
    assert result.top_labels[0].confidence == pytest.approx(target.score, abs=1e-4)
    assert result.feature_vector.shape == (1, 1280)
    assert result.saliency_map.dtype == np.uint8
    assert result.saliency_map.shape == (1, 1000, 7, 7)
    maps = result.saliency_map[0, target.index] / 255
    np.testing.assert_allclose(maps, expected.maps[0], atol=1 / 255)
    whole = read_image(cat)  # resized by Model API's own interpolation
    resized = client(whole)
    ours = Explainer(lite0)(whole, 285).maps[0]
    assert np.corrcoef(ours.ravel(), resized.saliency_map[0, 285].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("form", ["ir", "ir16", "ir8"])
def test_model_api_on_other_forms(
    form: str, models: dict[str, Path], explainer: Explainer, cat: Path, tmp_path: Path
) -> None:
    told: dict[str, Any] = {"preprocessing": explainer.preprocessing, "labels": explainer.labels}
    save(embed(models[form], **told), tmp_path / "m.xml")
    pixels = read_image(cat)[20:244, 100:324]
    client = model_api(tmp_path / "m.xml")
    result = client(pixels)
    explainer = Explainer(models[form], **told)
    label = str(explainer(pixels, "top1").targets[0].label)
    assert result.top_labels[0].name == label.replace(" ", "_")
    # its normalisation rounds otherwise than ours, which an 8-bit head makes steps of: so the
    # maps are compared on its own feature map
    model = client.inference_adapter.model.clone()
    name = explainer.bundle.manifest.head.outputs[0]
    model.add_results([ops.result(tensors(model)[name])])
    results = core().compile_model(model, "CPU", F32)(pixels[None])
    np.testing.assert_array_equal(results["saliency_map"], result.saliency_map)
    expected = maps_of(explainer.bundle, np.array(results[len(results) - 1]))
    np.testing.assert_allclose(result.saliency_map[0] / 255, expected, atol=0.51 / 255)


@pytest.mark.parametrize("form", ["qdq", "ir8"])
def test_8_bit_models_keep_their_head_and_get_a_float32_tail(
    form: str, models: dict[str, Path], image: np.ndarray
) -> None:
    got = infer(embed(models[form], scaling="float"), image)
    plain = infer(core().read_model(models[form]), image)
    np.testing.assert_array_equal(got["logits"], next(iter(plain.values())))
    expected = Explainer(models[form]).explain_tensor(image, "top3")
    classes = [target.index for target in expected.targets]
    np.testing.assert_allclose(got["saliency_map"][0, classes], expected.maps, atol=1e-4)


def test_what_a_model_says_is_completed_and_not_changed(lite0: Path) -> None:
    model = at_batch_1(lite0)
    model.set_rt_info("1 2 3", ["model_info", "mean_values"])
    info = embed(model, labels=[f"class {i}" for i in range(1000)]).get_rt_info("model_info")
    told = info.astype(dict)
    assert told["mean_values"].astype(str) == "1 2 3"
    assert told["labels"].astype(str).startswith("class_0 class_1 ")


def test_the_command(tmp_path: Path, lite0: Path) -> None:
    (tmp_path / "m.xml").write_text("mine")
    fails(run("embed", lite0, "-o", "m.xml", cwd=tmp_path), "m.xml exists; --force replaces it")
    assert (tmp_path / "m.xml").read_text() == "mine"
    fails(run("embed", lite0, "-o", "m.bin", cwd=tmp_path), "must end in .xml or .onnx")
    fails(run("embed", lite0, "-o", "m.xml", "-t", "top5", "-t", "3", cwd=tmp_path),
          "can't be combined", code=2)  # fmt: skip
    done = run("embed", lite0, "-o", "m.xml", "--force", "-t", "top5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saliency_classes i64 [?,5]" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]


def infer_onnx(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    image = session.get_inputs()[0].name
    return dict(zip(names, session.run(None, {image: x}), strict=True))


@pytest.mark.parametrize(
    ("layer", "exact", "opset"),
    [
        ("auto", False, 13),
        ("blocks.14", False, 21),
        ("blocks.14/depthwise_conv/Conv", True, 18),
    ],
)
def test_onnx_gives_the_same_to_onnx_runtime(
    layer: str, exact: bool, opset: int, lite0: Path, image: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    original = onnx.load(lite0)
    if opset < 14:  # its operations are the same there, but for a setting that is at its default
        for node in original.graph.node:
            if node.op_type == "Reshape":
                del node.attribute[:]
        original.opset_import[0].version = opset
        onnx.checker.check_model(original)
    onnx.save(onnx.version_converter.convert_version(original, opset), path)
    options: dict[str, Any] = {"layer": layer, "exact": exact, "batch_memory": 8 << 20}
    model = embed_onnx(path, scaling="float", **options)
    onnx.checker.check_model(model)
    assert {each.domain for each in model.opset_import} <= {"", "ai.onnx"}
    got = infer_onnx(model.SerializeToString(), image)
    plain = infer_onnx(path, image)
    np.testing.assert_array_equal(got["logits"], plain["logits"])
    expected = Explainer(lite0, layer=layer, exact=exact).explain_tensor(image, "top3")
    classes = [target.index for target in expected.targets]
    np.testing.assert_allclose(got["saliency_map"][0, classes], expected.maps, atol=1e-4)
    assert len(model.SerializeToString()) - path.stat().st_size < 1e6
    three = np.concatenate([image, image[:, :, ::-1], image * 0.5])
    best = embed_onnx(path, classes=2, feature_vector=True, **options).SerializeToString()
    together = infer_onnx(best, three)
    assert together["saliency_map"].shape == (3, 2, 7, 7)
    for number in range(3):
        for name, value in infer_onnx(best, three[number : number + 1]).items():
            np.testing.assert_allclose(together[name][number], value[0], rtol=1e-4, atol=1)


@pytest.mark.parametrize("form", ["float16", "qdq", "qoperator", "dynamic"])
def test_onnx_of_fewer_bits(form: str, models: dict[str, Path], image: np.ndarray) -> None:
    kind = np.float16 if form == "float16" else np.float32
    explainer = Explainer(models[form], device="ort-cpu")
    expected = explainer.explain_tensor(image.astype(kind), "top3")
    model = embed_onnx(models[form], scaling="float").SerializeToString()
    got = infer_onnx(model, image.astype(kind))["saliency_map"]
    assert got.dtype == np.float32
    classes = [target.index for target in expected.targets]
    np.testing.assert_allclose(got[0, classes], expected.maps, atol=1e-3)
    options: dict[str, Any] = {"classes": 3, "scaling": "float", "feature_vector": True}
    both = infer_onnx(embed_onnx(models[form], **options).SerializeToString(), image.astype(kind))
    np.testing.assert_allclose(both["saliency_map"][0], expected.maps, atol=1e-3)
    assert both["saliency_classes"][0].tolist() == classes
    assert both["feature_vector"].dtype == np.float32


@pytest.mark.parametrize("opset", [12, 13, 17, 18, 21])
def test_onnx_at_batch_1(opset: int, tmp_path: Path) -> None:
    b = Builder(opset=opset)
    b.head(b.add("Relu", b.conv("image", 4, output="feature", strides=[2, 2])))
    path = b.save(tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    if opset < 13:
        with pytest.raises(ReciproError, match="has opset 12"):
            embed_onnx(path, layer="feature")
        return
    model = embed_onnx(path, layer="feature", classes=[3, 1], scaling="raw")
    expected = Explainer(path, layer="feature").explain_tensor(x, [3, 1])
    got = infer_onnx(model.SerializeToString(), x)["saliency_map"]
    np.testing.assert_allclose(got[0], expected.raw, rtol=1e-4)


def test_the_command_writes_onnx(tmp_path: Path, lite0: Path) -> None:
    done = run("embed", lite0, "-o", "m.onnx", "-t", "tabby", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties["model_info saliency_layer"] == "/swish_1/Clip_output_0"
    fails(run("embed", lite0, "-o", "m.onnx", cwd=tmp_path), "m.onnx exists")


ASKED = [
    pytest.param({"task": "features"}, {"similar_to": "coffee", "unlike": "cat"}, id="similarity"),
    pytest.param({"task": "features"}, {"similar_to": "coffee", "centre": "both"}, id="centred"),
    pytest.param({}, {"against": 282, "gamma": 0.6}, id="contrast"),
]


@pytest.mark.parametrize("as_onnx", [False, True])
@pytest.mark.parametrize(("how", "asked"), ASKED)
def test_targets_are_scored_in_the_graph(
    how: dict[str, Any], asked: dict[str, Any], as_onnx: bool, lite0: Path, image: np.ndarray
) -> None:
    folder = lite0.parents[2] / "examples"
    files = {"coffee": folder / "coffee.jpg", "cat": folder / "chelsea.jpg", "both": folder}
    asked = {name: files.get(str(value), value) for name, value in asked.items()}
    explainer = Explainer(lite0, **how)
    classes: Any = "top1" if "task" in how else [285]
    expected = explainer.explain_tensor(image, classes, **asked).raw
    options: dict[str, Any] = {"scaling": "raw", "targets": Targets((), **asked), **how}
    if "task" not in how:
        options["classes"] = [285]
    if as_onnx:
        proto = embed_onnx(lite0, **options)
        session = ort.InferenceSession(proto.SerializeToString())
        (found,) = session.run(["saliency_map"], {"image": image})
    else:
        model = embed(lite0, **options)
        model.reshape([1, 3, 224, 224])
        found = infer(model, image)["saliency_map"]
    assert found.shape == (1, 1, 7, 7)
    spread = float(np.ptp(expected))
    np.testing.assert_allclose(found[0], expected, atol=1e-4 * spread + 1e-6)


def test_targets_that_a_graph_can_not_hold(lite0: Path, tmp_path: Path) -> None:
    with pytest.raises(ReciproError, match="can't contrast with 'next'"):
        embed(lite0, targets=Targets(against="next"))
    with pytest.raises(ReciproError, match="has no classes"):
        embed(lite0, task="features", classes=3, targets=Targets(similar_to=np.ones(1280)))
    with pytest.raises(ReciproError, match="say with --similar-to"):
        embed(lite0, task="features")
    b = Builder(shape=(1, 3, 32, 32))
    x = b.add("Relu", b.conv(b.add("Relu", b.conv("image", 4, strides=[4, 4])), 4))
    b.conv(x, 3, kernel=1, output="scores")
    with pytest.raises(ReciproError, match="segmentation's maps can't be embedded"):
        embed(b.save(tmp_path / "m.onnx"))


@pytest.mark.parametrize("as_onnx", [False, True])
@pytest.mark.parametrize("method", VARIANTS)
def test_variants(method: Any, as_onnx: bool, lite0: Path, image: np.ndarray) -> None:
    expected = Explainer(lite0, method=method).explain_tensor(image, "top3")
    classes = [target.index for target in expected.targets]
    options: dict[str, Any] = {"method": method, "scaling": "float"}
    if as_onnx:
        model = embed_onnx(lite0, **options).SerializeToString()
        found = infer_onnx(model, image)
        best = embed_onnx(lite0, classes=3, feature_vector=True, **options).SerializeToString()
        two = infer_onnx(best, np.concatenate([image * 0.5, image]))
        assert infer_onnx(lite0, image)["logits"].tobytes() == found["logits"].tobytes()
    else:
        embedded = embed(lite0, **options)
        assert embedded.get_rt_info(["model_info", "saliency_method"]).astype(str) == method
        found = infer(embedded, image)
        best = embed(lite0, classes=3, feature_vector=True, **options)
        two = infer(best, np.concatenate([image * 0.5, image]))
    np.testing.assert_allclose(found["saliency_map"][0, classes], expected.maps, atol=1e-4)
    np.testing.assert_allclose(two["saliency_map"][1], expected.maps, atol=1e-4)
    assert two["saliency_classes"][1].tolist() == classes
    assert two["feature_vector"].shape == (2, 1280)


@pytest.mark.parametrize("score", ["sigmoid", "none"])
def test_variants_of_other_scores(
    score: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair's grids differ, so that one map is enlarged."""
    monkeypatch.setattr("ov_recipro.plans.rows.rows_cost.CHEAP", 1e9)
    monkeypatch.setattr("ov_recipro.runtimes.pair_graph._MOST", 1e9)
    b = Builder(shape=(1, 3, 24, 24))
    early = b.add("Relu", b.conv("image", 6, strides=[2, 2]), output="early")
    b.head(b.add("Relu", b.conv(early, 8, strides=[2, 2]), output="late"), classes=7)
    path = b.save(tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)
    for method in VARIANTS:
        explainer = Explainer(path, layer="late", score=score, method=method)
        expected = explainer.explain_tensor(x, [0, 3])
        options: dict[str, Any] = {
            "layer": "late", "classes": [0, 3], "score": score, "method": method, "scaling": "raw"
        }  # fmt: skip
        in_onnx = infer_onnx(embed_onnx(path, **options).SerializeToString(), x)
        for found in (in_onnx, infer(embed(path, **options), x)):
            accuracy = 1e-3 if method == "recipro-pair" else 1e-4 * float(np.ptp(expected.raw))
            np.testing.assert_allclose(found["saliency_map"][0], expected.raw, atol=accuracy)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_pair_that_is_sure(score: Any, lite0: Path, coffee: Path, tmp_path: Path) -> None:
    """Float32 holds no differences of scores so close to 1; a class that nothing loses is 0."""
    model = onnx.load(lite0)
    (logits,) = [node for node in model.graph.node if "logits" in node.output]
    logits.output[0] = "plain"
    factor = onnx.numpy_helper.from_array(np.array(3, np.float32), "factor")
    model.graph.initializer.append(factor)
    model.graph.node.append(onnx.helper.make_node("Mul", ["plain", "factor"], ["logits"]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    how: dict[str, Any] = {"method": "recipro-pair", "score": score}
    explainer = Explainer(path, preprocessing=Explainer(lite0).preprocessing, **how)
    x = prepare(read_image(coffee), explainer.preprocessing)[0].astype(np.float32)
    expected = explainer.explain_tensor(x, "top2")
    assert expected.targets[0].score > 0.9999
    classes = [target.index for target in expected.targets]
    options: dict[str, Any] = {"scaling": "float", "classes": classes, **how}
    for found in (
        infer_onnx(embed_onnx(path, **options).SerializeToString(), x),
        infer(embed(path, **options), x),
    ):
        np.testing.assert_allclose(found["saliency_map"][0], expected.maps, atol=2e-3)


def test_a_variant_that_onnx_lacks(tmp_path: Path) -> None:
    b = Builder(shape=(1, 3, 24, 24))
    early = b.add("Relu", b.conv("image", 6, strides=[2, 2]), output="early")
    late = b.add("Cos", b.conv(early, 8), output="late")
    b.head(b.add("Relu", late), classes=7)
    path = b.save(tmp_path / "m.onnx")
    with pytest.raises(ReciproError, match=r"can't be embedded as ONNX: .* 'Cos'|can't be used"):
        embed_onnx(path, layer="late", method="recipro-pair")


def test_variants_explain_classes_alone(tmp_path: Path, lite0: Path) -> None:
    command = ("embed", lite0, "-o", "m.xml", "--method", "recipro-pair")
    fails(run(*command, "--against", "tabby", cwd=tmp_path), "'recipro-pair' explains only classes")
    b = Builder()
    b.linear(b.add("Flatten", b.conv("image", 4, strides=[2, 2], output="feature")), 4 * 64)
    b.save(tmp_path / "flat.onnx")
    for method, reason in (("recipro-pair", "no second layer"), ("recipro-aumann", "average pool")):
        words = ("embed", "flat.onnx", "-o", "m.xml", "--layer", "feature", "--method", method)
        fails(run(*words, cwd=tmp_path), reason)
