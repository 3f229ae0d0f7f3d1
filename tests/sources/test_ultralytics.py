"""Exports of Ultralytics: what they say of themselves, as version 8.4 writes it, is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from command import run
from graphs import Builder
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.images.preprocess import Preprocessing

NAMES = {0: "tench", 1: "crow's nest", 2: 'a "quoted" name', 3: "n 3", 4: "n 4"}
EXPECTED = {
    "size": (24, 16),
    "resize": "shorter_side_crop",
    "crop_fraction": 1.0,
    "interpolation": "bilinear",
    "mean": (0, 0, 0),
    "scale": (255, 255, 255),
    "channels": "RGB",
}


def classifier(path: Path, shape: Sequence[int | str] = (1, 3, 24, 16), **said: object) -> Path:
    """Write an ONNX classifier with metadata as Ultralytics writes it: each value by `str`."""
    b = Builder(shape=shape)
    b.head(b.add("Relu", b.conv("image", 4, output="feature", strides=[4, 4])), output="logits")
    b.add("Softmax", "logits", output="scores")
    model = onnx.load(b.save(path))
    said = {"task": "classify", "imgsz": [24, 16], "names": NAMES, "stride": 1} | said
    for key, value in said.items():
        if value is not None:
            model.metadata_props.add(key=key, value=str(value))
    onnx.save(model, path)
    return path


def as_onnx(folder: Path) -> Path:
    return classifier(folder / "m.onnx")


def as_dynamic_onnx(folder: Path) -> Path:
    return classifier(folder / "m.onnx", ("batch", 3, "height", "width"))


def as_converted_ir(folder: Path) -> Path:
    """The ONNX export, made an IR by OpenVINO's own converter."""
    ov.save_model(ov.convert_model(classifier(folder / "m.onnx")), folder / "m.xml")
    return folder / "m.xml"


def as_ir(folder: Path, task: str = "classify", beside: str = "") -> Path:
    """Their own IR: the model type is YOLO whatever the task, and a description lies beside it."""
    model = ov.Core().read_model(classifier(folder / "m.onnx", task=None, names=None))
    info: dict[str, object] = {
        "model_type": "YOLO",
        "reverse_input_channels": True,
        "pad_value": 114,
        "scale_values": [255.0],
        "iou_threshold": 0.7,
        "labels": [name.replace(" ", "_") for name in NAMES.values()],
    }
    if task != "classify":
        info["resize_type"] = "fit_to_window_letterbox"
    for key, value in info.items():
        model.set_rt_info(value, ["model_info", key])
    ov.save_model(model, folder / "m.xml")
    names = "".join(f"  {index}: {name!r}\n" for index, name in NAMES.items())
    text = beside or f"stride: 1\ntask: {task}\nimgsz:\n- 24\n- 16\nnames:\n{names}"
    (folder / "metadata.yaml").write_text(text)
    return folder / "m.xml"


def as_ir_alone(folder: Path) -> Path:
    path = as_ir(folder)
    (folder / "metadata.yaml").unlink()
    return path


@pytest.mark.parametrize("make", [as_onnx, as_dynamic_onnx, as_converted_ir, as_ir, as_ir_alone])
def test_a_classifier(make: Callable[[Path], Path], tmp_path: Path) -> None:
    explainer = Explainer(make(tmp_path))
    found = explainer.preprocessing
    assert {key: getattr(found, key) for key in EXPECTED} == EXPECTED
    assert "assumed" not in found.source
    assert explainer.labels is not None
    assert [name.replace("_", " ") for name in explainer.labels] == list(NAMES.values())
    assert explainer(np.zeros((30, 30, 3), np.uint8), "crow's nest").targets[0].index == 1


def test_other_tasks_pad_to_the_inputs_size(tmp_path: Path) -> None:
    path = as_ir(tmp_path, "detect")
    with pytest.raises(ReciproError, match=r"a detector \(task 'detect', metadata.yaml\)"):
        split(path, tmp_path / "a")
    found = split(path, tmp_path / "a", task="classifier").manifest.preprocessing
    assert (found.resize, found.pad_value) == ("fit_to_window_letterbox", 114)
    (tmp_path / "metadata.yaml").unlink()
    again = split(path, tmp_path / "b", task="classifier").manifest.preprocessing
    assert again.resize == "fit_to_window_letterbox"


def test_what_is_asked_for_comes_first(tmp_path: Path) -> None:
    path = as_dynamic_onnx(tmp_path)
    bundle = split(path, tmp_path / "a", image_shape=(1, 3, 32, 32), labels=list("abcde"))
    assert bundle.manifest.image.shape == (1, 3, 32, 32)
    assert bundle.manifest.labels == tuple("abcde")
    given = split(path, tmp_path / "b", preprocessing=Preprocessing((24, 16), mean=(1, 2, 3)))
    assert given.manifest.preprocessing.mean == (1, 2, 3)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("names", "{0: 'a', 2: 'b'}", "must name every class"),
        ("names", "{0: ['a']}", "must name every class"),
        ("names", "__import__('os').abort()", "not a Python literal"),
        ("names", "[" * 100_000, "not a Python literal"),
        ("names", "'" + "a" * (2 << 20) + "'", "not a Python literal"),
        ("imgsz", "[0, 224]", "not a height and a width"),
        ("imgsz", "(3, 224, 224)", "not a height and a width"),
    ],
)
def test_metadata_that_makes_no_sense(key: str, value: str, text: str, tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", **{key: value})
    with pytest.raises(ReciproError, match=text) as error:
        split(path, tmp_path / "a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "beside",
    [
        "names: !!python/object/apply:os.abort []\n",
        "names: [unclosed\n",
        "names:\n  0: &a [x, x]\n  1: [*a, *a]\n",
        "#" * (2 << 20),
        "#" * (5 << 20),
        "[" * 100_000,
    ],
)
def test_descriptions_that_mean_harm(beside: str, tmp_path: Path) -> None:
    with pytest.raises(ReciproError) as error:
        split(as_ir(tmp_path, beside=beside), tmp_path / "a")
    assert str(tmp_path / "metadata.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_ir_whose_tensors_have_no_names(tmp_path: Path) -> None:
    """So OpenVINO's own conversion from PyTorch leaves it."""
    model = ov.Core().read_model(classifier(tmp_path / "m.onnx"))
    for node in model.get_ordered_ops():
        for port in node.outputs() if node.get_type_name() != "Parameter" else []:
            port.get_tensor().set_names(set())
    ov.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    got, expected = (Explainer(tmp_path / name) for name in ("m.xml", "m.onnx"))
    x = np.random.default_rng(0).standard_normal((1, 3, 24, 16)).astype(np.float32)
    np.testing.assert_allclose(got.explain_tensor(x).raw, expected.explain_tensor(x).raw, rtol=1e-5)
    done = run("embed", tmp_path / "m.xml", "-o", "embedded.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "saliency_map u8 [1,5,6,4]" in done.stderr


def test_a_task_that_doubles_with_each_line_is_not_written_out(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    path = as_ir(tmp_path, beside="\n".join([*lines, "task: *a59", "names: [a, b, c, d, e]\n"]))
    assert split(path, tmp_path / "a").manifest.preprocessing.resize == "shorter_side_crop"


def test_other_metadata_of_these_names_is_not_theirs(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", task="image-classification", names="cat,dog")
    manifest = split(path, tmp_path / "a").manifest
    assert manifest.labels is None
    assert "assumed" in manifest.preprocessing.source
