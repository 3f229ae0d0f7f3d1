"""What an Ultralytics export says about itself: its task, its classes and the size of its images.

An ONNX file has this in its metadata, each value written as a Python literal; an IR has it in
`metadata.yaml` beside it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ov_recipro.errors import ModelError
from ov_recipro.sources.companions import read_sidecar

SIDECAR = "metadata.yaml"
TASKS = ("classify", "detect", "segment", "pose", "obb")
_MODEL_TYPE, _RESIZE = "model_info model_type", "model_info resize_type"
_LITERALS = ("names", "imgsz")
_LARGEST = 1 << 20  # bytes of a description


@dataclass(frozen=True)
class Export:
    """What an export says about itself.

    Attributes:
        task: one of `TASKS`.
        names: of the classes, in order; None where they are not given.
        size: (height, width) of the images; None where it is not given.
        source: where this is written, in words.
    """

    task: str
    names: tuple[str, ...] | None
    size: tuple[int, int] | None
    source: str


def find_export(metadata: Mapping[str, str], model: Path) -> Export | None:
    """Return what a model says about itself if Ultralytics exported it, else None.

    Every IR of theirs has the model type "YOLO", classifiers too. Where nothing names the task, the
    resize type shows it: it is written for every task except classification.

    Args:
        metadata: the file's entries (see `ov_recipro.sources.source.Source`).
        model: the file.

    Raises:
        ModelError: what is written there is malformed.
    """
    if metadata.get("task") in TASKS and "names" in metadata:
        present = [key for key in _LITERALS if key in metadata]
        entries = {key: _literal(metadata[key], key, model) for key in present}
        return _export(metadata["task"], entries, model, "Ultralytics metadata in the model")
    if metadata.get(_MODEL_TYPE) != "YOLO":
        return None
    beside = model.parent / SIDECAR
    entries = _read(beside)
    task = entries.get("task")
    if task not in TASKS:
        task = "detect" if _RESIZE in metadata else "classify"
    source = SIDECAR if entries else "model_info in the model"
    return _export(task, entries, beside, source)


def _export(task: str, entries: Mapping[str, Any], path: Path, source: str) -> Export:
    size = _size(entries.get("imgsz"), path)
    return Export(task, _names(entries.get("names"), path), size, source)


def _names(names: Any, path: Path) -> tuple[str, ...] | None:
    if names is None:
        return None
    listed = dict(enumerate(names)) if isinstance(names, list) else names
    if (
        not isinstance(listed, dict)
        or not all(isinstance(index, int) for index in listed)
        or set(listed) != set(range(len(listed)))
        or not all(isinstance(name, str | int | float) for name in listed.values())
    ):
        raise ModelError(f"{path}: 'names' must name every class, numbered from 0.")
    return tuple(str(listed[index]) for index in range(len(listed)))


def _size(size: Any, path: Path) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(isinstance(side, int) and side > 0 for side in sides)
    ):
        raise ModelError(f"{path}: 'imgsz' is not a height and a width.")
    return sides[0], sides[1]


def _literal(text: str, key: str, model: Path) -> Any:
    try:
        if len(text) > _LARGEST:
            raise ValueError("it is too long")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ModelError(f"{model}: its metadata '{key}' is not a Python literal.") from error


def _read(path: Path) -> dict[str, Any]:
    """Return the file's entries, or {} if the file does not exist."""
    data = read_sidecar(path)
    if data is None:
        return {}
    try:
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        entries = yaml.safe_load(data.decode())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(f"{path} beside the model can't be read: {lines[0]}.") from error
    return entries if isinstance(entries, dict) else {}
