"""The tables of `ov-recipro evaluate`: of classes, and of boxes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ov_recipro.metrics import FEWEST_IMAGES

if TYPE_CHECKING:
    from ov_recipro.faithfulness.box_evaluation import BoxRow
    from ov_recipro.faithfulness.box_tally import BoxDifference, BoxMeans, BoxSummary
    from ov_recipro.faithfulness.evaluation import Row
    from ov_recipro.faithfulness.tally import Difference
    from ov_recipro.metrics import Mean

_COLUMNS = {
    "drop": "drop ↓",
    "increase": "increase ↑",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "coherency": "coherency ↑",
    "complexity": "complexity ↓",
    "adcc": "ADCC ↑",
    "saco": "SaCo ↑",
    "pointing": "pointing ↑",
    "energy": "energy ↑",
    "grid_energy": "grid energy ↑ (25)",
    "grid_auc": "grid AUC ↑ (50)",
    "grid_peak": "grid peak ↑ (25)",
}


def class_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return each method's means, and how far its ADCC lies above the first one's."""
    return [_header(rows), *(_shown(row, rows) for row in rows)]


def _columns(rows: Sequence[Row]) -> list[str]:
    """Return the measures that were taken; some need boxes."""
    taken = [row.summary for row in rows if row.summary is not None]
    return [name for name in _COLUMNS if any(getattr(each, name) is not None for each in taken)]


def _header(rows: Sequence[Row]) -> tuple[str, ...]:
    above = (f"ADCC difference from {rows[0].method}",) if len(rows) > 1 else ()
    return ("method", *(_COLUMNS[name] for name in _columns(rows)), *above, "flat", "images")


def _shown(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    names = _columns(rows)
    if row.summary is None:
        empty = ("",) * (len(_header(rows)) - 2)
        return (row.method, f"not applicable: {row.not_applicable}", *empty)
    means = [getattr(row.summary, name) for name in names]
    above = (_percent(row.above_first, signed=True),) if len(rows) > 1 else ()
    return (
        row.method,
        *map(_percent, means),
        *above,
        str(row.summary.flat),
        str(row.summary.images),
    )


def _percent(mean: Mean | None, signed: bool = False) -> str:
    if mean is None:
        return ""
    if signed:
        return f"{100 * mean.value:+.2f} ({100 * mean.low:+.1f} to {100 * mean.high:+.1f})"
    return f"{100 * mean.value:.2f} ({100 * mean.low:.1f}-{100 * mean.high:.1f})"


def difference_table(found: Mapping[str, Difference], title: str) -> list[tuple[str, ...]]:
    """Return the differences between two methods, measure by measure."""
    rows: list[tuple[str, ...]] = [(title, "difference", "images needed")]
    for name, heading in _COLUMNS.items():
        if name in found:
            each = found[name]
            needed = "" if each.needed is None else str(each.needed)
            rows.append((heading, _percent(each.mean, signed=True), needed))
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """Return `class_table` as numbers."""
    names = _columns(rows)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = ("", "_low", "_high")
    heads = [f"{name}{end}" for name in names for end in ends]
    writer.writerow(
        [
            *("method", *heads, *(f"adcc_above_first{end}" for end in ends)),
            *("images", "boxed", "flat", "undefined_coherency", "not_applicable"),
        ]
    )
    for row in rows:
        found = row.summary
        if found is None:
            writer.writerow([row.method, *("" for _ in heads), *[""] * 7, row.not_applicable])
            continue
        means = [*(getattr(found, name) for name in names), row.above_first]
        values = [
            value for m in means for value in ((m.value, m.low, m.high) if m else ("", "", ""))
        ]
        counts = [found.images, found.boxed, found.flat, found.undefined]
        writer.writerow([row.method, *values, *counts, ""])
    return file.getvalue()


_BOX_COLUMNS = {
    "energy": "energy ↑",
    "pointing": "pointing ↑",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "margin": "ins - del ↑",
    "inner_deletion": "inner deletion ↓",
    "inner_insertion": "inner insertion ↑",
    "inner_margin": "inner ins - del ↑",
}


def box_table(rows: Sequence[BoxRow]) -> list[tuple[str, ...]]:
    """Return each method's means, and below them how far they lie above those of the controls.

    There are intervals where there are `metrics.FEWEST_IMAGES` photographs or more.
    """
    table: list[tuple[str, ...]] = [("method", *_BOX_COLUMNS.values(), "flat", "boxes", "images")]
    for row in rows:
        found = row.summary
        if found is None:
            empty = ("",) * (len(table[0]) - 2)
            table.append((row.method, f"not applicable: {row.not_applicable}", *empty))
            continue
        cells = (_of_boxes(each, found.images) for each in _listed(found.means))
        counts = (str(found.flat), str(found.boxes), str(found.images))
        table.append((row.method, *cells, *counts))
        for control, above in row.above.items():
            cells = (_of_boxes(each, above.images, signed=True) for each in _listed(above.means))
            counts = ("", str(above.boxes), str(above.images))
            table.append((f"- difference from {control}", *cells, *counts))
    return table


def _of_boxes(mean: Mean, images: int, signed: bool = False) -> str:
    if images >= FEWEST_IMAGES:
        return _percent(mean, signed)
    return f"{100 * mean.value:{'+' if signed else ''}.2f}"


def _listed(means: BoxMeans) -> list[Mean]:
    return [getattr(means, name) for name in _BOX_COLUMNS]


def box_csv(rows: Sequence[BoxRow]) -> str:
    """Return `box_table` as numbers; "difference_from" names the control that is subtracted."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"{name}{end}" for name in _BOX_COLUMNS for end in ("", "_low", "_high")]
    writer.writerow(
        ["method", "difference_from", *heads, "flat", "boxes", "images", "not_applicable"]
    )
    for row in rows:
        found = row.summary
        if found is None:
            writer.writerow([row.method, *[""] * (len(heads) + 4), row.not_applicable])
            continue
        rows_of: list[tuple[str, BoxSummary | BoxDifference]] = [("", found), *row.above.items()]
        for control, each in rows_of:
            enough = each.images >= FEWEST_IMAGES
            numbers = [
                number
                for m in _listed(each.means)
                for number in (m.value, *((m.low, m.high) if enough else ("", "")))
            ]
            counts = ["" if control else found.flat, each.boxes, each.images]
            writer.writerow([row.method, control, *numbers, *counts, ""])
    return file.getvalue()
