"""Measuring maps of a detector's boxes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import OptionError, TargetError
from ov_recipro.images.preprocess import Window
from ov_recipro.methods import Subject
from ov_recipro.metrics import (
    area,
    by_saliency,
    by_saliency_inside,
    defocused,
    energy_inside,
    inside,
    points_inside,
    replaced,
    upsampled,
)
from ov_recipro.options import Targets
from ov_recipro.saliency import Floats
from ov_recipro.targets.boxes import BoxTarget
from ov_recipro.targets.detecting import check_box, detected

STEPS = 16  # of the curves over all pixels
INNER_STEPS = 6  # of the curves over a box's own pixels: 7 shares of them


@dataclass(frozen=True)
class BoxLimits:
    """Which boxes of a photograph are measured.

    Attributes:
        threshold, nms: see `ov_recipro.options.Targets`.
        max_boxes: those of highest score.
        smallest, largest: of the model's input, the share that a box covers, 0..1.

    Raises:
        OptionError: a limit is out of range.
    """

    threshold: float = Targets().threshold
    nms: float = Targets().nms
    max_boxes: int = 2
    smallest: float = 0.01
    largest: float = 0.45

    def __post_init__(self) -> None:
        """Check the limits."""
        check_box(Targets(threshold=self.threshold, nms=self.nms))
        if self.max_boxes < 1:
            raise OptionError(f"--max-boxes must be at least 1, not {self.max_boxes}.")
        if not 0 <= self.smallest < self.largest <= 1:
            raise OptionError(
                "--box-size LOW,HIGH needs 0 <= LOW < HIGH <= 100, not "
                f"{100 * self.smallest:g},{100 * self.largest:g}."
            )


@dataclass(frozen=True)
class BoxMeasurement:
    """One map of one box, measured; all values are fractions.

    Attributes:
        score: of the box, p*.
        deletion, insertion: areas below the curves of score / p*, as pixels turn grey, or from
            blurred to sharp, by decreasing saliency.
        inner_deletion, inner_insertion: likewise, but only the box's own pixels ever turn: a map
            that is bright in the box and knows nothing else gains nothing by that.
        energy, pointing: see `metrics.energy_inside` and `metrics.points_inside`.
        flat: the map says nothing: all its cells are the same.
    """

    score: float
    deletion: float
    insertion: float
    inner_deletion: float
    inner_insertion: float
    energy: float
    pointing: bool
    flat: bool

    @property
    def margin(self) -> float:
        """Insertion minus deletion."""
        return self.insertion - self.deletion

    @property
    def inner_margin(self) -> float:
        """Insertion minus deletion inside the box."""
        return self.inner_insertion - self.inner_deletion


def chosen_boxes(
    subject: Subject, image: Floats, window: Window, limits: BoxLimits
) -> list[BoxTarget]:
    """Return the boxes of a photograph that are measured, best first.

    Args:
        subject: the detector.
        image: [C,H,W] in the units of its input.
        window: the input in pixels of the photograph.
        limits: which boxes.
    """
    explainer = subject.explainer
    asked = Targets(box="all", threshold=limits.threshold, nms=limits.nms)
    found = detected(
        explainer.bundle.manifest, explainer.labels, asked, subject.outputs(image), window
    )
    if not found.boxes:
        return []
    size = (image.shape[1], image.shape[2])
    shares = [(target, inside(size, target.edges).mean()) for target in found.targets(asked)]
    fitting = [
        target
        for target, share in shares
        if share > 0 and limits.smallest <= share <= limits.largest
    ]
    return fitting[: limits.max_boxes]


class BoxCurves:
    """How a box's score falls and rises; what its maps have in common is run once.

    A whole measurement takes 40 inferences, that of the box's own pixels alone 10 of these; all
    maps of a box share 5 more.

    Args:
        subject: the detector.
        image: [C,H,W] in the units of its input.
        target: the box.

    Raises:
        TargetError: the box covers no pixel's centre, or has no score to lose.
    """

    def __init__(self, subject: Subject, image: Floats, target: BoxTarget) -> None:
        self._subject, self._image, self._target = subject, image, target
        self._size = (image.shape[1], image.shape[2])
        self._grey = np.broadcast_to(subject.fill[:, None, None], image.shape)
        self._in_box = inside(self._size, target.edges)
        if not self._in_box.any():
            raise TargetError("The box covers no pixel of the model's input: it can't be measured.")
        self.score = subject.score(image, target)
        if self.score <= 0:
            raise TargetError("The box scores 0: its map can't be measured.")

    @cached_property
    def _blurred(self) -> Floats:
        return defocused(self._image)

    @cached_property
    def _blurred_inside(self) -> Floats:
        return np.where(self._in_box, self._blurred, self._image)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The scores with all pixels grey, and with all of them blurred."""
        return self._share(self._grey), self._share(self._blurred)

    @cached_property
    def _inner_ends(self) -> tuple[float, float]:
        """The scores with the box's own pixels grey, and with these blurred."""
        grey = np.where(self._in_box, self._grey, self._image)
        return self._share(grey), self._share(self._blurred_inside)

    def measure(self, saliency: Floats) -> BoxMeasurement:
        """Measure a map [h,w] of any range and size, enlarged bilinearly to that of the input."""
        large = upsampled(saliency, self._size, "bilinear")
        order = by_saliency(large)
        grey, blurred = self._ends
        deletion = self._area(self._image, self._grey, order, STEPS, 1, grey)
        insertion = self._area(self._blurred, self._image, order, STEPS, blurred, 1)
        inner_deletion, inner_insertion = self.inner(large)
        return BoxMeasurement(
            score=self.score,
            deletion=deletion,
            insertion=insertion,
            inner_deletion=inner_deletion,
            inner_insertion=inner_insertion,
            energy=energy_inside(large, [self._target.edges]),
            pointing=points_inside(large, [self._target.edges]),
            flat=bool(np.min(saliency) == np.max(saliency)),
        )

    def inner(self, saliency: Floats) -> tuple[float, float]:
        """Return the deletion and insertion of a map [h,w] inside the box."""
        large = upsampled(saliency, self._size, "bilinear")
        order = by_saliency_inside(large, self._target.edges)
        grey, blurred = self._inner_ends
        return (
            self._area(self._image, self._grey, order, INNER_STEPS, 1, grey),
            self._area(self._blurred_inside, self._image, order, INNER_STEPS, blurred, 1),
        )

    def _area(
        self,
        start: Floats,
        end: Floats,
        order: npt.NDArray[np.intp],
        steps: int,
        first: float,
        last: float,
    ) -> float:
        """Return the area below a curve whose ends are known."""
        step = max(1, -(-len(order) // steps))
        count = -(-len(order) // step)
        between = islice(replaced(start, end, order, step), 1, count)
        shares = [first, *self._shares(between), last]
        return area(shares, count)

    def _share(self, image: Floats) -> float:
        return self._shares([image])[0]

    def _shares(self, images: Iterable[Floats]) -> list[float]:
        """Return scores as shares of p*, 1 at most: what lies above says nothing of the box."""
        found = self._subject.curve(images, self._target)
        return [min(1.0, each / self.score) for each in found]
