"""The bundled detector and scenes for it, whose evidence is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import cv2

from places import ROOT

SCENE_DETECTOR = ROOT / "tests" / "assets" / "scene-detector" / "model.onnx"


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
