"""Options that several commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from ov_recipro.images.preprocess import Interpolation, Preprocessing, Resize
from ov_recipro.runtimes.runtime import Precision

if TYPE_CHECKING:
    from ov_recipro.explainer import Explainer

_OVERRIDES = ("mean", "scale", "channels", "resize", "crop_fraction", "interpolation")

Function = TypeVar("Function", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


class Numbers(click.ParamType):  # type: ignore[type-arg] # generic from click 8.4 on
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


class Constant(click.ParamType):  # type: ignore[type-arg]
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


def explainer_options(function: Function) -> Function:
    """Add the options that say which model is explained and how; see `open_explainer`."""
    model = click.option("-m", "--model", type=FILE, help="An .onnx or .xml file or a bundle.")
    return model(running_options(function))


def running_options(function: Function) -> Function:
    """Add the options that say how a model is explained."""
    for option in (
        preprocessing_options,
        click.option(
            "--precision",
            type=click.Choice(get_args(Precision)),
            default="f32",
            show_default=True,
            help="Of the head; the tail always runs in float32.",
        ),
        cut_options,
        click.option(
            "-d",
            "--device",
            default="CPU",
            show_default=True,
            help="An OpenVINO device, ort-cpu, cuda or cuda:1.",
        ),
    ):
        function = option(function)
    return function


def open_explainer(
    quiet: bool,
    *,
    model: Path | None,
    output_name: str | None,
    input_shape: tuple[int, ...] | None,
    constants: tuple[tuple[str, float], ...],
    labels: Path | None,
    **options: Any,
) -> Explainer:
    """Make the explainer that the options describe.

    Args:
        quiet: do not note which model is taken where none is named.
        model, output_name, input_shape, constants, labels: as `explainer_options` give them.
        options: the others of these, and arguments of `ov_recipro.Explainer`.
    """
    from ov_recipro.explainer import Explainer, default_model
    from ov_recipro.sources.labels import read_labels

    if model is None:
        model = default_model()
        note(f"Model: {model}", quiet)
    overrides = {name: options.pop(name) for name in _OVERRIDES}
    return Explainer(
        model,
        output=output_name,
        image_shape=input_shape,
        constants=dict(constants),
        preprocessing=lambda found: overridden(found, **overrides),
        labels=read_labels(labels) if labels is not None else None,
        **options,
    )


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
