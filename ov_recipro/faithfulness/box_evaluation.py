"""Methods for boxes measured over photographs, beside two controls that know no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ov_recipro.errors import OptionError
from ov_recipro.faithfulness.box_measure import (
    INNER_STEPS,
    STEPS,
    BoxCurves,
    BoxLimits,
    BoxMeasurement,
    chosen_boxes,
)
from ov_recipro.faithfulness.box_tally import BoxDifference, BoxSummary, above, summary
from ov_recipro.faithfulness.datasets import Sample
from ov_recipro.faithfulness.kept import SCHEMA_VERSION, Ledgers, Outcome, Task, measure_missing
from ov_recipro.images.reading import decode_image, find_images
from ov_recipro.methods import BOX_METHODS, Subject
from ov_recipro.methods.box_methods import CONTROLS
from ov_recipro.metrics import INTERVAL
from ov_recipro.output import as_record

_OF_RECIPRO = ("plan", "mask", "score")  # what the maps of no other method depend on


@dataclass(frozen=True)
class BoxRecord:
    """One method's measurements of the boxes of a photograph.

    Attributes:
        image: the sample's name; sha256: of its file.
        boxes: their edges in pixels of the model's input, best first; classes: theirs.
        measured: what was found, box by box.
    """

    image: str
    sha256: str
    boxes: tuple[tuple[float, float, float, float], ...]
    classes: tuple[int, ...]
    measured: tuple[BoxMeasurement, ...]

    @property
    def label(self) -> None:
        """Photographs have none."""
        return


@dataclass(frozen=True)
class BoxRow:
    """A method's line of the table: its summary, or why it does not apply to the model.

    Attributes:
        above: how far its means lie above those of each other control, box by box.
    """

    method: str
    summary: BoxSummary | None
    not_applicable: str | None
    above: Mapping[str, BoxDifference]


class BoxMeasuring:
    """Measures the boxes of photographs, one photograph a call, from several threads if need be.

    Args:
        subject: the detector.
        methods: names of `methods.BOX_METHODS`; the controls follow if they are not among them.
        limits: which boxes are measured.
    """

    def __init__(self, subject: Subject, methods: Sequence[str], limits: BoxLimits) -> None:
        self.subject = subject
        self.methods = list(dict.fromkeys([*methods, *CONTROLS]))
        self.limits = limits

    def __call__(self, task: Task, read: Callable[[], bytes]) -> Outcome[BoxRecord]:
        """Measure a photograph; see `kept.measure_missing`."""
        return measure_missing(task, read, self.methods, partial(self._prepare, task.sample))

    def _prepare(self, sample: Sample, data: bytes, digest: str) -> Callable[[str], BoxRecord]:
        image, window = self.subject.prepare(decode_image(data, sample.path))
        targets = chosen_boxes(self.subject, image, window, self.limits)
        curves = [BoxCurves(self.subject, image, target) for target in targets]
        boxes = tuple(target.edges for target in targets)
        classes = tuple(target.index for target in targets)

        def by_method(method: str) -> BoxRecord:
            maps = BOX_METHODS[method](self.subject, image, targets) if targets else []
            found = tuple(
                curve.measure(saliency) for curve, saliency in zip(curves, maps, strict=True)
            )
            return BoxRecord(sample.name, digest, boxes, classes, found)

        return by_method


class BoxEvaluation:
    """Methods over photographs; each measurement is kept in `folder` at once and not repeated.

    Args:
        measuring: the detector, the methods and how they are measured.
        samples: the photographs.
        folder: where records are kept; see `kept.Ledgers`.
    """

    def __init__(self, measuring: BoxMeasuring, samples: Sequence[Sample], folder: Path) -> None:
        self.measuring = measuring
        settings = {method: self.settings(method) for method in measuring.methods}
        self._ledgers: Ledgers[BoxRecord] = Ledgers(folder, BoxRecord, settings, samples)
        self.samples = self._ledgers.samples
        self.failed = self._ledgers.failed

    @property
    def kept(self) -> int:
        """Number of measurements kept from earlier runs; a changed image is measured again."""
        return self._ledgers.kept

    def settings(self, method: str | None = None) -> dict[str, Any]:
        """Return what a method's measurements, or those of all, depend on, besides the photograph.

        A method's do not depend on which other methods are measured beside it.
        """
        settings = self.measuring.subject.explainer.provenance() | {
            "schema_version": SCHEMA_VERSION,
            "profile": "boxes",
            "steps": [STEPS, INNER_STEPS],
            "limits": asdict(self.measuring.limits),
        }
        if method is not None and method != "recipro":  # how else the model is run is nothing to it
            for name in _OF_RECIPRO:
                settings.pop(name, None)
        if method is not None:
            settings["method"] = method
        return dict(msgspec.to_builtins(settings))

    def run(self, workers: int) -> Iterator[Outcome[BoxRecord]]:
        """Measure what is not yet measured, `workers` images at once; yield them in order.

        Raises:
            ReciproError: a record can't be written.
        """
        return self._ledgers.run(self.measuring, self.measuring.subject.stopped, workers)

    def rows(self) -> list[BoxRow]:
        """Return the table of what is measured so far on these photographs, if any has a box."""
        known = {
            method: {each.image: each.measured for each in self._ledgers.records(method)}
            for method in self.measuring.methods
        }
        rows = []
        for method, ours in known.items():
            found = summary(ours)
            if found is not None:
                others = [name for name in CONTROLS if name != method]
                differences = {name: above(ours, known[name]) for name in others}
                shared = {name: each for name, each in differences.items() if each is not None}
                rows.append(BoxRow(method, found, None, shared))
            elif method in self._ledgers.refused:
                rows.append(BoxRow(method, None, self._ledgers.refused[method], {}))
        return rows

    def record(self, rows: Sequence[BoxRow]) -> bytes:
        """Return the JSON record of the table's rows and all that they depend on."""
        record = self.settings() | {
            "images": len(self.samples),
            "interval": INTERVAL,
            "methods": rows,
            "errors": [{"path": name, "error": why} for name, why in sorted(self.failed.items())],
        }
        return as_record(record)


def find_photographs(folder: Path) -> list[Sample]:
    """Find the photographs in a folder and its subfolders, in the order of their names.

    Raises:
        OptionError: there is no such folder.
        ImageError: it has no images.
    """
    if not folder.is_dir():
        raise OptionError(
            f"Detectors are evaluated on a folder of images; {folder} is not a folder."
        )
    paths = sorted(find_images([str(folder)]))
    return [Sample(path.relative_to(folder).as_posix(), str(path), None) for path in paths]
