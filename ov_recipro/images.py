"""Reading images, and finding them behind the names a user gives."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ov_recipro.errors import ReciproError
from ov_recipro.preprocess import Image

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)


def read_image(path: Path) -> Image:
    """Read an image file as uint8 [H,W,3] BGR, turned as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits become 8, an alpha channel is dropped.

    Raises:
        ReciproError: there is no such file, or it is truncated or no image.
    """
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ReciproError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReciproError(f"{path}: {error.strerror or error}.") from error


def decode_image(data: bytes, name: str) -> Image:
    """Decode an image file's bytes (see `read_image`); `name` is for messages.

    A whole buffer, unlike a path, makes OpenCV fail on a truncated JPEG instead of filling the
    missing part with grey.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise ReciproError(f"{name}: can't be decoded: {error.err}.") from error
    if image is None:
        raise ReciproError(f"{name}: not an image, or a truncated one.")
    return np.asarray(image, np.uint8)


def find_images(names: Iterable[str]) -> list[Path]:
    """Expand files, directories (with their subdirectories) and globs, each image once.

    Raises:
        ReciproError: a name leads to no image.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ReciproError(f"{path}: no images in this directory.")
        elif path.exists() or not glob.has_magic(name):
            inside = [path]
        else:
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207 (may be absolute)
            inside = [match for match in inside if match.is_file()]
            if not inside:
                raise ReciproError(f"{name}: no file fits this pattern.")
        found.update(dict.fromkeys(inside))
    return list(found)
