"""The report: one HTML file that shows what was explained and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import PurePath
from typing import Any, TypeAlias

import cv2
import jinja2
import msgspec
import numpy as np

from ov_recipro.explanation import Prediction, Target
from ov_recipro.images.drawing import Style, palette, shrink, signed_palette
from ov_recipro.images.preprocess import Image
from ov_recipro.metrics import VERDICTS
from ov_recipro.report.box_list import listed_boxes
from ov_recipro.report.wording import (
    METHODS,
    basis_of,
    class_name,
    colours_of,
    name_of,
    question_of,
    target_of,
    terms_of,
)
from ov_recipro.saliency import Floats, begins_at_zero, score_of_cells
from ov_recipro.targets.boxes import is_missed
from ov_recipro.targets.contrast import Contrast

_LONGEST = 640  # pixels of an image's longer side
_QUALITY = 80
_TEXT_CELLS = 1024  # of a map whose numbers are written as text; those of larger ones take 16 bits
_STEPS = 32767  # from 0 to a packed map's largest number


@dataclass(frozen=True)
class Picture:
    """An image, made smaller: as a data URI, and its size in pixels."""

    jpeg: str
    width: int
    height: int


@dataclass(frozen=True)
class Packed:
    """A large map in few characters.

    Attributes:
        shape: (H, W).
        step: of the numbers, which are multiples of it.
        numbers: the multiples, row by row, as little-endian int16 in base64.
    """

    shape: tuple[int, int]
    step: float
    numbers: str


Raw: TypeAlias = list[list[float]] | Packed
"""The raw scores [H][W] of a target."""


@dataclass(frozen=True)
class Card:
    """An image in the report.

    Attributes:
        record: the image's entry of `explanations.json`.
        picture: the image.
        raw: those of the entry's targets.
        reference: the image that it is compared with, if it was explained the other way round.
    """

    record: Mapping[str, Any]
    picture: Picture
    raw: Sequence[Raw]
    reference: Picture | None = None


def card(
    record: Mapping[str, Any], image: Image, raw: Floats, reference: Image | None = None
) -> Card:
    """Make an image's card.

    Args:
        record: its entry of `explanations.json`.
        image: uint8 [h,w,3] BGR.
        raw: scores per cell [T,H,W], float32.
        reference: the image of the first target's "reverse", where there is one.
    """
    written = [_written(each) for each in raw]
    return Card(
        record, _picture(image), written, None if reference is None else _picture(reference)
    )


def _written(raw: Floats) -> Raw:
    if raw.size <= _TEXT_CELLS:
        return [[float(f"{v:.6g}") for v in row] for row in raw.tolist()]
    height, width = raw.shape
    step = float(np.abs(raw).max()) / _STEPS or 1.0
    numbers = np.rint(raw.astype(np.float64) / step).astype("<i2")
    return Packed((height, width), step, base64.b64encode(numbers.tobytes()).decode())


def _cells(raw: Raw) -> int:
    return prod(raw.shape) if isinstance(raw, Packed) else len(raw) * len(raw[0])


def _picture(image: Image) -> Picture:
    small = shrink(image, _LONGEST)
    height, width = small.shape[:2]
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return Picture(
        f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}", width, height
    )


def page(run: Mapping[str, Any], cards: Sequence[Card], style: Style, above: str = "") -> bytes:
    """Return the report as HTML.

    Args:
        run: the record of the run, as `explanations.json` holds it.
        cards: its images.
        style: colours and opacity that the page opens with, and whether its heat is signed.
        above: HTML to stand before the images.
    """
    environment = templates(__name__)
    environment.filters["stem"] = lambda name: PurePath(name).name
    script = _part("page.js")
    shown = [_shown(each, run) for each in cards]
    data = [view["data"] for each in shown for view in each["views"]]
    terms = terms_of(target_of(cards[0].record["targets"][0]) if cards else None)
    colours = colours_of(run, terms, misses=any("gains" in each for each in data))
    can_sign = bool(data) and colours.signed is not None and all("zeros" in e for e in data)
    text = environment.get_template("page.html").render(
        run=run,
        method=METHODS[run["method"]],
        cards=shown,
        style=style,
        from_zero=_from_zero(run),
        terms=terms,
        colours=colours,
        can_sign=can_sign,
        signed=can_sign and style.signed,
        ramps={"plain": _rgb(palette(style.colormap)), "signed": _rgb(signed_palette())},
        css=styles(),
        above=above,
        script=script,
        script_hash=base64.b64encode(
            hashlib.sha256(script.encode("utf-8", "backslashreplace")).digest()
        ).decode(),
        verdicts=[v for v in VERDICTS if any(v in _verdicts(each) for each in cards)],
    )
    return text.encode("utf-8", "backslashreplace")  # names of files need not be UTF-8


def templates(package: str) -> jinja2.Environment:
    """Return the environment of the HTML templates that a package holds as files."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: files(package).joinpath(name).read_text(encoding="utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def styles() -> str:
    """Return the page's style sheet."""
    return _part("page.css")


