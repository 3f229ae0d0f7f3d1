"""The bundled detector and scenes for it, whose evidence is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from click.testing import CliRunner
from onnx.helper import make_node, make_tensor_value_info
from onnx.numpy_helper import from_array

from ov_recipro import ReciproError
from ov_recipro.cli import cli
from places import ROOT, SCENE_DETECTOR

SCENE_MODEL = SCENE_DETECTOR / "model.onnx"


def tool(name: str) -> Any:
    """Import a module of tools/."""
    folder = str(ROOT / "tools")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def make_scenes(count: int, seed: int = 0) -> list[Any]:
    """Return held-out scenes."""
    scenes = tool("detector_scenes")
    return list(scenes.make_scenes(count, (scenes.HELD_OUT_SEED, 100 + seed)))


def write_scenes(folder: Path, count: int, seed: int = 0) -> Path:
    """Write scenes as images 0.png, 1.png, ...; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(make_scenes(count, seed)):
        cv2.imwrite(str(folder / f"{number}.png"), scene.image)
    return folder


def write_two_stages(path: Path) -> Path:
    """Write the detector with outputs of open length, as of two stages: it can't be cut."""
    proto = onnx.load(SCENE_MODEL)
    graph = proto.graph
    (output,) = graph.output
    graph.node.extend(
        [
            make_node("Transpose", [output.name], ["rows"], perm=[0, 2, 1]),
            make_node("Squeeze", ["rows", "axis"], ["flat"]),
            make_node("Split", ["flat", "sizes"], ["all", "each"], axis=1),
            make_node("ReduceMax", ["each"], ["best"], axes=[1], keepdims=0),
            make_node("Greater", ["best", "least"], ["is_found"]),
            make_node("Compress", ["all", "is_found"], ["centred"], axis=0),
            make_node("MatMul", ["centred", "to_corners"], ["boxes"]),
            make_node("Compress", ["best", "is_found"], ["scores"], axis=0),
            make_node("ArgMax", ["each"], ["classes"], axis=1, keepdims=0),
            make_node("Compress", ["classes", "is_found"], ["labels"], axis=0),
        ]
    )
    corners = [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]
    values = {
        "axis": np.array([0]),
        "sizes": np.array([4, 6]),
        "least": np.array(0.3, np.float32),
        "to_corners": np.array(corners, np.float32),
    }
    graph.initializer.extend(from_array(value, name) for name, value in values.items())
    del graph.output[:]
    for name, kind in (("boxes", 1), ("scores", 1), ("labels", 7)):
        graph.output.append(make_tensor_value_info(name, kind, None))
    onnx.save(proto, path)
    return path


def printed(*arguments: str | Path | int) -> str:
    """Return what a command prints on stdout, in this process."""
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: str | Path | int) -> str:
    """Return the error that a command ends with, in this process."""
    error = CliRunner().invoke(cli, list(map(str, arguments))).exception
    assert isinstance(error, ReciproError), error
    return str(error)
