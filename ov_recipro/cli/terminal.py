"""An explanation in a terminal with colour: predictions, and the map in half-blocks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from ov_recipro.images.drawing import Colormap, palette, signed_index, signed_palette
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


def picture(explanation: Explanation, colormap: Colormap, signed: bool = False) -> RenderableType:
    """Return the first target's map beside the predictions.

    Args:
        explanation: what is shown.
        colormap: from low to high saliency.
        signed: show the signed map instead, in blue and orange.

    Raises:
        OptionError: the map is to be signed, but the explainer is not.
    """
    from rich.table import Table
    from rich.text import Text

    from ov_recipro.targets.sequences import Position

    table = Table.grid(padding=(0, 2))
    maps = explanation.signed_maps if signed else explanation.maps
    beside: RenderableType = _bars(explanation)
    if isinstance(explanation.targets[0], Position):
        beside = Text(" ".join(each.label or str(each.index) for each in explanation.predictions))
    table.add_row(heat(maps[0], colormap, signed), beside)
    return table


def _bars(explanation: Explanation) -> RenderableType:
    """Return the predictions or, where there are none, the first target, with their scores."""
    from rich.table import Table
    from rich.text import Text

    scores = Table.grid(padding=(0, 1))
    for each in explanation.predictions or explanation.targets[:1]:
        bar = "█" * round(_BAR * min(1.0, max(0.0, each.score)))
        scores.add_row(Text(each.label or f"class {each.index}"), f"{each.score:.3g}", bar)
    return scores


def heat(saliency: Floats, colormap: Colormap, signed: bool = False) -> Text:
    """Return a map [h,w] of 0..1, or of -1..1 if it is signed, as text.

    A cell is two columns wide and half a line tall.
    """
    from rich.text import Text

    values = np.asarray(saliency)
    if signed:
        colours, levels = signed_palette()[0], signed_index(values)
    else:
        colours, levels = palette(colormap)[0], np.rint(255 * values).astype(np.intp)
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
