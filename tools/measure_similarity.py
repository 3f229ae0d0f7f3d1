"""Measure maps of similarity without labels, on mosaics of four photographs.

The reference is one of the four, mirrored and at full size: a map should fall on its quadrant of
the mosaic (by chance, a quarter does). Compared are Recipro's mask on the cosine, dropping a cell,
the additive parts f_c . r of the cosine, and, for contrast, a classifier's own map of the
reference's best class.

    python tools/measure_similarity.py FOLDER [--model MODEL] [--layer LAYER] [--count N]

With --scenes, for the small transformers of tools/train_scene_vit.py, images are scenes of two
objects and references scenes of one of the same class: a map should point at that object.

    python tools/measure_similarity.py --scenes textures --model textures.onnx
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from measure_pointing import Pointing, judge
from scenes import HELD_OUT_SEED, make_scenes

from ov_recipro import Explainer
from ov_recipro.images.preprocess import Image
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.methods import NotApplicable, Subject
from ov_recipro.options import Targets
from ov_recipro.saliency import Floats
from ov_recipro.targets.similarity import unit

GALLERY = 3  # every third photograph makes the centre; mosaics are made of the others


@dataclass
class Tally:
    """Hits of the highest pixel and shares of energy in the right quadrant."""

    hits: list[bool]
    shares: list[float]


def squared(image: Image, side: int) -> Image:
    """Return the middle of an image, as a square of this side."""
    height, width = image.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    middle = image[top : top + least, left : left + least]
    return np.asarray(cv2.resize(middle, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def mosaic_of(images: list[Image], side: int) -> Image:
    """Return four images as one."""
    tiles = [squared(image, side // 2) for image in images]
    return np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])


def score(tally: Tally, saliency: Floats, quadrant: int, side: int) -> None:
    """Add a map [h,w], of which the lowest value counts as 0."""
    values = np.asarray(saliency - saliency.min(), np.float32)
    large = cv2.resize(values, (side, side), interpolation=cv2.INTER_LINEAR)
    half = side // 2
    parts = [large[:half, :half], large[:half, half:], large[half:, :half], large[half:, half:]]
    energy = [float(part.sum()) for part in parts]
    row, column = np.unravel_index(int(large.argmax()), large.shape)
    tally.hits.append(2 * (row >= half) + (column >= half) == quadrant)
    tally.shares.append(energy[quadrant] / sum(energy) if sum(energy) else 0.25)


def cells_of(subject: Subject, image: Image) -> Floats | None:
    """Return the vectors [D,H,W] of which the image's is the mean; None where there are none."""
    pixels, _ = subject.prepare(image)
    try:
        weights = subject.pooled_weights()
    except NotApplicable:
        return None
    return np.tensordot(weights, subject.forward(pixels).features, 1)


def of_scenes(arguments: argparse.Namespace, keep: Explainer, drop: Explainer) -> None:
    """Measure maps on scenes and print them."""
    ones, pairs = (
        make_scenes(arguments.scenes, arguments.count, (HELD_OUT_SEED, objects), objects)
        for objects in (1, 2)
    )
    found: dict[str, list[Pointing]] = {}
    centre = np.stack([vector_of(keep, image) for image in ones.images[:: 2 * GALLERY]])
    for image, boxes in zip(pairs.images, pairs.boxes, strict=True):
        for box in boxes:
            same = [
                i for i, each in enumerate(ones.boxes) if each[0].class_index == box.class_index
            ]
            like = vector_of(keep, ones.images[same[len(found.get("keep", ())) % len(same)]])
            others = [each for each in boxes if each is not box]
            for middle in (None, centre):
                for kind, explainer in (("keep", keep), ("drop", drop)):
                    asked = Targets(similar_to=like, centre=() if middle is None else middle)
                    saliency = explainer.explain_tensor(image[None], asked).maps[0]
                    name = kind if middle is None else f"{kind}, centred"
                    found.setdefault(name, []).append(judge(saliency, box, others, False))
    print(f"{len(pairs.images)} scenes of two objects, at {keep.bundle.manifest.layer}")
    print("| map | hit, % | on the other object, % | AUC |")
    print("|---|---|---|---|")
    for name, each in found.items():
        hits, other, area = (
            np.mean([getattr(one, field) for one in each]) for field in ("hit", "other", "auc")
        )
        print(f"| {name} | {100 * hits:.1f} | {100 * other:.1f} | {area:.2f} |")


def vector_of(explainer: Explainer, image: np.ndarray) -> Floats:
    """Return the vector of a preprocessed image [3,H,W]."""
    ones = np.ones(explainer.bundle.manifest.values)
    found = explainer.explain_tensor(image[None], similar_to=ones).vector
    return np.zeros(0) if found is None else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--scenes", help="what scenes hold; see tools/scenes.py")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--task", default="similarity")
    parser.add_argument("--count", type=int, default=120)
    arguments = parser.parse_args()
    options = {"layer": arguments.layer, "task": arguments.task}
    keep = Explainer(arguments.model, **options)
    drop = Explainer(arguments.model, mask="drop", **options)
    if arguments.scenes is not None:
        of_scenes(arguments, keep, drop)
        return
    subject = Subject(keep)
    classifier = None
    if keep.bundle.manifest.why.startswith("the vector"):
        classifier = Explainer(arguments.model, layer=arguments.layer)
    side = min(keep.bundle.manifest.image.size)
    photographs = [read_image(path) for path in find_images([str(arguments.folder)])]
    centre = np.stack([keep.vector(squared(each, side)) for each in photographs[::GALLERY]])
    held_out = [each for number, each in enumerate(photographs) if number % GALLERY]
    random = np.random.default_rng(0)
    tallies: dict[str, Tally] = {}
    cosines = []
    for _ in range(arguments.count):
        chosen = [held_out[i] for i in random.choice(len(held_out), 4, replace=False)]
        quadrant = int(random.integers(4))
        mosaic = mosaic_of(chosen, side)
        like = np.ascontiguousarray(squared(chosen[quadrant], side)[:, ::-1])
        vector = keep.vector(like)
        maps: dict[str, Floats] = {}
        for name, middle in (("", ()), (", centred", centre)):
            for kind, explainer in (("keep", keep), ("drop", drop)):
                found = explainer(mosaic, similar_to=vector, centre=middle)
                maps[f"{kind}{name}"] = found.maps[0]
                if kind == "keep" and not name:
                    cosines.append(found.targets[0].score)
        parts = cells_of(subject, mosaic)
        if parts is not None:
            for name, middle in (("", None), (", centred", centre.mean(axis=0).astype(np.float64))):
                moved = parts if middle is None else parts - middle[:, None, None]
                maps[f"additive{name}"] = np.tensordot(unit(vector, middle), moved, 1)
        if classifier is not None:
            best = classifier(like).targets[0].index
            maps["class map"] = classifier(mosaic, best).maps[0]
        for name, saliency in maps.items():
            score(tallies.setdefault(name, Tally([], [])), saliency, quadrant, side)
    print(f"{arguments.count} mosaics, mean cosine to the reference {np.mean(cosines):.3f}")
    print("| map | pointing, % | energy in the quadrant, % |")
    print("|---|---|---|")
    for name, tally in tallies.items():
        interval = 196 * np.std(tally.shares, ddof=1) / len(tally.shares) ** 0.5
        pointing, share = 100 * np.mean(tally.hits), 100 * np.mean(tally.shares)
        print(f"| {name} | {pointing:.1f} | {share:.1f} ± {interval:.1f} |")


if __name__ == "__main__":
    main()
