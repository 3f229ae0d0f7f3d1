"""The examples of the documentation run as they are printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import run

PIPELINES = Path(__file__).parent.parent / "docs" / "pipelines.md"
EXAMPLES = re.findall(r"^## (.+?)$.*?```python\n(.*?)```", PIPELINES.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lite0: Path, cat: Path) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(lite0, folder / "model.onnx")
    shutil.copy(cat, folder / "image.jpg")
    commands = re.findall(r"^\$ ov-recipro (.*?)(?:  +#.*)?$", PIPELINES.read_text(), re.M)
    assert len(commands) == 3
    for command in commands:
        done = run(*command.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_pipelines(title: str, code: str, folder: Path) -> None:
    checks = {
        "OpenVINO Model API": "assert best.name == 'Egyptian_cat' and saliency.shape == (7, 7)",
        "A plain asynchronous loop, with overlays": "assert open('overlay-285.png', 'rb').read()",
        "Preprocessing in the graph": "assert saliency.shape == (1, 1000, 7, 7)",
        "Embedding without files": "assert len(compiled.outputs) == 2",
        "ONNX Runtime": "assert saliency.shape == (1, 1000, 7, 7)",
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{checks[title]}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
