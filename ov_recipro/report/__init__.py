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

from ov_recipro.explanation import Prediction, Target
from ov_recipro.images.drawing import Style, palette, shrink, signed_palette
from ov_recipro.images.preprocess import Image
from ov_recipro.report.wording import class_name, name_of, question_of, target_of, terms_of
from ov_recipro.saliency import Floats
from ov_recipro.targets.contrast import Contrast

_LONGEST = 640  # pixels of an image's longer side
_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """An image, made smaller: as a data URI, and its size in pixels."""

    jpeg: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """An image in the report.

    Attributes:
        record: the image's entry of `explanations.json`.
        picture: the image.
        raw: the raw scores [T][H][W] of the entry's targets.
        reference: the image that it is compared with, if it was explained the other way round.
    """

    record: Mapping[str, Any]
    picture: Picture
    raw: list[list[list[float]]]
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
    rounded = [[[float(f"{v:.6g}") for v in row] for row in each] for each in raw.tolist()]
    return Card(
        record, _picture(image), rounded, None if reference is None else _picture(reference)
    )


def _picture(image: Image) -> Picture:
    small = shrink(image, _LONGEST)
    height, width = small.shape[:2]
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return Picture(
        f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}", width, height
    )


def page(run: Mapping[str, Any], cards: Sequence[Card], style: Style) -> bytes:
    """Return the report as HTML.

    Args:
        run: the record of the run, as `explanations.json` holds it.
        cards: its images.
        style: colours and opacity that the page opens with, and whether its heat is signed.
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
    shown = [_shown(each, run) for each in cards]
    can_sign = bool(shown) and all(
        "zeros" in view["data"] for each in shown for view in each["views"]
    )
    text = environment.get_template("page.html").render(
        run=run,
        cards=shown,
        style=style,
        drop=run["mask"] == "drop",
        terms=terms_of(target_of(cards[0].record["targets"][0]) if cards else None),
        can_sign=can_sign,
        signed=can_sign and style.signed,
        colours=_rgb(palette(style.colormap)),
        signed_colours=_rgb(signed_palette()),
        css=_part("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdicts=list(dict.fromkeys(v for each in cards for v in _verdicts(each))),
    )
    return text.encode()


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
    _, rows, columns = run["feature_shape"]
    found = [target_of(entry) for entry in entries]
    targets = [
        {
            "name": name_of(target),
            "question": question_of(target),
            "remarks": target.remarks(rows * columns, run["score"], run["mask"]),
            "verification": entry.get("verification"),
        }
        for target, entry in zip(found, entries, strict=True)
    ]
    best, alt, confidence = name_of(found[0]), "explained for", found[0].score
    predicted = None
    if record["predictions"] and type(found[0]) in (Target, Contrast):
        predicted = msgspec.convert(record["predictions"][0], Prediction)
        best, alt, confidence = class_name(predicted), "classified as", predicted.score
    views = [_view(card.picture, record, card.raw, run) | {"alt": f"{alt} {best}", "remarks": []}]
    if card.reference is not None:
        reverse = entries[0]["reverse"]
        other = target_of(reverse["targets"][0])
        shown = _view(card.reference, reverse, [reverse["targets"][0]["cosines"]], run)
        remarks = other.remarks(rows * columns, run["score"], run["mask"])
        views.append(shown | {"alt": f"explained for {name_of(other)}", "remarks": remarks})
    return {
        "path": record["path"],
        "best": best,
        "confidence": confidence,
        "predictions": record["predictions"],
        "kind": type(found[0]).__name__,
        "position": getattr(found[0], "position", None),
        "targets": targets,
        "views": views,
        "verdicts": _verdicts(card),
        "search": " ".join(
            [
                record["path"],
                *(t["name"] for t in targets),
                predicted.label or "" if predicted else "",
            ]
        ),
        "data": [view["data"] for view in views],
    }


def _view(
    picture: Picture,
    record: Mapping[str, Any],
    raw: Sequence[Sequence[Sequence[float]]],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the template needs from one picture: of an image, or of its reference.

    Args:
        picture: the image; record: its entry; raw: the scores of the entry's targets.
        run: the record of the run.
    """
    left, top, right, bottom = record["window"]
    height, width = record["size"]
    data: dict[str, Any] = {
        "names": [name_of(target_of(entry)) for entry in record["targets"]],
        "raw": raw,
        "window": [left / width, top / height, right / width, bottom / height],
    }
    if run["mask"] == "drop":
        data["zeros"] = [0.0] * len(raw)
    elif all("zero" in entry for entry in record["targets"]):
        data["zeros"] = [entry["zero"] for entry in record["targets"]]
    return {"path": record["path"], "picture": picture, "data": data}
