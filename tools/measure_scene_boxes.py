"""Measure where maps of a small detector's boxes point, on scenes whose evidence is known.

Each object that the detector finds is explained. *Box*: the brightest pixel lies in the predicted
box. *Instance*: it lies on the object or up to an eighth of its sides beside it (half a patch of
occlusion), or on its cue, and not on another object. *Other*: it lies on another object. *Part*: of
plates, it lies on the dot that decides the class; only those are taken whose dot is away from the
middle of the box, where a Gaussian has its maximum. *Cue*: of pods, the brightest of the cells
whose features are of pixels beside the box touches the cue that decides the class; *chance*: the
share of these cells that do. Only pods are taken whose cue such a cell of the default grid touches.
Up to a quarter of a cell of the default grid beside a dot counts as on it.

    python tools/measure_scene_boxes.py tests/assets/scene-detector/model.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
from detector_scenes import HELD_OUT_SEED, IMAGE_SIZE, Box, Scene, SceneObject, make_scenes

from ov_recipro import Explainer, Subject
from ov_recipro.cli.tables import markdown
from ov_recipro.faithfulness.box_measure import BoxLimits, chosen_boxes
from ov_recipro.methods import BOX_METHODS
from ov_recipro.metrics import inside, interval, resampled_means, upsampled
from ov_recipro.targets.boxes import BoxTarget
from ov_recipro.targets.candidates import iou

BEFORE, AFTER = 8, 4  # pixels around a cell that its features are of, in the two finer levels
FOUND = 0.5  # IoU from which on a box is that of an object
EVERY = BoxLimits(max_boxes=100, smallest=0, largest=1)
METHODS = ("recipro", "occlusion", "votes", "gauss-in-box", "random")
Maps = Callable[[np.ndarray, Sequence[BoxTarget]], list[np.ndarray]]


@dataclass(frozen=True)
class Hits:
    """Where one map points; None where an object has no such evidence."""

    box: bool
    instance: bool
    other: bool
    part: bool | None
    cue: bool | None
    chance: float | None


@dataclass(frozen=True)
class Found:
    """An object that the detector finds, and its box."""

    thing: SceneObject
    others: tuple[SceneObject, ...]
    target: BoxTarget


def found_objects(subject: Subject, scene: Scene) -> tuple[np.ndarray, list[Found]]:
    """Return a scene as the model's input, and the objects that the detector finds in it."""
    image, window = subject.prepare(scene.image)
    targets = chosen_boxes(subject, image, window, EVERY)
    found = []
    for thing in scene.objects:
        same = [each for each in targets if each.index == thing.class_index]
        overlaps = [float(iou(np.array(each.edges), thing.box)) for each in same]
        if max(overlaps, default=0) >= FOUND:
            others = tuple(each for each in scene.objects if each is not thing)
            found.append(Found(thing, others, same[int(np.argmax(overlaps))]))
    return image, found


def judge(saliency: np.ndarray, found: Found, grid: tuple[int, int]) -> Hits:
    """Compare a map [h,w] with the place of its object, its evidence and the other objects.

    Args:
        saliency: the map.
        found: the object.
        grid: the default cells.
    """
    margin = IMAGE_SIZE / grid[0] / 4
    thing, box = found.thing, found.target.edges
    point = brightest(upsampled(saliency, (IMAGE_SIZE, IMAGE_SIZE), "bilinear"))
    other = any(is_on(point, each.box, 0) for each in found.others)
    own = is_on(point, widened(thing.box), 0)
    own = own or (thing.context is not None and is_on(point, thing.context, margin))
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    part = cue = chance = None
    if thing.part is not None and not is_on(middle, thing.part, margin):
        part = is_on(point, thing.part, margin)
    if thing.context is not None and (of_cue(grid, thing.context, box) > 0).any():
        on_cue = of_cue(saliency.shape, thing.context, box)
        far = np.where(on_cue < 0, -np.inf, saliency)
        cue = bool(on_cue.flat[np.argmax(far)] > 0)
        chance = float((on_cue > 0).sum() / (on_cue >= 0).sum())
    return Hits(is_on(point, box, 0), own and not other, other, part, cue, chance)


def of_cue(shape: tuple[int, ...], cue: Box, box: tuple[float, ...]) -> np.ndarray:
    """Return which cells of a map [h,w] touch a cue: 1; 0 for others, -1 for those of the box."""
    left, top, right, bottom = box
    of_box = touches(shape, (left - AFTER, top - AFTER, right + BEFORE, bottom + BEFORE))
    return np.where(of_box, -1, touches(shape, cue))


