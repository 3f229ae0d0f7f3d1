"""Methods measured over a dataset, kept image by image so that a run can go on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ov_recipro.datasets import Boxes, Sample
from ov_recipro.errors import ReciproError
from ov_recipro.faithfulness import Profile, measure
from ov_recipro.images import decode_image
from ov_recipro.methods import METHODS, NotApplicable, Subject
from ov_recipro.metrics import Box, Mean, Measurement, Summary, Tally
from ov_recipro.ordered import in_order
from ov_recipro.preprocess import Window

SCHEMA_VERSION = 1
RECORDS = "records"


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
class Outcome:
    """What became of an image: the new records by method, or why there are none."""

    sample: Sample
    records: Mapping[str, Record]
    error: str | None = None


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


class Evaluation:
    """Methods over samples; what is measured is kept in `folder` at once and not measured again.

    Each method's records lie in a file of their own whose name tells its settings: the model, the
    layer, the profile and all else that may change a number. With other settings another file
    begins; records are never mixed.

    Args:
        subject: the model.
        samples: the dataset.
        methods: names of `methods.METHODS`.
        profile, step: see `faithfulness.measure`.
        boxes: around objects, by image; see `datasets.read_boxes`.
        folder: where records are kept.

    Raises:
        ReciproError: the profile needs labels that the dataset lacks.
    """

    def __init__(
        self,
        subject: Subject,
        samples: Sequence[Sample],
        methods: Sequence[str],
        profile: Profile,
        folder: Path,
        step: int | None = None,
        boxes: Boxes | None = None,
    ) -> None:
        if profile == "byun" and any(sample.label is None for sample in samples):
            raise ReciproError(
                "The profile 'byun' is of the true class, and this dataset does not say it; "
                "give folders of classes, a table, or --profile poppi."
            )
        self.subject = subject
        self.samples = list(samples)
        self.methods = list(methods)
        self.profile: Profile = profile
        self.step = step
        self.boxes: Boxes = boxes or {}
        self._ledgers = {
            method: _Ledger(folder / RECORDS, method, self.settings(method))
            for method in self.methods
        }
        self._refused: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    @property
    def kept(self) -> int:
        """Number of measurements that earlier runs have left; a changed image is measured anew."""
        names = {sample.name for sample in self.samples}
        return sum(len(names & ledger.records.keys()) for ledger in self._ledgers.values())

    def settings(self, method: str | None = None) -> dict[str, Any]:
        """Return what a measurement depends on, beside the image."""
        explainer = self.subject.explainer
        manifest = explainer.bundle.manifest
        boxes = hashlib.sha256(json.dumps(self.boxes, sort_keys=True).encode()).hexdigest()
        settings = {
            "schema_version": SCHEMA_VERSION,
            "model": manifest.source.name,
            "sha256": manifest.source.sha256,
            "companions": manifest.source.companions,
            "layer": manifest.cut.tensor,
            "feature_shape": manifest.cut.shape,
            "output": manifest.output,
            "profile": self.profile,
            "step": self.step,
            "score": explainer.score,
            "probability": self.subject.probability,
            "device": explainer.device,
            "precision": explainer.precision,
            "preprocessing": explainer.preprocessing,
            "boxes": boxes if self.boxes else None,
            "versions": explainer.versions,
        }
        if method is not None:
            settings["method"] = method
        return dict(msgspec.to_builtins(settings))

    def run(self, workers: int) -> Iterator[Outcome]:
        """Measure what is not yet measured, `workers` images at once; yield them in order.

        Raises:
            ReciproError: a record can't be written.
        """
        stopped = self.subject.stopped
        stopped.clear()
        try:
            for outcome in in_order(self._measure, self.samples, workers, stopped.set):
                for method, record in outcome.records.items():
                    self._ledgers[method].add(record)
                if outcome.error is not None:
                    self.failed[outcome.sample.name] = outcome.error
                yield outcome
        finally:
            for ledger in self._ledgers.values():
                ledger.close()

    def rows(self) -> list[Row]:
        """Return the table of what is measured so far of these samples."""
        rows: list[Row] = []
        first: Tally | None = None
        for method, ledger in self._ledgers.items():
            tally = Tally()
            for sample in self.samples:
                record = ledger.records.get(sample.name)
                if record is not None and sample.name not in self.failed:
                    tally.update(record.image, record.measured)
            if len(tally):
                above = tally.adcc_above(first) if first is not None else None
                rows.append(Row(method, tally.summary(), None, above))
                first = first or tally
            elif method in self._refused:
                rows.append(Row(method, None, self._refused[method]))
        return rows

    def record(self, rows: Sequence[Row]) -> bytes:
        """Return the JSON record of the table's rows and all that they depend on."""
        record = self.settings() | {
            "images": len(self.samples),
            "interval": "95 %, percentiles of 2000 bootstrap samples of the images",
            "methods": rows,
            "errors": [{"path": name, "error": why} for name, why in sorted(self.failed.items())],
        }
        return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"

    def _measure(self, sample: Sample) -> Outcome:
        try:
            return self._measured(sample)
        except ReciproError as error:
            return Outcome(sample, {}, str(error))

    def _measured(self, sample: Sample) -> Outcome:
        try:
            data = sample.path.read_bytes()
        except OSError as error:
            raise ReciproError(f"{sample.path}: {error.strerror or error}.") from error
        digest = hashlib.sha256(data).hexdigest()
        missing = [
            method for method in self.methods if not self._ledgers[method].has(sample, digest)
        ]
        if not missing:
            return Outcome(sample, {})
        image, window = self.subject.prepare(decode_image(data, str(sample.path)))
        if self.profile == "byun" and sample.label is not None:
            index = sample.label
        else:
            index = int(self.subject.scores(image).argmax())
        around = self.boxes.get(sample.path.stem, {}).get(index, [])
        boxes = [_in_window(box, window, (image.shape[1], image.shape[2])) for box in around]
        records = {}
        for method in missing:
            try:
                measured = measure(
                    self.subject, METHODS[method], image, index, self.profile, self.step, boxes
                )
            except NotApplicable as refusal:
                self._refused[method] = str(refusal)
                continue
            records[method] = Record(sample.name, digest, sample.label, index, measured)
        return Outcome(sample, records)


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