def _from_zero(run: Mapping[str, Any]) -> bool:
    """Return whether maps begin at 0, as they hold what a loss costs, and the like."""
    return begins_at_zero(run["method"], run["mask"])


def _part(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _rgb(colours: Image) -> list[list[int]]:
    """Return 256 colours as [red, green, blue]."""
    return [[int(part) for part in colour[::-1]] for colour in colours[0]]


def _verdicts(card: Card) -> list[str]:
    targets = card.record["targets"]
    return [t["verification"]["verdict"] for t in targets if "verification" in t]


def _shown(card: Card, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template needs from a card."""
    record, entries = card.record, card.record["targets"]
    found, cells = [target_of(entry) for entry in entries], _cells(card.raw[0])
    targets = [
        {
            "name": name_of(target),
            "question": question_of(target),
            "remarks": target.remarks(
                cells, score_of_cells(run["method"], run["score"]), run["mask"]
            ),
            "verification": entry.get("verification"),
            "basis": basis_of(target, run["method"]),
        }
        for target, entry in zip(found, entries, strict=True)
    ]
    best, alt, confidence = name_of(found[0]), "explained for", found[0].score
    predicted = None
    if record["predictions"] and type(found[0]) in (Target, Contrast):
        predicted = msgspec.convert(record["predictions"][0], Prediction)
        best, alt, confidence = class_name(predicted), "classified as", predicted.score
    boxes = listed_boxes(record, found)
    views = [_view(card.picture, record, card.raw, run) | {"alt": f"{alt} {best}", "remarks": []}]
    if card.reference is not None:
        reverse = entries[0]["reverse"]
        other = target_of(reverse["targets"][0])
        shown = _view(card.reference, reverse, [reverse["targets"][0]["cosines"]], run)
        remarks = other.remarks(cells, run["score"], run["mask"])
        views.append(shown | {"alt": f"explained for {name_of(other)}", "remarks": remarks})
    return {
        "path": record["path"],
        "best": best,
        "confidence": confidence,
        "predictions": record["predictions"],
        "kind": type(found[0]).__name__,
        "position": getattr(found[0], "position", None),
        "targets": targets,
        "boxes": boxes,
        "views": views,
        "verdicts": _verdicts(card),
        "search": " ".join(
            [
                record["path"],
                *(t["name"] for t in targets),
                predicted.label or "" if predicted else "",
                *dict.fromkeys(each.name for each in boxes),
            ]
        ),
        "data": [view["data"] for view in views],
    }


def _view(
    picture: Picture,
    record: Mapping[str, Any],
    raw: Sequence[Raw],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the template needs from one picture: of an image, or of its reference.

    Args:
        picture: the image; record: its entry; raw: the scores of the entry's targets.
        run: the record of the run.
    """
    left, top, right, bottom = record["window"]
    height, width = record["size"]
    found = [target_of(entry) for entry in record["targets"]]
    data: dict[str, Any] = {
        "names": [name_of(target) for target in found],
        "raw": [msgspec.to_builtins(each) for each in raw],
        "window": [left / width, top / height, right / width, bottom / height],
    }
    gains = [is_missed(target) for target in found]
    if any(gains):
        data["gains"] = gains
    if _from_zero(run):
        data["zeros"] = [0.0] * len(raw)
    elif all("zero" in entry for entry in record["targets"]):
        data["zeros"] = [entry["zero"] for entry in record["targets"]]
    return {"path": record["path"], "picture": picture, "data": data}
