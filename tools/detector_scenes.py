"""Synthetic scenes for training and judging small detectors, whose evidence is known.

A scene is an image of 160x160 pixels: a textured background, one to three objects, and distractors.
What tells the classes apart lies in different places:

- ``ring`` and ``wedge``: the whole body.
- ``light-dot plate`` and ``dark-dot plate``: equal plates; the dot somewhere on them decides.
- ``orange-cue pod`` and ``blue-cue pod``: equal pods; the dot outside them, 0.4 to 1 box sides from
  their border, decides. Any other cue is at least 1.8 box sides away.

The distractors are crosses and bars, plates without a dot, pods without a cue near them, dots
without a plate and cues without a pod. So no body of a plate or a pod is an object by itself.

NumPy is all that this module needs. Equal arguments give equal scenes::

    scene = make_scenes(100, seed=HELD_OUT_SEED)[0]
    scene.image, scene.objects[0].box
    scene.without(scene.objects[0].part)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 160
HELD_OUT_SEED = 8765  # training draws from other seeds: (a small number, step)
CLASSES = (
    "ring",
    "wedge",
    "light-dot plate",
    "dark-dot plate",
    "orange-cue pod",
    "blue-cue pod",
)
PLATES, PODS = (2, 3), (4, 5)
DOT_COLOURS = {
    2: (245, 245, 245),
    3: (12, 12, 12),
    4: (10, 130, 250),
    5: (235, 80, 20),
}  # BGR, of the dots and cues
NEAR, FAR = (0.4, 1.0), 1.8  # between a cue and the border of a pod, in sides of the pod
SIDES = {"ring": (20, 70), "wedge": (20, 70), "plate": (26, 70), "pod": (20, 44)}  # pixels
_TRIES = 30

Box = tuple[int, int, int, int]
Pixels = NDArray[np.uint8]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SceneObject:
    """An object and its evidence; boxes are (x0, y0, x1, y1) in pixels, x1 and y1 outside.

    Attributes:
        class_index: into `CLASSES`.
        box: of the body.
        part: of the dot that decides a plate's class; None for other classes.
        context: of the cue that decides a pod's class; None for other classes.
    """

    class_index: int
    box: Box
    part: Box | None = None
    context: Box | None = None


@dataclass(frozen=True)
class Scene:
    """An image with its truth.

    Attributes:
        image: uint8 [160,160,3], BGR.
        bare: the same image before dots and cues were painted.
        objects: without the distractors.
        dots: all dots and cues, those of distractors too: the class that each stands for, its box.
    """

    image: Pixels
    bare: Pixels
    objects: tuple[SceneObject, ...]
    dots: tuple[tuple[int, Box], ...]

    def without(self, box: Box) -> Pixels:
        """Return the image [160,160,3] without the dot or cue in the box."""
        x0, y0, x1, y1 = box
        image = self.image.copy()
        image[y0:y1, x0:x1] = self.bare[y0:y1, x0:x1]
        return image

    def repainted(self, box: Box, class_index: int) -> Pixels:
        """Return the image [160,160,3] with the dot or cue in the box that of another class."""
        x0, y0, x1, y1 = box
        painted = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
        painted[y0:y1, x0:x1] = (self.image != self.bare)[y0:y1, x0:x1].any(2)
        image = self.image.copy()
        image[painted] = DOT_COLOURS[class_index]
        return image


def make_scenes(
    count: int,
    seed: int | Sequence[int],
    objects: int | None = None,
    distractors: bool = True,
    classes: Sequence[int] = tuple(range(len(CLASSES))),
) -> list[Scene]:
    """Make scenes.

    Args:
        count: how many.
        seed: what NumPy's `default_rng` takes; equal seeds give equal scenes.
        objects: how many in each; by default one to three, at even odds.
        distractors: whether there are any.
        classes: that objects may be of, at even odds.

    Returns:
        The scenes. No two things in an image overlap, except a dot and its plate.
    """
    generator = np.random.default_rng(seed)
    return [
        _make_scene(
            generator,
            generator.choice(classes, objects or int(generator.integers(1, 4))).tolist(),
            distractors,
        )
        for _ in range(count)
    ]


def _make_scene(generator: np.random.Generator, classes: Sequence[int], distractors: bool) -> Scene:
    while (placed := _place_objects(generator, classes)) is None:
        pass
    canvas = _Canvas(generator)
    for each in placed:
        canvas.add_body(CLASSES[each.class_index].rpartition(" ")[2], each.box)
        if each.part:
            canvas.add_dot(each.class_index, each.part)
        if each.context:
            canvas.add_dot(each.class_index, each.context)
    if distractors:
        _add_distractors(generator, canvas, placed)
    return Scene(*canvas.render(), tuple(placed), tuple(canvas.dots))


def _place_objects(
    generator: np.random.Generator, classes: Sequence[int]
) -> list[SceneObject] | None:
    """Choose sizes and places; return None where they do not fit."""
    placed: list[SceneObject] = []
    for class_index in classes:
        taken = _taken(placed)
        kind = CLASSES[class_index].rpartition(" ")[2]
        box = _free_box(generator, *_size(generator, kind), taken)
        if box is None or not _apart(box, placed):
            return None
        if class_index in PLATES:
            placed.append(SceneObject(class_index, box, part=_dot_on(generator, box)))
        elif class_index in PODS:
            cue = _near_cue(generator, box, taken, placed)
            if cue is None:
                return None
            placed.append(SceneObject(class_index, box, context=cue))
        else:
            placed.append(SceneObject(class_index, box))
        if class_index in PODS and not _apart_from_cues(box, placed[:-1]):
            return None
    return placed


def _taken(placed: Sequence[SceneObject]) -> list[Box]:
    return [box for each in placed for box in (each.box, each.context) if box]


def _apart(box: Box, placed: Sequence[SceneObject]) -> bool:
    """Tell whether a thing leaves the way between each pod and its cue free."""
    return all(
        _gap(box, _hull(each.box, each.context)) > 0 for each in placed if each.context is not None
    )


def _apart_from_cues(pod: Box, placed: Sequence[SceneObject]) -> bool:
    """Tell whether the cues of others are far from the pod."""
    return all(_gap(pod, each.context) >= FAR * _side(pod) for each in placed if each.context)


def _far_from_pods(cue: Box, pods: Sequence[Box]) -> bool:
    return all(_gap(cue, pod) >= FAR * _side(pod) for pod in pods)


def _near_cue(
    generator: np.random.Generator, pod: Box, taken: Sequence[Box], placed: Sequence[SceneObject]
) -> Box | None:
    """Place the cue of a pod: near it, and far from other pods."""
    side, size = _side(pod), int(generator.integers(8, 12))
    others = [each.box for each in placed if each.context]
    reach = round(NEAR[1] * side) + size
    for _ in range(_TRIES):
        x = int(generator.integers(pod[0] - reach, pod[2] + reach - size + 1))
        y = int(generator.integers(pod[1] - reach, pod[3] + reach - size + 1))
        cue = (x, y, x + size, y + size)
        if (
            min(x, y) >= 0
            and max(cue) <= IMAGE_SIZE
            and NEAR[0] * side <= _gap(cue, pod) <= NEAR[1] * side
            and all(_gap(_hull(cue, pod), box) > 0 for box in taken)
            and _far_from_pods(cue, others)
        ):
            return cue
    return None


def _add_distractors(
    generator: np.random.Generator, canvas: _Canvas, placed: Sequence[SceneObject]
) -> None:
    taken = _taken(placed)
    pods = [each.box for each in placed if each.context]
    cues = [each.context for each in placed if each.context]
    kinds = ("cross", "bar", "plate", "pod", "dot", "cue")
    for kind in generator.choice(kinds, generator.integers(1, 5)).tolist():
        if kind in ("dot", "cue"):
            size = int(generator.integers(8, 12))
            box = _free_box(generator, size, size, taken)
        else:
            box = _free_box(generator, *_size(generator, kind), taken)
        if box is None or not _apart(box, placed):
            continue
        if kind == "cue":
            if not _far_from_pods(box, pods):
                continue
            cues.append(box)
            canvas.add_dot(PODS[generator.integers(2)], box)
        elif kind == "dot":
            canvas.add_dot(PLATES[generator.integers(2)], box)
        else:
            if kind == "pod":
                if any(_gap(box, cue) < FAR * _side(box) for cue in cues):
                    continue
                pods.append(box)
            canvas.add_body(kind, box)
        taken.append(box)


def _size(generator: np.random.Generator, kind: str) -> tuple[int, int]:
    """Choose a width and a height, at most a quarter apart."""
    least, most = SIDES.get(kind, (16, 40))
    side = least * (most / least) ** generator.random()
    shorter = max(least, round(side * generator.uniform(0.8, 1)))
    sides = (round(side), shorter) if generator.random() < 0.5 else (shorter, round(side))
    return sides


def _free_box(
    generator: np.random.Generator, width: int, height: int, taken: Sequence[Box]
) -> Box | None:
    """Try places; return None where each overlaps a box or touches it."""
    for _ in range(_TRIES):
        x = int(generator.integers(0, IMAGE_SIZE - width + 1))
        y = int(generator.integers(0, IMAGE_SIZE - height + 1))
        box = (x, y, x + width, y + height)
        if all(_gap(box, other) >= 4 for other in taken):
            return box
    return None


def _dot_on(generator: np.random.Generator, plate: Box) -> Box:
    """Choose the place of a plate's dot, inside the frame."""
    side = min(plate[2] - plate[0], plate[3] - plate[1])
    size, margin = max(6, round(0.24 * side)), _frame(side) + 1
    x = int(generator.integers(plate[0] + margin, plate[2] - margin - size + 1))
    y = int(generator.integers(plate[1] + margin, plate[3] - margin - size + 1))
    return x, y, x + size, y + size