class _Ledger:
    """A file of one method's records: a line of settings, then a line for each image."""

    def __init__(self, folder: Path, method: str, settings: dict[str, Any]) -> None:
        head = msgspec.json.encode(settings, order="deterministic")
        key = hashlib.sha256(head).hexdigest()[:12]
        self.path = folder / f"{method}-{settings['profile']}-{key}.jsonl"
        self.records: dict[str, Record] = {}
        self._head = head
        self._file: BinaryIO | None = None
        self._whole = 0  # bytes of the file up to the end of its last whole line
        if self.path.is_file():
            self._read()

    def has(self, sample: Sample, digest: str) -> bool:
        """Whether the sample's measurement is there, of this very file and label."""
        record = self.records.get(sample.name)
        return record is not None and (record.sha256, record.label) == (digest, sample.label)

    def add(self, record: Record) -> None:
        """Keep a record, on disk at once."""
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(msgspec.json.encode(record) + b"\n")
            self._file.flush()
        except OSError as error:
            raise ReciproError(f"{self.path} can't be written: {error.strerror}.") from error
        self.records[record.image] = record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file: BinaryIO = self.path.open("r+b" if self._whole else "wb")
        if self._whole:
            file.truncate(self._whole)  # what a killed run wrote of its last line
            file.seek(self._whole)
        else:
            file.write(self._head + b"\n")
        return file

    def _read(self) -> None:
        data = self.path.read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        lines = data.splitlines()
        if not lines or lines[0] != self._head:
            return
        try:
            records = [msgspec.json.decode(line, type=Record) for line in lines[1:]]
        except msgspec.MsgspecError as error:
            raise ReciproError(f"{self.path} is damaged: {error}. Delete it.") from error
        self.records = {record.image: record for record in records}
        self._whole = len(data)
