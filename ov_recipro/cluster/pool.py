"""Ray: a pool of actors, and rows streamed through them.

Ray Data schedules the work and repeats what a lost machine was doing. Rows name files, and the
actors read these themselves, so pixels pass neither through the object store nor between machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from ov_recipro.errors import CODES, DeviceError, ReciproError

LOCAL = "local"
_SECONDS = 10.0  # to wait for a cluster's answer
_TOKENS = "RAY_AUTH_MODE"  # Ray's: whether its clusters and clients use tokens
_FAILURE = "failure"  # the one column of a table that says why an actor failed


@dataclass(frozen=True)
class Pool:
    """Actors to start.

    Attributes:
        actors: how many.
        cpus: cores of each, and the threads that it runs.
        gpus: GPUs of each.
    """

    actors: int
    cpus: int
    gpus: int


@contextlib.contextmanager
def open_pool(address: str, actors: int | None, cpus: int, gpus: int) -> Iterator[Pool]:
    """Connect to Ray, and disconnect at the end.

    Args:
        address: "local" for this machine alone, "auto" for the cluster that it belongs to, or a
            cluster's address.
        actors: how many; by default as many as the cluster's cores and GPUs allow.
        cpus, gpus: of each.

    Raises:
        DeviceError: there is no such cluster, or it is too small.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # failures are raised
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    _knock(address)
    try:
        with _no_stderr():
            ray.init(
                address=address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise DeviceError(f"No Ray cluster at '{address}': {_why(error, address)}") from error
    try:
        yield _fitting(actors, cpus, gpus)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise a DeviceError where nothing answers; Ray itself would keep trying for minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except OSError as error:
        raise DeviceError(f"No Ray cluster at '{address}': {_first_line(error)}") from error


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr: Ray prints its log settings there."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _fitting(actors: int | None, cpus: int, gpus: int) -> Pool:
    needs = {"CPU": cpus, "GPU": gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get(kind, 0)) // count for kind, count in needs.items() if count)
        for node in nodes
    )
    if actors is None:
        actors = room
    if not 1 <= actors <= room:
        each = f"cores for each: {cpus}" + (f", GPUs for each: {gpus}" if gpus else "")
        raise DeviceError(
            f"The cluster's room for actors is {room} ({each}); see --actors, --cpus-per-actor."
        )
    return Pool(actors, cpus, gpus)


def put(value: Any) -> Any:
    """Put a value into the object store, from which each machine fetches it once."""
    return ray.put(value)


def get(reference: Any) -> Any:
    """Return the value that `put` stored."""
    return ray.get(reference)


def stream(
    pool: Pool,
    rows: Sequence[dict[str, Any]],
    worker: type,
    arguments: Sequence[Any],
    most: int,
) -> Iterator[pa.Table]:
    """Call actors on rows, and yield the tables that they return, in any order.

    Args:
        pool: the actors.
        rows: the work; a row says where its data is rather than holding it.
        worker: the actors' class; an actor is called with a list of rows and returns a table.
        arguments: for the actors' constructor.
        most: rows that an actor takes at once.

    Raises:
        DeviceError: Ray fails, or an actor raises a ReciproError.
    """
    size = max(1, min(most, len(rows) // (4 * pool.actors)))
    table = pa.Table.from_pylist(rows)
    blocks = [table.slice(start, size) for start in range(0, len(rows), size)]
    DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_arrow(blocks).map_batches(
        _Worker,
        fn_constructor_args=(worker, arguments),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ActorPoolStrategy(size=pool.actors),
    )
    batches = dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)
    try:
        for batch in batches:
            if batch.column_names == [_FAILURE]:
                kind, message = batch[_FAILURE][0].as_py()
                raise next((each for each in CODES if each.__name__ == kind), ReciproError)(message)
            yield batch
    except ray.exceptions.RayTaskError:  # a bug in this program: keep the traceback
        raise
    except ray.exceptions.RayError as error:
        raise DeviceError(f"Ray failed: {_first_line(error)}") from error


class _Worker:
    """Calls the caller's worker; returns its ReciproErrors as rows, for Ray would wrap them."""

    def __init__(self, kind: type, arguments: Sequence[Any]) -> None:
        self._failure: list[str] | None = None
        try:
            self._work = kind(*arguments)
        except ReciproError as error:
            self._failure = [type(error).__name__, str(error)]

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._failure is None:
            try:
                return self._work(table.to_pylist())
            except ReciproError as error:
                self._failure = [type(error).__name__, str(error)]
        return pa.table({_FAILURE: [self._failure]})


def _why(error: Exception, address: str) -> str:
    """Return why Ray could not be reached, and what may help."""
    line = _first_line(error)
    if address == LOCAL or os.environ.get(_TOKENS, "").lower() == "token":
        return line
    return f"{line.removesuffix('.')}. If the cluster requires a token, set {_TOKENS}=token."


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
