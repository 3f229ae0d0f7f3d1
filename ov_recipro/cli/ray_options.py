"""What `explain` and `evaluate` share for running on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ov_recipro.cli.option_groups import Function, note
from ov_recipro.errors import OptionError

if TYPE_CHECKING:
    from ov_recipro.cluster.pool import Pool


@dataclass(frozen=True)
class Engine:
    """Where the work is done; None for the options that were not given."""

    engine: str
    address: str | None
    actors: int | None
    cpus_per_actor: int | None

    @property
    def is_ray(self) -> bool:
        """Whether the work is done on Ray."""
        return self.engine == "ray"


def engine_options(function: Function) -> Function:
    """Add the options that say where the work is done."""
    for option in (
        click.option(
            "--cpus-per-actor",
            type=click.IntRange(min=1),
            metavar="N",
            help="Ray: cores for each actor.  [default: 1]",
        ),
        click.option(
            "--actors",
            type=click.IntRange(min=1),
            metavar="N",
            help="Ray: number of actors, each an explainer.  [default: as many as the cores allow]",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="Ray: a running cluster's address, or auto.  [default: this machine alone]",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where to work: in this process, or on Ray, for datasets.",
        ),
    ):
        function = option(function)
    return function


def engine_of(options: dict[str, Any]) -> Engine:
    """Take the options of `engine_options` out of a command's options.

    Raises:
        OptionError: Ray is requested but not installed.
        click.UsageError: Ray's options are given without --engine ray.
    """
    engine = Engine(*(options.pop(n) for n in ("engine", "address", "actors", "cpus_per_actor")))
    if not engine.is_ray:
        if (engine.address, engine.actors, engine.cpus_per_actor) != (None, None, None):
            raise click.UsageError("--address, --actors and --cpus-per-actor need --engine ray.")
        return engine
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"--engine ray needs Ray ({error}): pip install 'ov-recipro[ray]'."
        ) from error
    return engine


@contextmanager
def pool_of(engine: Engine, device: str, quiet: bool) -> Iterator[Pool]:
    """Open the pool of actors that the options describe."""
    from ov_recipro.cluster.pool import LOCAL, open_pool

    kind, _, number = device.partition(":")
    gpus = 1 if kind == "cuda" else 0
    if gpus and number:
        raise OptionError(f"Ray gives each actor its own GPU: use -d cuda, not {device}.")
    cpus = engine.cpus_per_actor or 1
    with open_pool(engine.address or LOCAL, engine.actors, cpus, gpus) as pool:
        actors = "1 actor" if pool.actors == 1 else f"{pool.actors} actors"
        note(f"{actors}; cores for each: {pool.cpus}.", quiet)
        yield pool
