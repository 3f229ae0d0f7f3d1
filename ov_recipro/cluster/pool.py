"""Ray: a pool of actors that each hold one explainer, and rows streamed through them.

Rows of file names go to tasks that read the files, then to actors that explain, then to the caller.
Ray Data schedules, holds reading back while the actors are busy, and does again what a lost machine
had in hand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from ov_recipro.cluster.files import File, read_file
from ov_recipro.errors import ReciproError

LOCAL = "local"
_SECONDS = 10.0  # to wait for a cluster
_FAILURE = "failure"  # the one column of a table that says why an actor failed
_READERS = 16  # files that an actor which reads has in hand at once
_ACTORS_PER_READER = 4
_BLOCK = 32 << 20  # bytes of files that go to an actor at once
_STORE = 256 << 20  # bytes of the object store that rows in hand may take, for each actor


@dataclass(frozen=True)
class Pool:
    """Actors to be.

    Attributes:
        actors: how many.
        cpus: cores of each, which are also its threads.
        gpus: GPUs of each.
    """

    actors: int
    cpus: int
    gpus: int


@contextlib.contextmanager
def open_pool(address: str, actors: int | None, cpus: int, gpus: int) -> Iterator[Pool]:
    """Connect to Ray, and leave it at the end.

    Args:
        address: "local" for this machine alone, "auto" for the cluster that it is a part of, or a
            cluster's address.
        actors: how many; by default as many as the cluster has cores, or GPUs, for.
        cpus, gpus: of each.

    Raises:
        ReciproError: there is no such cluster, or it is too small.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is raised
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _SECONDS).close()
        with _no_stderr():
            ray.init(
                address=address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ReciproError(f"No Ray cluster at '{address}': {_first_line(error)}") from error
    try:
        yield _fitting(actors, cpus, gpus)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr: Ray says there how much it will say."""
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
        each = f"{cpus} cores" + (f" and {gpus} GPU" if gpus else "")
        raise ReciproError(
            f"The cluster has room for {room} actors of {each} (--actors, --cpus-per-actor)."
        )
    return Pool(actors, cpus, gpus)


def put(value: Any) -> Any:
    """Put a value into the object store, from where each machine fetches it once."""
    return ray.put(value)


def get(reference: Any) -> Any:
    """Return the value behind what `put` returned."""
    return ray.get(reference)


def limit_threads(cpus: int) -> None:
    """Keep this process, an actor, to its own cores; called before any library is loaded."""
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    import cv2

    cv2.setNumThreads(cpus)


def stream(
    pool: Pool,
    files: Sequence[File],
    extra: Sequence[dict[str, Any]],
    worker: type,
    arguments: Sequence[Any],
    most: int,
) -> Iterator[pa.Table]:
    """Read files, call actors on them, and yield what these return, in any order.

    Args:
        pool: the actors.
        files: what is read.
        extra: further columns, for each file a row.
        worker: the actors' class. An actor is called with a table of `name`, the columns of
            `extra`, `data` (bytes) and `error` (why there are none, else null), and returns a
            table.
        arguments: for the actors' constructor.
        most: rows that an actor takes at once.

    Raises:
        ReciproError: an actor can't be made, or fails.
    """
    rows = [
        {"name": file.name, "root": file.root, "path": file.path} | more
        for file, more in zip(files, extra, strict=True)
    ]
    size = max(1, min(most, len(rows) // (4 * pool.actors)))
    table = pa.Table.from_pylist(rows)
    blocks = [table.slice(start, size) for start in range(0, len(rows), size)]
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=_STORE * pool.actors
    )
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            _Reader,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=0,  # reading waits more than it computes; the cores are the actors'
            compute=ActorPoolStrategy(size=-(-pool.actors // _ACTORS_PER_READER)),
        )
        .map_batches(
            _Worker,
            fn_constructor_args=(worker, arguments),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            compute=ActorPoolStrategy(size=pool.actors),
        )
    )
    batches = dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)
    try:
        for batch in batches:
            if batch.column_names == [_FAILURE]:
                raise ReciproError(batch[_FAILURE][0].as_py())
            yield batch
    except ray.exceptions.RayTaskError:  # an error of this program's: it is shown whole
        raise
    except ray.exceptions.RayError as error:
        raise ReciproError(f"Ray failed: {_first_line(error)}") from error


class _Worker:
    """Calls what the caller gave; hands its ReciproErrors on as rows, for Ray would wrap them."""

    def __init__(self, kind: type, arguments: Sequence[Any]) -> None:
        self._failure: str | None = None
        try:
            self._work = kind(*arguments)
        except ReciproError as error:
            self._failure = str(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._failure is None:
            try:
                return self._work(table)
            except ReciproError as error:
                self._failure = str(error)
        return pa.table({_FAILURE: [self._failure]})


class _Reader:
    """Reads files; an actor, since Ray starts processes for such tasks again and again."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Add the files' bytes, or why there are none; large files come in several tables."""
        places = list(zip(table["root"].to_pylist(), table["path"].to_pylist(), strict=True))
        table = table.drop_columns(["root", "path"])
        with ThreadPoolExecutor(_READERS) as threads:
            start = 0
            found: list[tuple[bytes | None, str | None]] = []
            for first in range(0, len(places), _READERS):
                found += threads.map(_read, places[first : first + _READERS])
                if len(found) == len(places) - start or _bytes(found) >= _BLOCK:
                    yield _with_files(table.slice(start, len(found)), found)
                    start, found = start + len(found), []


def _read(place: tuple[str, str]) -> tuple[bytes | None, str | None]:
    try:
        return read_file(*place), None
    except ReciproError as error:
        return None, str(error)


def _with_files(table: pa.Table, found: Sequence[tuple[bytes | None, str | None]]) -> pa.Table:
    data, errors = zip(*found, strict=True)
    table = table.append_column("data", pa.array(data, pa.large_binary()))
    return table.append_column("error", pa.array(errors, pa.string()))


def _bytes(found: Sequence[tuple[bytes | None, str | None]]) -> int:
    return sum(len(data) for data, _ in found if data is not None)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
