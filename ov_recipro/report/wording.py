"""What a report says about targets, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec

from ov_recipro.explanation import Prediction, Target
from ov_recipro.targets.boxes import Box
from ov_recipro.targets.contrast import Contrast
from ov_recipro.targets.regions import Region
from ov_recipro.targets.sequences import Position
from ov_recipro.targets.similarity import Similarity, Source

_KINDS: dict[str, type[Target]] = {
    "against": Contrast,
    "references": Similarity,
    "context": Region,
    "position": Position,
    "box": Box,
}
"""By a field that no other kind of record has."""

METHODS = {
    "recipro": "Recipro-CAM",
    "recipro-pair": "Recipro-CAM at two layers",
    "recipro-aumann": "Aumann-Shapley shares",
    "occlusion": "occlusion",
    "rise": "RISE",
    "d-rise": "D-RISE",
    "aise": "AISE",
    "votes": "votes",
}
"""Methods as they are called in text."""

_NAMED = 3  # files that are named one by one


@dataclass(frozen=True)
class Terms:
    """What a page calls things, as its targets are of one kind or another.

    Attributes:
        speak_for: what cells speak for.
        explained: the label of the choice between targets.
        confidence: what a card's main score is; most, least: the orders by it.
        by_name: the order by what is explained; find: what can be searched for.
    """

    speak_for: str = "a class"
    explained: str = "Explained class"
    confidence: str = "Confidence"
    most: str = "most confident first"
    least: str = "least confident first"
    by_name: str = "by class"
    find: str = "class or file"


_TERMS: dict[type[Target], Terms] = {
    Contrast: Terms("one class rather than another"),
    Similarity: Terms(
        speak_for="the similarity",
        explained="Explained similarity",
        confidence="Similarity",
        most="most similar first",
        least="least similar first",
        by_name="by reference",
        find="reference or file",
    ),
    Box: Terms(
        speak_for="a box",
        explained="Explained box",
        confidence="Score",
        most="highest score first",
        least="lowest score first",
    ),
    Region: Terms("a class in its region"),
    Position: Terms("a class at its position"),
}


def terms_of(target: Target | None) -> Terms:
    """Return the terms of a page whose targets are like this one."""
    return Terms() if target is None else _TERMS.get(type(target), Terms())


@dataclass(frozen=True)
class Colours:
    """What the colours of a page's maps stand for.

    Attributes:
        bright: what bright colours mark; heat: from what to what their heat runs.
        ends: the ends of the legend; between: the same for those who don't see it.
        signed: what orange and blue mark where heat is signed; None where no value is below 0.
    """

    bright: str
    heat: str
    ends: tuple[str, str]
    between: str
    signed: str | None = None


def colours_of(run: Mapping[str, Any], terms: Terms, misses: bool) -> Colours:
    """Return what the colours of a page's maps stand for.

    Args:
        run: the record of the run.
        terms: of its targets; misses: a target is a box that the model misses.
    """
    method = METHODS[run["method"]]
    if run["method"] == "votes":
        return Colours(
            "the cells whose candidate boxes score highest and overlap the explained one most "
            f"({method}): where the model decides, not what it sees there",
            "0 to each map's own highest vote",
            ("0", "highest vote"),
            "Colours from 0 to a map's highest vote",
        )
    if run["method"] == "aise":
        return Colours(
            "the parts of the image that, seen alone through a window, keep most of the target's "
            f"score ({method})",
            "0 to each map's own highest value",
            ("0", "highest"),
            "Colours from 0 to a map's highest value",
        )
    if run["method"] == "recipro-pair":
        return Colours(
            "the cells of the feature map that, each alone, achieve most for the class and without "
            f"which it loses most ({method})",
            "each map's own lowest to its own highest sum of both",
            ("lowest", "highest"),
            "Colours from the lowest value of a map to its highest",
        )
    if run["method"] == "recipro-aumann":
        return Colours(
            f"the cells of the feature map with the largest shares of the class's score ({method})",
            "0 to each map's own largest share",
            ("0", "largest share"),
            "Colours from 0 to a map's largest share",
        )
    if run["method"] != "recipro":
        return _of_costs("the parts of the image", "whose hiding", method, misses)
    if run["mask"] == "drop":
        made = f"{method}, each cell dropped"
        return _of_costs("the cells of the feature map", "whose loss", made, misses)
    alone = "the cells of the feature map that, each alone, speak"
    return Colours(
        f"{alone} most for {terms.speak_for} ({method})",
        "each map's own lowest to its own highest score",
        ("lowest", "highest"),
        "Colours from the lowest score of a map to its highest",
        f"Orange marks {alone} for {terms.speak_for}, blue those that speak against it: they raise "
        f"or lower the score that is left when no cell is kept ({method}).",
    )


def _of_costs(where: str, loss: str, made: str, misses: bool) -> Colours:
    free = "a loss that costs nothing" if loss == "whose loss" else "where hiding costs nothing"
    signed = f"Orange marks {where} {loss} lowers the target's score, blue those {loss} raises it"
    if misses:
        return Colours(
            f"{where} {loss} lowers the target's score most or, where the model misses the box, "
            f"raises it most ({made})",
            "0, for no change, to each map's own largest change",
            ("0", "largest change"),
            "Colours from no change to a map's largest change",
            f"{signed}; where the model misses the box, it is the other way round ({made}).",
        )
    return Colours(
        f"{where} {loss} costs the target most ({made})",
        f"0, {free}, to each map's own highest cost",
        ("0", "highest cost"),
        "Colours from a cost of 0 to a map's highest cost",
        f"{signed} ({made}).",
    )


def basis_of(target: Target, method: str) -> str | None:
    """Return what a map rests on that was not made by masking cells, in a line.

    Args:
        target: what is explained.
        method: the run's.
    """
    if target.runs is None:
        return None
    if target.runs == 0:
        return f"Method {METHODS[method]}: no further inferences."
    line = f"Method {METHODS[method]}: {target.runs} inferences on masked images"
    if target.reliability is None:
        return f"{line}."
    return (
        f"{line}; reliability {target.reliability:.2f}, the estimated correlation with the map of "
        "as many others."
    )


def target_of(entry: Mapping[str, Any]) -> Target:
    """Return a target's record from its entry of `explanations.json`."""
    kind = next((kind for name, kind in _KINDS.items() if name in entry), Target)
    return msgspec.convert(entry, kind)


