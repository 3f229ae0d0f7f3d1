"""`ov-recipro explain`: images in, overlays, maps and a record out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ov_recipro.black_boxes.attribution import BLACK_BOXES, METHOD_NAMES
from ov_recipro.cli.option_groups import (
    FILE,
    colormap_option,
    model_options,
    note,
    open_explainer,
    options_of,
    score_option,
)
from ov_recipro.cli.progress import inferences, progress
from ov_recipro.cli.ray_options import Engine, engine_of, engine_options, pool_of
from ov_recipro.cli.terminal import colour_console, picture
from ov_recipro.cut.recognition import with_article
from ov_recipro.errors import ReciproError, printable
from ov_recipro.images.drawing import DEFAULT, Style
from ov_recipro.options import AFFORDABLE, Hint, Running, Targets
from ov_recipro.plans.stream import Mask

if TYPE_CHECKING:
    from ov_recipro.batch import Input, Outcome
    from ov_recipro.cluster.explaining import JobOptions, Progress
    from ov_recipro.explainer import Explainer
    from ov_recipro.explanation import Explanation, Prediction
    from ov_recipro.faithfulness.verification import Verification

_MANY = 8  # from this many images on, it pays to run several at once
_ERRORS = 20  # that are printed one by one
_BOXES = 30  # that are listed


@click.command("explain")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("explanations"),
    show_default=True,
    metavar="DIR",
    help="Folder for the results.",
)
@options_of(Targets, "targets")
@engine_options
@click.option("--overlays", is_flag=True, help="Ray: draw overlays too; all machines must see DIR.")
@click.option(
    "--maps",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Ray: number type of the maps.",
)
@options_of(
    Running,
    "running",
    *("device", "precision", "batch_memory", "max_cost", "hint", "isolate"),
    max_cost={"default": AFFORDABLE, "show_default": True},
    hint={
        "default": None,
        "help": "One image at a time (latency), or several at once (throughput).  [default: "
        "throughput for many images]",
    },
)
@model_options
@score_option
@click.option(
    "--method",
    type=click.Choice(METHOD_NAMES),
    default="recipro",
    show_default=True,
    help="Mask cells of feature maps (recipro), of two at once (recipro-pair), or find the cells' "
    "shares where the tail is a global average pool and a linear layer (recipro-aumann). Or mask "
    "parts of the image: occlusion, rise, aise, or d-rise for boxes. These take hundreds to "
    "thousands of inferences, and explain detectors that can't be cut, too. For boxes, votes shows "
    "where the candidates are that agree, and masks nothing.",
)
@click.option(
    "--mask",
    type=click.Choice(get_args(Mask)),
    help="Keep one cell, or one of two Gaussian variants of it, spread and weight; or drop one "
    "cell and keep all others.  [default: drop for detectors and "
    "segmentations, else cell]",
)
@click.option(
    "--signed",
    is_flag=True,
    help="Also draw what speaks against: blue is below the score with no cell kept, orange above.",
)
@click.option(
    "--sharp",
    is_flag=True,
    help="Sharpen the drawn maps of classes as far as what they show still keeps 90 % of the "
    "score. Saved maps, recorded scores and reports stay as they are.",
)
@colormap_option
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=DEFAULT.alpha,
    show_default=True,
    help="Opacity of the heat.",
)
@click.option("--cells", is_flag=True, help="Draw the feature map's cells without smoothing.")
@click.option("--contour", is_flag=True, help="Draw lines of equal saliency instead of heat.")
@click.option(
    "--legend", is_flag=True, help="Add a strip that shows which scores the colours stand for."
)
@click.option("--report", is_flag=True, help="Also write report.html, a page of all images.")
@click.option("--save-maps", is_flag=True, help="Also write the maps as .npz.")
@click.option(
    "--verify",
    is_flag=True,
    help="Compare each image's maps with random maps and give a verdict.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON record on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print no notes and no progress bar.")
def command(
    images: tuple[str, ...],
    output: Path,
    targets: Targets,
    overlays: bool,
    maps: Any,
    running: Running,
    colormap: Any,
    alpha: float,
    cells: bool,
    contour: bool,
    legend: bool,
    signed: bool,
    sharp: bool,
    report: bool,
    save_maps: bool,
    verify: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Explain what a model says about images.

    IMAGE is a file, a folder, a glob, or - for one image on standard input. Each image gets an
    overlay that shows which parts of it speak for the explained class; each video file gets a video
    of overlays, frame by frame.

    With --engine ray, for datasets, IMAGE may also be a URL of an image, a folder or a glob;
    the results are Parquet files, and a run that was stopped resumes.
    """
    from ov_recipro import output as files
    from ov_recipro.batch import Batch, find_inputs

    engine = engine_of(options)
    if engine.is_ray and (signed or targets != _classes_or_boxes(targets)):
        raise click.UsageError(
            "With --engine ray, only classes or boxes are explained, without --signed."
        )
    if engine.is_ray and (report or save_maps or as_json or sharp):
        raise click.UsageError(
            "With --engine ray, results are Parquet files; --report, --save-maps, --json and "
            "--sharp don't apply."
        )
    if sharp and signed:
        raise click.UsageError("--sharp does not draw signed maps.")
    is_black_box = options["method"] in BLACK_BOXES
    if engine.is_ray and is_black_box:
        raise click.UsageError("--engine ray explains only by recipro and its variants.")
    if options["method"] != "recipro" and (signed or options["mask"] is not None):
        raise click.UsageError("--mask and --signed are for --method recipro.")
    files.open_folder(output)
    inputs = [] if engine.is_ray else find_inputs(images)
    tell = click.get_current_context().with_resource(inferences(quiet or not is_black_box))
    explainer = open_explainer(
        quiet,
        progress=tell,
        running=dataclasses.replace(running, hint=running.hint or _hint(engine, inputs)),
        targets=targets,
        signed=signed,
        **options,
    )
    _say_how(explainer, quiet)
    targets = explainer.find_targets(targets)

    style = Style(colormap, alpha, cells, contour, legend, signed)
    if engine.is_ray:
        from ov_recipro.cluster.explaining import OVERLAYS, JobOptions

        drawn = output.absolute() / OVERLAYS if overlays else None
        job = JobOptions(targets, maps, verify, drawn, style)
        _on_ray(explainer, engine, images, output, job, quiet)
        return
    if sharp and (
        explainer.bundle.manifest.task != "classifier"
        or explainer.bundle.manifest.cut.layout == "NTC"
        or explainer.score == "none"
        or targets.against is not None
        or any(each.is_video for each in inputs)
    ):
        raise click.UsageError(
            "--sharp is for images and for scores of classes, at a cut that is a feature map."
        )
    subject = None
    if verify or sharp:
        from ov_recipro.methods import Subject

        subject = Subject(explainer)
    verifier, sharpener = subject if verify else None, subject if sharp else None
    batch = Batch(explainer, inputs, output, targets, save_maps, style, verifier, report, sharpener)
    failed = 0
    try:
        silent = quiet or as_json or is_black_box
        with progress("Explaining", 0 if silent else _count(inputs), silent) as advance:
            for outcome in batch.run(on_frame=lambda: advance(1, 0)):
                if outcome.error is not None:
                    failed += 1
                    name = printable(outcome.source.name)
                    about = "" if name in outcome.error else f"{name}: "
                    note(f"Error: {about}{outcome.error}")
                elif not as_json:
                    _print(outcome, explainer, style)
                if not outcome.source.is_video:
                    advance(1, int(outcome.error is not None))
    finally:
        record = batch.write()
    if as_json:
        click.echo(record, nl=False)
    if failed:
        raise ReciproError(
            f"{failed} of {len(inputs)} images could not be explained; the others are done."
            if failed < len(inputs)
            else "No image could be explained."
        )


