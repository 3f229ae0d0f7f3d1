"""`ov-recipro bench`: what explaining costs."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ov_recipro.cli.option_groups import FILE, Constant, Numbers, methods_of, note
from ov_recipro.cli.tables import aligned, markdown

if TYPE_CHECKING:
    from ov_recipro.bench import MethodRow, Row


@click.command("bench")
@click.option("-m", "--model", type=FILE, help="An .onnx or .xml file or a bundle.")
@click.option(
    "-d",
    "--device",
    "devices",
    multiple=True,
    default=("CPU",),
    show_default=True,
    help="An OpenVINO device, ort-cpu, cuda or cuda:1; repeatable.",
)
@click.option(
    "--layer", "layers", multiple=True, default=("auto",), show_default=True, help="Repeatable."
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["f32", "native"]),
    multiple=True,
    default=("f32",),
    show_default=True,
    help="Repeatable.",
)
@click.option(
    "--plan", type=click.Choice(["auto", "rows", "stream"]), default="auto", show_default=True
)
@click.option(
    "--against", type=click.Choice(["rows", "stream"]), help="A second plan to measure beside it."
)
@click.option(
    "--methods", metavar="NAME,...", help="Measure these methods instead, see 'evaluate'; or all."
)
@click.option("--runs", type=click.IntRange(min=3), default=20, show_default=True)
@click.option("--output-name", metavar="NAME", help="The model output with the class scores.")
@click.option("--input-shape", type=Numbers(4, int), help="Shape of the image input, if open.")
@click.option("--const", "constants", type=Constant(), multiple=True, help="See 'split'.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a Markdown table.")
def command(
    model: Path | None,
    devices: tuple[str, ...],
    layers: tuple[str, ...],
    precisions: tuple[Any, ...],
    plan: Any,
    against: Any,
    methods: str | None,
    runs: int,
    output_name: str | None,
    input_shape: tuple[int, ...] | None,
    constants: tuple[tuple[str, float], ...],
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Measure plain inference against explaining, in turns in one process.

    With --methods, each method's map against plain inference, one image at a time.

    Memory is the peak of a process of its own. The ratio includes the explanation's own inference;
    the bound is what the multiply-accumulates alone allow. Times are medians and quartiles.
    """
    from ov_recipro.bench import measure, measure_methods
    from ov_recipro.explainer import default_model
    from ov_recipro.splitting.bundle_cache import cached_split

    path = default_model() if model is None else model
    names = methods_of(methods) if methods is not None else []
    rows: list[Row | MethodRow] = []
    for layer, device, precision in product(layers, devices, precisions):
        if path.is_dir():
            folder = path
        else:
            folder = cached_split(
                path,
                layer=layer,
                output=output_name,
                image_shape=input_shape,
                constants=dict(constants),
            ).folder
        if names:
            if sys.stderr.isatty():
                note(f"Measuring {len(names)} methods at {layer} on {device}, {precision} ...")
            rows += measure_methods(folder, device, precision, names, runs)
            continue
        for each in dict.fromkeys((plan, against or plan)):
            if sys.stderr.isatty():
                note(f"Measuring {layer} on {device}, {precision}, plan {each} ...")
            rows.append(measure(folder, device, precision, each, runs))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    table = [_METHODS_HEADER if names else _HEADER, *map(_shown, rows)]
    click.echo(markdown(table) if as_markdown else aligned(table))


_HEADER = (
    "layer", "grid", "plan", "device", "precision", "plain ms", "explain ms", "ratio", "bound",
    "plain MB", "explain MB",
)  # fmt: skip


_METHODS_HEADER = ("method", "layer", "device", "precision", "plain ms", "method ms", "ratio")


def _shown(row: Row | MethodRow) -> tuple[str, ...]:
    from ov_recipro.bench import Row

    if not isinstance(row, Row):
        how = (row.method, row.layer, row.device, row.precision)
        if row.plain_ms is None:
            return (*how, "", "", f"not applicable: {row.not_applicable}")
        return (*how, f"{row.plain_ms:.2f}", f"{row.method_ms:.2f}", f"{row.ratio:.2f}")
    return (
        row.layer,
        row.grid,
        row.plan,
        row.device,
        row.precision,
        f"{row.plain_ms:.1f} ({_span(row.plain_quartiles)})",
        f"{row.explain_ms:.1f} ({_span(row.explain_quartiles)})",
        f"{row.ratio:.2f}",
        "" if row.bound is None else f"{row.bound:.2f}",
        f"{row.plain_rss_mb:.0f}",
        f"{row.peak_rss_mb:.0f}",
    )


def _span(quartiles: tuple[float, float]) -> str:
    return f"{quartiles[0]:.1f}-{quartiles[1]:.1f}"
