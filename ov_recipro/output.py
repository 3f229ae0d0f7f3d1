"""Files: each written completely or not at all, no two of the same name; where the cache is."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import platformdirs

from ov_recipro.errors import ReciproError

SCHEMA_VERSION = 1
RECORD = "explanations.json"
REPORT = "report.html"
_LONGEST_STEM = 180  # bytes; most file systems take names of 255

CacheKind = Literal["bundles", "plans", "compiled", "hub"]
"""Split models, whether the plan `rows` passed its check, models that OpenVINO compiled, and
models that were fetched from a hub."""


def user_cache(kind: CacheKind | None = None) -> Path:
    """Return the user's cache folder, or that of one kind of entries, whether or not it exists."""
    root = platformdirs.user_cache_path("ov-recipro")
    return root if kind is None else root / kind


def writable_cache(kind: CacheKind) -> Path:
    """Return the folder of one kind of entries, or a temporary one where it can't be written."""
    folder = user_cache(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        own = tempfile.TemporaryDirectory(prefix="ov-recipro-")
        atexit.register(own.cleanup)
        return Path(own.name)


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
    plain = [shortened(path.stem) for path in paths]
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
            stem = shortened("_".join(path.absolute().relative_to(root).parts))
        unique, count = stem, 1
        while _first_stem(unique) in taken:
            count += 1
            unique = f"{stem}_{count}"
        taken.add(_first_stem(unique))
        stems.append(unique)
    return stems


def shortened(stem: str) -> str:
    """Return a file's stem, or where it is so long that no ending fits, its beginning and a hash.

    Stems differ where they did before.
    """
    data = os.fsencode(stem)
    if len(data) <= _LONGEST_STEM:
        return stem
    beginning = data[: _LONGEST_STEM - 17].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(data).hexdigest()[:16]}"


def _first_stem(stem: str) -> str:
    """Return `stem` without a target's name: `cat.281` would clash with `cat`'s targets."""
    return re.sub(r"(\.\d+(-\d+)?)+$", "", stem).casefold()


def as_json(value: Any, order: Literal["deterministic"] | None = None) -> bytes:
    """Return a record as JSON, on one line.

    Where the name of a file is not UTF-8, its odd bytes are escaped.

    Args:
        value: the record.
        order: "deterministic" for the same bytes from equal records.
    """
    try:
        return msgspec.json.encode(value, order=order)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value)), order=order)


def as_record(value: Any) -> bytes:
    """Return a record as JSON for people to read."""
    return msgspec.json.format(as_json(value), indent=2) + b"\n"


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {_escaped(name): _escaped(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it: it is complete or absent.

    Raises:
        ReciproError: it can't be written.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # names may be long
    work = path.with_name(f".{digest}.{os.getpid()}")
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
