"""Options that several commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ov_recipro.preprocess import Interpolation, Preprocessing, Resize

Function = TypeVar("Function", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Comma-separated numbers, as in 1,3,224,224."""

    def __init__(self, count: int, kind: type[int] | type[float]) -> None:
        self.count = count
        self.kind = kind
        self.name = ",".join("N" * count)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not {self.name}.", param, ctx)
        if len(numbers) != self.count:
            self.fail(f"'{value}' has {len(numbers)} numbers, not {self.count}.", param, ctx)
        return numbers


class Constant(click.ParamType[tuple[str, float]]):
    """A name and a number, as in threshold=0.5."""

    name = "NAME=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        name, _, number = value.rpartition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"'{value}' is not {self.name}.", param, ctx)


def cut_options(function: Function) -> Function:
    """Add the options that say where a model is cut."""
    for option in (
        click.option(
            "--const",
            "constants",
            type=Constant(),
            multiple=True,
            help="Value of an input that is not the image; repeatable.",
        ),
        click.option(
            "--input-shape",
            type=Numbers(4, int),
            help="Shape of the image input, where the file leaves it open: 1,3,224,224.",
        ),
        click.option(
            "--output-name",
            metavar="NAME",
            help="The model output with the class scores, where there are several.",
        ),
        click.option(
            "--exact",
            is_flag=True,
            help="Cut at the named tensor even where others go round it; they are carried along.",
        ),
        click.option(
            "--layer",
            default="auto",
            show_default=True,
            metavar="LAYER",
            help="Where to cut: a tensor, node or module name (whole, by its end, or a glob), an "
            "index from 'layers' (-1 the last), conv1 to conv5, or auto, the last feature map.",
        ),
    ):
        function = option(function)
    return function


def preprocessing_options(function: Function) -> Function:
    """Add the options that override what the model says of its preprocessing."""
    for option in (
        click.option("--labels", type=FILE, help="Class names: text, JSON or TSV."),
        click.option(
            "--interpolation",
            type=click.Choice(get_args(Interpolation)),
            help="Interpolation of the resize.",
        ),
        click.option(
            "--crop-fraction", type=click.FloatRange(0, 1, min_open=True), help="See --resize."
        ),
        click.option(
            "--resize",
            type=click.Choice(get_args(Resize)),
            help="How the image gets to the input's size; the two *_crop kinds resize to size / "
            "crop fraction and take the centre.",
        ),
        click.option(
            "--channels", type=click.Choice(["RGB", "BGR"]), help="The model's order of colours."
        ),
        click.option("--scale", type=Numbers(3, float), help="Divisors per channel, for 0..255."),
        click.option("--mean", type=Numbers(3, float), help="Means per channel, for 0..255."),
    ):
        function = option(function)
    return function


def methods_of(text: str) -> list[str]:
    """Return the methods named in a comma-separated list; "all" means every one."""
    from ov_recipro.methods import find_methods

    return find_methods([name.strip() for name in text.split(",")])


def overridden(
    preprocessing: Preprocessing,
    **given: Any,
) -> Preprocessing:
    """Return the preprocessing with the options that were given."""
    changes = {key: value for key, value in given.items() if value is not None}
    if not changes:
        return preprocessing
    return dataclasses.replace(preprocessing, **changes, source="the command line")


def note(text: str, quiet: bool = False) -> None:
    """Print a line for people, on stderr."""
    if not quiet:
        click.echo(text, err=True)
