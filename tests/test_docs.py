"""What the documentation shows runs as it is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest

from boxes import make_scenes, tool
from command import run, run_python
from ov_recipro.images.reading import read_image
from places import ROOT, SCENE_DETECTOR, SCENE_VIT
from served import serving
from transformers import Form
from transformers import save as save_transformer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = sorted(
    {
        command
        for path in PAGES
        for command in re.findall(r"^\$ ov-recipro (.*?)(?:  +#.*)?$", path.read_text(), re.M)
        if not command.startswith("serve ")  # which does not end
    }
)
SLOW = {"--layer auto --layer blocks.14 --against stream": "--layer auto"}
ELSEWHERE = {"s3://bucket/val": "photos"}
EXAMPLES = re.findall(
    r"^## (.+?)$.*?```python\n(.*?)```", (ROOT / "docs" / "pipelines.md").read_text(), re.M | re.S
)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, lite0: Path, cat: Path, models: dict[str, Path]
) -> Path:
    """The files that the documentation speaks of."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(lite0, folder / "model.onnx")
    shutil.copy(models["float"], folder / "float.onnx")
    shutil.copy(SCENE_VIT / "textures.onnx", folder / "vit.onnx")
    shutil.copy(models["qdq"], folder / "int8.onnx")
    for name in ("detector.onnx", "yolo11n.onnx"):  # Ultralytics' layout and metadata
        shutil.copy(SCENE_DETECTOR / "model.onnx", folder / name)
    save_as_ultralytics(lite0, folder / "yolo11n-cls.onnx")
    save_as_optimum(folder / "vit")
    for name, form in (("model", "ir"), ("int8", "ir8")):
        for suffix in (".xml", ".bin"):
            shutil.copy(models[form].with_suffix(suffix), folder / f"{name}{suffix}")
    cv2.imwrite(str(folder / "scene.png"), scene_with("ring"))
    for name in ("image.jpg", "cat.jpg", "photos/n02124075/cat.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cat, folder / name)
    (folder / "gallery").mkdir()
    for path in (cat, cat.with_name("coffee.jpg")):
        shutil.copy(path, folder / "gallery")
    (folder / "album").mkdir()
    for number, path in enumerate([cat, cat.with_name("coffee.jpg")] * 2):
        cv2.imwrite(str(folder / "album" / f"{number}.png"), read_image(path)[9 * number :])
    (folder / "val.csv").write_text("path,label\nimage.jpg,Egyptian cat\n")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "cat.xml").write_text(
        "<annotation><object><name>Egyptian cat</name><bndbox><xmin>20</xmin><ymin>1</ymin>"
        "<xmax>400</xmax><ymax>300</ymax></bndbox></object></annotation>"
    )
    frame = read_image(cat)
    writer = cv2.VideoWriter(
        str(folder / "clip.mp4"),
        cv2.VideoWriter.fourcc(*"mp4v"),
        25.0,
        (frame.shape[1], frame.shape[0]),
    )
    for _ in range(3):
        writer.write(frame)
    writer.release()
    return folder


def save_as_ultralytics(model: Path, path: Path) -> None:
    """Write a classifier with what Ultralytics' exports say of themselves."""
    loaded = onnx.load(model)
    del loaded.metadata_props[:]
    names = {index: f"class {index}" for index in range(1000)}
    for key, value in (("task", "classify"), ("imgsz", [224, 224]), ("names", names)):
        loaded.metadata_props.add(key=key, value=str(value))
    onnx.save(loaded, path)


def save_as_optimum(folder: Path) -> None:
    """Write a transformer with open axes, and the files that Optimum puts beside it."""
    folder.mkdir()
    form = Form(grid=(14, 14), patch=16, blocks=8)
    model = onnx.load(save_transformer(folder / "model.onnx", form))
    (given,) = model.graph.input
    names = ("batch_size", "num_channels", "height", "width")
    for dimension, name in zip(given.type.tensor_type.shape.dim, names, strict=True):
        dimension.dim_param = name
    onnx.save(model, folder / "model.onnx")
    prepared = {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(prepared | {"image_std": [0.5] * 3, "resample": 2})
    )


