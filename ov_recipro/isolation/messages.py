"""What a process says to the one in which it runs a model, and what that one answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ov_recipro.black_boxes.attribution import Method
from ov_recipro.cut.bundle import Manifest
from ov_recipro.options import Cut, Running
from ov_recipro.plans.stream import Mask

MEMORY = "memory"
"""Stands for an error's class where the model needs more memory than it may take."""

MASKED = "masked "
"""What the names of masked runs begin with where they come with the image's own numbers."""


@dataclass(frozen=True)
class How:
    """How a model is opened and run; for all of it see `ov_recipro.Explainer`."""

    cut: Cut
    running: Running
    mask: Mask | None
    method: Method
    signed: bool


@dataclass(frozen=True)
class Wanted:
    """What is to be opened; see `opened.open_model`.

    Attributes:
        path: a model file or a bundle's folder.
        manifest: of a bundle that is already open; None for a file or a folder.
        whole: see `cut.bundle.Bundle`.
        how: how it is opened and run.
    """

    path: str
    manifest: Manifest | None
    whole: bool
    how: How


@dataclass(frozen=True)
class Opening:
    """What was opened, or why not.

    Attributes:
        folder, manifest, whole: of the bundle; mask: what is kept of the feature map.
        plan, cells: name and cells of the plan; reason: see `runtime.Runtime`, and so are
            `parallel` and `versions`.
        details: see `opened.Model`.
        earlier_grid: of a pair's earlier feature map.
        error: an error's class and text; None where there is none.
    """

    folder: str = ""
    manifest: Manifest | None = None
    whole: bool = False
    mask: Mask = "cell"
    plan: str = ""
    cells: int = 0
    reason: str | None = None
    parallel: int = 1
    versions: dict[str, str] | None = None
    details: dict[str, str] | None = None
    earlier_grid: tuple[int, int] | None = None
    error: tuple[str, str] | None = None


@dataclass(frozen=True)
class Placed:
    """Where an array lies in shared memory."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Ask:
    """What the parent wants.

    Attributes:
        number: of this question; what: what is wanted.
        arrays: by name.
    """

    number: int
    what: str
    arrays: dict[str, Placed] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the child says.

    Attributes:
        number: of the question.
        arrays: by name.
        finite: see `runtime.Inference`; more: whether further masked runs can be asked for.
        error: an error's class and text; None where there is none.
    """

    number: int
    arrays: dict[str, Placed] = field(default_factory=dict)
    finite: bool = True
    more: bool = False
    error: tuple[str, str] | None = None
