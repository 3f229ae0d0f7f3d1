"""Synthetic scenes whose objects' places are known, for training and judging small classifiers.

A scene is an image of 80x80 pixels: coloured noise, one or two objects of different classes, and
distractors. There are two tasks, and what tells their classes apart is of different size:

- ``textures``: a square of 16-28 pixels, filled with one of six textures. Their periods are
  2-6 pixels, so that any patch of 8x8 pixels inside the object shows its class.
- ``shapes``: four tiles at the corners of a square of 28-36 pixels, each with horizontal or with
  vertical stripes. Which of them are alike is the class: those beside each other (rows), those
  above each other (columns), those across (checks), or all (uniform). The stripes of any one tile
  are a coin's toss in every class, and tiles are 8 pixels apart, so that a patch of 8x8 pixels
  never shows two: a single patch tells nothing about the class.

The distractors are plain blocks, bars and crosses.

NumPy is all that this module needs. Equal arguments give equal scenes::

    scenes = make_scenes("shapes", 100, seed=HELD_OUT_SEED, objects=2)
    scenes.images[0], scenes.boxes[0]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 80
HELD_OUT_SEED = 4321  # training draws from other seeds: (a small number, step)


@dataclass(frozen=True)
class Box:
    """Where an object is: a square of pixels, and the index of its class."""

    class_index: int
    top: int
    left: int
    size: int

    def contains(self, y: float, x: float, margin: float = 0) -> bool:
        """Tell whether the point (pixels from the top left corner) is at most `margin` outside."""
        inside_y = self.top - margin <= y <= self.top + self.size + margin
        return inside_y and self.left - margin <= x <= self.left + self.size + margin


@dataclass(frozen=True)
class Scenes:
    """Images with their truth.

    images: float32 [n,3,80,80], roughly in -3..3, as a network takes them.
    labels: float32 [n,K], each row uniform over the classes present.
    boxes: the objects of each image; distractors have none.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: list[list[Box]]


@dataclass(frozen=True)
class Task:
    """What the scenes of a task are made of.

    classes: names, in the order of the class indices.
    sizes: sides of the objects, in pixels.
    draw: gives the pixels [size,size] in 0..1 of a class's object, with what is random about it.
    distractors: kinds, sides in pixels, and least and greatest number in a scene.
    draw_distractor: gives the pixels [side,side] in 0..1 of a kind.
    """

    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    draw: Callable[[str, int, np.random.Generator], np.ndarray]
    distractors: tuple[str, ...]
    distractor_sizes: tuple[int, ...]
    distractor_count: tuple[int, int]
    draw_distractor: Callable[[str, int], np.ndarray]


