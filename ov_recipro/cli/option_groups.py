"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import click

from ov_recipro.images.drawing import COLORMAPS, DEFAULT
from ov_recipro.images.preprocess import Interpolation, Preprocessing, Resize
from ov_recipro.options import Cut, Running, Targets
from ov_recipro.saliency import Score

if TYPE_CHECKING:
    from ov_recipro.explainer import Explainer

_OVERRIDES = ("mean", "scale", "channels", "resize", "crop_fraction", "interpolation")

Function = TypeVar("Function", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
MODEL = "An .onnx or .xml file, a bundle, or hf://ORGANISATION/NAME[/PATH][@REVISION]"
Kind: TypeAlias = type[Cut] | type[Running] | type[Targets]


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
            self.fail(f"'{value}' is not of the form {self.name}.", param, ctx)
        if len(numbers) != self.count:
            self.fail(f"'{value}' has {len(numbers)} numbers, not {self.count}.", param, ctx)
        return numbers


class BoxChoice(click.ParamType):  # type: ignore[type-arg]
    """A box: its number, all, or four comma-separated numbers."""

    name = "N|all|X,Y,W,H"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int | tuple[float, ...]:
        """Parse the text."""
        if not isinstance(value, str):
            return cast("str | int | tuple[float, ...]", value)
        if value.lower() == "all":
            return "all"
        if value.isdecimal():
            return int(value)
        return Numbers(4, float).convert(value, param, ctx)


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
            self.fail(f"'{value}' is not of the form {self.name}.", param, ctx)


def as_dict(
    context: click.Context,  # noqa: ARG001 - click passes it
    parameter: click.Parameter,  # noqa: ARG001
    value: tuple[tuple[str, float], ...],
) -> dict[str, float]:
    """Return pairs of names and numbers as a dictionary."""
    return dict(value)


def in_bytes(
    context: click.Context,  # noqa: ARG001
    parameter: click.Parameter,  # noqa: ARG001
    value: int,
) -> int:
    """Return MiB as bytes."""
    return value << 20


_PARAMETERS: dict[str, dict[str, Any]] = {
    "layer": {"metavar": "LAYER"},
    "output_name": {"metavar": "NAME"},
    "input_shape": {"type": Numbers(4, int)},
    "constants": {
        "names": ("--const", "--constants"),
        "type": Constant(),
        "multiple": True,
        "callback": as_dict,
    },
    "device": {"names": ("-d", "--device")},
    "batch_memory": {
        "type": click.IntRange(min=1),
        "default": Running.batch_memory >> 20,
        "metavar": "MIB",
        "help": "Memory for the tail's activations, in MiB.",
        "callback": in_bytes,
    },
    "max_cost": {"type": click.FloatRange(min=1), "metavar": "N"},
    "classes": {"names": ("-t", "--target"), "multiple": True, "metavar": "CLASS"},
    "against": {"metavar": "CLASS"},
    "gamma": {"type": float},
    **{
        name: {"type": FILE, "multiple": True, "metavar": "PATH", "show_default": False}
        for name in ("similar_to", "unlike", "centre")
    },
    "region": {"type": Numbers(4, float)},
    "pixel": {"type": Numbers(2, float)},
    "position": {"type": int},
    "box": {"type": BoxChoice()},
}
"""Where the command line's options differ from the fields' names and types."""


def options_of(
    kind: Kind, parameter: str, *names: str, **changes: dict[str, Any]
) -> Callable[[Function], Function]:
    """Add options for fields of `Cut`, `Running` or `Targets`, as one of which they are passed on.

    Args:
        kind: which of the three.
        parameter: the command's parameter.
        names: the fields, in the order that the help lists them; all by default.
        changes: click's arguments for single fields, where a command differs.
    """
    chosen = names or tuple(field.name for field in dataclasses.fields(kind))

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def gathered(*arguments: Any, **given: Any) -> Any:
            fields = {name: given.pop(name) for name in chosen}
            return function(*arguments, **{parameter: kind(**fields)}, **given)

        command: Any = gathered
        for name in reversed(chosen):
            command = option(kind, name, **changes.get(name, {}))(command)
        return cast(Function, command)

    return decorate


def option(kind: Kind, name: str, **changes: Any) -> Callable[[Function], Function]:
    """Make one option of a field: its name, type, default and help are the field's."""
    default = next(each.default for each in dataclasses.fields(kind) if each.name == name)
    settings: dict[str, Any] = {"help": helps(kind)[name]}
    hint = get_type_hints(kind)[name]
    if get_origin(hint) is Literal:
        settings["type"] = click.Choice(get_args(hint))
    if hint is bool:
        settings["is_flag"] = True
    elif default is not dataclasses.MISSING:
        settings |= {"default": default, "show_default": default is not None}
    settings |= {**_PARAMETERS.get(name, {}), **changes}
    if settings.get("multiple"):
        settings["help"] += " Repeatable."
    names = settings.pop("names", (f"--{name.replace('_', '-')}",))
    return click.option(*names, settings.pop("parameter", name), **settings)


def helps(kind: Kind) -> dict[str, str]:
    """Return what a class's docstring says about each attribute."""
    text = inspect.getdoc(kind) or ""
    lines = text.partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", lines, re.M)
    return {name: " ".join(words.split()) for name, words in found}


cut_options = options_of(Cut, "cut")

score_option = click.option(
    "--score",
    type=click.Choice(get_args(Score)),
    help="How logits become class scores.  [default: the model's own way, else softmax]",
)

colormap_option = click.option(
    "--colormap",
    type=click.Choice(COLORMAPS),
    default=DEFAULT.colormap,
    show_default=True,
    help="Colours from low to high saliency.",
)


def preprocessing_options(function: Function) -> Function:
    """Add the options that override what the model says about its preprocessing."""
    for option in (
        click.option("--labels", type=FILE, help="File of class names: text, JSON or TSV."),
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
            help="How the image is brought to the input's size; the two *_crop kinds resize to "
            "size / crop fraction and keep the centre.",
        ),
        click.option(
            "--channels",
            type=click.Choice(["RGB", "BGR"]),
            help="Colour order of the model's input.",
        ),
        click.option(
            "--scale",
            type=Numbers(3, float),
            help="Divisor for each channel, for pixels in 0..255.",
        ),
        click.option(
            "--mean", type=Numbers(3, float), help="Mean of each channel, for pixels in 0..255."
        ),
    ):
        function = option(function)
    return function


