"""A run over images and videos: explain each, write its files, and keep the record of all."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ov_recipro import output
from ov_recipro.errors import OF_ONE_IMAGE, ImageError, OptionError, ReciproError, TargetError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation, Target
from ov_recipro.faithfulness.sharpness import sharpness
from ov_recipro.faithfulness.verification import Verification, verify
from ov_recipro.images import video
from ov_recipro.images.drawing import DEFAULT, Style
from ov_recipro.images.preprocess import Image
from ov_recipro.images.reading import ImageFile, decode_file, find_images, read_file
from ov_recipro.methods import Subject
from ov_recipro.options import Targets
from ov_recipro.ordered import in_order
from ov_recipro.report import Card, card, page
from ov_recipro.targets.boxes import is_missed
from ov_recipro.targets.similarity import Reference, Source, make_reference

STDIN = "-"


@dataclass(frozen=True)
class Input:
    """An image or a video to explain; the name "-" is an image on standard input."""

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        """Whether the file's suffix is a video's."""
        return self.path.suffix.lower() in video.SUFFIXES

    def read(self) -> ImageFile:
        """Read the image."""
        if self.name == STDIN:
            return decode_file(sys.stdin.buffer.read(), "stdin")
        return read_file(self.path)


def find_inputs(names: Sequence[str]) -> list[Input]:
    """Return the images and videos behind files, directories, globs and "-", each once."""
    found: dict[Input, None] = {}
    for name in names:
        if name == STDIN:
            found[Input(STDIN, Path("stdin"))] = None
        else:
            found.update(dict.fromkeys(Input(str(path), path) for path in find_images([name])))
    return list(found)


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        source: the input.
        error: why it could not be explained; None where it was.
        explanation: of the input, if it is an image.
        verifications: of its targets, if asked for.
        frames: number of frames of a video.
        drawn: the overlay, or the video of overlays.
    """

    source: Input
    error: str | None = None
    explanation: Explanation | None = None
    verifications: Sequence[Verification] = ()
    frames: int = 0
    drawn: Path | None = None