def name_of(target: Target) -> str:
    """Return what is explained, in a few words."""
    if isinstance(target, Similarity):
        return f"similarity to {_listed(target.references)}"
    name = class_name(target)
    if isinstance(target, Contrast) and target.against is not None:
        return f"{name} rather than {class_name(target.against)}"
    if isinstance(target, Position):
        return f"{name} at position {target.position}"
    if isinstance(target, Box):
        if target.number is None:
            return f"{name} in the drawn box"
        return f"box {target.number} ({name})"
    return name


def question_of(target: Target) -> list[str]:
    """Return what was asked, in sentences; nothing where it was a class and nothing more."""
    name, score = class_name(target), f"{target.score:.3g}"
    if isinstance(target, Contrast) and target.against is not None:
        other = class_name(target.against)
        if target.gamma == 1:
            return [f"Asked: why {name} rather than {other}; their logits differ by {score}."]
        return [
            f"Asked: why {name} rather than {other}; the logit of {name} minus {target.gamma:g} "
            f"times that of {other} is {score}."
        ]
    if isinstance(target, Similarity):
        return _similarity(target)
    if isinstance(target, Position):
        return [f"Asked: why {name} at position {target.position}; its score there is {score}."]
    if isinstance(target, Region):
        pixels = f"{target.pixels} pixel{'s' if target.pixels > 1 else ''}"
        if target.region is None:
            where = f"the {pixels} of the model's output that it predicts as {name}"
        else:
            left, top, right, bottom = (f"{edge:g}" for edge in target.region)
            where = (
                f"the region from {left},{top} to {right},{bottom} ({pixels} of the model's output)"
            )
        return [f"Asked: why {name} in {where}; its mean score there is {score}."]
    if isinstance(target, Box) and target.number is None:
        return _drawn_box(target)
    return []


def class_name(prediction: Prediction) -> str:
    """Return a class's name or, where names are not known, its number."""
    return prediction.label or f"class {prediction.index}"


def _drawn_box(target: Box) -> list[str]:
    name, score = class_name(target), f"{target.score:.3g}"
    left, top, width, height = target.box
    where = f"the box from {left:g},{top:g} to {left + width:g},{top + height:g}"
    if not target.missed:
        return [
            f"Asked: why {name} in {where}; it scores {score} there, the score of the class times "
            "the overlap."
        ]
    sentences = [
        f"Asked: why no {name} in {where}; the best candidate there scores {score}, the score of "
        "the class times the overlap."
    ]
    if target.runs != 0:
        cells = "cells whose loss raises"
        parts = "parts of the image whose hiding raises"
        raised = cells if target.runs is None else parts
        sentences.append(f"The map shows what suppresses it: {raised} that score.")
    return sentences


def _similarity(target: Similarity) -> list[str]:
    like = _listed(target.references)
    mean = "" if len(target.references) == 1 else "the mean of "
    asked, cosine = f"Asked: what is similar to {mean}{like}", f"the cosine is {target.score:.3g}"
    if target.unlike:
        asked += f" and unlike {_listed(target.unlike)}"
        cosine = f"the cosine with the former minus that with the latter is {target.score:.3g}"
    sentences = [f"{asked}; {cosine}."]
    if target.centre:
        sentences.append(
            f"The mean vector of {_listed(target.centre)} is subtracted from all vectors first."
        )
    return sentences


def _listed(sources: Sequence[Source]) -> str:
    names = [PurePath(source.name).name for source in sources]
    if len(names) > _NAMED:
        names[_NAMED - 1 :] = [f"{len(names) - _NAMED + 1} more"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
