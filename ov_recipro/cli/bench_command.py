"""`ov-recipro bench`: what explaining costs."""

from __future__ import annotations

import dataclasses
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ov_recipro.cli.option_groups import FILE, MODEL, methods_of, note, option, options_of
from ov_recipro.cli.tables import aligned, markdown
from ov_recipro.options import Cut, Running
from ov_recipro.output import as_record

if TYPE_CHECKING:
    from ov_recipro.bench import MethodRow, Row


@click.command("bench")
@click.option("-m", "--model", type=FILE, help=f"{MODEL}.")
@option(Running, "device", parameter="devices", multiple=True, default=("CPU",))
@option(Cut, "layer", parameter="layers", multiple=True, default=("auto",))
@option(Running, "precision", parameter="precisions", multiple=True, default=("f32",))
@option(Running, "plan")
@click.option(
    "--against", type=click.Choice(["rows", "stream"]), help="A second plan to measure as well."
)
@click.option(
    "--methods", metavar="NAME,...", help="Measure these methods instead, or all; see 'evaluate'."
)
@click.option(
    "--runs", type=click.IntRange(min=3), default=20, show_default=True, help="Number of turns."
)
@options_of(Cut, "cut", "output_name", "input_shape", "constants", "task")
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
    cut: Cut,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Time plain inference and explaining, turn by turn in one process.

    With --methods, time plain inference and each method's map, one image at a time.

    Memory is the peak of a separate process. The ratio includes the explanation's own inference;
    the bound is the ratio by multiply-accumulates alone. Times are medians and quartiles.
    """
    from ov_recipro.bench import measure, measure_methods
    from ov_recipro.sources.default_model import default_model
    from ov_recipro.sources.references import located
    from ov_recipro.splitting.bundle_cache import cached_split

    path = located(default_model() if model is None else model)
    names = methods_of(methods) if methods is not None else []
    rows: list[Row | MethodRow] = []
    for layer, device, precision in product(layers, devices, precisions):
        if path.is_dir():
            folder = path
        else:
            folder = cached_split(path, dataclasses.replace(cut, layer=layer)).folder
        running = Running(device, precision)
        if names:
            if sys.stderr.isatty():
                note(f"Measuring {len(names)} methods at {layer} on {device}, {precision} ...")
            rows += measure_methods(folder, running, names, runs)
            continue
        for each in dict.fromkeys((plan, against or plan)):
            if sys.stderr.isatty():
                note(f"Measuring {layer} on {device}, {precision}, plan {each} ...")
            rows.append(measure(folder, dataclasses.replace(running, plan=each), runs))
    if as_json:
        click.echo(as_record(rows), nl=False)
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