def scene_with(name: str) -> Any:
    """A picture with an object of this class, and others."""
    wanted = tool("detector_scenes").CLASSES.index(name)
    return next(
        scene.image
        for scene in make_scenes(50)
        if wanted in [each.class_index for each in scene.objects] and len(scene.objects) > 1
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, Any]]:
    """A Ray cluster that commands find by themselves: starting one for each takes long."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield {"RAY_ADDRESS": started.address}
    started.shutdown()


def test_there_are_commands() -> None:
    names = {command.split()[0] for command in COMMANDS}
    assert names == {
        *("layers", "split", "explain", "compare", "embed"),
        *("evaluate", "bench", "devices", "cache"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, folder: Path, request: pytest.FixtureRequest) -> None:
    for shown, done in (SLOW | ELSEWHERE).items():
        command = command.replace(shown, done)
    words = shlex.split(command)
    if words[0] in ("embed", "split"):
        for path in folder.glob("model.recipro"):
            shutil.rmtree(path)
        words.append("--force")
    shutil.rmtree(folder / "audit", ignore_errors=True)
    if words[0] == "evaluate":
        words += ["--step", "12544"] * ("--step" not in words)
    if words[0] == "bench":
        words += ["--runs", "3"]
    cache = os.environ["XDG_CACHE_HOME"]
    if words[0] == "cache":  # what it clears, other tests are using
        cache = str(folder / "cache")
    environment: dict[str, Any] = {"XDG_CACHE_HOME": cache}
    if "ray" in words:
        environment |= request.getfixturevalue("cluster")
        words += ["--address", "auto"] * ("--address" not in words)
        words += ["--actors", "1"]  # each takes seconds to start
    result = run(*words, cwd=folder, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.fixture(scope="module")
def embedded(folder: Path) -> Path:
    for name in ("explained.xml", "explained.onnx"):
        done = run("embed", "model.onnx", "-o", name, "--force", cwd=folder)
        assert done.returncode == 0, done.stderr
    done = run("embed", "model.onnx", "-o", "top3.xml", "-t", "top3", "--force", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def runs(code: str, folder: Path) -> None:
    done = run_python(code, folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_pipelines(title: str, code: str, embedded: Path) -> None:
    checks = {
        "OpenVINO Model API": "assert best.name == 'Egyptian_cat' and saliency.shape == (7, 7)",
        "A plain asynchronous loop, with overlays": "assert open('overlay-285.png', 'rb').read()",
        "Preprocessing in the graph": "assert saliency.shape == (1, 1000, 7, 7)",
        "Embedding without files": "assert len(compiled.outputs) == 2",
        "ONNX Runtime": "assert saliency.shape == (1, 1000, 7, 7)",
    }
    runs(f"{code}\n{checks[title]}", embedded)


def test_serving(folder: Path) -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    (command,) = re.findall(r"^\$ ov-recipro serve (.*?)$", page, re.M)
    words = shlex.split(command.replace("--port 8080", "").replace("--grpc-port 8081", ""))
    with serving(*words, cwd=folder) as server:
        runs(python_in("docs/serving.md").replace("127.0.0.1:8080", server.address), folder)


def python_in(name: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S))


RUN_ELSEWHERE = {f"docs/{name}.md" for name in ("hub", "pipelines", "recipes", "serving")}
SCRIPTS = [
    name
    for name in (path.relative_to(ROOT).as_posix() for path in PAGES)
    if python_in(name) and name not in RUN_ELSEWHERE
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_python(name: str, folder: Path, request: pytest.FixtureRequest) -> None:
    if name == "docs/scale.md":
        shutil.rmtree(folder / "audit", ignore_errors=True)
        words = ("--engine", "ray", "--address", "auto", "--actors", "1", "-o", "audit")
        environment = request.getfixturevalue("cluster")
        assert run("explain", "photos", *words, cwd=folder, **environment).returncode == 0
    given = (
        "import cv2, numpy as np, openvino, ov_recipro, shutil;"
        "frames = [cv2.imread('image.jpg')] * 3;"
        "x = np.zeros((1, 3, 224, 224), np.float32);"
        "ov_model = openvino.Core().read_model('model.onnx');"
        "shutil.rmtree('model.recipro', ignore_errors=True)"
    )
    runs(f"{given}\n{python_in(name)}", folder)
