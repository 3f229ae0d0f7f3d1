"""What a model's file, or a file beside it, says about preprocessing and labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

from ov_recipro.cut.recognition import Finding, Kind, of_model_type
from ov_recipro.errors import ModelError
from ov_recipro.images.preprocess import Interpolation, Preprocessing, Resize
from ov_recipro.sources import ultralytics
from ov_recipro.sources.companions import read_sidecar

_MODEL_INFO = "model_info "
_HUGGING_FACE = "preprocessor_config.json"
_CONFIG = "config.json"
SIDECARS = (_HUGGING_FACE, _CONFIG, ultralytics.SIDECAR)
"""Files beside a model that are searched for these."""

MODEL_API_RESIZES = get_args(Resize)[:4]
"""The kinds of resize that OpenVINO Model API knows."""
_PIL_INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def find_preprocessing(
    metadata: Mapping[str, str], model: Path, size: tuple[int, int]
) -> Preprocessing:
    """Return the model's preprocessing.

    Looked up in this order: what Ultralytics writes into its exports, "model_info" entries of the
    file itself (OpenVINO Model API's convention), `preprocessor_config.json` (Hugging Face) or
    `config.json` (timm) beside the file, else the ImageNet preset, whose `source` says that it is
    assumed.

    Args:
        metadata: what the file says about itself.
        model: the file.
        size: (height, width) of the model's input.

    Raises:
        ModelError: what is written there is malformed.
    """
    with _reported_as_malformed(model):
        return _find_preprocessing(metadata, model, size)


def _find_preprocessing(
    metadata: Mapping[str, str], model: Path, size: tuple[int, int]
) -> Preprocessing:
    if (export := ultralytics.find_export(metadata, model)) is not None:
        return _from_ultralytics(export, size)
    info = model_info(metadata)
    if any(key in info for key in ("mean_values", "scale_values", "resize_type")):
        return _from_model_info(info, model, size)
    config = _read(model.parent / _HUGGING_FACE)
    if "image_mean" in config or "size" in config:
        return _from_hugging_face(config, model.parent / _HUGGING_FACE, size)
    config = _read(model.parent / _CONFIG)
    timm = config.get("pretrained_cfg", config)
    if isinstance(timm, dict) and "mean" in timm and "std" in timm:
        return _from_timm(timm, model.parent / _CONFIG, size)
    return Preprocessing(size=size)


def find_labels(metadata: Mapping[str, str], model: Path) -> tuple[str, ...] | None:
    """Return the class names that Ultralytics, "model_info labels" or `config.json` list."""
    export = ultralytics.find_export(metadata, model)
    if export is not None and export.names is not None:
        return export.names
    if labels := model_info(metadata).get("labels"):
        return tuple(name.replace("_", " ") for name in labels.split())
    config = _read(model.parent / _CONFIG)
    named = config.get("id2label")
    if isinstance(named, dict) and all(str(i) in named for i in range(len(named))):
        return tuple(str(named[str(i)]) for i in range(len(named)))
    listed = config.get("label_names")
    return tuple(map(str, listed)) if isinstance(listed, list) else None


def count_labels(metadata: Mapping[str, str], model: Path) -> int | None:
    """Return the number of classes that the file names, if it names any."""
    with _reported_as_malformed(model):
        labels = find_labels(metadata, model)
    return len(labels) if labels else None


def find_characters(metadata: Mapping[str, str], classes: int) -> tuple[str, ...] | None:
    """Return a text recogniser's classes: a blank, PaddleOCR's "character" lines, and a space."""
    text = metadata.get("character")
    if text is None:
        return None
    names = ("blank", *text.splitlines(), " ")
    return next((names[:count] for count in (len(names), len(names) - 1) if count == classes), None)


_KINDS: dict[str, Kind] = {
    "classify": "classifier",
    "detect": "detector",
    "obb": "detector",
    "pose": "keypoints",
    "segment": "instances",
}


def find_kind(metadata: Mapping[str, str], model: Path) -> Finding | None:
    """Return what Ultralytics or "model_info model_type" say that a model is for.

    Raises:
        ModelError: what is written there is malformed.
    """
    with _reported_as_malformed(model):
        export = ultralytics.find_export(metadata, model)
    if export is not None:
        return Finding(_KINDS[export.task], f"task '{export.task}', {export.source}")
    return of_model_type(model_info(metadata).get("model_type", ""))


def model_info(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the "model_info" section of a file's metadata."""
    return {
        key.removeprefix(_MODEL_INFO): value
        for key, value in metadata.items()
        if key.startswith(_MODEL_INFO)
    }


def _from_ultralytics(export: ultralytics.Export, size: tuple[int, int]) -> Preprocessing:
    """Pixels become 0..1; classifiers crop the middle, the other tasks pad to the input's size."""
    crops = export.task == "classify"
    return Preprocessing(
        size=size,
        resize="shorter_side_crop" if crops else "fit_to_window_letterbox",
        crop_fraction=1.0,
        interpolation="bilinear",
        mean=(0, 0, 0),
        scale=(255, 255, 255),
        pad_value=0 if crops else 114,
        source=export.source,
    )


def _from_model_info(info: Mapping[str, str], model: Path, size: tuple[int, int]) -> Preprocessing:
    embedded = _is_true(info.get("embedded_processing", ""))
    resize = info.get("resize_type", "standard")
    if resize not in MODEL_API_RESIZES:
        raise ModelError(
            f"{model}: unknown resize_type '{resize}' in model_info; known are "
            f"{', '.join(MODEL_API_RESIZES)}."
        )
    return Preprocessing(
        size=size,
        resize=cast(Resize, resize),
        interpolation="bilinear",
        mean=(0, 0, 0) if embedded else _three(info.get("mean_values", "0"), model),
        scale=(1, 1, 1) if embedded else _three(info.get("scale_values", "1"), model),
        channels=(
            "RGB" if _is_true(info.get("reverse_input_channels", "")) and not embedded else "BGR"
        ),
        pad_value=int(float(info.get("pad_value", "0"))),
        source="model_info in the model",
    )


def _from_hugging_face(config: dict[str, Any], path: Path, size: tuple[int, int]) -> Preprocessing:
    wanted = config.get("size", {})
    shortest = wanted if isinstance(wanted, int) else wanted.get("shortest_edge")
    crops = config.get("do_center_crop", False)
    if not config.get("do_resize", True):
        raise ModelError(
            f"{path}: do_resize is false, which is not supported; move this file away and give "
            "--mean, --scale and --resize."
        )
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    normalise = config.get("do_normalize", True)
    mean = config.get("image_mean", [0.0] * 3) if normalise else [0.0] * 3
    std = config.get("image_std", [1.0] * 3) if normalise else [1.0] * 3
    target = shortest or wanted.get("height", size[0])
    return Preprocessing(
        size=size,
        resize=("shorter_side_crop" if shortest else "squash_crop" if crops else "standard"),
        crop_fraction=min(1.0, size[0] / target),
        interpolation=_PIL_INTERPOLATIONS.get(config.get("resample", 2), "bilinear"),
        mean=_numbers([m / rescale for m in mean], path),
        scale=_numbers([s / rescale for s in std], path),
        source=path.name,
    )


def _from_timm(config: dict[str, Any], path: Path, size: tuple[int, int]) -> Preprocessing:
    modes: dict[str, Resize] = {
        "center": "shorter_side_crop",
        "squash": "squash_crop",
        "border": "fit_to_window_letterbox",
    }
    mode = str(config.get("crop_mode", "center"))
    interpolation = str(config.get("interpolation", "bilinear"))
    if mode not in modes:
        raise ModelError(f"{path}: unknown crop_mode '{mode}'.")
    return Preprocessing(
        size=size,
        resize=modes[mode],
        crop_fraction=float(config.get("crop_pct") or 0.875),
        interpolation=(
            cast(Interpolation, interpolation)
            if interpolation in get_args(Interpolation)
            else "bilinear"
        ),
        mean=_numbers([255 * m for m in config["mean"]], path),
        scale=_numbers([255 * s for s in config["std"]], path),
        source=path.name,
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or an empty one where there is no such file."""
    sidecar = read_sidecar(path)
    if sidecar is None:
        return {}
    try:
        data = json.loads(sidecar)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} beside the model can't be read: {error}.") from error
    return data if isinstance(data, dict) else {}


@contextmanager
def _reported_as_malformed(model: Path) -> Iterator[None]:
    """Turn the errors that values of the wrong kind cause into one clear error."""
    try:
        yield
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The preprocessing or labels in {model} or in a file beside it are malformed: "
            f"{type(error).__name__}: {error}."
        ) from error


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("yes", "true", "1")


def _three(text: str, model: Path) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in text.replace(",", " ").strip("[] ").split()]
    except ValueError as error:
        raise ModelError(f"{model}: model_info has '{text}' instead of three numbers.") from error
    return _numbers(numbers * 3 if len(numbers) == 1 else numbers, model)


def _numbers(values: list[float], path: Path) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ModelError(f"{path}: expected 3 means or scales, found {len(values)}.")
    return (float(values[0]), float(values[1]), float(values[2]))