@dataclass
class Batch:
    """A run; its record can be written at any time, of what is finished so far.

    Where images are compared with a single one, that is explained too, the other way round: what
    in it is similar to the image.

    Args:
        explainer: what to explain with.
        inputs: what to explain.
        folder: where the files go.
        targets: see `Explainer.__call__`; the same for all inputs.
        save_maps: also write the maps.
        style: how overlays are drawn.
        report: also write a report of the images.
        subject: the explainer's model, if the maps of images are to be verified.
        sharpening: the explainer's model, if overlays of images are drawn as `sharpness` says.

    Raises:
        OptionError: the style is signed, but the explainer is not.
    """

    explainer: Explainer
    inputs: Sequence[Input]
    folder: Path
    targets: Sequence[str] | Targets
    save_maps: bool
    style: Style = DEFAULT
    subject: Subject | None = None
    report: bool = False
    sharpening: Subject | None = None
    _reference_stems: dict[str, str] = field(default_factory=dict)
    _cards: dict[int, Card] = field(default_factory=dict)
    _done: dict[int, dict[str, Any]] = field(default_factory=dict)
    _failed: dict[int, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.style.signed and not (self.explainer.signed or self.explainer.mask == "drop"):
            raise OptionError("Drawing what speaks against needs an explainer with signed=True.")

    def run(self, on_frame: Callable[[], None] = lambda: None) -> Iterator[Outcome]:
        """Explain all inputs, images first, several at once; yield what became of each in order.

        Args:
            on_frame: called after each frame of a video.

        Raises:
            ReciproError: a file can't be written. An input that fails is an outcome.
        """
        stems = output.file_stems([source.path for source in self.inputs])
        self._reference_stems = _further_stems(stems, ".reference")
        jobs = list(enumerate(zip(self.inputs, stems, strict=True)))
        images = [job for job in jobs if not job[1][0].is_video]
        yield from in_order(
            lambda job: self._image(job[0], *job[1]),
            images,
            self.explainer.workers,
            self.explainer.interrupt,
        )
        for number, (source, stem) in jobs:
            if source.is_video:
                yield self._video(number, source, stem, on_frame)

    def write(self) -> bytes:
        """Write the record of what is finished and, if asked for, the report; return the former."""
        record = self._record()
        data = output.as_record(record)
        output.write_whole(self.folder / output.RECORD, data)
        if self.report:
            cards = [self._cards[number] for number in sorted(self._cards)]
            html = page(record, cards, self.style)
            output.write_whole(self.folder / output.REPORT, html)
        return data

    def _record(self) -> dict[str, Any]:
        """Return the settings, what was explained, and what failed."""
        done = [self._done[number] for number in sorted(self._done)]
        manifest = self.explainer.bundle.manifest
        record = {
            "schema_version": output.SCHEMA_VERSION,
            **self.explainer.provenance(),
            "layer_asked": manifest.layer,
            "plan_reason": self.explainer.plan_reason,
            "parity": manifest.parity,
            "images": [entry for entry in done if "video" not in entry],
            "videos": [entry for entry in done if "video" in entry],
            "errors": [self._failed[number] for number in sorted(self._failed)],
        }
        return dict(msgspec.to_builtins(record))

    def _image(self, number: int, source: Input, stem: str) -> Outcome:
        try:
            explanation = self.explainer(source.read(), self.targets)
            missed = any(map(is_missed, explanation.targets))
            verifications = verify(self.subject, explanation) if self.subject and not missed else ()
            reverse = reversed_explanation(self.explainer, explanation, self.targets)
            powers = sharpness(self.sharpening, explanation) if self.sharpening else []
        except OF_ONE_IMAGE as error:
            return self._error(number, source, error)
        maps = explanation.save_maps(self.folder, stem) if self.save_maps else None
        shown = explanation
        if powers:
            shown = replace(
                explanation, maps=explanation.maps ** np.array(powers, np.float32)[:, None, None]
            )
        overlays = shown.save_overlays(self.folder, stem, self.style)
        record = explanation.record(overlays, maps) | {"path": source.name}
        for target, power in zip(record["targets"], powers, strict=False):
            target["sharpness"] = power
        if reverse is not None:
            drawn = reverse.save_overlays(self.folder, self._reference_stems[stem], self.style)
            more = {"reference_overlay": drawn[0], "reverse": reverse.record(drawn)}
            record["targets"][0] |= more
        for target, verification in zip(record["targets"], verifications, strict=False):
            target["verification"] = msgspec.to_builtins(verification)
        if self.report and explanation.image is not None:
            reference = None if reverse is None else reverse.image
            self._cards[number] = card(record, explanation.image, explanation.raw, reference)
        self._done[number] = record
        return Outcome(
            source,
            explanation=explanation,
            verifications=verifications,
            drawn=self.folder / overlays[0],
        )

    def _video(
        self, number: int, source: Input, stem: str, on_frame: Callable[[], None]
    ) -> Outcome:
        path = self.folder / f"{stem}.mp4"
        drawn: list[Target | None] = []

        def overlays(frames: Iterator[Image]) -> Iterator[Image]:
            workers, stop = self.explainer.workers, self.explainer.interrupt
            explained = in_order(self._frame, frames, workers, stop)
            for frame, explanation in explained:
                yield frame if explanation is None else explanation.overlay(style=self.style)
                drawn.append(None if explanation is None else explanation.targets[0])
                on_frame()

        try:
            opened = video.open_video(source.path)
            sha256 = _sha256(source.path)
            video.write_video(path, overlays(video.read_frames(opened)), opened.rate)
        except OF_ONE_IMAGE as error:
            return self._error(number, source, error)
        self._done[number] = {
            "path": source.name,
            "sha256": sha256,
            "video": path.name,
            "frames": len(drawn),
            "rate": opened.rate,
            "targets": msgspec.to_builtins(drawn),  # for each frame the one that is drawn, or none
        }
        return Outcome(source, frames=len(drawn), drawn=path)

    def _frame(self, frame: Image) -> tuple[Image, Explanation | None]:
        """Return a frame with its explanation; None where a detector sees nothing in it."""
        try:
            return frame, self.explainer(frame, self.targets)
        except TargetError:
            if self.explainer.bundle.manifest.task != "detector":
                raise
            return frame, None

    def _error(self, number: int, source: Input, error: ReciproError) -> Outcome:
        self._failed[number] = {"path": source.name, "error": str(error)}
        return Outcome(source, error=str(error))


def reversed_explanation(
    explainer: Explainer, explanation: Explanation, asked: Sequence[str] | Targets
) -> Explanation | None:
    """Explain what makes the reference of a similarity similar to the image.

    Args:
        explainer: that made the explanation.
        explanation: of the image.
        asked: its targets, with references made.

    Returns:
        The reference's explanation; None where it is not one image, or the image's vector has no
        direction to compare with.

    Raises:
        ReciproError: the reference can't be read, or the model gives NaN for it.
    """
    reference = asked.similar_to if isinstance(asked, Targets) else None
    if not isinstance(reference, Reference) or reference.image is None:
        return None
    vector, centre = explanation.vector, reference.centre
    if vector is None:
        raise TypeError("a similarity is explained by vectors")
    name = explanation.path or "pixels"
    source = Source(name, explanation.sha256 or hashlib.sha256(vector.tobytes()).hexdigest())
    middle = [] if centre is None else [(source, centre[None])]
    try:
        made = make_reference([(source, vector[None])], [], middle, len(vector))
    except TargetError:
        return None
    made = replace(made, centre_sources=reference.centre_sources)
    return explainer(Path(reference.image), Targets(similar_to=made))


def _further_stems(stems: Sequence[str], suffix: str) -> dict[str, str]:
    """Return for each stem one of a further file, which no other file has."""
    taken = {stem.casefold() for stem in stems}
    found = {}
    for stem in stems:
        further = stem + suffix
        while further.casefold() in taken:
            further += "_2"
        taken.add(further.casefold())
        found[stem] = further
    return found


def _sha256(path: Path) -> str:
    try:
        return output.file_sha256(path)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error
