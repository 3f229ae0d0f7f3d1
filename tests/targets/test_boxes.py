"""Boxes of real detectors: maps against a slow oracle, decoded outputs against the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from boxes import make_scenes, write_two_stages
from command import fails, run
from ov_recipro import Explainer
from ov_recipro.cut.bundle import Bundle, open_bundle
from ov_recipro.errors import ModelError, OptionError, TargetError
from ov_recipro.images.reading import read_image
from ov_recipro.splitting.split import split
from ov_recipro.targets.boxes import Box, BoxTarget, near
from ov_recipro.targets.candidates import decode, detections, iou
from places import DETECTORS, ROOT, SCENE_DETECTOR

CAT = ROOT / "examples" / "chelsea.jpg"
MODELS = {
    "fastestdet": DETECTORS / "fastestdet.onnx",
    "ultraface": DETECTORS / "ultraface-RFB-320.onnx",
    "scenes": SCENE_DETECTOR / "model.onnx",
}


def model_of(name: str) -> Path:
    if not MODELS[name].is_file():
        pytest.skip(f"{MODELS[name].name} is not there")
    return MODELS[name]


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("detector") / "bundle"
    return split(model_of(request.param), folder, layer="1")  # the coarsest cells


def image_of(bundle: Bundle) -> npt.NDArray[np.uint8]:
    """A photograph, or for the model of scenes one of these."""
    if bundle.manifest.image.size == (160, 160):
        return np.asarray(make_scenes(1)[0].image)
    return read_image(CAT)


def path_of(bundle: Bundle) -> Path:
    return next(path for path in MODELS.values() if path.name == bundle.manifest.source.name)


class Masked:
    """A whole ONNX detector, several of whose tensors are replaced by their masked values.

    They are nested: a level's map is made from that of the one before, which its mask must not
    change. So an unmasked run gives them all first.
    """

    def __init__(self, model: Path, tensors: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        proto = onnx.load(model)
        graph = proto.graph
        held = {each.name for each in graph.initializer}
        (self._image,) = (each.name for each in graph.input if each.name not in held)
        self._tensors, self._outputs = tensors, list(outputs)
        for tensor in tensors:
            for each in graph.node:
                each.input[:] = [f"{tensor}/m" if name == tensor else name for name in each.input]
            made = next(i for i, each in enumerate(graph.node) if tensor in each.output)
            inputs = ["is_plain", tensor, f"{tensor}/in"]
            graph.node.insert(made + 1, onnx.helper.make_node("Where", inputs, [f"{tensor}/m"]))
            add = onnx.helper.make_tensor_value_info
            graph.input.append(add(f"{tensor}/in", onnx.TensorProto.FLOAT, [1, None, None, None]))
            graph.output.append(add(tensor, onnx.TensorProto.FLOAT, None))
        graph.input.append(
            onnx.helper.make_tensor_value_info("is_plain", onnx.TensorProto.BOOL, [])
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, image: npt.NDArray[Any], masks: list[npt.NDArray[Any]]) -> Any:
        nothing = {f"{tensor}/in": np.zeros((1, 1, 1, 1), np.float32) for tensor in self._tensors}
        plain = {self._image: image, "is_plain": np.array(True)}
        maps = self._session.run(list(self._tensors), plain | nothing)
        masked = {
            f"{tensor}/in": each * mask[None, None]
            for tensor, each, mask in zip(self._tensors, maps, masks, strict=True)
        }
        feeds = plain | {"is_plain": np.array(False)} | masked
        return np.concatenate([np.ravel(each) for each in self._session.run(self._outputs, feeds)])


def share(cell: int, grid: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """How much of each pixel lies in a cell, by counting on a fine raster."""
    fine = np.zeros(grid, np.float32)
    fine[divmod(cell, grid[1])] = 1
    fine = fine.repeat(size[0], 0).repeat(size[1], 1)
    counted = fine.reshape(size[0], grid[0], size[1], grid[1])
    return np.asarray(counted.mean(axis=(1, 3)), np.float32)


def box_score(found: Any, target: BoxTarget) -> float:
    """The definition, over the candidates that lie near the box."""
    best = 0.0
    for anchor in target.anchors if target.anchors is not None else range(found.boxes.shape[1]):
        x0, y0, x1, y1 = map(float, found.boxes[0, anchor])
        left, top, right, bottom = target.edges
        common = max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
        union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - common
        best = max(best, common / union * float(found.scores[0, anchor, target.index]))
    return best


@pytest.mark.parametrize(("mask", "plan"), [("drop", "auto"), ("drop", "stream"), ("cell", "auto")])
def test_maps_are_those_of_masks_in_the_whole_model(bundle: Bundle, mask: Any, plan: Any) -> None:
    explainer = Explainer(bundle, mask=mask, plan=plan)
    image = image_of(bundle)
    found = explainer(image, threshold=0.05)
    manifest = bundle.manifest
    assert manifest.boxes is not None
    tensor, _ = explainer._prepared(image)
    layout = manifest.boxes
    model = Masked(path_of(bundle), manifest.cut.masked, layout.outputs)
    sizes = [(shape[2], shape[3]) for shape in manifest.boundary_shapes]
    plain = decode(model(tensor, [np.ones(size, np.float32) for size in sizes])[None], layout)
    grid = manifest.cut.grid
    cells = range(0, grid[0] * grid[1], 1 if grid[0] * grid[1] < 40 else 7)
    for target, raw in zip(found.scored, found.raw, strict=True):
        own = box_score(plain, target)
        for cell in cells:
            masks = [share(cell, grid, size) for size in sizes]
            masks = [1 - each for each in masks] if mask == "drop" else masks
            score = box_score(decode(model(tensor, masks)[None], layout), target)
            expected = own - score if mask == "drop" else score
            assert raw.ravel()[cell] == pytest.approx(expected, abs=1e-4 * own), cell


def test_decoded_outputs_are_the_models(bundle: Bundle) -> None:
    explainer = Explainer(bundle, plan="stream")
    layout = bundle.manifest.boxes
    assert layout is not None
    image = image_of(bundle)
    tensor, _ = explainer._prepared(image)
    session = onnxruntime.InferenceSession(
        path_of(bundle).read_bytes(), providers=["CPUExecutionProvider"]
    )
    feeds = {bundle.manifest.image.name: tensor}
    row = np.concatenate([np.ravel(each) for each in session.run(list(layout.outputs), feeds)])
    expected = detections(decode(row[None], layout), 0.05)
    predictions = explainer(image, threshold=0.05).predictions
    assert len(predictions) == min(len(expected), 300) > 0
    for prediction, each in zip(predictions, expected, strict=False):
        assert prediction.index == each.class_index
        assert prediction.score == pytest.approx(each.score, abs=1e-4)


@pytest.fixture(scope="module")
def cats() -> Explainer:
    model = model_of("fastestdet")
    names = tuple((DETECTORS / "coco.names").read_text().split("\n")[:80])
    return Explainer(model, layer="1", labels=names)


def test_the_cat_is_found_and_explained_inside_its_box(cats: Explainer) -> None:
    found = cats(CAT)
    best = found.targets[0]
    assert isinstance(best, Box)
    assert (best.label, best.number, best.missed) == ("cat", 1, False)
    assert best.score == pytest.approx(found.predictions[0].score, abs=1e-4)
    x, y, width, height = best.box
    raw = cv2.resize(found.raw[0], (451, 300))
    row, column = np.unravel_index(raw.argmax(), raw.shape)
    assert x <= column <= x + width
    assert y <= row <= y + height
    assert best.anchor is not None
    assert best.reach is not None
    assert 0 < best.reach <= found.raw[0].size
    assert best.lost == pytest.approx(found.raw[0].max())


def test_boxes_are_chosen_by_number_class_and_place(cats: Explainer) -> None:
    everything = cats(CAT, box="all", threshold=0.1)
    assert len(everything.targets) == len(everything.predictions) > 3
    assert [t.number for t in cats(CAT, threshold=0.1).targets if isinstance(t, Box)] == [1, 2, 3]
    (second,) = cats(CAT, box=2, threshold=0.1).targets
    assert second.box == everything.predictions[1].outline  # type: ignore[attr-defined]
    by_class = cats(CAT, ["cat"], threshold=0.1).targets
    assert {target.label for target in by_class} == {"cat"}
    (drawn,) = cats(CAT, ["cat"], box=everything.predictions[0].outline).targets
    assert isinstance(drawn, Box)
    assert (drawn.number, drawn.missed) == (None, False)
    assert drawn.score == pytest.approx(everything.targets[0].score, abs=5e-3)


def test_a_missed_box_is_explained_by_what_suppresses_it(cats: Explainer) -> None:
    found = cats(CAT, ["dog"], box=everywhere(cats))
    (target,) = found.targets
    assert isinstance(target, Box)
    assert target.missed
    assert target.label == "dog"
    drop = Explainer(cats.bundle, labels=cats.labels, plan="stream")
    (scored,) = found.scored
    tensor, _ = drop._prepared(read_image(CAT))
    with drop._runtime.infer(tensor) as inference:
        own = scored.scores(inference.logits[None][:, scored.reads], None)
        runs = [
            scored.scores(logits[:, scored.reads], None) for logits, _ in inference.masked(None)
        ]
    gained = np.concatenate(runs) - own
    assert np.allclose(found.raw[0].ravel(), gained, atol=1e-4 * max(own.item(), gained.max()))


def everywhere(explainer: Explainer) -> Any:
    return explainer(CAT).predictions[0].outline


@pytest.fixture(scope="module")
def scenes() -> Explainer:
    return Explainer(SCENE_DETECTOR / "model.onnx", plan="stream")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"threshold": 0.999}, TargetError, "No box scores 0.999 or more; the best one scores 0.9"),
        ({"box": 99}, TargetError, "There is no box 99: the image has 3, from 1 on"),
        ({"box": True}, OptionError, "--box is a number"),
        (
            {"box": 2, "targets": ["light-dot plate"]},
            TargetError,
            "Box 2 is of another class: ring",
        ),
        ({"box": (9000.0, 9000.0, 20.0, 20.0)}, TargetError, "No candidate of the model overlaps"),
        ({"box": (1.0, 1.0, 0.0, 5.0)}, OptionError, "with WIDTH and HEIGHT above 0"),
        ({"box": "some"}, OptionError, "--box is a number, all, or"),
        ({"threshold": 0.0}, OptionError, "must be above 0"),
        ({"targets": ["top5"]}, OptionError, "'top5' ranks classes"),
        ({"targets": ["unicorn"]}, TargetError, "unicorn"),
        ({"targets": ["wedge"]}, TargetError, "No box of wedge scores 0.4 or more"),
    ],
)
def test_what_can_not_be_explained_is_said(
    scenes: Explainer, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        scenes(make_scenes(1)[0].image, **options)


def test_boxes_as_python_has_them(cats: Explainer) -> None:
    edges = cats(CAT).predictions[0].outline
    assert edges is not None
    for box in (list(edges), np.array(edges)):
        (target,) = cats(CAT, box=box).targets
        assert isinstance(target, Box)
        assert target.number is None
    (first,) = cats(CAT, box=np.int64(1)).targets
    assert isinstance(first, Box)
    assert first.number == 1


def test_options_that_boxes_do_not_take(scenes: Explainer) -> None:
    with pytest.raises(OptionError, match="--score is for classes"):
        Explainer(scenes.bundle, score="softmax")
    with pytest.raises(OptionError, match="--mask spread can't mask several feature maps"):
        Explainer(scenes.bundle, mask="spread")


def test_a_damaged_layout_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    split(MODELS["scenes"], folder, layer="1")
    file = folder / "recipro.json"
    right = msgspec.json.decode(file.read_bytes())
    changes: list[dict[str, Any]] = [{"parts": []}, {"classes": 60}, {"shapes": [[1, 10, 20]]}]
    for change in changes:
        file.write_bytes(msgspec.json.encode(right | {"boxes": right["boxes"] | change}))
        with pytest.raises(ModelError, match="its boxes do not fit its outputs"):
            open_bundle(folder)


@pytest.mark.parametrize("producer", ["pytorch", "tf2onnx"])
def test_suppression_inside(producer: str, tmp_path: Path) -> None:
    """PyTorch gives the operator corners with x first, others as it is defined."""
    model = model_of("ultraface")
    proto = onnx.load(model)
    proto.producer_name = producer
    graph = proto.graph
    values = {
        "order": np.array([0, 1, 2, 3] if producer == "pytorch" else [1, 0, 3, 2]),
        "face": np.array([1]),
        "most": np.array([20]),
        "overlap": np.array([0.5], np.float32),
        "threshold": np.array([0.4], np.float32),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in values.items())
    node = onnx.helper.make_node
    read = ["edges", "faces", "most", "overlap", "threshold"]
    graph.node.extend(
        [
            node("Gather", ["boxes", "order"], ["edges"], axis=2),
            node("Gather", ["scores", "face"], ["of_faces"], axis=2),
            node("Transpose", ["of_faces"], ["faces"], perm=[0, 2, 1]),
            node("NonMaxSuppression", read, ["selected_indices"]),
        ]
    )
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("selected_indices", 7, [None, 3]))
    onnx.save(proto, tmp_path / "m.onnx")
    inside = Explainer(tmp_path / "m.onnx", layer="1", plan="stream")
    assert inside.bundle.manifest.boxes is not None
    assert inside.bundle.manifest.boxes.family == "suppression"
    how = Explainer(model, layer="1", plan="stream")
    expected = how(CAT, threshold=0.1).predictions
    prepared, window = how._prepared(read_image(CAT))
    found = inside._explained(prepared, inside.find_targets(threshold=0.1), window).predictions
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert ours.outline == pytest.approx(theirs.outline, abs=0.2)


def test_boxes_are_for_detectors_alone() -> None:
    with pytest.raises(OptionError, match="--box is for a detector; this model is a classifier"):
        Explainer(plan="stream")(CAT, box=1)


def test_candidates_near_a_box() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [100, 100, 110, 110]], np.float32)
    assert near(np.repeat(boxes, 40, axis=0), (0, 0, 10, 10)).tolist() == list(range(80))
    assert near(boxes, (0, 0, 10, 10)).tolist() == [0, 1]
    assert iou(boxes, (0, 0, 10, 10))[1] == pytest.approx(1 / 3)


def test_on_the_command_line(tmp_path: Path) -> None:
    model = model_of("fastestdet")
    labels = DETECTORS / "coco.names"
    options = ("-m", model, "--labels", labels, "--layer", "1", "-o", tmp_path)
    done = run("explain", CAT, *options, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("boxes")
    assert lines[1].startswith("  1 cat 0.8")
    record = msgspec.json.decode((tmp_path / "explanations.json").read_bytes())
    target = record["images"][0]["targets"][0]
    assert {"box", "number", "anchor", "lost", "reach", "missed"} <= target.keys()
    assert record["mask"] == "drop"
    assert record["layer"].count(",") == 2
    drawn = read_image(tmp_path / "chelsea.png")
    _, y, _, height = target["box"]
    assert (drawn[round(y + height)] == 255).all(axis=-1).sum() > 100  # the lower edge


def test_two_stages_are_told_of_black_boxes(tmp_path: Path) -> None:
    """Boxes that leave only through Compress, as torchvision's do: their number is open."""
    model = write_two_stages(tmp_path / "stages.onnx")
    scene = image_of(split(MODELS["scenes"], tmp_path / "b", layer="1"))
    cv2.imwrite(str(tmp_path / "scene.png"), scene)
    arguments = ("explain", "scene.png", "-m", model, "-o", "out")
    fails(
        run(*arguments, cwd=tmp_path),
        "--method occlusion (in evaluate, --methods) can still explain it",
    )
    done = run(*arguments, "--method", "occlusion", "--box", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = msgspec.json.decode((tmp_path / "out" / "explanations.json").read_bytes())
    assert (record["method"], record["plan"]) == ("occlusion", "whole")
    whole = record["images"][0]["targets"][0]
    assert 0 < whole["runs"] <= 121
    cut = Explainer(MODELS["scenes"], method="occlusion")(scene, box=1).targets[0]
    assert isinstance(cut, Box)
    assert whole["index"] == cut.index
    assert whole["box"] == pytest.approx(cut.box, abs=0.2)
    assert whole["lost"] >= cut.lost - 0.05  # its boxes below 0.3 are gone altogether
