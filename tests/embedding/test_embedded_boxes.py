"""Embedded detectors: their own outputs untouched, their maps what classes lose the slow way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from openvino import opset13 as ops

from boxes import SCENE_MODEL, make_scenes
from command import fails, run
from oracle import features_of
from oracle import run as run_slowly
from ov_recipro import Explainer, ReciproError, embed
from ov_recipro.cut.box_layout import BoxLayout, Part
from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cells import Cells
from ov_recipro.embedding import embed_onnx
from ov_recipro.embedding.class_losses import ClassLosses, class_losses
from ov_recipro.embedding.scoring import scaled_losses
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.options import Cut, Targets
from ov_recipro.plans.nodes import prepared
from ov_recipro.plans.rows.joint_compiler import lower_joint
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.sources.openvino_models import core, runner
from ov_recipro.splitting.bundle_cache import cached_split
from ov_recipro.targets.candidates import decode
from places import DETECTORS

Floats = npt.NDArray[np.float32]
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
NATIVE = {"PERFORMANCE_HINT": "LATENCY"}
CELLS = Cells((4, 3))
SHAPES = ((1, 5, 4, 3), (1, 4, 8, 6))


def infer(model: Any, x: np.ndarray, **config: Any) -> dict[str, np.ndarray]:
    results = core().compile_model(model, "CPU", config or F32)(x)
    return {name: np.array(results[port]) for port in results for name in port.get_names()}


def losses(layout: BoxLayout, plain: Floats, masked: Floats) -> Floats:
    """Return what each class loses for the values [V] and, of each cell, [N,V]."""
    whole, cells = decode(plain[None], layout), decode(masked, layout)
    return np.asarray(np.maximum(0, (whole.scores - cells.scores).max(axis=1)))


def slow_maps(explainer: Explainer, x: Floats) -> Floats:
    """Return what each class loses, [K,h,w], by the whole tail for each cell."""
    manifest = explainer.bundle.manifest
    assert explainer.plan.name == "stream"
    assert manifest.boxes is not None
    found = losses(manifest.boxes, *run_slowly(explainer._runtime, x))
    return manifest.cut.cells.as_maps(found)


@pytest.fixture(scope="module")
def slow() -> Explainer:
    return Explainer(SCENE_MODEL, plan="stream")


@pytest.fixture(scope="module")
def image(slow: Explainer) -> Floats:
    (scene,) = make_scenes(1)
    return prepare(scene.image[..., ::-1], slow.preprocessing)[0].astype(np.float32)


def test_maps_are_what_classes_lose(slow: Explainer, image: Floats) -> None:
    expected = slow_maps(slow, image)
    got = infer(embed(SCENE_MODEL, scaling="raw"), image)
    plain = infer(core().read_model(SCENE_MODEL), image)
    np.testing.assert_array_equal(got["output0"], plain["output0"])
    assert got["saliency_map"].shape == (1, 6, 10, 10)
    np.testing.assert_allclose(got["saliency_map"][0], expected, atol=1e-5)
    assert expected.max() > 0.5
    some = embed(SCENE_MODEL, scaling="float", classes=[4, slow.labels[1]])  # type: ignore[index]
    scaled = infer(some, image)["saliency_map"][0]
    highest = expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(scaled, (expected / highest)[[4, 1]], atol=1e-3)
    assert scaled.max() == 1
    levels = infer(embed(SCENE_MODEL), image)["saliency_map"]
    assert levels.dtype == np.uint8
    np.testing.assert_allclose(levels[0] / 255, expected / highest, atol=0.51 / 255 + 1e-3)


@pytest.mark.parametrize(
    ("name", "shape"), [("fastestdet", (80, 11, 11)), ("ultraface-RFB-320", (1, 8, 10))]
)
def test_real_detectors(name: str, shape: tuple[int, ...], cat: Path) -> None:
    path = DETECTORS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there; OV_RECIPRO_SAMPLES names the folder beside it")
    explainer = Explainer(path, plan="stream")
    x = prepare(read_image(cat), explainer.preprocessing)[0].astype(np.float32)
    expected = slow_maps(explainer, x)
    got = infer(embed(path, scaling="raw"), x)
    plain = infer(core().read_model(path), x)
    for output, values in plain.items():
        np.testing.assert_array_equal(got[output], values)
    assert expected.shape == shape
    assert expected.max() > 0.01
    np.testing.assert_allclose(got["saliency_map"][0], expected, atol=1e-6)


@pytest.mark.parametrize("layer", ["auto"])  # what the neck reads
def test_the_explaining_part_keeps_float32(layer: str, image: Floats) -> None:
    """Under the device's own precision: the same boxes, and the feature maps' maps in float32."""
    model = core().read_model(SCENE_MODEL)
    embedded = embed(SCENE_MODEL, layer=layer, scaling="raw")
    got, plain = infer(embedded, image, **NATIVE), infer(model, image, **NATIVE)
    np.testing.assert_array_equal(got["output0"], plain["output0"])
    own = {node.get_friendly_name() for node in model.get_ordered_ops()}
    added = {node.get_friendly_name() for node in embedded.get_ordered_ops()} - own
    kinds = {}
    compiled = core().compile_model(embedded, "CPU", NATIVE)
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        if added & set(info["originalLayersNames"].split(",")):
            kinds[info["originalLayersNames"]] = info["runtimePrecision"]
    assert len(kinds) > 100
    assert "bf16" not in kinds.values(), kinds

    part, features = explaining_part(embedded, cached_split(SCENE_MODEL, Cut(layer)), image, own)
    native, wide = (core().compile_model(part, "CPU", how)(features)[0] for how in (NATIVE, F32))
    np.testing.assert_allclose(native, wide, atol=1e-5)
    assert wide.max() > 0.5


def explaining_part(
    embedded: ov.Model, bundle: Bundle, x: Floats, own: set[str]
) -> tuple[ov.Model, list[Floats]]:
    """Return what was added to a model, and an image's feature maps, which it reads."""
    known = {
        name: port
        for node in embedded.get_ordered_ops()
        if node.get_type_name() != "Result"
        for port in node.outputs()
        for name in port.get_names()
    }
    entries = []
    for name in bundle.manifest.cut.masked:
        entries.append(ops.parameter(list(known[name].shape), np.float32))
        for reader in list(known[name].get_target_inputs()):
            if reader.get_node().get_friendly_name() not in own:
                reader.replace_source_output(entries[-1].output(0))
    result = embedded.output("saliency_map").get_node()
    return ov.Model([result], entries, "part"), features_of(bundle, x)