def _frame(side: int) -> int:
    return max(2, round(0.08 * side))


def _side(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _gap(one: Box, other: Box) -> float:
    """Return the distance in pixels between two boxes; 0 where they touch or overlap."""
    x = max(0, one[0] - other[2], other[0] - one[2])
    y = max(0, one[1] - other[3], other[1] - one[3])
    return float(np.hypot(x, y))


def _hull(one: Box, other: Box) -> Box:
    return (
        min(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        max(one[3], other[3]),
    )


class _Canvas:
    """What is painted, in order; dots come last."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        dark = generator.random() < 0.5
        level = generator.uniform(35, 75) if dark else generator.uniform(180, 220)
        tint = generator.normal(0, 8, 3)
        self._pixels = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), level + tint, np.float32)
        for block, deviation in ((32, 7), (8, 6)):
            cells = IMAGE_SIZE // block
            noise = generator.normal(0, deviation, (cells, cells, 3)).astype(np.float32)
            self._pixels += noise.repeat(block, axis=0).repeat(block, axis=1)
        self.dots: list[tuple[int, Box]] = []

    def add_body(self, kind: str, box: Box) -> None:
        """Paint a body in a colour of its own, between black and white, unlike the background."""
        x0, y0, x1, y1 = box
        height, width = y1 - y0, x1 - x0
        y = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None]
        x = ((np.arange(width) + 0.5) / width * 2 - 1)[None]
        colour = self._generator.uniform(105, 150) + self._generator.normal(0, 8, 3)
        region = self._pixels[y0:y1, x0:x1]
        region[_outline(kind, y, x, self._generator)] = colour
        if kind == "plate":
            frame = _frame(min(height, width))
            inner = region[frame:-frame, frame:-frame].copy()
            region[:] = colour - 45
            region[frame:-frame, frame:-frame] = inner
        if kind == "pod":
            region[_outline(kind, y, x, self._generator) & (abs(y) < 0.22)] = colour - 45

    def add_dot(self, class_index: int, box: Box) -> None:
        """Paint a disc, in the colour that stands for the class, that fills the box."""
        self.dots.append((class_index, box))

    def render(self) -> tuple[Pixels, Pixels]:
        """Return the image and the image without dots, uint8 [160,160,3]."""
        noise = 5 * self._generator.standard_normal(self._pixels.shape, np.float32)
        bare = self._pixels + noise
        image = bare.copy()
        for class_index, (x0, y0, x1, y1) in self.dots:
            line = (np.arange(x1 - x0) + 0.5) / (x1 - x0) * 2 - 1
            disc = line[:, None] ** 2 + line[None] ** 2 <= 1
            shade = np.array(DOT_COLOURS[class_index]) + self._generator.normal(0, 6, 3)
            image[y0:y1, x0:x1][disc] = shade + noise[y0:y1, x0:x1][disc]
        return _to_pixels(image), _to_pixels(bare)


def _to_pixels(values: NDArray[np.float32]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


def _outline(
    kind: str, y: NDArray[np.float64], x: NDArray[np.float64], generator: np.random.Generator
) -> _Mask:
    """Return a mask [height,width] of a body that touches all sides of its box."""
    if kind == "ring":
        radius = y**2 + x**2
        return np.asarray((radius <= 1) & (radius >= 0.25))
    if kind == "wedge":
        along, across = (y, x) if generator.random() < 0.5 else (x, y)
        if generator.random() < 0.5:
            along = -along
        return np.asarray(abs(across) <= (along + 1) / 2 + 1.5 / max(y.size, x.size))
    if kind == "pod":
        return np.asarray(abs(x) + abs(y) / 2 <= 1)
    if kind == "cross":
        return np.asarray((abs(x) < 0.3) | (abs(y) < 0.3))
    if kind == "bar":
        return np.asarray((abs(x) < 0.35) & (abs(y) <= 1))
    return np.ones((y.size, x.size), bool)  # a plate
