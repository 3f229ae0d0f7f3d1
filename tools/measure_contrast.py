"""Measure what contrast is worth: does its map find what decides between the two best classes?

For each image the map's highest pixels are set to the mean colour. Measured is how much the best
class loses against the second: in its share of the two probabilities, and in the difference of the
two logits.

    python tools/measure_contrast.py FOLDER [--model MODEL] [--layer LAYER] [--limit N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ov_recipro import Explainer, Subject
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.metrics import by_saliency, upsampled
from ov_recipro.saliency import Floats, class_scores
from ov_recipro.targets.contrast import NEXT

SHARES = (0.05, 0.2)
GAMMAS = (0.6, 1.0)


def maps_of(explainers: dict[str, Explainer], tensor: Floats, first: int) -> dict[str, Floats]:
    """Return the maps to compare of the image's best class."""
    found = {
        f"recipro, {name}": explainer.explain_tensor(tensor, first).maps[0]
        for name, explainer in explainers.items()
    }
    for gamma in GAMMAS:
        explained = explainers["logit"].explain_tensor(tensor, first, against=NEXT, gamma=gamma)
        found[f"contrast, gamma {gamma:g}"] = explained.maps[0]
    grid = found["recipro, logit"].shape
    found["random"] = np.random.default_rng(int(np.abs(tensor).sum())).random(grid)
    return found


def falls(subject: Subject, image: Floats, saliency: Floats, pair: list[int]) -> list[float]:
    """Return, for each share of pixels, what the first class loses of its share and its margin."""
    before = subject.forward(image).logits
    order = by_saliency(upsampled(saliency, image.shape[1:], "bilinear"))
    found = []
    for share in SHARES:
        without = np.array(image).reshape(len(image), -1)
        without[:, order[: round(share * order.size)]] = 0
        after = subject.forward(without.reshape(image.shape)).logits
        shares = [class_scores(each[pair], "softmax")[0] for each in (before, after)]
        margin = (before - after)[pair]
        found += [float(shares[0] - shares[1]), float(margin[0] - margin[1])]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    explainers = {
        name: Explainer(arguments.model, layer=arguments.layer, score=score)
        for name, score in (("softmax", "softmax"), ("logit", "none"))
    }
    subject = Subject(explainers["softmax"])
    rows: dict[str, list[list[float]]] = {}
    for path in find_images([str(arguments.folder)])[: arguments.limit]:
        image, _ = subject.prepare(read_image(path))
        logits = subject.forward(image).logits
        pair = np.argsort(-logits)[:2].tolist()
        for name, saliency in maps_of(explainers, subject.tensor(image), pair[0]).items():
            rows.setdefault(name, []).append(falls(subject, image, saliency, pair))
    plain = np.array(rows["recipro, logit"])
    columns = [f"{what} {100 * s:g} %" for s in SHARES for what in ("share", "margin")]
    print(f"{len(plain)} images; mean ± half of the 95 % interval; difference from recipro, logit")
    print("| map |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name, values in rows.items():
        cells = []
        for column in range(len(columns)):
            own = np.array(values)[:, column]
            difference = own - plain[:, column]
            texts = [
                f"{each.mean():.3f} ± {1.96 * each.std(ddof=1) / len(each) ** 0.5:.3f}"
                for each in (own, difference)
            ]
            cells.append(texts[0] if name == "recipro, logit" else f"{texts[0]} ({texts[1]})")
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
