"""An explanation in a terminal with colour: predictions, and the map in half-blocks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from ov_recipro.images.drawing import Colormap, palette
from ov_recipro.saliency import Floats

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from ov_recipro.explanation import Explanation

_BAR = 20  # characters of a score of 1


def colour_console() -> Console | None:
    """Return a console on stdout if that is a terminal with colour, else None."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    console = Console()
    return console if console.color_system is not None and not console.no_color else None


def picture(explanation: Explanation, colormap: Colormap) -> RenderableType:
    """Return the first target's map beside the predictions."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    scores = Table.grid(padding=(0, 1))
    for each in explanation.predictions:
        bar = "█" * round(_BAR * min(1.0, max(0.0, each.score)))
        scores.add_row(Text(each.label or f"class {each.index}"), f"{each.score:.3g}", bar)
    table.add_row(heat(explanation.maps[0], colormap), scores)
    return table


def heat(saliency: Floats, colormap: Colormap) -> Text:
    """Return a map [h,w] of 0..1 as text: a cell is two columns wide and half a line tall."""
    from rich.text import Text

    colours = palette(colormap)[0]
    levels = np.rint(255 * np.asarray(saliency)).astype(int)
    text = Text()
    for top in range(0, len(levels), 2):
        if top:
            text.append("\n")
        for column in range(levels.shape[1]):
            upper = _rgb(colours[levels[top, column]])
            below = top + 1 < len(levels)
            style = f"{upper} on {_rgb(colours[levels[top + 1, column]])}" if below else upper
            text.append("▀▀", style=style)
    return text


def _rgb(colour: Floats | np.ndarray) -> str:
    blue, green, red = (int(part) for part in colour)
    return f"rgb({red},{green},{blue})"