def model_options(function: Function) -> Function:
    """Add the options that say which model is explained, where it is cut and what goes into it."""
    model = click.option("-m", "--model", type=FILE, help=f"{MODEL}.")
    return model(cut_options(preprocessing_options(function)))


running_options = options_of(Running, "running", "device", "precision")


def open_explainer(
    quiet: bool,
    *,
    model: Path | None,
    cut: Cut,
    running: Running,
    labels: Path | None,
    targets: Targets = Targets(),
    **options: Any,
) -> Explainer:
    """Make the explainer that the options describe.

    Args:
        quiet: do not print which model is used when none is named.
        model, cut, running, labels: as `model_options` and `running_options` give them.
        targets: what is asked; a model whose images are compared is cut for that.
        options: the remaining ones, and arguments of `ov_recipro.Explainer`.
    """
    from ov_recipro.explainer import Explainer
    from ov_recipro.sources.default_model import default_model
    from ov_recipro.sources.labels import read_labels
    from ov_recipro.sources.references import located

    named = model is not None
    model = located(default_model() if model is None else model)
    if not named:
        note(f"Model: {model}", quiet)
    if not model.is_dir():
        cut = comparing(cut, targets)
    overrides = {name: options.pop(name) for name in _OVERRIDES}
    return Explainer(
        model,
        layer=cut,
        device=running,
        preprocessing=lambda found: overridden(found, **overrides),
        labels=read_labels(labels) if labels is not None else None,
        **options,
    )


def comparing(cut: Cut, targets: Targets) -> Cut:
    """Return a cut; one for vectors, unless it says for what, where images are compared."""
    if targets.similar_to and cut.task == "auto":
        return dataclasses.replace(cut, task="similarity")
    return cut


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
