"""Files beside a model: its weights, read only from inside its folder, and its description."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from ov_recipro.errors import ModelError

_IN_FOLDERS = os.open in os.supports_dir_fd  # POSIX: open a path folder by folder
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_LARGEST_SIDECAR = 4 << 20  # bytes
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class WeightsFile:
    """A weights file beside a model, reopened for each read and identified by its stamp.

    Args:
        model: the model's file.
        name: the file's path relative to the model's folder.

    Raises:
        ModelError: see `open_companion`.
    """

    def __init__(self, model: Path, name: str) -> None:
        self._model, self._name = model, name
        with open_companion(model, name) as file:
            self._stamp = stamp(file)
            self.size = os.fstat(file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises:
            ModelError: the file has changed since it was first opened.
        """
        with open_companion(self._model, self._name) as file:
            if stamp(file) != self._stamp:
                raise ModelError(f"{self._model}: its weights '{self._name}' have changed.")
            file.seek(offset)
            return file.read(length)


def stamp(file: BinaryIO) -> tuple[int, ...]:
    """Return values that change when an open file is replaced or its content changes."""
    status = os.fstat(file.fileno())
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_sidecar(path: Path) -> bytes | None:
    """Return the content of a small file that describes the model beside it, None without one.

    Raises:
        ModelError: it is not a regular file, is too large, or can't be read.
    """
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ModelError(f"{path} beside the model is not a regular file.")
        with path.open("rb") as file:
            data = file.read(_LARGEST_SIDECAR + 1)
    except OSError as error:
        raise ModelError(
            f"{path} beside the model can't be read: {error.strerror or error}."
        ) from error
    if len(data) > _LARGEST_SIDECAR:
        raise ModelError(f"{path} beside the model has more than {_LARGEST_SIDECAR:,} bytes.")
    return data


def open_companion(model: Path, name: str) -> BufferedReader:
    """Open a weights file that a model names.

    It must be a regular file inside the model's folder. Links are followed as long as they stay
    inside; where the model itself is a link, its weights may also lie beside what it links to. The
    file that was checked is the file that is read, even if the names change in between.

    Args:
        model: the model's file.
        name: the file's path relative to the model's folder.

    Raises:
        ModelError: it lies outside, is not a regular file, or can't be read.
    """
    try:
        path = (model.parent / name).resolve()
        folders = (model.parent.resolve(), model.resolve().parent)
        folder = next((each for each in folders if path.is_relative_to(each)), None)
        if folder is None or is_absolute_or_climbs(name):
            raise ModelError(
                f"{model}: its weights '{name}' lie outside the model's folder; refused."
            )
        descriptor = _open(folder, path.relative_to(folder).parts)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{model}: its weights '{name}' can't be read: {reason}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{model}: its weights '{name}' are not a regular file; refused.")
    return os.fdopen(descriptor, "rb")


def is_absolute_or_climbs(name: str) -> bool:
    """Whether a path is absolute, or leads out of its folder, on any system."""
    as_windows = PureWindowsPath(name)
    is_rooted = bool(as_windows.drive or as_windows.root)
    return Path(name).is_absolute() or is_rooted or ".." in as_windows.parts


def _open(folder: Path, parts: tuple[str, ...]) -> int:
    """Open a resolved path below `folder`; fail if a part of it has become a link since."""
    if not _IN_FOLDERS:
        return os.open(folder.joinpath(*parts), _READ)
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=inside)
            os.close(inside)
            inside = deeper
        return os.open(parts[-1] if parts else ".", _READ | _NO_LINK, dir_fd=inside)
    finally:
        os.close(inside)