def _classes_or_boxes(asked: Targets) -> Targets:
    """Return what is asked about classes or boxes, and nothing else."""
    return Targets(asked.classes, box=asked.box, threshold=asked.threshold, nms=asked.nms)


def _hint(engine: Engine, inputs: Sequence[Input]) -> Hint:
    many = len(inputs) >= _MANY or any(each.is_video for each in inputs)
    return "throughput" if engine.is_ray or many else "latency"


def _say_how(explainer: Explainer, quiet: bool) -> None:
    """Note what a user would want to know before trusting the maps."""
    manifest = explainer.bundle.manifest
    note(f"Taken for {with_article(manifest.task)}: {manifest.why}.", quiet)
    if manifest.layer == "auto" and manifest.cut.block:
        note(
            f"Explaining at blocks.{manifest.cut.block}: at blocks.0, where maps of transformers "
            "point best, each cell would take a run of the whole tail.",
            quiet,
        )
    if manifest.named != manifest.cut.tensor:
        note(
            f"'{manifest.named}' is not a clean cut; explaining at the end of its block: "
            f"'{manifest.cut.tensor}'.",
            quiet,
        )
    if not manifest.any_batch and explainer.plan.name == "stream":
        note("The tail's batch is frozen at 1: the tail runs cell by cell, which is slow.", quiet)
    if "assumed" in explainer.preprocessing.source:
        note(
            f"Preprocessing: {explainer.preprocessing.source}. If the model was trained "
            "differently, give --mean, --scale, --channels and --resize.",
            quiet,
        )
    if manifest.task != "embedding" and explainer.labels is None:
        note(
            "The model does not name its classes, so they are numbered; give names with --labels.",
            quiet,
        )


