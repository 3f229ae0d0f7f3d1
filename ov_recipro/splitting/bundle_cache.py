"""Cached bundles: created once, found by content, removed when the cache grows too large."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from ov_recipro.cut.bundle import SCHEMA_VERSION, SUFFIX, Bundle, Companion, open_bundle
from ov_recipro.errors import ReciproError
from ov_recipro.limits import CACHE_BYTES
from ov_recipro.options import Cut
from ov_recipro.output import CacheKind, discard, shortened, user_cache, writable_cache
from ov_recipro.sources import metadata
from ov_recipro.sources.companions import read_sidecar
from ov_recipro.sources.references import origin_of
from ov_recipro.splitting.split import check_is_file, model_sha256, split

_BOUNDED: tuple[CacheKind, ...] = ("bundles", "compiled", "hub")
_IN_USE = 3600.0  # seconds after its last use before which an entry is not removed


def cached_split(model: Path, cut: Cut = Cut()) -> Bundle:
    """Return the bundle of `split` from the user's cache, created where it is not there yet.

    It is found by the content of the model and of the files beside it that are read, the cut and
    this tool's version.
    """
    check_is_file(model)
    sha256 = model_sha256(model)
    digest = hashlib.sha256(sha256.encode())
    for sidecar in metadata.SIDECARS:
        digest.update(read_sidecar(model.parent / sidecar) or b"-")
    normalised = dataclasses.replace(cut, constants=dict(sorted(cut.constants.items())))
    arguments = (normalised, SCHEMA_VERSION, version("ov-recipro"))
    digest.update(repr(arguments).encode())
    digest.update((origin_of(model) or "").encode())  # the manifest records it
    folder = bundles() / f"{shortened(model.stem)}-{digest.hexdigest()[:24]}{SUFFIX}"

    def make() -> Bundle:
        return split(model, folder, layer=cut)

    def is_current(bundle: Bundle) -> bool:
        source = bundle.manifest.source
        unchanged = all(_is_unchanged(model.parent, each) for each in source.companions)
        return source.sha256 == sha256 and unchanged

    return cached_or_created(folder, make, is_current)


def cached_or_created(
    folder: Path,
    make: Callable[[], Bundle],
    is_current: Callable[[Bundle], bool] = lambda _: True,
) -> Bundle:
    """Return the bundle in a folder of the cache; other processes may create it meanwhile.

    Args:
        folder: where it is kept.
        make: creates it there, where there is none that is complete and current.
        is_current: whether a bundle that is there may be used.
    """

    def cached() -> Bundle | None:
        if not folder.exists():
            return None
        try:
            bundle = open_bundle(folder)
        except ReciproError:
            return None  # damaged from outside: created again
        if not is_current(bundle):
            return None
        mark_used(folder)
        return bundle

    if (bundle := cached()) is not None:
        return bundle
    try:
        if folder.exists():
            discard(folder)
        bundle = make()
    except (ReciproError, OSError):
        if (bundle := cached()) is not None:
            return bundle  # another process was the first to create it
        raise
    prune()
    return bundle


def _is_unchanged(folder: Path, companion: Companion) -> bool:
    """Whether a file still has the size and time of change with which it was hashed."""
    try:
        stat = (folder / companion.name).stat()
    except OSError:
        return False
    now = (stat.st_size, stat.st_mtime_ns)
    return companion.sha256 is not None and now == (companion.size, companion.modified)


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache: its size in bytes, and the time of its last use."""

    path: Path
    size: int
    used: float


@functools.cache
def bundles() -> Path:
    """Return the folder of bundles, or a temporary one where that can't be written."""
    return writable_cache("bundles")


def mark_used(path: Path) -> None:
    """Record that an entry was used just now; a cache that can't be written records nothing."""
    with suppress(OSError):
        os.utime(path)


def entries(kind: CacheKind) -> list[Entry]:
    """Return one kind's entries, the least recently used first."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for path in user_cache(kind).iterdir():
            with suppress(FileNotFoundError):  # another process has removed it
                status = path.stat()  # OpenVINO only reads what it has cached
                used = max(status.st_atime, status.st_mtime) if path.is_file() else status.st_mtime
                found.append(Entry(path, sum(_sizes(path)), used))
    return sorted(found, key=lambda entry: entry.used)


def prune() -> None:
    """Remove the least recently used entries while the cache is larger than `limits.CACHE_BYTES`.

    Entries used within the last hour stay: another process may be about to read them.
    Verdicts stay too; they are small.
    """
    kept = [entry for kind in _BOUNDED for entry in entries(kind)]
    kept.sort(key=lambda entry: entry.used)
    excess = sum(entry.size for entry in kept) - CACHE_BYTES.value
    for entry in kept:
        if excess <= 0 or time.time() - entry.used < _IN_USE:
            return
        with suppress(OSError):
            with suppress(FileNotFoundError):  # another process was first
                discard(entry.path)
            excess -= entry.size


def clear() -> int:
    """Remove everything; return the number of bytes that this frees.

    Raises:
        ReciproError: something can't be removed.
    """
    freed = 0
    for kind in get_args(CacheKind):
        for entry in entries(kind):
            try:
                discard(entry.path)
            except FileNotFoundError:
                continue  # another process was first
            except OSError as error:
                raise ReciproError(
                    f"{entry.path} can't be removed: {error.strerror or error}."
                ) from error
            freed += entry.size
    return freed


def _sizes(path: Path) -> Iterator[int]:
    if not path.is_dir():
        yield path.stat().st_size
        return
    for inside in path.rglob("*"):
        with suppress(FileNotFoundError):
            yield inside.stat().st_size
