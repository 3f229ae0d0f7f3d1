"""What every model format offers to the rest of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import openvino as ov

from ov_recipro.cut.bundle import ModelFile
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.graph import Graph


@dataclass(frozen=True)
class SplitFiles:
    """The head and tail of one cut.

    Attributes:
        head: the deployed model up to the feature map.
        tail: from there to the logits.
        reference: for the proof alone, the whole model of which the tail is a part, as one or more
            models to run in a row, where the file itself can't serve: it is in 8 or 16 bits, has
            further inputs, or is too large to be run at once. Between them they give the tensors
            at the cut, the logits and the output. Empty where the file serves.
        low_precision: the tail computes in float32 what the deployed model does in 8 or 16 bits.
            The head then gives the deployed logits as its last output.
    """

    head: ModelFile
    tail: ModelFile
    reference: tuple[ModelFile, ...]
    low_precision: bool


class Source(Protocol):
    """A classifier in a file, ready to be cut."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def graph(self) -> Graph:
        """Its neutral description, at batch 1."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the image input at batch 1."""

    @property
    def image_dtype(self) -> str:
        """Numpy name of the image input's type."""

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says about itself, as flat "section key" entries."""

    @property
    def companions(self) -> tuple[Path, ...]:
        """Files beside it that hold its weights."""

    def outline(self) -> tuple[ov.Model, dict[str, ov.Output]]:
        """Return the model at batch 1 and in float32, and its tensors by the graph's names.

        For counting operations, not for running: large weights may be inputs instead.
        """

    def write_split(self, point: CutPoint, folder: Path) -> SplitFiles:
        """Write the head and the tail of a cut into `folder`.

        The head is the model as deployed, from the image to the feature map and its bypass. The
        tail leads from these to the logits in float32, and takes any batch of feature maps where
        the graph allows it.
        """
