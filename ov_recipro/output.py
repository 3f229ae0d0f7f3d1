"""Files: each written completely or not at all, no two of the same name; where the cache is."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import platformdirs

from ov_recipro.errors import ReciproError

SCHEMA_VERSION = 1
RECORD = "explanations.json"
REPORT = "report.html"


CacheKind = Literal["bundles", "plans", "compiled"]
"""Split models, whether the plan `rows` passed its check, and models that OpenVINO compiled."""


def user_cache(kind: CacheKind | None = None) -> Path:
    """Return the user's cache folder, or that of one kind of entries, whether or not it exists."""
    root = platformdirs.user_cache_path("ov-recipro")
    return root if kind is None else root / kind


def open_folder(folder: Path) -> None:
    """Create `folder`, and check that it can be written to, before any work is done.

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

    That is the image's own stem or, where several images would clash, its path below their common
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
    """Return `stem` without a target's name: `cat.281` would clash with `cat`'s targets."""
    return re.sub(r"(\.\d+(-\d+)?)+$", "", stem).casefold()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it: it is complete or absent.

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


def discard(path: Path) -> None:
    """Remove a file, or a folder in one step: whoever opens it finds all of it or nothing.

    Raises:
        OSError: it is not there, or can't be removed.
    """
    if not path.is_dir():
        path.unlink()
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        path.rename(aside / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
