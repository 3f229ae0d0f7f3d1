"""Reading images, and finding them behind the names a user gives."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import imagesize
import numpy as np

from ov_recipro.errors import ReciproError
from ov_recipro.images.preprocess import Image
from ov_recipro.limits import PIXELS

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)


@dataclass(frozen=True)
class ImageFile:
    """An image that came from a file.

    Attributes:
        pixels: uint8 [H,W,3] BGR.
        path: the file's path or URL.
        sha256: of the file's bytes, in hexadecimal.
    """

    pixels: Image
    path: str
    sha256: str


def read_file(path: Path) -> ImageFile:
    """Read an image file; see `decode_image` for its pixels.

    Raises:
        ReciproError: there is no such file, it is truncated or not an image, or it has more pixels
            than `limits.PIXELS`.
    """
    return decode_file(read_bytes(path), str(path))


def decode_file(data: bytes, path: str) -> ImageFile:
    """Decode the bytes of the image file that `path` names; see `decode_image`."""
    return ImageFile(decode_image(data, path), path, hashlib.sha256(data).hexdigest())


def read_image(path: Path) -> Image:
    """Return the pixels of an image file; see `read_file`."""
    return read_file(path).pixels


def read_bytes(path: Path) -> bytes:
    """Return the bytes of an image file, whose header is checked first.

    Raises:
        ReciproError: it can't be read, is not an image, or has too many pixels.
    """
    try:
        if path.exists() and not path.is_file():
            raise ReciproError(f"{path} is not a file.")
        with path.open("rb") as file:
            _check_header(file, str(path))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise ReciproError(f"{path}: {error.strerror or error}.") from error


def decode_image(data: bytes, name: str) -> Image:
    """Return an image file's bytes as uint8 [H,W,3] BGR, turned as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits become 8, an alpha channel is dropped.

    Args:
        data: the file's bytes.
        name: for messages.

    Raises:
        ReciproError: they are truncated or not an image, or have more pixels than `limits.PIXELS`.
    """
    _check_header(BytesIO(data), name)
    try:  # a whole buffer: of a truncated file, OpenCV would fill the missing part with grey
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ReciproError(f"{name}: can't be decoded: {error.err}.") from error
    if image is None:
        raise ReciproError(_not_an_image(name))
    return np.asarray(image, np.uint8)


def _check_header(file: BinaryIO, name: str) -> None:
    """Refuse what is not an image, or has too many pixels, by its header alone."""
    width, height = imagesize.get(file, exif_rotation=False)
    if width < 1 or height < 1:  # no header that it knows
        raise ReciproError(_not_an_image(name))
    PIXELS.check(int(width) * int(height), name)


def _not_an_image(name: str) -> str:
    return f"{name}: not an image, or a truncated one."


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
