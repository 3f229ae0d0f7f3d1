"""Vectors to compare with, from what users name: images, folders of them, files of vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ov_recipro.errors import OptionError
from ov_recipro.images.reading import ImageFile, find_images, read_file
from ov_recipro.saliency import Floats
from ov_recipro.targets.similarity import Source

VECTORS = ".npy"
_LARGEST = 1 << 30  # bytes of a file of vectors


def read_vectors(
    named: Any, embed: Callable[[ImageFile], Floats]
) -> Iterator[tuple[Source, Floats]]:
    """Yield vectors [n,D] and where they come from.

    Args:
        named: a path of an image, of a folder of images or of a .npy file with vectors [D] or
            [n,D]; an image file already read; an array of vectors; or several of all that.
        embed: returns the vector [D] of an image.

    Raises:
        ReciproError: a file can't be read.
    """
    if isinstance(named, np.ndarray):
        try:
            vectors = _numbers(named)
        except ValueError as error:
            raise OptionError(f"An array of {named.dtype} holds no vectors.") from error
        yield Source("an array", hashlib.sha256(vectors.tobytes()).hexdigest()), vectors
    elif isinstance(named, ImageFile):
        yield Source(named.path, named.sha256), embed(named)[None]
    elif isinstance(named, str | Path):
        path = Path(named)
        if path.suffix.lower() == VECTORS:
            yield _from_file(path)
            return
        for image in find_images([str(path)]):
            file = read_file(image)
            yield Source(str(image), file.sha256), embed(file)[None]
    elif isinstance(named, float | int) or not isinstance(named, Iterable):
        raise OptionError(f"{named!r} is not an image, a folder, a .npy file or an array.")
    else:
        for each in named:
            yield from read_vectors(each, embed)


def only_image(named: Any) -> str | None:
    """Return the path of the image, if one image is all that was named."""
    if isinstance(named, list | tuple) and len(named) == 1:
        return only_image(named[0])
    if not isinstance(named, str | Path):
        return None
    path = Path(named)
    return str(path) if path.is_file() and path.suffix.lower() != VECTORS else None


def _numbers(array: Any) -> Floats:
    """Return numbers as float32 [n,D]; beyond its range they become infinite.

    Raises:
        ValueError: they are not real numbers.
    """
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{array.dtype} is not a kind of number")
    with np.errstate(over="ignore"):
        return np.atleast_2d(np.asarray(array, np.float32))


def _from_file(path: Path) -> tuple[Source, Floats]:
    try:
        if path.stat().st_size > _LARGEST:
            raise OptionError(f"{path} is larger than 1 GiB.")
        data = path.read_bytes()
        array = np.load(BytesIO(data), allow_pickle=False)
        vectors = _numbers(array)
    except OSError as error:
        raise OptionError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, EOFError) as error:
        raise OptionError(f"{path} is not a .npy file of numbers.") from error
    return Source(str(path), hashlib.sha256(data).hexdigest()), vectors