def _texture(name: str, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    pattern = {
        "horizontal": y % 4 < 2,
        "vertical": x % 4 < 2,
        "diagonal": (x + y) % 6 < 3,
        "antidiagonal": (x - y) % 6 < 3,
        "checks": (x // 2 + y // 2) % 2 == 0,
        "dots": (x % 4 < 2) & (y % 4 < 2),
    }
    return pattern[name].astype(np.float32)


PLAIN = ("block", "flat bar", "upright bar", "cross")


def _plain(name: str, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] * 2 - (size - 1)  # from the centre, in half pixels
    pattern = {
        "block": np.ones((size, size), bool),
        "flat bar": abs(y) < size * 0.4,
        "upright bar": abs(x) < size * 0.4,
        "cross": abs(abs(x) - abs(y)) < 4,
    }
    return pattern[name].astype(np.float32)


TILE_GAP = 8  # pixels between the tiles of a shape: as wide as a patch
UPRIGHT = {  # which tiles have vertical stripes, or which have not
    "rows": [[False, False], [True, True]],
    "columns": [[False, True], [False, True]],
    "checks": [[False, True], [True, False]],
    "uniform": [[False, False], [False, False]],
}


def _arrangement(name: str, size: int, generator: np.random.Generator) -> np.ndarray:
    side = (size - TILE_GAP) // 2
    pixels = np.zeros((size, size), np.float32)
    upright = np.array(UPRIGHT[name]) ^ (generator.random() < 0.5)
    for row, column in np.ndindex(2, 2):
        y, x = row * (side + TILE_GAP), column * (side + TILE_GAP)
        stripes = "vertical" if upright[row, column] else "horizontal"
        pixels[y : y + side, x : x + side] = _texture(stripes, side)
    return pixels


TASKS = {
    "textures": Task(
        classes=("horizontal", "vertical", "diagonal", "antidiagonal", "checks", "dots"),
        sizes=(16, 20, 24, 28),
        draw=lambda name, size, _: _texture(name, size),
        distractors=PLAIN,
        distractor_sizes=(8, 12, 16),
        distractor_count=(2, 4),
        draw_distractor=_plain,
    ),
    "shapes": Task(
        classes=tuple(UPRIGHT),
        sizes=(28, 32, 36),
        draw=_arrangement,
        distractors=PLAIN,
        distractor_sizes=(8, 12, 16),
        distractor_count=(2, 4),
        draw_distractor=_plain,
    ),
}


def make_scenes(
    task: str,
    count: int,
    seed: int | Sequence[int],
    objects: int | None = None,
    distractors: bool = True,
) -> Scenes:
    """Make `count` scenes of a task.

    Args:
        task: one of `TASKS`.
        count: how many images.
        seed: what NumPy's `default_rng` takes; equal seeds give equal scenes.
        objects: how many in each image; by default one or two, at even odds.
        distractors: whether there are any.

    Returns:
        The images with their labels and boxes. No two things in an image overlap.
    """
    generator = np.random.default_rng(seed)
    recipe = TASKS[task]
    images = _backgrounds(generator, count)
    labels = np.zeros((count, len(recipe.classes)), np.float32)
    boxes = []
    for image, label in zip(images, labels, strict=True):
        number = objects or int(generator.integers(1, 3))
        placed = _place_objects(generator, recipe, number)
        for box in placed:
            pixels = recipe.draw(recipe.classes[box.class_index], box.size, generator)
            _paint(generator, image, pixels, box)
            label[box.class_index] = 1 / number
        if distractors:
            _add_distractors(generator, recipe, image, placed)
        boxes.append(placed)
    return Scenes(images, labels, boxes)


def _backgrounds(generator: np.random.Generator, count: int) -> np.ndarray:
    """Noise of three scales: the whole image, blocks of 8x8 pixels, single pixels."""
    blocks = generator.normal(0, 0.25, (count, 3, IMAGE_SIZE // 8, IMAGE_SIZE // 8))
    images = blocks.astype(np.float32).repeat(8, axis=2).repeat(8, axis=3)
    images += generator.normal(0, 0.15, images.shape).astype(np.float32)
    images += generator.normal(0, 0.5, (count, 3, 1, 1)).astype(np.float32)
    return images


def _place_objects(generator: np.random.Generator, recipe: Task, number: int) -> list[Box]:
    """Choose different classes, sizes and places; start afresh where they do not fit."""
    classes = generator.choice(len(recipe.classes), number, replace=False)
    while True:
        placed: list[Box] = []
        for class_index in classes:
            size = int(generator.choice(recipe.sizes))
            place = _free_place(generator, size, placed)
            if place is None:
                break
            placed.append(Box(int(class_index), *place, size))
        else:
            return placed


def _add_distractors(
    generator: np.random.Generator, recipe: Task, image: np.ndarray, placed: list[Box]
) -> None:
    least, most = recipe.distractor_count
    taken = list(placed)
    for _ in range(generator.integers(least, most + 1)):
        kind = str(generator.choice(recipe.distractors))
        size = int(generator.choice(recipe.distractor_sizes))
        place = _free_place(generator, size, taken)
        if place is not None:
            taken.append(Box(-1, *place, size))
            _paint(generator, image, recipe.draw_distractor(kind, size), taken[-1])


def _free_place(
    generator: np.random.Generator, size: int, taken: list[Box]
) -> tuple[int, int] | None:
    """Try twenty places (top, left); return None where each overlaps a box."""
    for _ in range(20):
        top, left = (int(value) for value in generator.integers(0, IMAGE_SIZE - size + 1, 2))
        if all(
            top + size <= box.top
            or box.top + box.size <= top
            or left + size <= box.left
            or box.left + box.size <= left
            for box in taken
        ):
            return top, left
    return None


def _paint(generator: np.random.Generator, image: np.ndarray, pixels: np.ndarray, box: Box) -> None:
    """Blend a bright colour of its own into the image [3,80,80], in place."""
    colour = generator.normal(0.9, 0.5, 3).astype(np.float32)[:, None, None]
    region = image[:, box.top : box.top + box.size, box.left : box.left + box.size]
    region += pixels * (colour - 0.5 * region)
