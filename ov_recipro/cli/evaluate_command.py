"""`ov-recipro evaluate`: how faithful maps are, over a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ov_recipro.cli.evaluation_results import (
    Results,
    box_results,
    class_results,
    limits_in_words,
)
from ov_recipro.cli.option_groups import (
    FILE,
    Numbers,
    model_options,
    note,
    open_explainer,
    options_of,
    running_options,
)
from ov_recipro.cli.progress import progress
from ov_recipro.cli.ray_options import Engine, engine_of, engine_options, pool_of
from ov_recipro.cli.tables import aligned, markdown
from ov_recipro.cut.recognition import with_article
from ov_recipro.errors import ModelError, OptionError, ReciproError
from ov_recipro.options import Cut, Running, Targets

if TYPE_CHECKING:
    from ov_recipro.cut.bundle import Manifest
    from ov_recipro.explainer import Explainer
    from ov_recipro.faithfulness.box_evaluation import BoxEvaluation, BoxRecord
    from ov_recipro.faithfulness.box_measure import BoxLimits
    from ov_recipro.faithfulness.evaluation import Evaluation, Record
    from ov_recipro.faithfulness.kept import Outcome

RESULT = "evaluation"
_OF_TASK = {
    "classifier": ("profile", "step", "boxes", "paired", "mosaics"),
    "detector": ("threshold", "nms", "max_boxes", "box_size"),
}
_BLACK_BOXES = ("occlusion", "d-rise", "aise", "votes")


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
    metavar="NAME,...",
    help="Methods to compare, or all.  [default: recipro; for a classifier beside gaussian, "
    "fit-gaussian and random, controls that do not look for where the model looks]",
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
    "--paired",
    metavar="A,B",
    help="Also compare two of the methods image by image, and say how many images it takes to see "
    "a difference of that size.",
)
@click.option(
    "--mosaics",
    is_flag=True,
    help="Also play the grid pointing game: does the map of a mosaic of four images lie on the one "
    "that shows the class?",
)
@options_of(Targets, "targets", "threshold", "nms")
@click.option(
    "--max-boxes",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Detectors: at most this many boxes of an image, those of highest score.",
)
@click.option(
    "--box-size",
    type=Numbers(2, float),
    default="1,45",
    show_default=True,
    metavar="LOW,HIGH",
    help="Detectors: boxes that cover this share of the model's input, in percent.",
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
    methods: str | None,
    profile: Any,
    limit: int | None,
    step: int | None,
    boxes: Path | None,
    paired: str | None,
    mosaics: bool,
    targets: Targets,
    max_boxes: int,
    box_size: tuple[float, float],
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

    For a detector, DATASET is a folder of images; the maps of the boxes that it predicts are
    measured, and always those of two controls that know nothing about the model.

    With --engine ray, DATASET may also be the URL of a folder.
    """
    from ov_recipro.faithfulness.box_measure import BoxLimits
    from ov_recipro.methods import CONTROLS
    from ov_recipro.output import open_folder

    engine = engine_of(options)
    names = ["recipro"] if methods is None else [name.strip() for name in methods.split(",")]
    smallest, largest = (percent / 100 for percent in box_size)
    limits = BoxLimits(targets.threshold, targets.nms, max_boxes, smallest, largest)
    open_folder(output)
    explainer = _opened(
        names, quiet, running=dataclasses.replace(running, hint="throughput"), **options
    )
    _check_task(explainer.bundle.manifest, engine)
    with ExitStack() as stack:
        if explainer.bundle.manifest.task == "detector":
            run = _of_boxes(explainer, names, Path(dataset), limit, limits, output, workers)
        else:
            names += CONTROLS if methods is None else ()
            pair = _pair_of(paired, names)
            how = {"profile": profile, "step": step, "boxes": boxes, "labels": options["labels"]}
            data = (dataset, limit, how | {"paired": pair, "mosaics": mosaics})
            run = _of_classes(explainer, names, data, output, workers, engine, stack, quiet)
        _measure(run, output, as_json, quiet)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is measured.

    Attributes:
        evaluation: keeps what is measured; outcomes: measures it.
        tables: of what is measured so far; None where there is nothing.
        nothing: why there may be nothing.
    """

    evaluation: Evaluation | BoxEvaluation
    outcomes: Iterator[Outcome[Record]] | Iterator[Outcome[BoxRecord]]
    tables: Callable[[], Results | None]
    nothing: str = "No image could be measured."


def _opened(names: list[str], quiet: bool, **options: Any) -> Explainer:
    """Open the model: cut, or a detector whole where it can't be cut or no method needs that."""
    black_boxes = [name for name in names if name in _BLACK_BOXES]
    if black_boxes and not {"recipro", "all"} & set(names):
        return open_explainer(quiet, method=black_boxes[0], **options)
    try:
        return open_explainer(quiet, method="recipro", **options)
    except ModelError:
        if set(names) == {"recipro"} or options["cut"].layer != Cut().layer:
            raise
        found = open_explainer(quiet=True, method="occlusion", **options)
        if not found.bundle.whole:
            raise  # it can be cut, and something else was wrong
        return found


