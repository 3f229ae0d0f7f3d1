"""Images on this machine and behind URLs: finding them, and reading them wherever they are needed.

URLs are those of pyarrow's filesystems (s3, gs, hdfs, file), else of fsspec's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from ov_recipro.errors import ImageError, OptionError
from ov_recipro.images.reading import SUFFIXES, find_images, read_bytes


@dataclass(frozen=True)
class File:
    """An image file.

    Attributes:
        name: the name in the results: an absolute path, or a URL.
        root: the URL that names its filesystem; empty for this machine's.
        path: its path in that filesystem.
    """

    name: str
    root: str
    path: str


def is_url(name: str) -> bool:
    """Whether a name is a URL rather than a path on this machine."""
    return "://" in name


def find_files(names: Iterable[str]) -> list[File]:
    """Return the images behind files, directories, globs and URLs of these, each once.

    Raises:
        ImageError: a path leads to no image.
        OptionError: a URL can't be read, or leads to no image.
    """
    found: dict[File, None] = {}
    for name in names:
        if is_url(name):
            _, paths = list_url(name)
            found.update((File(_url_of(path, name), name, path), None) for path in paths)
        else:
            local = (str(path.absolute()) for path in find_images([name]))
            found.update((File(path, "", path), None) for path in local)
    return list(found)


def list_url(url: str) -> tuple[str, list[str]]:
    """Return a URL's path in its filesystem, and the paths of the images there, sorted.

    Raises:
        OptionError: it can't be read, or there are no images.
    """
    system, root = _opened(url)
    try:
        if any(mark in root for mark in "*["):
            paths = [path for path in system.glob(root) if system.isfile(path)]
        elif system.isdir(root):
            every = system.find(root)
            paths = [path for path in every if PurePosixPath(path).suffix.lower() in SUFFIXES]
        else:
            paths = [root] if system.exists(root) else []
    except Exception as error:  # each filesystem has errors of its own
        raise OptionError(f"{url}: {_reason(error)}.") from error
    if not paths:
        raise OptionError(f"{url}: no images found.")
    return root, sorted(paths)


def fetch(root: str, path: str) -> bytes:
    """Return the bytes of a file; see `File`.

    Raises:
        ImageError: it can't be read.
    """
    if not root:
        return read_bytes(Path(path))
    try:
        system, _ = _opened(root)
        return bytes(system.cat_file(path))
    except Exception as error:  # each filesystem has errors of its own
        raise ImageError(f"{path}: {_reason(error)}.") from error


@cache
def _opened(url: str) -> tuple[Any, str]:
    """Return a URL's filesystem and the URL's path in it."""
    try:
        system, path = pyarrow.fs.FileSystem.from_uri(url)
        return ArrowFSWrapper(system), path
    except pa.ArrowInvalid:  # not one of pyarrow's
        pass
    except OSError as error:
        raise OptionError(f"{url}: {_reason(error)}.") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise OptionError(f"{url}: {_reason(error)}.") from error
    return system, path


def _url_of(path: str, root: str) -> str:
    """Return the URL of a path in the filesystem that `root` names, which may be an archive's."""
    own, chained, rest = root.partition("::")
    scheme = own.partition("://")[0]
    return path if is_url(path) else f"{scheme}://{path}{chained}{rest}"


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:300].rstrip(".")
