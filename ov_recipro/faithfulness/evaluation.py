"""Methods measured over a dataset, kept image by image so that a run can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ov_recipro.errors import OptionError
from ov_recipro.faithfulness.datasets import Boxes, Sample
from ov_recipro.faithfulness.kept import SCHEMA_VERSION, Ledgers, Outcome, Task, measure_missing
from ov_recipro.faithfulness.measure import Profile, measure
from ov_recipro.faithfulness.mosaics import mosaic
from ov_recipro.faithfulness.tally import Difference, Summary, Tally
from ov_recipro.images.preprocess import Window
from ov_recipro.images.reading import decode_image
from ov_recipro.methods import METHODS, Subject
from ov_recipro.metrics import INTERVAL, Box, Mean, Measurement
from ov_recipro.output import as_record

__all__ = ["Evaluation", "Measuring", "Record", "Row"]


@dataclass(frozen=True)
class Record:
    """One method's measurement of one image.

    Attributes:
        image: the sample's name; sha256: of its file; label: the class that the dataset gives.
        index: the class that was explained.
        measured: what was found.
    """

    image: str
    sha256: str
    label: int | None
    index: int
    measured: Measurement


@dataclass(frozen=True)
class Row:
    """A method's line of the table: its summary, or why it does not apply to the model.

    Attributes:
        above_first: how far its ADCC is above that of the first method, on the images that both
            have; None for the first.
    """

    method: str
    summary: Summary | None
    not_applicable: str | None
    above_first: Mean | None = None


class Measuring:
    """Measures the images of a dataset, one a call; may be called from several threads.

    Args:
        subject: the model.
        methods: names of `methods.METHODS`.
        profile, step: see `faithfulness.measure`.
        boxes: around objects, by image; see `datasets.read_boxes`.
        companions: of each image, for the grid pointing game; see `mosaics.companions`.
    """

    def __init__(
        self,
        subject: Subject,
        methods: Sequence[str],
        profile: Profile,
        step: int | None = None,
        boxes: Boxes | None = None,
        companions: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.subject = subject
        self.methods = list(methods)
        self.profile: Profile = profile
        self.step = step
        self.boxes: Boxes = boxes or {}
        self.companions = companions or {}

    def __call__(self, task: Task, read: Callable[[], bytes]) -> Outcome[Record]:
        """Measure an image; see `kept.measure_missing`."""
        return measure_missing(task, read, self.methods, partial(self._prepare, task.sample))

    def _prepare(self, sample: Sample, data: bytes, digest: str) -> Callable[[str], Record]:
        image, window = self.subject.prepare(decode_image(data, sample.path))
        if self.profile == "byun" and sample.label is not None:
            index = sample.label
        else:
            index = int(self.subject.scores(image).argmax())
        around = self.boxes.get(Path(sample.path).stem, {}).get(index, [])
        boxes = [_in_window(box, window, (image.shape[1], image.shape[2])) for box in around]
        others = self.companions.get(sample.name)
        grid = mosaic(self.subject, image, index, others) if others else None
        how = (self.profile, self.step, boxes, grid)

        def by_method(method: str) -> Record:
            found = measure(self.subject, METHODS[method], image, index, *how)
            return Record(sample.name, digest, sample.label, index, found)

        return by_method


class Evaluation:
    """Methods over samples; each measurement is kept in `folder` at once and not repeated.

    Args:
        measuring: the model, the methods and how they are measured.
        samples: the dataset.
        folder: where records are kept; see `kept.Ledgers`.

    Raises:
        OptionError: the profile needs labels that the dataset lacks.
    """

    def __init__(self, measuring: Measuring, samples: Sequence[Sample], folder: Path) -> None:
        if measuring.profile == "byun" and any(sample.label is None for sample in samples):
            raise OptionError(
                "The profile 'byun' scores the true class, which this dataset does not give; "
                "use folders of classes, a table, or --profile poppi."
            )
        self.measuring = measuring
        settings = {method: self.settings(method) for method in measuring.methods}
        self._ledgers: Ledgers[Record] = Ledgers(folder, Record, settings, samples)
        self.samples = self._ledgers.samples
        self.failed = self._ledgers.failed

    @property
    def kept(self) -> int:
        """Number of measurements kept from earlier runs; a changed image is measured again."""
        return self._ledgers.kept

    def settings(self, method: str | None = None) -> dict[str, Any]:
        """Return what a measurement depends on, besides the image."""
        how = self.measuring
        boxes = hashlib.sha256(json.dumps(how.boxes, sort_keys=True).encode()).hexdigest()
        grids = hashlib.sha256(json.dumps(how.companions, sort_keys=True).encode()).hexdigest()
        settings = how.subject.explainer.provenance() | {
            "schema_version": SCHEMA_VERSION,
            "profile": how.profile,
            "step": how.step,
            "probability": how.subject.probability,
            "boxes": boxes if how.boxes else None,
            "mosaics": grids if how.companions else None,
        }
        if method is not None:
            settings["method"] = method
        return dict(msgspec.to_builtins(settings))

    def tasks(self) -> list[Task]:
        """Return the images, each with what is already measured."""
        return self._ledgers.tasks()

    def run(self, workers: int) -> Iterator[Outcome[Record]]:
        """Measure what is not yet measured, `workers` images at once; yield them in order.

        Raises:
            ReciproError: a record can't be written.
        """
        return self._ledgers.run(self.measuring, self.measuring.subject.stopped, workers)

    def collect(self, outcomes: Iterator[Outcome[Record]]) -> Iterator[Outcome[Record]]:
        """Keep each outcome, wherever it was measured, and pass it on.

        Raises:
            ReciproError: a record can't be written.
        """
        return self._ledgers.collect(outcomes)

    def rows(self) -> list[Row]:
        """Return the table of what is measured so far on these samples."""
        rows: list[Row] = []
        first: Tally | None = None
        for method in self.measuring.methods:
            tally = self._tally(method)
            if len(tally):
                above = tally.adcc_above(first) if first is not None else None
                rows.append(Row(method, tally.summary(), None, above))
                first = first or tally
            elif method in self._ledgers.refused:
                rows.append(Row(method, None, self._ledgers.refused[method]))
        return rows

    def differences(self, method: str, other: str) -> dict[str, Difference] | None:
        """Return how far a method's means are above another's, over the images that both have."""
        return self._tally(method).differences(self._tally(other))

    def _tally(self, method: str) -> Tally:
        tally = Tally()
        for record in self._ledgers.records(method):
            tally.update(record.image, record.measured)
        return tally

    def record(
        self,
        rows: Sequence[Row],
        paired: tuple[str, str] | None = None,
        differences: Mapping[str, Difference] | None = None,
    ) -> bytes:
        """Return the JSON record of the table's rows and all that they depend on.

        Args:
            rows: the table.
            paired: two methods that are compared too; differences: what `differences` says of them.
        """
        record = self.settings() | {
            "images": len(self.samples),
            "interval": INTERVAL,
            "methods": rows,
            "paired": None if paired is None else {"methods": paired, "differences": differences},
            "errors": [{"path": name, "error": why} for name, why in sorted(self.failed.items())],
        }
        return as_record(record)


def _in_window(box: Box, window: Window, size: tuple[int, int]) -> Box:
    """Return a box of the whole image in pixels of the model's input."""
    left, top, right, bottom = window
    x, y = size[1] / (right - left), size[0] / (bottom - top)
    return (
        (box[0] - left) * x,
        (box[1] - top) * y,
        (box[2] - left) * x,
        (box[3] - top) * y,
    )
