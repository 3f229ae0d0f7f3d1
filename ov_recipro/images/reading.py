"""Reading images, and finding them behind the names a user gives."""

from __future__ import annotations

import glob
import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import imagesize
import numpy as np

from ov_recipro.errors import ImageError
from ov_recipro.images.preprocess import Image
from ov_recipro.limits import IMAGE_BYTES, PIXELS, Limit

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)

_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # markers without a length


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
        ImageError: there is no such file, it is truncated or not an image, or it has more pixels
            than `limits.PIXELS`.
    """
    return decode_file(read_bytes(path), str(path))


def decode_file(data: bytes, path: str, pixels: Limit = PIXELS) -> ImageFile:
    """Decode the bytes of the image file that `path` names; see `decode_image`."""
    return ImageFile(decode_image(data, path, pixels), path, hashlib.sha256(data).hexdigest())


def pixels_of(image: str | Path | ImageFile | Image) -> tuple[Image, str | None, str | None]:
    """Return the pixels of an image, and where it came from a file, its path and SHA-256.

    Raises:
        ImageError: see `read_file`.
    """
    source = read_file(Path(image)) if isinstance(image, str | Path) else image
    if isinstance(source, ImageFile):
        return source.pixels, source.path, source.sha256
    return source, None, None


def read_image(path: Path) -> Image:
    """Return the pixels of an image file; see `read_file`."""
    return read_file(path).pixels


def read_bytes(path: Path) -> bytes:
    """Return the bytes of an image file, whose header is checked first.

    Raises:
        ImageError: it can't be read, is not an image, or has too many pixels.
    """
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path} is not a file.")
        with path.open("rb") as file:
            IMAGE_BYTES.check(os.fstat(file.fileno()).st_size, str(path))
            _check_header(file, str(path))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error


def decode_image(data: bytes, name: str, pixels: Limit = PIXELS) -> Image:
    """Return an image file's bytes as uint8 [H,W,3] BGR, turned as its EXIF orientation says.

    Grey becomes three equal channels, 16 bits become 8, an alpha channel is dropped.

    Args:
        data: the file's bytes.
        name: for messages.
        pixels: how many it may have.

    Raises:
        ImageError: they are truncated or not an image, or have too many pixels.
    """
    IMAGE_BYTES.check(len(data), name)
    _check_header(BytesIO(data), name, pixels)
    if data.startswith(b"\xff\xd8"):
        pixels.check(_pixels_of_jpeg(data), name)
    if data.startswith(_PNG) and not _has_whole_chunks(data):
        raise ImageError(_not_an_image(name))
    try:  # from memory: from a truncated file, OpenCV would fill the rest with grey
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{name} can't be decoded: {error.err}.") from error
    if image is None:
        raise ImageError(_not_an_image(name))
    return np.asarray(image, np.uint8)


def _check_header(file: BinaryIO, name: str, pixels: Limit = PIXELS) -> None:
    """Refuse what is not an image, or has too many pixels, by its header alone."""
    width, height = imagesize.get(file, exif_rotation=False)
    if width < 1 or height < 1:  # no header that imagesize knows
        raise ImageError(_not_an_image(name))
    pixels.check(int(width) * int(height), name)


def _has_whole_chunks(data: bytes) -> bool:
    """Whether a PNG file holds all of its chunks; a decoder makes room for what they claim."""
    position = len(_PNG)
    while position < len(data):
        length, kind = data[position : position + 4], data[position + 4 : position + 8]
        position += 12 + int.from_bytes(length, "big")
        if kind == b"IEND":
            break
    return position <= len(data)


def _pixels_of_jpeg(data: bytes) -> int:
    """Return the number of pixels that a JPEG decoder finds: it skips bytes between segments.

    A file can be forged so that a stricter reader skips the true header and finds a false one.
    """
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else 0xD9
        position += 1
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[position + 3 : position + 7].ljust(4, b"\0"))
            return int(height * width)
        if marker in (0xD9, 0xDA):  # the end, or the pixels
            break
        if marker not in _JPEG_BARE:
            position += int.from_bytes(data[position : position + 2], "big")
    return 0


def _not_an_image(name: str) -> str:
    return f"{name}: not an image, or a truncated one."


def find_images(names: Iterable[str]) -> list[Path]:
    """Expand files, directories (with their subdirectories) and globs, each image once.

    Raises:
        ImageError: a name matches no image.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ImageError(f"{path}: no images in this folder.")
        elif path.exists() or not glob.has_magic(name):
            inside = [path]
        else:
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True))  # noqa: PTH207 (may be absolute)
            inside = [match for match in inside if match.is_file()]
            if not inside:
                raise ImageError(f"{name}: no file matches this pattern.")
        found.update(dict.fromkeys(inside))
    return list(found)
