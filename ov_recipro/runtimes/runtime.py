"""What every runtime offers to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import ImageError
from ov_recipro.saliency import Array

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
MaskedRuns: TypeAlias = Callable[[Indices | None], Iterator[tuple[Floats, Floats | None]]]
"""See `Inference.masked`."""


class Plan(Protocol):
    """How a tail is run over all cells."""

    @property
    def name(self) -> str:
        """The plan's name, as users know it."""

    @property
    def cells(self) -> int:
        """Number of cells."""


@dataclass(frozen=True)
class Inference:
    """A model's output for one image and for each cell of its feature map.

    Attributes:
        logits: of the whole image, [classes].
        softmax_terms: their `saliency.softmax_terms` [1,3], where the graph computes them.
        finite: whether the feature map holds finite numbers only.
        masked: yields, until all cells are done, the logits [b,classes] of the next b cells alone
            and, where the graph computes them, their `saliency.softmax_terms`; each is valid until
            the next is asked for. It takes the numbers of the classes that are wanted, int64 [n],
            or None for all; with them it yields [b,n], and no terms. It is called once.
    """

    logits: Floats
    softmax_terms: Floats | None
    finite: bool
    masked: MaskedRuns

    def check_finite(self) -> None:
        """Raise ImageError where the model gives NaN or infinite numbers."""
        if not (self.finite and np.isfinite(self.logits).all()):
            raise ImageError("The model gives NaN or infinite numbers for this image.")


class Runtime(Protocol):
    """A bundle's head and tail, ready to run on one device."""

    @property
    def plan(self) -> Plan:
        """How the tail is run."""

    @property
    def reason(self) -> str | None:
        """Why the plan is `stream`; None where it is another."""

    @property
    def parallel(self) -> int:
        """Images that can be inferred at once, each by a thread of the caller."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that run it."""

    def infer(self, image: Array) -> AbstractContextManager[Inference]:
        """Run one image, the model's input at batch 1; the result is valid inside the context."""


@dataclass(frozen=True)
class Device:
    """A device as users name it, and its full name, or why it can't be used here."""

    device: str
    available: bool
    name: str


def selected(
    runs: Iterator[tuple[Floats, Floats | None]],
) -> MaskedRuns:
    """Return `Inference.masked` of a plan that computes the logits of all classes."""

    def masked(columns: Indices | None) -> Iterator[tuple[Floats, Floats | None]]:
        if columns is None:
            return runs
        return ((logits[:, columns], None) for logits, _ in runs)

    return masked
