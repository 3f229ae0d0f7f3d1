"""What a report says about targets, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec

from ov_recipro.explanation import Prediction, Target
from ov_recipro.targets.contrast import Contrast
from ov_recipro.targets.regions import Region
from ov_recipro.targets.sequences import Position
from ov_recipro.targets.similarity import Similarity, Source

_KINDS: dict[str, type[Target]] = {
    "against": Contrast,
    "references": Similarity,
    "context": Region,
    "position": Position,
}
"""By a field that no other kind of record has."""

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
    Region: Terms("a class in its region"),
    Position: Terms("a class at its position"),
}


def terms_of(target: Target | None) -> Terms:
    """Return the terms of a page whose targets are like this one."""
    return Terms() if target is None else _TERMS.get(type(target), Terms())


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
    return name


def question_of(target: Target) -> list[str]:
    """Return what was asked, in sentences; nothing where it was a class and nothing more."""
    name, score = class_name(target), f"{target.score:.3g}"
    if isinstance(target, Contrast) and target.against is not None:
        other = class_name(target.against)
        if target.gamma == 1:
            return [f"Asked: why {name} rather than {other}; their logits differ by {score}."]
        return [
            f"Asked: why {name} rather than {other}; the logit of {name} less {target.gamma:g} "
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
    return []


def class_name(prediction: Prediction) -> str:
    """Return a class's name or, where names are not known, its number."""
    return prediction.label or f"class {prediction.index}"


def _similarity(target: Similarity) -> list[str]:
    like = _listed(target.references)
    mean = "" if len(target.references) == 1 else "the mean of "
    asked, cosine = f"Asked: what is similar to {mean}{like}", f"the cosine is {target.score:.3g}"
    if target.unlike:
        asked += f" and unlike {_listed(target.unlike)}"
        cosine = f"the cosine with the former less that with the latter is {target.score:.3g}"
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
