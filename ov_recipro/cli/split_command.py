"""`ov-recipro split`: cut a model into head and tail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ov_recipro.cli.option_groups import FILE, cut_options, note, overridden, preprocessing_options
from ov_recipro.options import Cut

if TYPE_CHECKING:
    from ov_recipro.cut.bundle import Manifest


@click.command("split")
@click.argument("model", type=FILE)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="DIR",
    help="The bundle to write.  [default: MODEL's stem + .recipro]",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@cut_options
@preprocessing_options
def command(
    model: Path,
    output: Path | None,
    force: bool,
    cut: Cut,
    labels: Path | None,
    **preprocessing: Any,
) -> None:
    """Cut MODEL in two and write head, tail and manifest as a bundle.

    Head and tail are first run against the whole model; if their scores differ by more than
    rounding, nothing is written.
    """
    from ov_recipro.sources.labels import read_labels
    from ov_recipro.splitting.split import split

    names = read_labels(labels) if labels is not None else None
    bundle = split(
        model,
        output,
        layer=cut,
        force=force,
        preprocessing=lambda found: overridden(found, **preprocessing),
        labels=names,
    )
    manifest = bundle.manifest
    point = manifest.cut
    if manifest.named != point.tensor:
        note(
            f"'{manifest.named}' is not a clean cut; cut at the end of its block: '{point.tensor}'."
        )
    if not manifest.any_batch and (manifest.cost is None or manifest.cost.plan != "tokens"):
        note("The tail's batch is frozen at 1: explaining runs it cell by cell, which is slow.")
    channels, height, width = point.shape
    click.echo(f"cut      {point.tensor} ({point.op}), {channels} x {height} x {width}")
    if point.bypass:
        click.echo(f"carried  {', '.join(point.bypass)}")
    click.echo(f"parity   {manifest.parity:.3g} at most between model and tail(head)")
    click.echo(f"plan     {_plan(manifest)}")
    click.echo(f"bundle   {bundle.folder}")


def _plan(manifest: Manifest) -> str:
    cells = manifest.cut.cells.count
    if manifest.cost is None:
        return f"stream, {cells} cells"
    about = f"about {manifest.cost.inferences:.3g} x one inference"
    return f"{manifest.cost.plan}, {cells} cells, {about} per image"
