"""Measuring a dataset on Ray: outcomes come back image by image, and are kept as without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from ov_recipro.cluster import pool
from ov_recipro.cluster.files import fetch, list_url
from ov_recipro.cluster.pool import Pool
from ov_recipro.cluster.recipe import Recipe, recipe_of
from ov_recipro.errors import OptionError
from ov_recipro.faithfulness.datasets import Classes, Sample, in_folders
from ov_recipro.faithfulness.evaluation import Evaluation, Measuring, Record
from ov_recipro.faithfulness.kept import Outcome, Task
from ov_recipro.methods import Subject
from ov_recipro.ordered import in_order

_MOST = 4  # images that an actor takes at once


def read_dataset(url: str, classes: Classes) -> list[Sample]:
    """Find the images of a dataset behind a URL; see `datasets.read_dataset`.

    Raises:
        OptionError: the URL can't be read, is not a folder of images, or has a folder that is not a
            class.
    """
    root, paths = list_url(url)
    folder = root.rstrip("/")
    if not all(path.startswith(f"{folder}/") for path in paths):
        raise OptionError(f"{url} is not a folder of images.")
    names = [path.removeprefix(f"{folder}/") for path in paths]
    samples = in_folders(folder, names, classes)
    return sorted(samples, key=lambda sample: sample.name)


def measure(
    actors: Pool, evaluation: Evaluation, root: str, workers: int
) -> Iterator[Outcome[Record]]:
    """Measure what is not yet measured; yield each image's outcome, in any order.

    Args:
        actors: the pool that measures.
        evaluation: gives the images and keeps the measurements.
        root: the dataset's URL; empty for files on this machine.
        workers: images processed at once, in each actor.

    Raises:
        ReciproError: a record can't be written.
        DeviceError: an actor can't be made, or fails.
    """
    measuring = evaluation.measuring
    rows = [
        {"root": root, "path": _place(task.sample, root), "task": msgspec.json.encode(task)}
        for task in evaluation.tasks()
    ]
    how = _How(
        recipe_of(measuring.subject.explainer, actors.cpus),
        measuring.methods,
        {"profile": measuring.profile, "step": measuring.step, "boxes": measuring.boxes},
        workers,
    )

    def outcomes() -> Iterator[Outcome[Record]]:
        for done in pool.stream(actors, rows, _Actor, (how,), _MOST):
            for data in done["outcome"].to_pylist():
                yield msgspec.json.decode(data, type=Outcome[Record])

    yield from evaluation.collect(outcomes())


def _place(sample: Sample, root: str) -> str:
    return sample.path if root else str(Path(sample.path).absolute())


@dataclass(frozen=True)
class _How:
    recipe: Recipe
    methods: Sequence[str]
    options: dict[str, Any]
    workers: int


class _Actor:
    """Measures images; see `pool.stream`."""

    def __init__(self, how: _How) -> None:
        subject = Subject(how.recipe.explainer())
        self._measuring = Measuring(subject, how.methods, **how.options)
        self._workers = how.workers

    def __call__(self, rows: list[dict[str, Any]]) -> pa.Table:
        done = list(in_order(self._outcome, rows, self._workers))
        return pa.table({"outcome": pa.array(done, pa.binary())})

    def _outcome(self, given: dict[str, Any]) -> bytes:
        task = msgspec.json.decode(given["task"], type=Task)
        outcome = self._measuring(task, lambda: fetch(given["root"], given["path"]))
        return msgspec.json.encode(outcome)
