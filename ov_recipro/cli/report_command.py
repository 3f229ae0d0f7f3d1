"""`ov-recipro report`: one page that shows what was explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ov_recipro.cli.option_groups import FILE, colormap_option, note
from ov_recipro.errors import ReciproError
from ov_recipro.images.drawing import Style


@click.command("report")
@click.argument("folder", type=FILE, default=Path("explanations"), metavar="[DIR]")
@click.option(
    "-o", "--output", type=FILE, metavar="FILE", help="The HTML file.  [default: DIR/report.html]"
)
@colormap_option
def command(folder: Path, output: Path | None, colormap: Any) -> None:
    """Make one HTML file from what 'explain --save-maps' wrote to DIR.

    The page needs no other files and no network. The images must still be where they were.
    'explain --report' writes the page directly.
    """
    from ov_recipro.output import REPORT, write_whole
    from ov_recipro.report.saved import saved_page

    html, missing = saved_page(folder, Style(colormap))
    for line in missing:
        note(f"Error: {line}")
    if html is None:
        raise ReciproError(f"{folder} has no image to show.")
    target = output or folder / REPORT
    write_whole(target, html)
    click.echo(str(target))
    if missing:
        raise ReciproError(f"{len(missing)} images are missing from the report.")
