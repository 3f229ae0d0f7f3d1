"""Cards of images that were explained earlier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
from jinja2 import TemplateError

from ov_recipro.errors import ImageError, OptionError
from ov_recipro.images.drawing import Style
from ov_recipro.images.preprocess import Image
from ov_recipro.images.reading import read_file
from ov_recipro.output import RECORD, SCHEMA_VERSION
from ov_recipro.report import Card, card, page

_OF_VALUES = (ArithmeticError, msgspec.ValidationError, TemplateError)


def read_cards(folder: Path) -> tuple[dict[str, Any], list[Card], list[str]]:
    """Read what `explain` wrote to a folder.

    Returns:
        The record, the images' cards, and for each image that can't be shown the reason.

    Raises:
        OptionError: there is no record, it is malformed, another version wrote it, or it has no
            maps.
    """
    file = folder / RECORD
    try:
        run = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise OptionError(f"{file}: {error.strerror or error}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OptionError(f"{file} is malformed: {error}.") from error
    if run.get("schema_version") != SCHEMA_VERSION:
        raise OptionError(f"{file} was written by another version; explain the images again.")
    run.setdefault("method", "recipro")  # the only one once, and not written then
    with _reported_as_malformed(file):
        return run, *_cards(run, folder)


def saved_page(folder: Path, style: Style) -> tuple[bytes | None, list[str]]:
    """Return the page of what `explain` wrote to a folder, and what is missing from it and why.

    The page is None if there are no images to show.

    Raises:
        OptionError: see `read_cards`.
    """
    run, cards, missing = read_cards(folder)
    if not cards:
        return None, missing
    with _reported_as_malformed(folder / RECORD):
        return page(run, cards, style), missing


@contextmanager
def _reported_as_malformed(file: Path) -> Iterator[None]:
    """Turn what a record raises that has other fields than it should into an OptionError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, *_OF_VALUES) as error:
        raise OptionError(f"{file} is malformed: {type(error).__name__}: {error}.") from error


def _cards(run: Mapping[str, Any], folder: Path) -> tuple[list[Card], list[str]]:
    """Return the images' cards, and for each that can't be shown the reason."""
    cards, missing = [], []
    for record in run["images"]:
        maps = record["targets"][0]["maps"]
        if maps is None:
            raise OptionError(f"{folder} holds no maps: explain with --save-maps or --report.")
        try:
            with np.load(folder / maps) as saved:
                raw = saved["raw"]
            pixels, reverse = _pixels(record), record["targets"][0].get("reverse")
            reference = None
            if reverse is not None:
                try:
                    reference = _pixels(reverse)
                except ImageError as error:  # the image itself can be shown
                    missing.append(str(error))
            cards.append(card(record, pixels, raw, reference))
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            missing.append(f"{folder / maps}: {getattr(error, 'strerror', None) or error}.")
        except ImageError as error:
            missing.append(str(error))
    return cards, missing


def _pixels(record: Mapping[str, Any]) -> Image:
    image = read_file(Path(record["path"]))
    if record.get("sha256") not in (None, image.sha256):
        raise ImageError(f"{image.path} has changed since it was explained.")
    return image.pixels
