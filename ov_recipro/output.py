"""The files that explaining leaves: overlays, raw maps and the JSON record."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from ov_recipro.draw import Style
from ov_recipro.errors import ReciproError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation, Target
from ov_recipro.verification import Verification

SCHEMA_VERSION = 1
RECORD = "explanations.json"
REPORT = "report.html"


def open_folder(folder: Path) -> None:
    """Make `folder`, and make sure that it can be written to, before any work is done.

    Raises:
        ReciproError: it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReciproError(f"{folder} can't be written to: {error.strerror or error}.") from error


def file_stems(paths: Sequence[Path]) -> list[str]:
    """Return a file stem for each image's outputs; no two images share an output file.

    That is the image's own stem, or where several images would meet, its path below their common
    folder, spelled with underscores.
    """
    plain = [path.stem for path in paths]
    counts: dict[str, int] = {}
    for stem in plain:
        key = _first_stem(stem)
        counts[key] = counts.get(key, 0) + 1
    if all(count == 1 for count in counts.values()):
        return plain
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    taken: set[str] = set()
    stems = []
    for path, stem in zip(paths, plain, strict=True):
        if counts[_first_stem(stem)] > 1:
            stem = "_".join(path.absolute().relative_to(root).parts)
        unique, count = stem, 1
        while _first_stem(unique) in taken:
            count += 1
            unique = f"{stem}_{count}"
        taken.add(_first_stem(unique))
        stems.append(unique)
    return stems


def _first_stem(stem: str) -> str:
    """Return `stem` less a class index at its end: `cat.281` would meet `cat`'s second target."""
    return re.sub(r"(\.\d+)+$", "", stem).casefold()


def save_explanation(
    explanation: Explanation, folder: Path, stem: str, save_maps: bool, style: Style
) -> list[dict[str, str | None]]:
    """Write an explanation's overlays and, if asked, its maps.

    Writes `<stem>.png` for the first target, `<stem>.<class index>.png` for further ones and
    `<stem>.npz` with `maps`, `raw`, `targets` and `feature_shape`. Each file is whole or absent.

    Returns:
        For each target its `overlay` and `maps` file, relative to `folder`.

    Raises:
        ReciproError: a file can't be written.
    """
    maps = None
    if save_maps:
        maps = f"{stem}.npz"
        buffer = BytesIO()
        np.savez_compressed(
            buffer,
            maps=explanation.maps,
            raw=explanation.raw,
            targets=np.array([target.index for target in explanation.targets], np.int64),
            feature_shape=np.array(explanation.feature_shape, np.int64),
        )
        write_whole(folder / maps, buffer.getvalue())
    files: list[dict[str, str | None]] = []
    for position, target in enumerate(explanation.targets):
        name = f"{stem}.png" if position == 0 else f"{stem}.{target.index}.png"
        _, png = cv2.imencode(".png", explanation.overlay(target.index, style))
        write_whole(folder / name, png.tobytes())
        files.append({"overlay": name, "maps": maps})
    return files


def image_record(
    path: str,
    explanation: Explanation,
    files: Sequence[dict[str, str | None]],
    verifications: Sequence[Verification] = (),
) -> dict[str, Any]:
    """Return one image's entry of the JSON record; verifications are of its targets, if any."""
    targets = [
        msgspec.to_builtins(target) | written
        for target, written in zip(explanation.targets, files, strict=True)
    ]
    for target, verification in zip(targets, verifications, strict=False):
        target["verification"] = msgspec.to_builtins(verification)
    height, width = explanation.image.shape[:2] if explanation.image is not None else (None, None)
    return {
        "path": path,
        "size": [height, width],
        "window": explanation.window,
        "predictions": msgspec.to_builtins(explanation.predictions),
        "targets": targets,
        "milliseconds": round(explanation.milliseconds, 3),
    }


def video_record(path: str, targets: Sequence[Target], file: str, rate: float) -> dict[str, Any]:
    """Return one video's entry of the JSON record: for each frame the target drawn."""
    return {
        "path": path,
        "video": file,
        "frames": len(targets),
        "rate": rate,
        "targets": msgspec.to_builtins(list(targets)),
    }


def run_record(
    explainer: Explainer,
    images: Sequence[dict[str, Any]],
    videos: Sequence[dict[str, Any]],
    failed: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Return the record of a run: how it was done, what was explained, and what failed."""
    manifest = explainer.bundle.manifest
    record = {
        "schema_version": SCHEMA_VERSION,
        **explainer.provenance(),
        "layer_asked": manifest.layer,
        "plan_reason": explainer.plan_reason,
        "parity": manifest.parity,
        "images": list(images),
        "videos": list(videos),
        "errors": list(failed),
    }
    return dict(msgspec.to_builtins(record))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it: it is whole or not there.

    Raises:
        ReciproError: it can't be written.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            work.write_bytes(data)
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise ReciproError(f"{path} can't be written: {error.strerror or error}.") from error
