"""Explaining a dataset on Ray: images from anywhere, results as Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from ov_recipro.cluster import pool, results
from ov_recipro.cluster.files import File, fetch, find_files
from ov_recipro.cluster.pool import Pool
from ov_recipro.cluster.recipe import Recipe, recipe_of
from ov_recipro.cluster.results import MapType, Results
from ov_recipro.errors import OF_ONE_IMAGE, ImageError, OptionError
from ov_recipro.explainer import Explainer
from ov_recipro.faithfulness.verification import verify
from ov_recipro.images.drawing import Style
from ov_recipro.images.reading import decode_file
from ov_recipro.methods import Subject
from ov_recipro.options import Targets
from ov_recipro.ordered import in_order
from ov_recipro.output import file_stems, open_folder

OVERLAYS = "_overlays"  # readers that open the folder as one dataset skip such names
_MOST = 128  # images that an actor takes at once
_READERS = 16  # files that an actor reads at once


@dataclass(frozen=True)
class JobOptions:
    """What to make of each image.

    Attributes:
        targets: what is explained, the same for all: classes or boxes.
        kind: number type of the maps.
        verify: whether maps are verified.
        overlays: the folder for overlays, which all machines must see; None to draw none.
        style: how overlays are drawn.
    """

    targets: Targets
    kind: MapType
    verify: bool
    overlays: Path | None
    style: Style


@dataclass(frozen=True)
class Progress:
    """A step of a run: how many images were done, and the errors of those that failed."""

    done: int
    errors: list[str]


class Run:
    """A run over images; one that was stopped resumes.

    Args:
        explainer: what to explain with.
        sources: files, directories, globs and URLs of these.
        folder: where results go.
        job: what to make of each image.

    Attributes:
        total: number of images; kept: how many of these earlier runs have done.

    Raises:
        ImageError: a path leads to no image.
        OptionError: a URL can't be read, there are no images, or `folder` holds results with
            other settings.
    """

    def __init__(
        self, explainer: Explainer, sources: Sequence[str], folder: Path, job: JobOptions
    ) -> None:
        files = find_files(sources)
        self._explainer, self._job = explainer, job
        self.results = Results(folder, _settings(explainer, job))
        if job.overlays is not None:
            open_folder(job.overlays)
        self._missing = [
            (file, stem)
            for file, stem in zip(files, _stems(files), strict=True)
            if file.name not in self.results.kept
        ]
        self.total = len(files)
        self.kept = len(files) - len(self._missing)

    def run(self, actors: Pool) -> Iterator[Progress]:
        """Explain what is missing; what is finished is written even if this ends early.

        Raises:
            ReciproError: results can't be written.
            DeviceError: an actor can't be made, or fails.
        """
        if not self._missing:
            return
        rows = [
            {"name": file.name, "root": file.root, "path": file.path, "stem": stem}
            for file, stem in self._missing
        ]
        recipe = recipe_of(self._explainer, actors.cpus)
        arguments = (recipe, self._job)
        try:
            for done in pool.stream(actors, rows, _Actor, arguments, _MOST):
                self.results.add(done)
                yield Progress(len(done), pc.drop_null(done["error"]).to_pylist())
        finally:
            self.results.write()


class _Actor:
    """Explains images; see `pool.stream`."""

    def __init__(self, recipe: Recipe, job: JobOptions) -> None:
        if job.overlays is not None and not job.overlays.is_dir():
            raise OptionError(
                f"Not all machines see {job.overlays}; --overlays needs a folder that they share."
            )
        self._explainer = recipe.explainer()
        self._job = job
        self._subject = Subject(self._explainer) if job.verify else None
        shape = self._explainer.bundle.manifest.cut.shape
        self._schema = results.schema(shape, job.kind)

    def __call__(self, rows: list[dict[str, Any]]) -> pa.Table:
        files = in_order(_read, rows, _READERS)
        done = list(in_order(self._row, files, self._explainer.workers))
        return results.table(done, self._schema)

    def _row(self, file: tuple[dict[str, Any], bytes | ImageError]) -> dict[str, Any]:
        given, data = file
        if isinstance(data, ImageError):
            return {"path": given["name"], "error": str(data)}
        job = self._job
        try:
            image = decode_file(data, given["name"])
            explanation = self._explainer(image, job.targets)
            verified = verify(self._subject, explanation) if self._subject else ()
        except OF_ONE_IMAGE as error:
            return {"path": given["name"], "error": str(error)}
        drawn: list[str] = []
        if job.overlays is not None:
            drawn = explanation.save_overlays(job.overlays, given["stem"], job.style)
        return results.row(explanation, self._explainer.score, verified, drawn)


def _read(given: dict[str, Any]) -> tuple[dict[str, Any], bytes | ImageError]:
    """Return a row with its file's bytes, or with the error of reading them."""
    try:
        return given, fetch(given["root"], given["path"])
    except ImageError as error:
        return given, error


def _stems(files: Sequence[File]) -> list[str]:
    return file_stems([Path(file.path) for file in files])


def _settings(explainer: Explainer, job: JobOptions) -> dict[str, Any]:
    """Return what results depend on."""
    settings = explainer.provenance() | {
        "labels": explainer.labels,
        "targets": tuple(map(str, job.targets.classes)),
        "maps": job.kind,
        "verify": job.verify,
        "overlays": job.style if job.overlays is not None else None,
    }
    if explainer.bundle.manifest.task == "detector":
        asked = job.targets
        settings |= {"box": asked.box, "threshold": asked.threshold, "nms": asked.nms}
    return dict(msgspec.to_builtins(settings))
