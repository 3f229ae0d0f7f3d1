"""What other tools run of this project: an Action, a hook, completion, a notebook, a demo."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from command import run, run_python
from graphs import Builder
from places import ROOT


def run_step(
    folder: Path, reference: str, model: str, least: str
) -> subprocess.CompletedProcess[str]:
    """Run the Action's own step as a runner does."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    step = action["runs"]["steps"][-1]
    given = {"reference": reference, "model": model, "images": "photos", "min-correlation": least}
    values = {name: each.get("default") for name, each in action["inputs"].items()} | given
    env = {
        name: values[text.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, text in step["env"].items()
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env=os.environ | {"PATH": path} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_action(tmp_path: Path, cat: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a cat.jpg").write_bytes(cat.read_bytes())
    for seed in (0, 1):
        b = Builder(seed=seed)
        b.head(b.add("Relu", b.conv("image", 6)))
        b.save(tmp_path / f"{seed}.onnx")
    for model, code in (("0.onnx", 0), ("1.onnx", 1)):
        done = run_step(tmp_path, "0.onnx", model, "0.9")
        assert done.returncode == code, done.stderr
        assert (tmp_path / "comparison" / "comparison.json").exists()


def test_the_hook(tmp_path: Path, lite0: Path, cat: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *words = shlex.split(hook["entry"])
    assert program == "ov-recipro"
    assert not hook["pass_filenames"]
    done = run(*words, lite0, lite0, cat, "--min-correlation", "0.9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shell", "words", "place"),
    [
        ("bash", {"COMP_WORDS": "ov-recipro expl", "COMP_CWORD": "1"}, "plain,explain"),
        ("zsh", {"COMP_WORDS": "ov-recipro explain --prec", "COMP_CWORD": "2"}, "--precision"),
        ("fish", {"COMP_WORDS": "ov-recipro expl", "COMP_CWORD": "expl"}, "plain,explain"),
    ],
)
def test_completion(
    shell: str, words: dict[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "completion.md").read_text()
    assert f"_OV_RECIPRO_COMPLETE={shell}_source ov-recipro" in page
    source = run(cwd=tmp_path, _OV_RECIPRO_COMPLETE=f"{shell}_source")
    assert "_OV_RECIPRO_COMPLETE" in source.stdout
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    found = run(cwd=tmp_path, _OV_RECIPRO_COMPLETE=f"{shell}_complete")
    assert place in found.stdout


NOTEBOOK = """
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(NAME, as_version=4)
NotebookClient(notebook, timeout=100).execute()
nbformat.write(notebook, NAME)
"""
DEMO = """
from pathlib import Path

import numpy as np
import gradio_demo
import ov_recipro
from ov_recipro.images.reading import read_image

explainer = ov_recipro.Explainer()
page = gradio_demo.demo(explainer)
image = read_image(Path("chelsea.jpg"))
overlay, scores, _ = page.fn(image[:, :, ::-1], "tabby")
np.testing.assert_array_equal(overlay[:, :, ::-1], explainer(image, "tabby").overlay())
assert max(scores, key=scores.get) == "Egyptian cat"
try:
    page.fn(image, "unicorn")
except gradio_demo.gr.Error as error:
    assert "no class" in str(error)
else:
    raise AssertionError
"""


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for path in (ROOT / "examples").iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_notebook(examples: Path) -> None:
    done = run_python(f"NAME = 'explain.ipynb'{NOTEBOOK}", examples)
    assert done.returncode == 0, done.stderr
    cells = json.loads((examples / "explain.ipynb").read_text())["cells"]
    outputs = [each for cell in cells for each in cell.get("outputs", [])]
    shown = [each["data"] for each in outputs if each["output_type"] == "execute_result"]
    assert sum("text/html" in each for each in shown) == 3
    assert "'supported'" in "".join(shown[-1]["text/plain"])


def test_the_demo(examples: Path) -> None:
    done = run_python(f"import sys; sys.path.insert(0, '.'){DEMO}", examples)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["mlflow", "wandb", "fiftyone"])
def test_recipes(package: str, tmp_path: Path, lite0: Path, cat: Path) -> None:
    """Where the package is installed; none is among the tests' own."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    shutil.copy(lite0, tmp_path / "model.onnx")
    for name in ("image.jpg", "cat.jpg"):
        shutil.copy(cat, tmp_path / name)
    page = (ROOT / "docs" / "recipes.md").read_text()
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", page, re.S) if f"import {package}" in c
    )
    settings = (
        "import os; os.environ |= {'WANDB_MODE': 'offline', 'MLFLOW_ALLOW_FILE_STORE': 'true',"
        " 'MLFLOW_TRACKING_URI': 'file:runs'}"
    )
    done = run_python(f"{settings}\n{code}", tmp_path)
    assert done.returncode == 0, done.stderr
