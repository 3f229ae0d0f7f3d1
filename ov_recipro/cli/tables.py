"""Tables for people: aligned columns, or Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ov_recipro.errors import printable


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the header first, as columns of equal width; the last is not padded.

    Names in them are escaped (see `errors.printable`).
    """
    rows = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the header first, as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
