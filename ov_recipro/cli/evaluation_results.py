"""What `evaluate` writes and prints: tables, and in words what their numbers depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ov_recipro.cli.evaluation_tables import (
    as_csv,
    box_csv,
    box_table,
    class_table,
    difference_table,
)
from ov_recipro.metrics import FEWEST_IMAGES

if TYPE_CHECKING:
    from ov_recipro.faithfulness.box_evaluation import BoxEvaluation
    from ov_recipro.faithfulness.box_measure import BoxLimits
    from ov_recipro.faithfulness.evaluation import Evaluation, Row


@dataclass(frozen=True)
class Results:
    """What is written and printed: the table, and what its numbers depend on."""

    table: list[tuple[str, ...]]
    csv: str
    provenance: str
    record: bytes
    differences: list[tuple[str, ...]] | None = None


def class_results(evaluation: Evaluation, pair: tuple[str, str] | None) -> Results | None:
    """Return the tables of a classifier; None where nothing is measured."""
    rows = evaluation.rows()
    if not rows:
        return None
    found = None if pair is None else evaluation.differences(*pair)
    record, table = evaluation.record(rows, pair, found), None
    if pair is not None and found is not None:
        table = difference_table(found, " - ".join(pair))
    return Results(class_table(rows), as_csv(rows), _provenance(evaluation, rows), record, table)


def box_results(evaluation: BoxEvaluation) -> Results | None:
    """Return the tables of a detector; None where nothing is measured."""
    rows = evaluation.rows()
    if not any(row.summary for row in rows):
        return None
    settings, limits = evaluation.settings(), evaluation.measuring.limits
    provenance = (
        "Values x100, with bootstrap 95% intervals over the images in brackets, where there are "
        f"{FEWEST_IMAGES} or more; differences are box by box. For 'inner' figures only the box's "
        f"own pixels turn. A box is measured if it {limits_in_words(limits)}, at most "
        f"{limits.max_boxes} an image; {_setting(settings, evaluation)}."
    )
    return Results(box_table(rows), box_csv(rows), provenance, evaluation.record(rows))


def limits_in_words(limits: BoxLimits) -> str:
    """Return which boxes are measured."""
    return (
        f"scores {limits.threshold:g} or more and covers {100 * limits.smallest:g} to "
        f"{100 * limits.largest:g} % of the input"
    )


def _provenance(evaluation: Evaluation, rows: list[Row]) -> str:
    """Return, in words, everything that the numbers depend on."""
    settings = evaluation.settings()
    summaries = [row.summary for row in rows if row.summary]
    undefined = sum(summary.undefined for summary in summaries)
    images = max((summary.images for summary in summaries), default=0)
    grids = max((summary.grids for summary in summaries), default=0)
    played = f", of which {grids} have a mosaic" if settings["companions"] else ""
    step = f", {settings['step']} pixels per step" if settings["step"] else ""
    return (
        f"Values x100, with bootstrap 95% intervals over the images in brackets. Profile "
        f"{settings['profile']}{step}; {images} images{played}; "
        f"{_setting(settings, evaluation, f'undefined coherencies counted as 0: {undefined}; ')}."
    )


def _setting(
    settings: dict[str, Any], evaluation: Evaluation | BoxEvaluation, further: str = ""
) -> str:
    """Return the model, the device, the preprocessing and the versions in words."""
    how = evaluation.measuring.subject.explainer.preprocessing
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    return (
        f"model {settings['model']} (sha256 {settings['sha256'][:12]}), layer {settings['layer']}; "
        f"{settings['device']}, {settings['precision']}; {how.resize} to "
        f"{how.size[1]}x{how.size[0]}, crop fraction {how.crop_fraction}, {how.interpolation} "
        f"({how.source}); {further}{versions}"
    )
