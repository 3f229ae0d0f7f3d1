"""How often each verdict of `explain --verify` falls on maps that deserve it, and that don't.

    python tools/calibrate_verdicts.py MODEL IMAGES --limit 250

For each image and its top-1 class: the map itself; the map of another image; the map of a class
drawn at random; the map turned over; and noise.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from ov_recipro import Explainer, Subject
from ov_recipro.cli.tables import markdown
from ov_recipro.faithfulness.datasets import spread
from ov_recipro.faithfulness.measure import curves
from ov_recipro.faithfulness.verification import STEPS, deviations_above, judge, random_maps
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.metrics import upsampled
from ov_recipro.ordered import in_order

VERDICTS = ("supported", "weak", "no better than random")


def verdicts(subject: Subject, paths: list[Path], number: int) -> dict[str, str]:
    """Judge all kinds of maps on one image."""
    image, index = seen(subject, paths[number])
    other = seen(subject, paths[(number + 1) % len(paths)])
    size = image.shape[1:]
    step = -(-size[0] * size[1] // STEPS)
    noise = np.random.default_rng(number)
    own = subject.reciprocal(image, index, "cell", None)
    maps = {
        "the explanation": own,
        "of another image": subject.reciprocal(*other, "cell", None),
        "of a random class": subject.reciprocal(image, int(noise.integers(1000)), "cell", None),
        "turned over": 1 - own,
        "noise": noise.random(own.shape),
    }
    random = [curves(subject, image, large, index, step) for large in random_maps(subject, image)]
    found = {}
    for kind, saliency in maps.items():
        large = upsampled(saliency, size, "bilinear")
        found[kind] = judge(deviations_above(curves(subject, image, large, index, step), random))
    return found


def seen(subject: Subject, path: Path) -> tuple[np.ndarray, int]:
    """Return an image and its top-1 class."""
    image, _ = subject.prepare(read_image(path))
    return image, int(subject.scores(image).argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images")
    parser.add_argument("--limit", type=int, default=250)
    arguments = parser.parse_args()
    subject = Subject(Explainer(arguments.model, hint="throughput"))
    paths = spread(find_images([arguments.images]), arguments.limit)
    counts: dict[str, Counter[str]] = {}
    for found in in_order(partial(verdicts, subject, paths), range(len(paths)), 2):
        for kind, verdict in found.items():
            counts.setdefault(kind, Counter())[verdict] += 1
    table = [("map", *VERDICTS)]
    for kind, count in counts.items():
        table.append((kind, *(f"{100 * count[v] / len(paths):.0f} %" for v in VERDICTS)))
    print(markdown(table))


if __name__ == "__main__":
    main()
