"""Bundles: split models on disk, each a head, a tail and a manifest that describes them."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.graph import Task
from ov_recipro.errors import ModelError, OptionError, ReciproError
from ov_recipro.images.preprocess import Preprocessing, Window
from ov_recipro.output import as_record, discard
from ov_recipro.saliency import Activation

SCHEMA_VERSION = 5
SUFFIX = ".recipro"
MANIFEST = "recipro.json"


@dataclass(frozen=True)
class ModelFile:
    """A head or tail on disk.

    Attributes:
        file: its name inside the bundle.
        inputs: names of its inputs; outputs: names of its outputs. The feature map comes first,
            bypass tensors follow.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Companion:
    """A weights file beside a model.

    Attributes:
        name: its path, relative to the model's folder.
        size: in bytes; modified: time of change, in nanoseconds.
        sha256: of its bytes, in hexadecimal; None in bundles from before it was recorded.
    """

    name: str
    size: int
    modified: int
    sha256: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """The model that was split: file name, SHA-256, and the weights files beside it."""

    name: str
    sha256: str
    companions: tuple[Companion, ...]


@dataclass(frozen=True)
class ImageInput:
    """The image input: its name, shape at batch 1, numpy type name and layout."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    channels_last: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        _, a, b, c = self.shape
        return (a, b) if self.channels_last else (b, c)

    @property
    def window(self) -> Window:
        """All of it, as the part of an image that a model sees."""
        height, width = self.size
        return 0, 0, width, height


@dataclass(frozen=True)
class Cost:
    """Estimated cost of an explanation, in plain inferences, its own inference included.

    Multiply-accumulates are counted; what memory and small operations add is not.

    Attributes:
        plan: "rows" where that is clearly cheaper than the whole tail for each cell, "tokens" where
            the tail treats all tokens alike, or "stream".
        inferences: cost of that plan.
        stream: cost of the plan "stream".
        reason: why `plan` is "stream"; None where it is another.
    """

    plan: str
    inferences: float
    stream: float
    reason: str | None


@dataclass(frozen=True)
class Manifest:
    """What `recipro.json` holds.

    Attributes:
        schema_version: version of this file's format.
        source: the model that was split.
        layer: the layer that the user asked for.
        named: the tensor that `layer` names; the cut is there or at the end of its block.
        cut: where the model is cut.
        image: the image input.
        head, tail: their files, inputs and outputs.
        boundary_shapes: shapes at batch 1 of the feature map and the bypass tensors.
        output: the model output that is explained.
        deployed_scores: whether the head's last output is the deployed model's logits, because the
            tail computes in float32 what that model computes in 8 or 16 bits.
        activation: the activation which closes the model there; the tail ends before it.
        classes: number of classes; of an embedding, of its numbers.
        any_batch: whether the tail takes more than one feature map at once.
        parity: max |tail(head(x)) - model(x)| over the inputs of the proof, before `activation`; of
            the model's float32 form where that differs from the deployed one.
        deviation: max |tail(head(x)) - deployed logits| there; None unless `deployed_scores`.
        cost: what an explanation is estimated to cost; None where that is not known.
        preprocessing: how images become inputs.
        labels: class names in order, or None.
        versions: of this tool and the libraries that it split with.
        task: what the model is for; why: how that is known, in words.
        scores_shape: shape at batch 1 of what targets are scored by: class scores [1,K], an
            embedding's vector [1,D], class scores of pixels [1,K,h,w] or of positions [1,T,K].
        class_axis: its axis of classes.
        boxes: of a detector, how its candidate boxes are laid out.
        origin: the reference to the source on a hub, with its commit; None for other files.
    """

    schema_version: int
    source: SourceFile
    layer: str
    named: str
    cut: CutPoint
    image: ImageInput
    head: ModelFile
    tail: ModelFile
    boundary_shapes: tuple[tuple[int, ...], ...]
    output: str
    deployed_scores: bool
    activation: Activation
    classes: int
    any_batch: bool
    parity: float
    deviation: float | None
    cost: Cost | None
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    versions: dict[str, str]
    task: Task
    why: str
    scores_shape: tuple[int, ...]
    class_axis: int
    boxes: BoxLayout | None = None
    origin: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """What maps depend on: the model, where it is cut, and which output is explained."""
        origin = {} if self.origin is None else {"source": self.origin}
        return {
            "model": self.source.name,
            **origin,
            "sha256": self.source.sha256,
            "companions": [
                {"name": each.name, "sha256": each.sha256} for each in self.source.companions
            ],
            "layer": self.cut.name,
            "feature_shape": self.cut.shape,
            "output": self.output,
        }

    @property
    def values(self) -> int:
        """How many numbers the tail gives for one feature map."""
        return math.prod(self.scores_shape)


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and its manifest.

    Attributes:
        folder: where its files are.
        manifest: what they are.
        whole: it is a model that can't be split; head and tail are the file itself.
    """

    folder: Path
    manifest: Manifest
    whole: bool = False

    @property
    def head(self) -> Path:
        """The head's file."""
        return self.folder / self.manifest.head.file

    @property
    def tail(self) -> Path:
        """The tail's file."""
        return self.folder / self.manifest.tail.file


def open_bundle(folder: str | Path) -> Bundle:
    """Read a bundle.

    Raises:
        ModelError: it is incomplete, malformed or of another schema version.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=dict).get("schema_version")
        if version != SCHEMA_VERSION:
            raise ModelError(
                f"{folder} has schema version {version}; this version of ov-recipro reads "
                f"{SCHEMA_VERSION}. Split the model again."
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except OSError as error:
        raise ModelError(
            f"{folder} is not a bundle: {MANIFEST}: {error.strerror or error}."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is malformed: {error}.") from error
    boxes = manifest.boxes
    if (boxes is None) == (manifest.task == "detector") or (
        boxes is not None and not boxes.fits(manifest.values, manifest.classes)
    ):
        raise ModelError(f"{path} is malformed: its boxes do not fit its outputs.")
    for part in (manifest.head, manifest.tail):
        if Path(part.file).name != part.file or not (folder / part.file).is_file():
            raise ModelError(f"{folder} is not a complete bundle: '{part.file}' is missing.")
    return Bundle(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `recipro.json`, the last file of a bundle."""
    (folder / MANIFEST).write_bytes(as_record(manifest))


@contextmanager
def new_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `target` to fill, and rename it to `target` at the end.

    Nothing is left when the body raises.

    Raises:
        OptionError: `target` exists and is not a bundle, or is one and `force` is not set.
        ReciproError: nothing can be written there.
    """
    _check_replaceable(target, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ReciproError(f"{target} can't be written: {error.strerror or error}.") from error
    try:
        yield work
        work.chmod(0o755)
        _check_replaceable(target, force)
        if target.exists():
            discard(target)
        work.rename(target)
    except OSError as error:
        raise ReciproError(f"{target} can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_replaceable(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not (target / MANIFEST).is_file():
        raise OptionError(f"{target} exists and is not a bundle; it is left alone.")
    if not force:
        raise OptionError(f"{target} exists; --force replaces it.")