def _print(outcome: Outcome, explainer: Explainer, style: Style) -> None:
    """Print one input's predictions, what its maps are worth and where its overlay is.

    In a terminal with colour the predictions are a table with a small map beside it.
    """
    from ov_recipro.report.wording import name_of, question_of

    found = outcome.explanation
    if found is None:
        click.echo(f"{printable(outcome.source.name)}: {outcome.frames} frames")
        click.echo(f"  {printable(str(outcome.drawn))}")
        return
    console = colour_console()
    if console is not None:
        console.print(outcome.source.name, markup=False, highlight=False)
        console.print(picture(found, style.colormap, style.signed))
    else:
        click.echo(f"{printable(outcome.source.name)}: {_predicted(found, explainer)}")
    _, height, width = found.feature_shape
    for target in found.targets:
        for sentence in question_of(target):
            click.echo(f"  {printable(sentence)}")
        for remark in target.remarks(height * width, explainer.score, explainer.mask):
            click.echo(f"  {printable(name_of(target))}: {remark}")
    for target, verified in zip(found.targets, outcome.verifications, strict=False):
        click.echo(f"  {printable(name_of(target))}: {verified.verdict} ({_evidence(verified)})")
    click.echo(f"  {printable(str(outcome.drawn))}")


def _evidence(verified: Verification) -> str:
    """Return what a verdict rests on, in words."""
    from ov_recipro.faithfulness.box_measure import BoxMeasurement

    measured, where = verified.measured, ""
    insertion, deletion = measured.insertion, measured.deletion
    if isinstance(measured, BoxMeasurement):
        where = "inside the box, "
        insertion, deletion = measured.inner_insertion, measured.inner_deletion
    return (
        f"{where}insertion {insertion:.3f}, deletion {deletion:.3f}; "
        f"{verified.deviations:+.1f} deviations from random maps"
    )


def _predicted(found: Explanation, explainer: Explainer) -> str:
    """Return what the model says about an image, in words; names of classes are escaped."""

    def named(each: Prediction) -> str:
        return printable(str(each.label or each.index))

    task = explainer.bundle.manifest.task
    if task == "embedding":
        (target,) = found.targets
        return f"similarity to {printable(str(target.label))} {target.score:.3g}"
    if task == "sequence":
        positions = enumerate(found.predictions)
        return " ".join(f"{at}:{named(each)}" for at, each in positions)
    if task == "segmentation":
        shares = [f"{named(p)} {100 * p.score:.3g} %" for p in found.predictions]
        return ", ".join(shares) or "no pixel of any class"
    if task == "detector":
        count = len(found.predictions)
        lines = [f"{count} box{'' if count == 1 else 'es'}"]
        for number, each in enumerate(found.predictions[:_BOXES], 1):
            where = ",".join(f"{edge:g}" for edge in each.outline or ())
            lines.append(f"  {number} {named(each)} {each.score:.3g} [{where}]")
        if count > _BOXES:
            lines.append(f"  and {count - _BOXES} more")
        return "\n".join(lines)
    return ", ".join(f"{named(each)} {each.score:.3g}" for each in found.predictions)


def _count(inputs: Sequence[Input]) -> int:
    """Return the number of images and frames."""
    from ov_recipro.images.video import count_frames

    return sum(count_frames(each.path) if each.is_video else 1 for each in inputs)


def _on_ray(
    explainer: Explainer,
    engine: Engine,
    images: tuple[str, ...],
    output: Path,
    job: JobOptions,
    quiet: bool,
) -> None:
    """Explain a dataset on Ray; the results are Parquet files."""
    from ov_recipro.cluster.explaining import Run

    run = Run(explainer, images, output, job)
    if run.kept:
        note(f"{run.kept} of {run.total} images are already done.", quiet)
    failed = 0
    with ExitStack() as stack:
        steps: Iterator[Progress] = iter(())
        if run.kept < run.total:
            steps = run.run(stack.enter_context(pool_of(engine, explainer.running.device, quiet)))
        advance = stack.enter_context(progress("Explaining", run.total, quiet, run.kept))
        for step in steps:
            for error in step.errors[: max(0, _ERRORS - failed)]:
                note(f"Error: {error}")
            failed += len(step.errors)
            advance(step.done, len(step.errors))
    click.echo(f"{run.total} images: {run.results.parts}")
    if failed:
        raise ReciproError(
            f"{failed} of {run.total} images could not be explained; the others are done. The "
            "column 'error' says why."
        )
