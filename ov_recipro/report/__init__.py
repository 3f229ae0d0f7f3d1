"""The report: one HTML file that shows what was explained and loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import cv2
import jinja2
import msgspec

from ov_recipro.explanation import Target
from ov_recipro.images.drawing import Colormap, Style, palette, shrink
from ov_recipro.images.preprocess import Image
from ov_recipro.saliency import Floats

_LONGEST = 640  # pixels of an image's longer side
_QUALITY = 80


@dataclass(frozen=True)
class Card:
    """An image in the report.

    Attributes:
        record: the image's entry of `explanations.json`.
        jpeg: the image, made smaller, as a data URI; width, height: its size in pixels.
        raw: the raw scores [T][H][W] of the entry's targets.
    """

    record: Mapping[str, Any]
    jpeg: str
    width: int
    height: int
    raw: list[list[list[float]]]


def card(record: Mapping[str, Any], image: Image, raw: Floats) -> Card:
    """Make an image's card.

    Args:
        record: its entry of `explanations.json`.
        image: uint8 [h,w,3] BGR.
        raw: scores per cell [T,H,W], float32.
    """
    small = shrink(image, _LONGEST)
    height, width = small.shape[:2]
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    jpeg = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
    rounded = [[[float(f"{v:.6g}") for v in row] for row in each] for each in raw.tolist()]
    return Card(record, jpeg, width, height, rounded)


def page(run: Mapping[str, Any], cards: Sequence[Card], style: Style) -> bytes:
    """Return the report as HTML.

    Args:
        run: the record of the run, as `explanations.json` holds it.
        cards: its images.
        style: colours and opacity that the page opens with.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["stem"] = lambda name: PurePath(name).name
    script = _part("page.js")
    text = environment.get_template("page.html").render(
        run=run,
        cards=[_shown(each, run) for each in cards],
        style=style,
        colours=_colours(style.colormap),
        css=_part("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdicts=list(dict.fromkeys(v for each in cards for v in _verdicts(each))),
    )
    return text.encode()


def _part(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _colours(colormap: Colormap) -> list[list[int]]:
    """Return a colormap's 256 colours as [red, green, blue]."""
    return [[int(part) for part in colour[::-1]] for colour in palette(colormap)[0]]


def _verdicts(card: Card) -> list[str]:
    targets = card.record["targets"]
    return [t["verification"]["verdict"] for t in targets if "verification" in t]


def _shown(card: Card, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template needs from a card."""
    record = card.record
    left, top, right, bottom = record["window"]
    height, width = record["size"]
    _, rows, columns = run["feature_shape"]
    targets = [
        {
            "name": target["label"] or f"class {target['index']}",
            "score": target["score"],
            "remarks": msgspec.convert(target, Target).remarks(rows * columns, run["score"]),
            "verification": target.get("verification"),
        }
        for target in record["targets"]
    ]
    best = record["predictions"][0]
    return {
        "path": record["path"],
        "jpeg": card.jpeg,
        "width": card.width,
        "height": card.height,
        "best": best["label"] or f"class {best['index']}",
        "confidence": best["score"],
        "predictions": record["predictions"],
        "targets": targets,
        "verdicts": _verdicts(card),
        "search": " ".join([record["path"], *(t["name"] for t in targets), best["label"] or ""]),
        "data": {
            "raw": card.raw,
            "window": [left / width, top / height, right / width, bottom / height],
        },
    }