def widened(box: Box) -> tuple[float, ...]:
    """Return a box with an eighth of its sides added on each side."""
    left, top, right, bottom = box
    x, y = (right - left) / 8, (bottom - top) / 8
    return left - x, top - y, right + x, bottom + y


def brightest(saliency: np.ndarray) -> tuple[float, float]:
    """Return the middle (x, y) of the brightest cell of a map [h,w], in pixels of the scene."""
    (rows, columns), place = saliency.shape, int(np.argmax(saliency))
    row, column = divmod(place, columns)
    return (column + 0.5) * IMAGE_SIZE / columns, (row + 0.5) * IMAGE_SIZE / rows


def touches(shape: tuple[int, ...], box: tuple[float, ...]) -> np.ndarray:
    """Return which cells of a map [h,w] a box touches."""
    first, last = (np.arange(shape[0]) + n for n in (0, 1))
    rows = (last * IMAGE_SIZE / shape[0] > box[1]) & (first * IMAGE_SIZE / shape[0] < box[3])
    first, last = (np.arange(shape[1]) + n for n in (0, 1))
    columns = (last * IMAGE_SIZE / shape[1] > box[0]) & (first * IMAGE_SIZE / shape[1] < box[2])
    return rows[:, None] & columns[None]


def pixel_of_box(image: np.ndarray, targets: Sequence[BoxTarget]) -> list[np.ndarray]:
    """Return a map for each box whose brightest pixel is any of the box's, at even odds."""
    random = np.random.default_rng(crc32(image.tobytes()))
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return [random.random(size) * inside(size, target.edges) for target in targets]


def is_on(point: tuple[float, float], box: Sequence[float], margin: float) -> bool:
    x, y = point
    left, top, right, bottom = box
    return left - margin <= x < right + margin and top - margin <= y < bottom + margin


def definitions(subject: Subject, model: Path, names: Sequence[str]) -> dict[str, Maps]:
    """Return what is measured: its name, and what makes the maps of an image's boxes."""
    explainer = subject.explainer
    cut = explainer.bundle.manifest.cut

    def at(layer: str) -> tuple[str, Maps]:
        made = Explainer(model, layer=layer, **explainer.options())
        grid = "x".join(map(str, made.bundle.manifest.cut.grid))
        return f"recipro, {grid}", lambda image, targets: list(
            made.explain_scored(subject.tensor(image), targets).maps
        )

    found: dict[str, Maps] = {name: partial(BOX_METHODS[name], subject) for name in names}
    if "recipro" in found:
        for first in cut.masked[1:]:
            name, maps = at(",".join([first, *(each for each in cut.masked if each != first)]))
            found[name] = maps
    return {**found, "any pixel of the box": pixel_of_box}


def judged(
    subject: Subject, maps: Mapping[str, Maps], scenes: Sequence[Scene]
) -> Iterator[dict[str, list[Hits]]]:
    """Yield where each map of each scene's objects points, by the maps' names."""
    grid = subject.explainer.bundle.manifest.cut.grid
    for scene in scenes:
        image, found = found_objects(subject, scene)
        targets = [each.target for each in found]
        yield {
            name: [
                judge(saliency, each, grid)
                for saliency, each in zip(made(image, targets), found, strict=True)
            ]
            for name, made in maps.items()
            if found
        }


def share(scenes: Sequence[Sequence[Hits]], kind: str) -> str:
    """Return how often maps hit, with a bootstrap 95% interval over the scenes, in percent."""
    values = [[getattr(hits, kind) for hits in scene] for scene in scenes]
    values = [[float(each) for each in scene if each is not None] for scene in values]
    values = [scene for scene in values if scene]
    if not values:
        return ""
    sums, counts = (np.array([function(each) for each in values], float) for function in (sum, len))
    low, high = interval(resampled_means(sums[None], counts)[0])
    return f"{100 * sums.sum() / counts.sum():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=100, help="of scenes (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    subject = Subject(Explainer(arguments.model))
    maps = definitions(subject, arguments.model, arguments.methods.split(","))
    scenes = make_scenes(arguments.count, (HELD_OUT_SEED, 2))
    found = [each for each in judged(subject, maps, scenes) if each]
    first = [hits for scene in found for hits in next(iter(scene.values()))]
    there = sum(len(scene.objects) for scene in scenes)
    print(f"{len(first)} of {there} objects are found and explained; of these "
          f"{sum(each.part is not None for each in first)} have a part, "
          f"{sum(each.cue is not None for each in first)} a cue\n")  # fmt: skip
    kinds = [each.name for each in fields(Hits)]
    rows = [("map", *kinds)]
    for name in maps:
        rows.append((name, *(share([scene[name] for scene in found], kind) for kind in kinds)))
    print(markdown(rows))


if __name__ == "__main__":
    main()