def test_what_the_file_says(tmp_path: Path, slow: Explainer) -> None:
    model = core().read_model(SCENE_MODEL)
    model.set_rt_info("YOLO", ["model_info", "model_type"])
    info = {name: value.astype(str) for name, value in
            embed(model).get_rt_info("model_info").astype(dict).items()}  # fmt: skip
    assert info["model_type"] == "YOLO"
    assert info["saliency_layer"] == slow.bundle.manifest.cut.name
    assert info["saliency_layer"].count(",") == 2
    assert info["saliency_score"] == "largest loss of a box"
    done = run("embed", SCENE_MODEL, "-o", "m.xml", "-t", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saliency_map u8 [1,1,10,10]" in done.stderr
    written = core().read_model(tmp_path / "m.xml").get_rt_info("model_info").astype(dict)
    assert "model_type" not in written
    fails(run("embed", SCENE_MODEL, "-o", "m.onnx", cwd=tmp_path), "as OpenVINO only")
    assert not (tmp_path / "m.onnx").exists()


def test_what_can_not_be_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, why in (
        ({"classes": 3}, "not for its best 3"),
        ({"classes": ["no such thing"]}, "class"),
        ({"feature_vector": True}, "cut at one feature map"),
        ({"targets": Targets(box=1)}, "embedded by class"),
        ({"targets": Targets(against=1)}, "--against is for a classifier"),
        ({"layer": "/neck/Concat_output_0", "exact": True}, "tensors bypass the cut"),
    ):
        with pytest.raises(ReciproError, match=why):
            embed(SCENE_MODEL, **asked)
    with pytest.raises(ReciproError, match="as OpenVINO only"):
        embed_onnx(SCENE_MODEL)
    reason = "rows save too little"
    module = "ov_recipro.embedding.detector_branch"
    monkeypatch.setattr(f"{module}.sparse_refusal", lambda *_: reason)
    with pytest.raises(ReciproError, match=f"{reason}. 'ov-recipro explain' makes them"):
        embed(SCENE_MODEL)


def int64(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def conv(x: Any, channels: int, kernel: int, random: np.random.Generator) -> Any:
    source = int(x.output(0).shape[1])
    weight = random.standard_normal((channels, source, kernel, kernel)) / np.sqrt(source * kernel)
    pads = [kernel // 2] * 2
    made = ops.convolution(x, weight.astype(np.float32), [1, 1], pads, pads, [1, 1])
    return ops.add(made, random.standard_normal((1, channels, 1, 1)).astype(np.float32))


def rows_of(x: Any, numbers: int) -> Any:
    """[1,R*C,h,w] as [1,h*w*R,C]."""
    last = ops.transpose(x, int64(0, 2, 3, 1))
    return ops.reshape(last, int64(1, -1, numbers), False)


def joint(a: Any, b: Any, random: np.random.Generator) -> Any:
    """Boxes and, of three candidates a pixel, objectness and scores in a row, as YOLOv5."""
    found = [rows_of(ops.sigmoid(conv(x, 24, 3, random)), 8) for x in (a, b)]
    return ops.concat(found, 1)


def apart(a: Any, b: Any, random: np.random.Generator) -> Any:
    """Objectness that a cell changes at fewer pixels than scores, as of decoupled heads."""
    found = []
    for x in (a, b):
        near = ops.sigmoid(conv(x, 1, 1, random))
        wide = [conv(conv(x, 4, 3, random), width, 3, random) for width in (2, 1)]
        parts = [conv(x, 4, 1, random), near, *(ops.sigmoid(each) for each in wide)]
        flat = [
            ops.reshape(each, int64(1, int(each.output(0).shape[1]), -1), False) for each in parts
        ]
        found.append(ops.concat(flat, 1))
    return ops.concat(found, 2)


def partly(a: Any, b: Any, random: np.random.Generator) -> Any:
    """Candidates of the finer map's first line alone, which most cells do not reach."""
    found = [rows_of(ops.sigmoid(conv(x, 24, 3, random)), 8) for x in (a, b)]
    first, _ = ops.variadic_split(found[1], np.int64(1), int64(18, 126)).outputs()
    return ops.concat([found[0], first], 1)


def raw(a: Any, b: Any, random: np.random.Generator) -> Any:
    """Scores without an activation, then boxes, in two outputs in a row."""
    scores = ops.concat([rows_of(conv(x, 8, 3, random), 4) for x in (a, b)], 1)
    boxes = ops.concat([rows_of(conv(x, 8, 3, random), 4) for x in (a, b)], 1)
    return ops.concat([ops.reshape(each, int64(1, -1), False) for each in (scores, boxes)], 1)


def layout_of(
    anchors: int, classes: int, objectness: bool, channels_first: bool = False, **more: Any
) -> BoxLayout:
    """Boxes, objectness and scores in one output."""
    first = 4 + objectness
    width = first + classes
    ends = {"boxes": (0, 4), "objectness": (4, 5), "scores": (first, width)}
    parts = tuple(
        Part(content, 0, each, width, channels_first=channels_first)  # type: ignore[arg-type]
        for content, each in ends.items()
        if objectness or content != "objectness"
    )
    shape = (1, width, anchors) if channels_first else (1, anchors, width)
    return BoxLayout("yolov5", ("out",), (shape,), classes, (64, 48), parts, **more)


def two_outputs(classes: int, **more: Any) -> BoxLayout:
    """Scores, some of them of no object, and boxes: two of each at a pixel."""
    shapes = ((1, 120, 4), (1, 120, 4))
    parts = (Part("scores", 0, (0, 4), 4), Part("boxes", 1, (0, 4), 4))
    return BoxLayout("ssd", ("scores", "boxes"), shapes, classes, (64, 48), parts, **more)


Make = Callable[[Any, Any, np.random.Generator], Any]
CASES: dict[str, tuple[Make, BoxLayout]] = {
    "in a row": (joint, layout_of(180, 3, objectness=True)),
    "apart": (apart, layout_of(60, 3, objectness=True, channels_first=True)),
    "partly": (partly, layout_of(54, 3, objectness=True)),
    "sigmoid": (raw, two_outputs(4, activation="sigmoid")),
    "softmax": (raw, two_outputs(3, activation="softmax", background="last")),
    "background first": (raw, two_outputs(3, activation="softmax", background="first")),
    "powers": (
        joint,
        BoxLayout(
            "fastestdet", ("out",), ((1, 180, 8),), 3, (64, 48), layout_of(180, 3, True).parts
        ),
    ),
}


def tail_of(make: Make) -> ov.Model:
    maps = [ops.parameter(list(shape), np.float32) for shape in SHAPES]
    random = np.random.default_rng(0)
    return ov.Model([ops.result(make(maps[0], maps[1], random))], maps, "tail")


def in_graph(tail: ov.Model, layout: BoxLayout, classes: list[int], maps: list[Floats]) -> Floats:
    """Return what classes lose, [N,T], by the graph."""
    features = [ops.parameter(list(shape), np.float32) for shape in SHAPES]
    ports = [each.output(0) for each in features]
    lowered = lower_joint(prepared(tail), ports, CELLS, core(), 64 << 20, 10**12, "drop")
    found = class_losses(lowered, layout, np.array(classes))
    return runner(ov.Model([ops.result(found.losses)], features))(maps)[0]


@pytest.mark.parametrize("case", CASES)
def test_every_layout_of_scores(case: str) -> None:
    make, layout = CASES[case]
    random = np.random.default_rng(1)
    maps = [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    tail = tail_of(make)
    of_tail = runner(tail.clone())
    masked = []
    for cell in range(CELLS.count):
        row, column = divmod(cell, CELLS.grid[1])
        shares = [CELLS.shares((each.shape[2], each.shape[3])) for each in maps]
        kept = [1 - np.outer(rows[row], columns[column]) for rows, columns in shares]
        emptied = [(x * k).astype(np.float32) for x, k in zip(maps, kept, strict=True)]
        masked.append(of_tail(emptied)[0].reshape(-1))
    expected = losses(layout, of_tail(maps)[0].reshape(-1), np.stack(masked))
    assert expected.shape == (12, layout.classes)
    assert np.ptp(expected, axis=0).min() > 0.01
    classes = [2, 0]
    got = in_graph(tail, layout, classes, maps)
    np.testing.assert_allclose(got, expected[:, classes], atol=1e-5)


def test_scores_that_only_rise_lose_nothing() -> None:
    def rising(a: Any, b: Any, random: np.random.Generator) -> Any:
        found = []
        for x in (a, b):
            scores = ops.negative(ops.abs(ops.reduce_sum(x, int64(1), True)))
            found.append(ops.concat([rows_of(conv(x, 4, 1, random), 4), rows_of(scores, 1)], 2))
        return ops.concat(found, 1)

    maps = [np.ones(shape, np.float32) for shape in SHAPES]
    assert not in_graph(tail_of(rising), layout_of(60, 1, objectness=False), [0], maps).any()


def test_candidates_of_several_pixels_are_refused() -> None:
    """Of one pixel the objectness, of another the scores."""

    def odd(a: Any, b: Any, random: np.random.Generator) -> Any:
        found = joint(a, b, random)
        place, rest = ops.variadic_split(found, np.int64(2), int64(5, 3)).outputs()
        last, others = ops.variadic_split(rest, np.int64(1), int64(3, 177)).outputs()
        return ops.concat([place, ops.concat([others, last], 1)], 2)

    layout = layout_of(180, 3, objectness=True)
    maps = [np.zeros(shape, np.float32) for shape in SHAPES]
    with pytest.raises(PlanRefused, match="not those of one pixel"):
        in_graph(tail_of(odd), layout, [0], maps)


@pytest.mark.parametrize("scaling", ["float", "uint8"])
def test_a_class_that_loses_nothing_is_all_zeros(scaling: Any) -> None:
    """So is one that loses what rounding makes; others begin at zero, not at their least loss."""
    values = np.array([[0, 1e-7, 0.2], [0, 0, 0.1]], np.float32)
    best = np.array([[0.5, 0.9, 0.4]], np.float32)
    port = ops.parameter([2, 3], np.float32)
    made = scaled_losses(ClassLosses(port.output(0), ops.constant(best).output(0)), scaling)
    maps = runner(ov.Model([ops.result(made)], [port]))([values])[0]
    assert not maps[:, :2].any()
    largest = 255 if scaling == "uint8" else 1
    np.testing.assert_allclose(maps[:, 2], [largest, round(largest / 2) if largest > 1 else 0.5])
