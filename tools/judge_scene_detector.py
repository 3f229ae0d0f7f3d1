"""Judge the detector of synthetic scenes: does it find the objects, and does their evidence decide?

python tools/judge_scene_detector.py tests/assets/scene-detector/model.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from detector_scenes import (
    CLASSES,
    HELD_OUT_SEED,
    PLATES,
    PODS,
    Box,
    Pixels,
    SceneObject,
    make_scenes,
)

THRESHOLD, OVERLAP = 0.4, 0.5


def planes(image: Pixels) -> np.ndarray:
    """Return an image [160,160,3], BGR, as RGB planes [3,160,160]."""
    return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))


def overlaps(boxes: np.ndarray, box: np.ndarray | Box) -> np.ndarray:
    """Return the intersections over unions [n] of boxes [n,4] and a box."""
    first, last = np.asarray(box[:2]), np.asarray(box[2:])
    inner = np.minimum(boxes[:, 2:], last) - np.maximum(boxes[:, :2], first)
    shared = inner.clip(0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (last - first).prod() - shared)


def suppress(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the boxes [m,4] of one class that are left of boxes [n,4] by NMS, best first."""
    kept = np.empty((0, 4))
    for anchor in np.argsort(-scores):
        if scores[anchor] < THRESHOLD:
            break
        if (overlaps(kept, boxes[anchor]) <= OVERLAP).all():
            kept = np.vstack([kept, boxes[anchor]])
    return kept


def count_hits(output: np.ndarray, objects: Sequence[SceneObject]) -> np.ndarray:
    """Return the numbers [6,3] of right boxes, of boxes and of objects, by class."""
    boxes = corners_of(output)
    counts = np.zeros((len(CLASSES), 3), int)
    for class_index, scores in enumerate(output[4:]):
        found = suppress(boxes, scores)
        missed = [each.box for each in objects if each.class_index == class_index]
        counts[class_index, 1:] = len(found), len(missed)
        for box in found:
            if missed:
                shares = overlaps(np.array(missed), box)
                if shares.max() >= OVERLAP:
                    missed.pop(int(shares.argmax()))
                    counts[class_index, 0] += 1
    return counts


def corners_of(output: np.ndarray) -> np.ndarray:
    """Return the boxes [525,4], left top right bottom, of an output [10,525]."""
    centres, sizes = output[:2], output[2:4]
    return np.concatenate([centres - sizes / 2, centres + sizes / 2]).T


def score_of(output: np.ndarray, class_index: int, box: Box) -> float:
    """Return the highest score of a class among boxes that overlap a box by half or more."""
    there = overlaps(corners_of(output), box) >= OVERLAP
    return float(output[4 + class_index, there].max(initial=0))


def evaluate(path: Path, count: int) -> None:
    """Print how well a detector finds held-out objects, and whether their evidence decides."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Pixels) -> np.ndarray:
        return session.run(None, {"images": planes(image)[None].astype(np.float32) / 255})[0][0]

    scenes = make_scenes(count, HELD_OUT_SEED)
    outputs = [run(scene.image) for scene in scenes]
    counts = sum(count_hits(output, scene.objects)
                 for output, scene in zip(outputs, scenes, strict=True))  # fmt: skip
    names, rows = (*CLASSES, "all"), [*counts, counts.sum(0)]
    for name, (right, found, there) in zip(names, rows, strict=True):
        recall, precision = right / there, right / max(found, 1)
        print(f"{name}: recall {recall:.1%} of {there}, precision {precision:.1%} of {found}")
    for kind, evidence, classes in (("part", "dot", PLATES), ("context", "cue", PODS)):
        left, swapped = [], []
        for scene, output in zip(scenes, outputs, strict=True):
            for each in scene.objects:
                box, score = getattr(each, kind), score_of(output, each.class_index, each.box)
                if box and score >= THRESHOLD:
                    other = sum(classes) - each.class_index
                    repainted = run(scene.repainted(box, other))
                    bare = run(scene.without(box))
                    left.append(score_of(bare, each.class_index, each.box) / score)
                    swapped.append(
                        score_of(repainted, other, each.box)
                        > score_of(repainted, each.class_index, each.box)
                    )
        lost = np.mean(np.array(left) < 0.5)
        print(f"without its {evidence}: {len(left)} found objects keep {np.mean(left):.1%} of "
              f"their score on average; {lost:.1%} of them lose more than half")  # fmt: skip
        print(f"with the other {evidence}: {np.mean(swapped):.1%} get the other class")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="of scenes (default: %(default)s)")
    arguments = parser.parse_args()
    evaluate(arguments.model, arguments.count)


if __name__ == "__main__":
    main()
