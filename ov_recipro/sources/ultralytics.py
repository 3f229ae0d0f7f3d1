"""What an Ultralytics export says of itself: its task, its classes and the size of its images.

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
    """What is said.

    Attributes:
        task: one of `TASKS`.
        names: of the classes, in order; None where there are none.
        size: (height, width) of the images; None where that is not said.
        source: where it is said, in words.
    """

    task: str
    names: tuple[str, ...] | None
    size: tuple[int, int] | None
    source: str


def find_export(metadata: Mapping[str, str], model: Path) -> Export | None:
    """Return what a model says if Ultralytics exported it, else None.

    Every IR of theirs has the model type "YOLO", classifiers too. Where nothing names the task, the
    resize type does: it is written for every task except classification.

    Args:
        metadata: the file's entries (see `ov_recipro.sources.source.Source`).
        model: the file.

    Raises:
        ModelError: what is written there makes no sense.
    """
    if metadata.get("task") in TASKS and "names" in metadata:
        present = [key for key in _LITERALS if key in metadata]
        said = {key: _literal(metadata[key], key, model) for key in present}
        return _export(metadata["task"], said, model, "Ultralytics metadata in the model")
    if metadata.get(_MODEL_TYPE) != "YOLO":
        return None
    beside = model.parent / SIDECAR
    said = _read(beside)
    task = said.get("task")
    if task not in TASKS:
        task = "detect" if _RESIZE in metadata else "classify"
    source = SIDECAR if said else "model_info in the model"
    return _export(task, said, beside, source)


def _export(task: str, said: Mapping[str, Any], path: Path, source: str) -> Export:
    return Export(task, _names(said.get("names"), path), _size(said.get("imgsz"), path), source)


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
    both = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(both, list | tuple)
        or len(both) != 2
        or not all(isinstance(side, int) and side > 0 for side in both)
    ):
        raise ModelError(f"{path}: 'imgsz' is not a height and a width.")
    return both[0], both[1]


def _literal(text: str, key: str, model: Path) -> Any:
    try:
        if len(text) > _LARGEST:
            raise ValueError("it is too long")
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ModelError(f"{model}: its metadata '{key}' is not a Python literal.") from error


def _read(path: Path) -> dict[str, Any]:
    """Return what the file says, nothing where there is none."""
    data = read_sidecar(path)
    if data is None:
        return {}
    try:
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        said = yaml.safe_load(data.decode())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(f"{path} beside the model can't be read: {lines[0]}.") from error
    return said if isinstance(said, dict) else {}
