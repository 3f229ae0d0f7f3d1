"""`ov-recipro compare`: two models, or two layers, on the same images."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ov_recipro.cli.option_groups import (
    FILE,
    cut_options,
    note,
    open_explainer,
    preprocessing_options,
    running_options,
)
from ov_recipro.cli.tables import aligned
from ov_recipro.errors import OF_ONE_IMAGE, ReciproError
from ov_recipro.options import Cut

if TYPE_CHECKING:
    from ov_recipro.explanation import Prediction
    from ov_recipro.faithfulness.comparison import Comparison

RECORD = "comparison.json"


@click.command("compare")
@click.argument("first", type=FILE, metavar="A")
@click.argument("second", type=FILE, metavar="B")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("comparison"),
    show_default=True,
    metavar="DIR",
    help="Folder for the side-by-side overlays and the record.",
)
@click.option(
    "-t",
    "--target",
    default="top1",
    show_default=True,
    metavar="CLASS",
    help="What to explain: a class index or name, or top1, which is A's prediction. For "
    "detectors: A's best box of that class or, with top1, of all.",
)
@click.option("--layer-b", metavar="LAYER", help="Where to cut B.  [default: the same as --layer]")
@click.option(
    "--min-correlation",
    type=click.FloatRange(-1, 1),
    metavar="R",
    help="Exit with code 1 if the two maps of any image correlate less than this.",
)
@running_options
@cut_options
@preprocessing_options
@click.option("--json", "as_json", is_flag=True, help="Print the JSON record on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print no notes.")
def command(
    first: Path,
    second: Path,
    images: tuple[str, ...],
    output: Path,
    target: str,
    layer_b: str | None,
    min_correlation: float | None,
    as_json: bool,
    quiet: bool,
    cut: Cut,
    **options: Any,
) -> None:
    """Explain images with models A and B, and show where they differ.

    A and B are model files or bundles with the same classes, such as a float model and its 8-bit
    form, or the same file with --layer and --layer-b. Their maps of one class, A's prediction
    unless -t names another, are compared by Pearson's correlation; a flat map counts as 0, and so
    does a box that B misses.
    """
    from ov_recipro.faithfulness.comparison import check_comparable, compare, side_by_side
    from ov_recipro.images.drawing import as_png
    from ov_recipro.images.reading import find_images
    from ov_recipro.output import as_record, file_stems, open_folder, write_whole

    open_folder(output)
    paths = find_images(images)
    one = open_explainer(quiet, model=first, cut=cut, **options)
    cut = dataclasses.replace(cut, layer=layer_b or cut.layer)
    other = open_explainer(quiet, model=second, cut=cut, **options)
    check_comparable(one, other)
    found: list[Comparison] = []
    failed: list[str] = []
    for path, stem in zip(paths, file_stems(paths), strict=True):
        if sys.stderr.isatty() and not quiet:
            note(f"Comparing on {path} ...")
        try:
            comparison, left, right = compare(one, other, path, target)
        except OF_ONE_IMAGE as error:
            failed.append(str(error))
            note(f"Error: {error}")
            continue
        found.append(comparison)
        write_whole(output / f"{stem}.png", as_png(side_by_side(left, right)))
    record = {
        "first": one.bundle.manifest.origin or str(first),
        "second": other.bundle.manifest.origin or str(second),
        "layers": [each.bundle.manifest.cut.tensor for each in (one, other)],
        "images": found,
        "errors": failed,
    }
    data = as_record(record)
    write_whole(output / RECORD, data)
    if as_json:
        click.echo(data, nl=False)
    elif found:
        click.echo(aligned([_HEADER, *map(_row, found)]))
        note(_summary(found), quiet)
    if failed:
        raise ReciproError(f"{len(failed)} of {len(paths)} images could not be compared.")
    if min_correlation is not None:
        low = [each for each in found if (each.correlation or 0) < min_correlation]
        if low:
            raise ReciproError(
                f"The maps of {len(low)} of {len(found)} images correlate less than "
                f"{min_correlation:g}; the lowest is {min(e.correlation or 0 for e in low):.3f}."
            )


_HEADER = ("image", "A says", "B says", "same", "correlation")


def _row(each: Comparison) -> tuple[str, ...]:
    return (
        each.image,
        _said(each.first),
        _said(each.second),
        "no" if each.changed else "yes",
        _compared(each),
    )


def _compared(each: Comparison) -> str:
    if each.correlation is None:
        return "missed" if each.second is None else "flat"
    return f"{each.correlation:.3f}"


def _said(prediction: Prediction | None) -> str:
    if prediction is None:
        return "no such box"
    return f"{prediction.label or prediction.index} {prediction.score:.3g}"


def _summary(found: list[Comparison]) -> str:
    changed = sum(each.changed for each in found)
    values = [each.correlation or 0 for each in found]
    return (
        f"{changed} of {len(found)} predictions differ; correlation of the maps: mean "
        f"{sum(values) / len(values):.3f}, lowest {min(values):.3f}."
    )