def _check_task(manifest: Manifest, engine: Engine) -> None:
    """Raise OptionError where the model, or an option for it, is of another kind."""
    what = f"this model is {with_article(manifest.task)} ({manifest.why})."
    if manifest.task not in _OF_TASK:
        raise OptionError(f"evaluate measures classifiers and detectors; {what}")
    if manifest.task == "detector" and engine.is_ray:
        raise OptionError(f"--engine ray measures only classifiers; {what}")
    context = click.get_current_context()
    for task, names in _OF_TASK.items():
        for name in names:
            given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if given and task != manifest.task:
                option = f"--{name.replace('_', '-')}"
                raise OptionError(f"{option} is for {with_article(task)}; {what}")


def _of_classes(
    explainer: Explainer,
    names: list[str],
    data: tuple[str, int | None, dict[str, Any]],
    output: Path,
    workers: int,
    engine: Engine,
    stack: ExitStack,
    quiet: bool,
) -> _Run:
    """Return the measuring of a classifier over a dataset, its limit, and how."""
    from ov_recipro.faithfulness.datasets import classes_of, read_boxes, read_dataset, spread
    from ov_recipro.faithfulness.evaluation import Evaluation, Measuring
    from ov_recipro.faithfulness.mosaics import companions
    from ov_recipro.methods import Subject, find_methods

    dataset, limit, how = data
    methods = find_methods(names)
    classes = classes_of(explainer.bundle.manifest.classes, explainer.labels, how["labels"])
    root = ""
    if engine.is_ray:
        from ov_recipro.cluster import files
        from ov_recipro.cluster import measuring as remote

        root = dataset if files.is_url(dataset) else ""
    found = remote.read_dataset(root, classes) if root else read_dataset(Path(dataset), classes)
    around = read_boxes(how["boxes"], classes) if how["boxes"] is not None else None
    samples = spread(found, limit)
    others = companions(samples) if how["mosaics"] else None
    if others is not None and not others:
        raise OptionError("--mosaics needs at least four images of different classes.")
    if engine.is_ray and others is not None:
        raise OptionError("--mosaics can't be combined with --engine ray.")
    measuring = Measuring(Subject(explainer), methods, how["profile"], how["step"], around, others)
    evaluation = Evaluation(measuring, samples, output)
    if engine.is_ray:
        actors = stack.enter_context(pool_of(engine, explainer.running.device, quiet))
        outcomes = remote.measure(actors, evaluation, root, workers)
    else:
        outcomes = evaluation.run(workers)
    return _Run(evaluation, outcomes, lambda: class_results(evaluation, how["paired"]))


def _of_boxes(
    explainer: Explainer,
    names: list[str],
    folder: Path,
    limit: int | None,
    limits: BoxLimits,
    output: Path,
    workers: int,
) -> _Run:
    """Return the measuring of a detector over photographs."""
    from ov_recipro.faithfulness.box_evaluation import (
        BoxEvaluation,
        BoxMeasuring,
        find_photographs,
    )
    from ov_recipro.faithfulness.datasets import spread
    from ov_recipro.methods import BOX_METHODS, Subject, find_methods

    measuring = BoxMeasuring(Subject(explainer), find_methods(names, BOX_METHODS), limits)
    evaluation = BoxEvaluation(measuring, spread(find_photographs(folder), limit), output)
    nothing = f"No image has a box that {limits_in_words(limits)}."
    run = evaluation.run(workers)
    return _Run(evaluation, run, lambda: box_results(evaluation), nothing)


def _measure(run: _Run, output: Path, as_json: bool, quiet: bool) -> None:
    """Measure, write the tables of what is measured, even if it ends early, and print them."""
    from ov_recipro.output import write_whole

    evaluation = run.evaluation
    total, methods = len(evaluation.samples), len(evaluation.measuring.methods)
    if evaluation.kept:
        note(f"{evaluation.kept} of {total * methods} measurements are kept.", quiet)
    try:
        with progress("Measuring", total, quiet) as advance:
            for outcome in run.outcomes:
                if outcome.error is not None:
                    note(f"Error: {outcome.error}")
                advance(1, int(outcome.error is not None))
    finally:
        found = run.tables()
        if found is not None:
            tables = [found.table, *([found.differences] if found.differences else [])]
            text = "\n\n".join([*map(markdown, tables), f"{found.provenance}\n"])
            write_whole(output / f"{RESULT}.md", text.encode())
            write_whole(output / f"{RESULT}.csv", found.csv.encode())
            write_whole(output / f"{RESULT}.json", found.record)
    if found is None:
        raise ReciproError(run.nothing)
    if as_json:
        click.echo(found.record, nl=False)
    else:
        click.echo("\n\n".join(map(aligned, tables)))
        note(found.provenance, quiet)
    if evaluation.failed:
        raise ReciproError(f"{len(evaluation.failed)} of {total} images could not be measured.")


def _pair_of(paired: str | None, names: list[str]) -> tuple[str, str] | None:
    """Return the methods that `--paired` names.

    Raises:
        OptionError: these are not two of those that are measured.
    """
    from ov_recipro.methods import find_methods

    if paired is None:
        return None
    found, names = [name.strip() for name in paired.split(",")], find_methods(names)
    if len(set(found)) != 2 or not set(found) <= set(names):
        raise OptionError("--paired takes two of --methods, such as recipro-pair,recipro.")
    return found[0], found[1]
