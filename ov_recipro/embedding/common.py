"""What embedded models share, whatever their format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from ov_recipro.cut.bundle import Bundle, Manifest
from ov_recipro.cut.layout import Layout
from ov_recipro.errors import OptionError, ReciproError, TargetError
from ov_recipro.images.preprocess import Preprocessing, changed
from ov_recipro.sources.labels import checked_labels, class_index
from ov_recipro.sources.metadata import MODEL_API_RESIZES
from ov_recipro.variants import Variant

SPATIAL_AXES: dict[Layout, list[int]] = {"NCHW": [2, 3], "NHWC": [1, 2], "NTC": [1]}
Scaling = Literal["uint8", "float", "raw"]
Classes = Literal["all"] | int | Sequence[int | str]
Maps = Literal["recipro"] | Variant


def described(
    bundle: Bundle,
    preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None,
    labels: Sequence[str] | None,
) -> Bundle:
    """Return the bundle with other preprocessing or labels."""
    manifest = bundle.manifest
    names = manifest.labels if labels is None else tuple(labels)
    manifest = dataclasses.replace(
        manifest,
        preprocessing=changed(manifest.preprocessing, preprocessing),
        labels=checked_labels(names, manifest.classes),
    )
    return Bundle(bundle.folder, manifest)


def check_classes(classes: Classes, manifest: Manifest) -> None:
    """Raise OptionError where a model has no such classes, whatever they are."""
    if manifest.task == "embedding" and classes != "all":
        raise OptionError(f"The model is an embedding ({manifest.why}): it has no classes.")
    if manifest.task == "detector" and isinstance(classes, int):
        raise OptionError(
            "A detector's maps are embedded for all classes or for those named, not for its best "
            f"{classes}."
        )


def indices_of(classes: Sequence[int | str], manifest: Manifest) -> np.ndarray:
    """Return the classes asked for, each once, as int64."""
    found: dict[int, None] = {}
    for each in [classes] if isinstance(classes, str) else classes:
        found[class_index(each, manifest.labels, manifest.classes)] = None
    if not found:
        raise TargetError("No class to explain was given.")
    return np.array(list(found), np.int64)


def check_count(count: int, manifest: Manifest) -> None:
    """Raise TargetError where there are not this many classes."""
    if not 0 < count <= manifest.classes:
        raise TargetError(
            f"'top{count}' is out of range: the model has {manifest.classes} classes."
        )


def check_new(path: Path, force: bool) -> None:
    """Make a file's folder; raise ReciproError where the file exists and `force` is not set."""
    if path.exists() and not force:
        raise OptionError(f"{path} exists; --force replaces it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReciproError(f"{path} can't be written: {error.strerror or error}.") from error


def model_info(manifest: Manifest, score: str, method: Maps) -> dict[str, str]:
    """Return what is known about a model and its maps, as OpenVINO Model API reads it."""
    info: dict[str, str] = {
        "saliency_layer": manifest.cut.name,
        "saliency_method": method,
        "saliency_score": score,
        "ov_recipro_version": version("ov-recipro"),
    }
    if manifest.task == "classifier":
        info = {"model_type": "Classification", **info}
    if manifest.labels is not None:
        info["labels"] = " ".join("_".join(label.split()) for label in manifest.labels)
    wanted = manifest.preprocessing
    if "assumed" not in wanted.source:
        info["mean_values"] = " ".join(f"{value:g}" for value in wanted.mean)
        info["scale_values"] = " ".join(f"{value:g}" for value in wanted.scale)
        info["reverse_input_channels"] = str(wanted.channels == "RGB")
        info["pad_value"] = str(wanted.pad_value)
        if wanted.resize in MODEL_API_RESIZES:
            info["resize_type"] = wanted.resize
    return info
