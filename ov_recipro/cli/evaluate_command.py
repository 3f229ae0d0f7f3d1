"""`ov-recipro evaluate`: how faithful maps are, over a dataset."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ov_recipro.cli.option_groups import (
    FILE,
    methods_of,
    model_options,
    note,
    open_explainer,
    running_options,
)
from ov_recipro.cli.progress import progress
from ov_recipro.cli.ray_options import engine_of, engine_options, pool_of
from ov_recipro.cli.tables import aligned, markdown
from ov_recipro.errors import ReciproError
from ov_recipro.options import Running

if TYPE_CHECKING:
    from ov_recipro.faithfulness.evaluation import Evaluation, Row
    from ov_recipro.metrics import Mean

RESULT = "evaluation"


@click.command("evaluate")
@click.argument("dataset")
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("evaluation"),
    show_default=True,
    metavar="DIR",
    help="Folder for the tables and each image's records.",
)
@click.option(
    "--methods",
    default="recipro",
    show_default=True,
    metavar="NAME,...",
    help="Methods to compare, or all.",
)
@click.option(
    "--profile",
    type=click.Choice(["poppi", "byun"]),
    default="poppi",
    show_default=True,
    help="How to measure: as Poppi et al. and RISE do, or as the authors of Recipro-CAM did.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="At most this many images, evenly spread."
)
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Pixels per step of deletion and insertion ('poppi').  [default: a row]",
)
@click.option(
    "--boxes", type=FILE, help="Boxes: a folder of Pascal VOC XML files, or a COCO JSON file."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Images processed at once; with Ray, in each actor.",
)
@engine_options
@running_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print the JSON record on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print no notes and no progress bar.")
def command(
    dataset: str,
    output: Path,
    methods: str,
    profile: Any,
    limit: int | None,
    step: int | None,
    boxes: Path | None,
    workers: int,
    running: Running,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure how faithful saliency maps are, over a dataset.

    DATASET is a folder with a folder of images for each class (named by label, number or WordNet
    id), a .csv or .tsv table with the columns path and label, or a flat folder of images.
    Measurements are saved image by image: the same command resumes an earlier run.

    With --engine ray, DATASET may also be the URL of a folder.
    """
    from ov_recipro.faithfulness.datasets import classes_of, read_boxes, read_dataset, spread
    from ov_recipro.faithfulness.evaluation import Evaluation, Measuring
    from ov_recipro.methods import Subject
    from ov_recipro.output import open_folder, write_whole

    engine = engine_of(options)
    names = methods_of(methods)
    open_folder(output)
    explainer = open_explainer(
        quiet, running=dataclasses.replace(running, hint="throughput"), **options
    )
    classes = classes_of(explainer.bundle.manifest.classes, explainer.labels, options["labels"])
    root = ""
    if engine.is_ray:
        from ov_recipro.cluster import files
        from ov_recipro.cluster import measuring as remote

        root = dataset if files.is_url(dataset) else ""
    found = remote.read_dataset(root, classes) if root else read_dataset(Path(dataset), classes)
    samples = spread(found, limit)
    around = read_boxes(boxes, classes) if boxes is not None else None
    measuring = Measuring(Subject(explainer), names, profile, step, around)
    evaluation = Evaluation(measuring, samples, output)
    if evaluation.kept:
        note(
            f"{evaluation.kept} of {len(samples) * len(names)} measurements are kept.",
            quiet,
        )
    try:
        with ExitStack() as stack:
            if engine.is_ray:
                actors = stack.enter_context(pool_of(engine, explainer.running.device, quiet))
                outcomes = remote.measure(actors, evaluation, root, workers)
            else:
                outcomes = evaluation.run(workers)
            advance = stack.enter_context(progress("Measuring", len(samples), quiet))
            for outcome in outcomes:
                if outcome.error is not None:
                    note(f"Error: {outcome.error}")
                advance(1, int(outcome.error is not None))
    finally:
        rows = evaluation.rows()
        if rows:
            provenance = _provenance(evaluation, rows)
            record = evaluation.record(rows)
            table = [_header(rows), *(_shown(row, rows) for row in rows)]
            text = f"{markdown(table)}\n\n{provenance}\n"
            write_whole(output / f"{RESULT}.md", text.encode())
            write_whole(output / f"{RESULT}.csv", _csv(rows).encode())
            write_whole(output / f"{RESULT}.json", record)
    if not rows:
        raise ReciproError("No image could be measured.")
    if as_json:
        click.echo(record, nl=False)
    else:
        click.echo(aligned(table))
        note(provenance, quiet)
    if evaluation.failed:
        raise ReciproError(
            f"{len(evaluation.failed)} of {len(samples)} images could not be measured."
        )


_COLUMNS = {
    "drop": "drop ↓",
    "increase": "increase ↑",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "coherency": "coherency ↑",
    "complexity": "complexity ↓",
    "adcc": "ADCC ↑",
    "pointing": "pointing ↑",
    "energy": "energy ↑",
}


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


def _csv(rows: Sequence[Row]) -> str:
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


def _provenance(evaluation: Evaluation, rows: Sequence[Row]) -> str:
    """Return, in words, everything that the numbers depend on."""
    settings = evaluation.settings()
    how = evaluation.measuring.subject.explainer.preprocessing
    summaries = [row.summary for row in rows if row.summary]
    undefined = sum(summary.undefined for summary in summaries)
    images = max((summary.images for summary in summaries), default=0)
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    step = f", {settings['step']} pixels per step" if settings["step"] else ""
    return (
        f"Values x100, with bootstrap 95% intervals over the images in brackets. Profile "
        f"{settings['profile']}{step}; {images} images; "
        f"model {settings['model']} (sha256 {settings['sha256'][:12]}), layer {settings['layer']}; "
        f"{settings['device']}, {settings['precision']}; {how.resize} to "
        f"{how.size[1]}x{how.size[0]}, crop fraction {how.crop_fraction}, {how.interpolation} "
        f"({how.source}); undefined coherencies counted as 0: {undefined}; {versions}."
    )
