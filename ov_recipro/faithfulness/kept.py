"""Measurements that are kept image by image, so that a run can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import msgspec

from ov_recipro.errors import OF_ONE_IMAGE, OptionError, ReciproError
from ov_recipro.faithfulness.datasets import Sample
from ov_recipro.images.reading import read_bytes
from ov_recipro.methods import NotApplicable
from ov_recipro.ordered import in_order
from ov_recipro.output import as_json

SCHEMA_VERSION = 2
RECORDS = "records"


class OfImage(Protocol):
    """What was found for an image: its sample's name and label, and the SHA-256 of its file."""

    @property
    def image(self) -> str:
        """The sample's name."""

    @property
    def label(self) -> int | None:
        """The sample's label; None where samples have none."""

    @property
    def sha256(self) -> str:
        """Of the file."""


Kind = TypeVar("Kind", bound=OfImage)


@dataclass(frozen=True)
class Task:
    """An image to measure.

    Attributes:
        sample: the image.
        kept: for each method that was measured before, the SHA-256 of the file measured.
    """

    sample: Sample
    kept: Mapping[str, str]


@dataclass(frozen=True)
class Outcome(Generic[Kind]):
    """What became of an image.

    Attributes:
        image: the sample's name.
        records: the new measurements, by method.
        refused: why methods do not apply to the model, by method.
        error: why the image could not be measured; None where it could.
    """

    image: str
    records: Mapping[str, Kind]
    refused: Mapping[str, str]
    error: str | None = None


def measure_missing(
    task: Task,
    read: Callable[[], bytes],
    methods: Sequence[str],
    prepare: Callable[[bytes, str], Callable[[str], Kind]],
) -> Outcome[Kind]:
    """Measure an image by the methods that have not measured it before.

    Args:
        task: the image.
        read: gives the file's bytes; may raise ReciproError.
        methods: the methods' names.
        prepare: takes the file's bytes and their SHA-256; returns a function that measures the
            image by the method of a name, and raises NotApplicable where the method does not apply
            to the model.
    """
    name = task.sample.name
    records, refused = dict[str, Kind](), dict[str, str]()
    try:
        data = read()
        digest = hashlib.sha256(data).hexdigest()
        missing = [method for method in methods if task.kept.get(method) != digest]
        if not missing:
            return Outcome(name, {}, {})
        by_method = prepare(data, digest)
        for method in missing:
            try:
                records[method] = by_method(method)
            except NotApplicable as refusal:
                refused[method] = str(refusal)
    except OF_ONE_IMAGE as error:
        return Outcome(name, {}, {}, str(error))
    return Outcome(name, records, refused)


class Ledgers(Generic[Kind]):
    """The records of each method, in files of their own; each is written at once.

    A file is named after its settings: the model, the layer and all else that may change a number.
    Other settings go into another file; records are never mixed.

    Args:
        folder: where they are kept.
        kind: of the records.
        settings: of each method, what its measurements depend on, besides the image; "profile" is
            part of the file's name.
        samples: the dataset.

    Attributes:
        samples: the dataset.
        refused: why methods do not apply, by method.
        failed: why images could not be measured, by image.
    """

    def __init__(
        self,
        folder: Path,
        kind: type[Kind],
        settings: Mapping[str, dict[str, Any]],
        samples: Sequence[Sample],
    ) -> None:
        self.samples = list(samples)
        self.refused: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._ledgers = {
            method: _Ledger(folder / RECORDS, method, depends, kind)
            for method, depends in settings.items()
        }

    @property
    def kept(self) -> int:
        """Number of measurements kept from earlier runs; a changed image is measured again."""
        names = {sample.name for sample in self.samples}
        return sum(len(names & ledger.records.keys()) for ledger in self._ledgers.values())

    def tasks(self) -> list[Task]:
        """Return the images, each with what is already measured."""
        return [
            Task(
                sample,
                {
                    method: digest
                    for method, ledger in self._ledgers.items()
                    if (digest := ledger.measured(sample)) is not None
                },
            )
            for sample in self.samples
        ]

    def run(
        self,
        measuring: Callable[[Task, Callable[[], bytes]], Outcome[Kind]],
        stopped: Event,
        workers: int,
    ) -> Iterator[Outcome[Kind]]:
        """Measure what is not yet measured, `workers` images at once; yield them in order.

        Args:
            measuring: measures an image, whose bytes its second argument gives.
            stopped: see `methods.Subject`.
            workers: number of threads.

        Raises:
            ReciproError: a record can't be written.
        """
        stopped.clear()

        def outcome(task: Task) -> Outcome[Kind]:
            return measuring(task, lambda: read_bytes(Path(task.sample.path)))

        yield from self.collect(in_order(outcome, self.tasks(), workers, stopped.set))

    def collect(self, outcomes: Iterator[Outcome[Kind]]) -> Iterator[Outcome[Kind]]:
        """Keep each outcome, wherever it was measured, and pass it on.

        Raises:
            ReciproError: a record can't be written.
        """
        try:
            for outcome in outcomes:
                for method, record in outcome.records.items():
                    self._ledgers[method].add(record)
                self.refused.update(outcome.refused)
                if outcome.error is not None:
                    self.failed[outcome.image] = outcome.error
                yield outcome
        finally:
            for ledger in self._ledgers.values():
                ledger.close()

    def records(self, method: str) -> list[Kind]:
        """Return a method's records of these samples, in order, without images that failed."""
        found = self._ledgers[method].records
        return [
            found[sample.name]
            for sample in self.samples
            if sample.name in found and sample.name not in self.failed
        ]


def settings_line(settings: Mapping[str, Any]) -> bytes:
    """Return settings as a line of JSON, the same for 0 and 0.0, 1 and 1.0, ...

    A model that was just split and its bundle, read again, differ in that.
    """
    return as_json(_plain(msgspec.to_builtins(settings)), order="deterministic")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Ledger(Generic[Kind]):
    """A file of one method's records: a line of settings, then a line for each image."""

    def __init__(
        self, folder: Path, method: str, settings: dict[str, Any], kind: type[Kind]
    ) -> None:
        head = settings_line(settings)
        key = hashlib.sha256(head).hexdigest()[:12]
        self.path = folder / f"{method}-{settings['profile']}-{key}.jsonl"
        self.records: dict[str, Kind] = {}
        self._head = head
        self._kind = kind
        self._file: BinaryIO | None = None
        self._complete = 0  # bytes of the file up to the end of its last complete line
        if self.path.is_file():
            self._read()

    def measured(self, sample: Sample) -> str | None:
        """Return the SHA-256 of the file that was measured under this name and label, if any."""
        record = self.records.get(sample.name)
        same = record is not None and record.label == sample.label
        return record.sha256 if record is not None and same else None

    def add(self, record: Kind) -> None:
        """Keep a record and write it to disk at once."""
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(as_json(record) + b"\n")
            self._file.flush()
        except OSError as error:
            raise ReciproError(
                f"{self.path} can't be written: {error.strerror or error}."
            ) from error
        self.records[record.image] = record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file: BinaryIO = self.path.open("r+b" if self._complete else "wb")
        if self._complete:
            file.truncate(self._complete)  # what a killed run wrote of its last line
            file.seek(self._complete)
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
            records = [msgspec.json.decode(line, type=self._kind) for line in lines[1:]]
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise OptionError(f"{self.path} is damaged: {error}. Delete it.") from error
        self.records = {record.image: record for record in records}
        self._complete = len(data)
