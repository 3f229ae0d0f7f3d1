"""`ov-recipro serve`: predictions and explanations by HTTP and gRPC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ov_recipro.black_boxes.attribution import METHOD_NAMES
from ov_recipro.cli.option_groups import (
    MODEL,
    cut_options,
    note,
    open_explainer,
    options_of,
    preprocessing_options,
    score_option,
)
from ov_recipro.errors import OptionError
from ov_recipro.options import AFFORDABLE, Cut, Running
from ov_recipro.plans.stream import Mask

if TYPE_CHECKING:
    from ov_recipro.serving.served_model import ServedModel


@click.command("serve")
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]PATH",
    help=f"{MODEL}; and its name in addresses, by default the file's. Repeatable.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port for HTTP; 0 takes any that is free.",
)
@click.option(
    "--grpc-port", type=click.IntRange(1, 65535), help="Port for gRPC.  [default: no gRPC]"
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images of each model to work on at once.  [default: what the device runs at once, and "
    "one more]",
)
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    metavar="N",
    help="Requests that may wait for a worker; further ones are answered by 503.",
)
@options_of(
    Running,
    "running",
    *("device", "precision", "batch_memory", "max_cost", "hint", "isolate"),
    max_cost={"default": AFFORDABLE, "show_default": True},
    hint={"default": "throughput"},
    isolate={
        "names": ("--isolate/--no-isolate",),
        "default": True,
        "show_default": True,
        "is_flag": True,
    },
)
@cut_options
@preprocessing_options
@score_option
@click.option(
    "--method",
    type=click.Choice(METHOD_NAMES),
    default="recipro",
    show_default=True,
    help="Method that makes the maps; see 'explain'.",
)
@click.option("--mask", type=click.Choice(get_args(Mask)), help="What is masked; see 'explain'.")
@click.option("-q", "--quiet", is_flag=True, help="Print no notes.")
@click.option("--model_name", hidden=True)  # these three are what KServe adds
@click.option("--http_port", type=click.IntRange(0, 65535), hidden=True)
@click.option("--predictor_host", hidden=True)
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    model_name: str | None,
    http_port: int | None,
    predictor_host: str | None,  # noqa: ARG001 - predictions are the model's own here
    grpc_port: int | None,
    workers: int | None,
    queue: int,
    running: Running,
    cut: Cut,
    quiet: bool,
    **options: Any,
) -> None:
    """Serve predictions and explanations, by the protocols of KServe.

    POST to /v1/models/NAME:predict and :explain, or to /v2/models/NAME/infer; / is a page to try it
    with. Models run in processes of their own. Clients are not authenticated: don't listen on
    addresses that others can reach without a proxy that does that.
    """
    from ov_recipro.serving.served_model import ServedModel
    from ov_recipro.serving.server import serve
    from ov_recipro.sources.default_model import default_model
    from ov_recipro.sources.references import located

    named = [_named(each) for each in models]
    if not named:
        path = located(default_model())
        note(f"Model: {path}", quiet)
        named = [(_name_of(path), path)]
    if model_name is not None:
        if len(named) > 1:
            raise OptionError("--model_name can name only one model; there are several.")
        named = [(_checked_name(model_name), named[0][1])]
    if len({name for name, _ in named}) < len(named):
        raise OptionError("Two models have the same name; give others: --model NAME=PATH.")
    served = []
    for name, path in named:
        explainer = open_explainer(quiet, model=path, cut=cut, running=running, **options)
        served.append(ServedModel(name, explainer, workers or explainer.workers))
    serve(served, host, http_port or port, grpc_port, queue, lambda url: _say_where(url, served))


def _named(text: str) -> tuple[str, Path]:
    """Return a model's name and path; one on the hub is fetched."""
    from ov_recipro.sources.references import is_on_hub, located

    if is_on_hub(text):
        fetched = located(text)
        return _name_of(fetched), fetched
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return _checked_name(name), located(path)
    return _name_of(Path(text)), Path(text)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise OptionError(
            f"A model's name may contain only letters, digits, '_', '-' and '.', unlike '{name}'."
        )
    return name


def _name_of(path: Path) -> str:
    return re.sub(r"[^\w.-]", "_", path.stem)


def _say_where(url: str, served: Sequence[ServedModel]) -> None:
    names = ", ".join(each.name for each in served)
    click.echo(f"Serving {names} at {url}")
