"""The command line, as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from command import COMMAND, fails, run
from graphs import Builder, residual
from ov_recipro.images.reading import read_image
from places import SCENE_VIT


def test_explain_with_the_bundled_model(tmp_path: Path, cat: Path) -> None:
    result = run("explain", cat, "-t", "tabby", "-t", "282", "--save-maps", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "efficientnet-lite0.onnx" in result.stderr
    assert "Egyptian cat 0.376" in result.stdout
    assert "explanations/chelsea.png" in result.stdout
    folder = tmp_path / "explanations"
    assert {p.name for p in folder.iterdir()} == {
        "chelsea.png",
        "chelsea.282.png",
        "chelsea.npz",
        "explanations.json",
    }
    assert read_image(folder / "chelsea.png").shape == read_image(cat).shape
    record = json.loads((folder / "explanations.json").read_text())
    assert record["layer"] == "/swish_1/Clip_output_0"
    assert (record["plan"], record["precision"], record["device"]) == ("rows", "f32", "CPU")
    (image,) = record["images"]
    assert [p["index"] for p in image["predictions"]][:1] == [285]
    first, second = image["targets"]
    assert (first["index"], first["label"], second["index"]) == (281, "tabby", 282)
    assert (first["overlay"], first["maps"]) == ("chelsea.png", "chelsea.npz")
    assert (first["distinct_values"], first["flat"]) == (49, False)
    with np.load(folder / "chelsea.npz") as maps:
        assert (maps["maps"].shape, maps["maps"].dtype) == ((2, 7, 7), np.float32)
        assert maps["targets"].tolist() == [281, 282]
        assert maps["feature_shape"].tolist() == [1280, 7, 7]
        low, high = first["range"]
        scaled = (maps["raw"][0] - low) / (high - low)
        np.testing.assert_allclose(maps["maps"][0], scaled, atol=1e-5)


def test_json_and_standard_input(tmp_path: Path, cat: Path) -> None:
    result = run("explain", "-", "--json", cwd=tmp_path, stdin=cat.read_bytes())
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["images"][0]["path"] == "-"
    assert (tmp_path / "explanations" / "stdin.png").is_file()


def test_split_then_explain_finds_the_bundle(tmp_path: Path, cat: Path, lite0: Path) -> None:
    shutil.copy(lite0, tmp_path / "net.onnx")
    done = run("split", "net.onnx", "--layer", "conv5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "net.recipro" in done.stdout
    assert "parity" in done.stdout
    result = run("explain", cat, cwd=tmp_path)
    assert "Model: net.recipro" in result.stderr
    assert (
        json.loads((tmp_path / "explanations" / "explanations.json").read_text())["layer_asked"]
        == "conv5"
    )
    shutil.copytree(tmp_path / "net.recipro", tmp_path / "two.recipro")
    fails(run("explain", cat, cwd=tmp_path), "net.recipro, two.recipro")
    named = run("explain", cat, cwd=tmp_path, OV_RECIPRO_MODEL="two.recipro")
    assert "Model: two.recipro" in named.stderr
    fails(run("explain", cat, "-m", "net.recipro", "--layer", "3", cwd=tmp_path), "already split")


def test_a_moved_cut_is_said(tmp_path: Path) -> None:
    residual(tmp_path / "m.onnx")
    result = run("split", "m.onnx", "--layer", "b", cwd=tmp_path)
    assert "'b' is not a clean cut; cut at the end of its block: 'sum'." in result.stderr
    exact = run("split", "m.onnx", "--layer", "b", "--exact", "--force", cwd=tmp_path)
    assert "carried  stem_relu" in exact.stdout


def test_layers(tmp_path: Path, lite0: Path) -> None:
    table = run("layers", lite0, cwd=tmp_path).stdout
    assert "/blocks.14/project_conv/Conv_output_0" in table
    rows = json.loads(run("layers", lite0, "--json", cwd=tmp_path).stdout)
    assert rows[-1]["tensor"] == "/swish_1/Clip_output_0"
    assert rows[-1]["shape"] == [1280, 7, 7]
    assert (rows[-1]["stride"], rows[-1]["clean"]) == (32, True)
    inner = next(row for row in rows if row["node"] == "/blocks.14/depthwise_conv/Conv")
    assert inner["bypass"] == ["/blocks.13/Add_output_0"]
    assert "  rows    1.16  yes" in table
    assert (inner["plan"], rows[-1]["plan"]) == ("stream", "rows")
    assert (inner["plan_reason"], rows[-1]["plan_reason"]) == ("tensors bypass the cut", None)


def test_layers_of_a_transformer(tmp_path: Path) -> None:
    model = SCENE_VIT / "textures.onnx"
    lines = run("layers", model, cwd=tmp_path).stdout.splitlines()
    assert lines[0].split()[:4] == ["index", "block", "prefix", "tensor"]
    assert lines[2].split()[:4] == ["1", "blocks.0", "1", "/Add_output_0"]
    assert "The deeper the block" in lines[-1]
    rows = json.loads(run("layers", model, "--json", cwd=tmp_path).stdout)
    assert [row["layout"] for row in rows] == ["NCHW", *["NTC"] * 6]
    assert [row["block"] for row in rows] == [None, *range(6)]
    assert {row["plan"] for row in rows[1:]} == {"tokens"}
    costs = [row["cost"] for row in rows[1:]]
    assert costs == sorted(costs, reverse=True)
    assert 2 < costs[0] < 3


def test_explaining_a_transformer(tmp_path: Path, cat: Path) -> None:
    model = SCENE_VIT / "textures.onnx"
    options = ("-m", model, "--save-maps", "--mean", "0,0,0", "--scale", "255,255,255")
    run("explain", cat, *options, cwd=tmp_path)
    record = json.loads((tmp_path / "explanations" / "explanations.json").read_text())
    assert record["layer"] == "/Add_output_0"
    assert record["plan"] == "tokens"
    (target,) = record["images"][0]["targets"]
    assert target["next_layer"] == "blocks.3"
    assert np.load(tmp_path / "explanations" / "chelsea.npz")["maps"].shape == (1, 10, 10)
    result = run("explain", cat, *options, "--max-cost", "1.5", "-o", "other", cwd=tmp_path)
    fails(result, "the limit is 1.5", "'/blocks/blocks.3/Add_1_output_0', further on")


def test_a_costly_layer_is_refused_and_a_cheaper_one_named(tmp_path: Path, cat: Path) -> None:
    options = ["--layer", "blocks.14/depthwise_conv/Conv", "--exact", "--max-cost", "2"]
    result = run("explain", cat, *options, cwd=tmp_path)
    cheaper = "/blocks.14/Add_output_0"
    fails(result, "would cost about 8.84 inferences", f"'{cheaper}', further on, would cost about")
    assert not list((tmp_path / "explanations").iterdir())
    result = run("explain", cat, "--layer", cheaper, "--max-cost", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_costly_layer_of_a_bundle_is_refused(tmp_path: Path, cat: Path, lite0: Path) -> None:
    made = run("split", lite0, "--layer", "blocks.5", "-o", "b.recipro", cwd=tmp_path)
    assert "plan     rows, 196 cells, about 91.7 x one inference per image" in made.stdout
    result = run("explain", cat, "-m", "b.recipro", cwd=tmp_path)
    fails(result, "91.7 inferences per image; the limit is 25", "'ov-recipro layers' lists")


def test_bench_compares_plans_in_one_run(tmp_path: Path, lite0: Path) -> None:
    """What it measures, not how fast that is."""
    options = ["--layer", "blocks.14", "--runs", "3", "--against", "stream", "--json"]
    result = run("bench", "-m", lite0, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows, stream = json.loads(result.stdout)
    assert (rows["plan"], stream["plan"], rows["grid"]) == ("rows", "stream", "7x7")
    assert rows["ratio"] == pytest.approx(rows["explain_ms"] / rows["plain_ms"])
    assert 1 < rows["bound"] < 3
    assert stream["bound"] is None
    assert all(50 < row["plain_rss_mb"] <= row["peak_rss_mb"] for row in (rows, stream))


def test_devices(tmp_path: Path) -> None:
    devices = json.loads(run("devices", "--json", cwd=tmp_path).stdout)
    assert next(d for d in devices if d["device"] == "CPU")["available"]
    assert {"GPU", "NPU"} <= {d["device"].partition(".")[0] for d in devices}


def test_assumed_preprocessing_is_said_once_and_can_be_given(tmp_path: Path, cat: Path) -> None:
    residual(tmp_path / "m.onnx")
    assumed = run("explain", cat, "-m", "m.onnx", cwd=tmp_path)
    assert assumed.stderr.count("assumed") == 1
    given = run("explain", cat, "-m", "m.onnx", "--mean", "1,2,3", "--json", cwd=tmp_path)
    assert "assumed" not in given.stderr
    assert json.loads(given.stdout)["preprocessing"]["mean"] == [1, 2, 3]


def bad_models(folder: Path, lite0: Path) -> None:
    (folder / "text.onnx").write_text("this is no model\n" * 50)
    (folder / "empty.onnx").touch()
    (folder / "cut.onnx").write_bytes(lite0.read_bytes()[:2_000_000])
    (folder / "m.weights").touch()
    b = Builder(shape=(1, 3, 8, 8))
    b.linear(b.add("Flatten", "image"), 192)
    b.save(folder / "flat.onnx")
    b = Builder(shape=(1, 5, 8, 8))
    b.channels["image"] = 5
    b.head(b.conv("image", 4))
    b.save(folder / "five.onnx")
    b = Builder()
    b.head(b.conv("image", 4))
    b.weights[0].CopyFrom(_with_nan(b.weights[0]))
    b.save(folder / "nan.onnx")


def _with_nan(tensor: object) -> object:
    import onnx

    values = onnx.numpy_helper.to_array(tensor).copy()  # type: ignore[arg-type]
    values.flat[0] = np.nan
    return onnx.numpy_helper.from_array(values, tensor.name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("text.onnx", "not a readable ONNX file"),
        ("empty.onnx", "not an ONNX model"),
        ("cut.onnx", "not a readable ONNX file"),
        ("flat.onnx", "no 4-D feature map"),
        ("five.onnx", "no axis of 3 colours"),
        ("nan.onnx", "NaN or infinite"),
        ("m.weights", "a model's file name must end in .onnx or .xml"),
        ("absent.onnx", "does not exist"),
    ],
)
def test_bad_models(model: str, message: str, tmp_path: Path, lite0: Path, cat: Path) -> None:
    bad_models(tmp_path, lite0)
    before = set(tmp_path.iterdir())
    fails(run("split", model, cwd=tmp_path), message)
    assert set(tmp_path.iterdir()) == before
    fails(run("explain", cat, "-m", model, cwd=tmp_path), message)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "no such class"], "no class 'no such class'"),
        (["-t", "1000"], "There is no class 1000"),
        (["-t", "crane"], "ambiguous"),
        (["-d", "GPU.7"], "Device 'GPU.7' is not available here"),
        (["-d", "ort-cpu:1"], "There is no device 'ort-cpu:1'"),
        (["--layer", "blocks.99"], "No layer 'blocks.99'"),
        (["--labels", "short.txt"], "2 labels for the model's 1000 classes"),
        (["--labels", "absent.txt"], "can't be read"),
        (["-o", "file"], "can't be written to"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, cat: Path) -> None:
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    (tmp_path / "file").touch()
    fails(run("explain", cat, *arguments, cwd=tmp_path), message)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "arguments", [[], ["a.jpg", "--mean", "1,2"], ["a.jpg", "--score", "x"], ["a.jpg", "--nope"]]
)
def test_usage(arguments: list[str], tmp_path: Path) -> None:
    fails(run("explain", *arguments, cwd=tmp_path), code=2)
    fails(run("nonsense", cwd=tmp_path), code=2)


def test_bad_images_among_good_ones(tmp_path: Path, cat: Path, coffee: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(cat, images / "1.jpg")
    (images / "2.jpg").write_bytes(coffee.read_bytes()[:30000])
    (images / "3.png").write_text("not a picture")
    shutil.copy(coffee, images / "4.jpg")
    result = run("explain", images, "absent.jpg", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "images/2.jpg: not an image, or a truncated one." in result.stderr
    assert "images/3.png: not an image" in result.stderr
    assert "absent.jpg: No such file" in result.stderr
    assert "3 of 5 images could not be explained; the others are done." in result.stderr
    folder = tmp_path / "explanations"
    assert {p.name for p in folder.iterdir()} == {"1.png", "4.png", "explanations.json"}
    record = json.loads((folder / "explanations.json").read_text())
    assert len(record["images"]) == 2
    assert [Path(e["path"]).name for e in record["errors"]] == ["2.jpg", "3.png", "absent.jpg"]


def test_a_directory_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(run("explain", "empty", cwd=tmp_path), "empty: no images")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, cat: Path) -> None:
    """A file-size limit stands in for a full disk: the overlay does not fit, and is not there."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from ov_recipro.splitting.bundle_cache import cached_split;"
        "from ov_recipro.sources.default_model import bundled_model;"
        "cached_split(bundled_model()); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from ov_recipro.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "explain", str(cat)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    fails(
        subprocess.CompletedProcess([], result.returncode, result.stdout, result.stderr),
        "chelsea.png can't be written: File too large",
    )
    assert [p.name for p in (tmp_path / "explanations").iterdir()] == ["explanations.json"]


def test_interrupted_by_the_user(tmp_path: Path, cat: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(400):
        (images / f"{number:03}.jpg").symlink_to(cat)
    process = subprocess.Popen(
        [*COMMAND, "explain", str(images)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "explanations"
    limit = time.monotonic() + 60
    while not list(folder.glob("*.png")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    record = json.loads((folder / "explanations.json").read_text())
    overlays = {p.name for p in folder.glob("*.png")}
    assert 0 < len(record["images"]) < 400
    assert {target["overlay"] for i in record["images"] for target in i["targets"]} <= overlays
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_importing_the_command_line_imports_no_runtime(tmp_path: Path) -> None:
    code = (
        "import sys; import ov_recipro.cli, ov_recipro;"
        "print([m for m in ('onnx', 'openvino', 'cv2', 'rich') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_explaining_from_a_bundle_imports_no_onnx(tmp_path: Path, cat: Path, lite0: Path) -> None:
    run("split", lite0, "-o", "b.recipro", cwd=tmp_path)
    code = (
        "import sys, ov_recipro;"
        f"ov_recipro.Explainer('b.recipro')({str(cat)!r});"
        "print([m for m in ('onnx', 'onnx_ir', 'rich') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
