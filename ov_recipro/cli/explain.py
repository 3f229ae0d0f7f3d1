"""`ov-recipro explain`: images in, overlays, maps and a record out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ov_recipro.cli.options import (
    FILE,
    cut_options,
    note,
    overridden,
    preprocessing_options,
)
from ov_recipro.errors import ReciproError
from ov_recipro.saliency import Score

if TYPE_CHECKING:
    from ov_recipro.explainer import Explainer
    from ov_recipro.explanation import Explanation
    from ov_recipro.preprocess import Image

STDIN = "-"


@click.command("explain")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-m", "--model", type=FILE, help="An .onnx file or a bundle.")
@click.option(
    "-d",
    "--device",
    default="CPU",
    show_default=True,
    help="An OpenVINO device, ort-cpu, cuda or cuda:1.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("explanations"),
    show_default=True,
    metavar="DIR",
    help="Folder for the results.",
)
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    default=("top1",),
    show_default=True,
    metavar="CLASS",
    help="What to explain: top1, top5, a class index or name; repeatable.",
)
@cut_options
@click.option(
    "--score",
    type=click.Choice(get_args(Score)),
    help="How logits become class scores.  [default: the model's own way, else softmax]",
)
@click.option(
    "--mask",
    type=click.Choice(["cell", "spread", "weight"]),
    default="cell",
    show_default=True,
    help="One cell, or one of the two Gaussian variants.",
)
@click.option(
    "--precision",
    type=click.Choice(["f32", "native"]),
    default="f32",
    show_default=True,
    help="Of the head; the tail always runs in float32.",
)
@click.option(
    "--batch-memory",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="MIB",
    help="Memory for the tail's activations.",
)
@preprocessing_options
@click.option("--save-maps", is_flag=True, help="Also write the maps as .npz.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON record on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No notes and no progress bar.")
def command(
    images: tuple[str, ...],
    model: Path | None,
    device: str,
    output: Path,
    targets: tuple[str, ...],
    layer: str,
    exact: bool,
    output_name: str | None,
    input_shape: tuple[int, ...] | None,
    constants: tuple[tuple[str, float], ...],
    score: Any,
    mask: Any,
    precision: Any,
    batch_memory: int,
    labels: Path | None,
    save_maps: bool,
    as_json: bool,
    quiet: bool,
    **preprocessing: Any,
) -> None:
    """Explain what a model says of images.

    IMAGE is a file, a directory, a glob, or - for one image on standard input. Each gets an
    overlay that shows which parts of it speak for the explained class.
    """
    from ov_recipro import output as files
    from ov_recipro.explainer import Explainer, default_model
    from ov_recipro.images import find_images
    from ov_recipro.labels import read_labels

    files.open_folder(output)
    paths = [Path("stdin") if name == STDIN else name for name in images]
    found = [
        (path, path == Path("stdin") and STDIN in images)
        for name in paths
        for path in ([name] if isinstance(name, Path) else find_images([name]))
    ]
    found = list(dict.fromkeys(found))
    if model is None:
        model = default_model()
        note(f"Model: {model}", quiet)
    explainer = Explainer(
        model,
        layer=layer,
        exact=exact,
        output=output_name,
        image_shape=input_shape,
        constants=dict(constants),
        device=device,
        precision=precision,
        score=score,
        mask=mask,
        batch_memory=batch_memory << 20,
        preprocessing=lambda found: overridden(found, **preprocessing),
        labels=read_labels(labels) if labels is not None else None,
    )
    explainer.find_targets(targets)
    _say_how(explainer, quiet)

    records: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    stems = files.file_stems([path for path, _ in found])
    try:
        with _progress(len(found), quiet or as_json) as advance:
            for (path, is_stdin), stem in zip(found, stems, strict=True):
                name = STDIN if is_stdin else str(path)
                try:
                    explanation = explainer(_read(path, is_stdin), targets)
                except ReciproError as error:
                    failed.append({"path": name, "error": str(error)})
                    note(f"Error: {error}")
                else:
                    written = files.save_explanation(explanation, output, stem, save_maps)
                    records.append(files.image_record(name, explanation, written))
                    if not as_json:
                        _print(name, explanation, output / str(written[0]["overlay"]))
                advance()
    finally:
        record = files.run_record(explainer, records, failed)
        files.write_whole(output / files.RECORD, record)
    if as_json:
        click.echo(record, nl=False)
    if failed:
        raise ReciproError(
            f"{len(failed)} of {len(found)} images could not be explained; the others are done."
            if records
            else "No image could be explained."
        )


def _read(path: Path, is_stdin: bool) -> Image:
    from ov_recipro.images import decode_image, read_image

    return decode_image(sys.stdin.buffer.read(), "stdin") if is_stdin else read_image(path)


def _say_how(explainer: Explainer, quiet: bool) -> None:
    """Note what a user would want to know before trusting the maps."""
    manifest = explainer.bundle.manifest
    if manifest.named != manifest.cut.tensor:
        note(
            f"'{manifest.named}' is not a clean cut; explaining at the end of its block: "
            f"'{manifest.cut.tensor}'.",
            quiet,
        )
    if not manifest.any_batch:
        note("The tail's batch is frozen at 1: it runs cell by cell, which is slow.", quiet)
    if "assumed" in explainer.preprocessing.source:
        note(
            f"Preprocessing: {explainer.preprocessing.source}. If the model was trained otherwise, "
            "give --mean, --scale, --channels and --resize.",
            quiet,
        )


def _print(name: str, explanation: Explanation, overlay: Path) -> None:
    """Print one image's predictions and where its overlay is."""
    best = ", ".join(
        f"{each.label or each.index} {each.score:.3g}" for each in explanation.predictions
    )
    click.echo(f"{name}: {best}")
    for target in explanation.targets:
        if target.flat:
            click.echo(f"  class {target.index}: all cells score the same; the map says nothing")
    click.echo(f"  {overlay}")


@contextmanager
def _progress(count: int, quiet: bool) -> Iterator[Any]:
    """Show a progress bar on a terminal's stderr for more than one image."""
    if quiet or count < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Explaining", total=count)
        yield lambda: bar.advance(task)
