"""The user's cache: split models, verdicts on plans, what devices have compiled."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import platformdirs

from ov_recipro.errors import ReciproError
from ov_recipro.limits import CACHE_BYTES
from ov_recipro.output import discard

Kind = Literal["bundles", "plans", "compiled"]
"""Split models, whether the plan `rows` passed its check, and what OpenVINO keeps of devices."""

_IN_USE = 3600.0  # seconds since its last use for which nothing is removed


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache: its size in bytes, and the time of its last use."""

    path: Path
    size: int
    used: float


def root() -> Path:
    """Return the cache's folder, whether or not it exists."""
    return platformdirs.user_cache_path("ov-recipro")


def folder(kind: Kind) -> Path:
    """Return the folder of one kind of entries, whether or not it exists."""
    return root() / kind


@functools.cache
def bundles() -> Path:
    """Return the folder of bundles, or this process's own where that can't be written."""
    kept = folder("bundles")
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            return kept
    except OSError:
        own = tempfile.TemporaryDirectory(prefix="ov-recipro-")
        atexit.register(own.cleanup)
        return Path(own.name)


def mark_used(path: Path) -> None:
    """Note that an entry was used just now; a cache that can't be written keeps no such notes."""
    with suppress(OSError):
        os.utime(path)


def entries(kind: Kind) -> list[Entry]:
    """Return one kind's entries, the least recently used first."""
    found = []
    with suppress(FileNotFoundError):
        for path in folder(kind).iterdir():
            with suppress(FileNotFoundError):  # another process has removed it
                found.append(Entry(path, sum(_sizes(path)), path.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def prune() -> None:
    """Remove what was used least recently while the cache is larger than `limits.CACHE_BYTES`.

    What was used within the last hour stays: another process may be about to read it. Verdicts
    stay too; they are small.
    """
    kept = sorted([*entries("bundles"), *entries("compiled")], key=lambda entry: entry.used)
    excess = sum(entry.size for entry in kept) - CACHE_BYTES.value
    for entry in kept:
        if excess <= 0 or time.time() - entry.used < _IN_USE:
            return
        with suppress(OSError):
            discard(entry.path)
            excess -= entry.size


def clear() -> int:
    """Remove everything; return the number of bytes that this frees.

    Raises:
        ReciproError: something can't be removed.
    """
    freed = 0
    for kind in get_args(Kind):
        for entry in entries(kind):
            try:
                discard(entry.path)
            except FileNotFoundError:
                continue  # another process was first
            except OSError as error:
                raise ReciproError(f"{entry.path} can't be removed: {error.strerror}.") from error
            freed += entry.size
    return freed


def _sizes(path: Path) -> Iterator[int]:
    if not path.is_dir():
        yield path.stat().st_size
    for inside in path.rglob("*") if path.is_dir() else ():
        with suppress(FileNotFoundError):
            yield inside.stat().st_size
