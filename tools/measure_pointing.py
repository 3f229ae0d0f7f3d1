"""Measure where maps of a small transformer point, on scenes whose objects' places are known.

Each class in a scene is explained at every block. A *hit* is a map whose highest cell has its
centre inside the class's object, or up to half a patch beside it; *AUC* is the chance that a cell
of the object ranks above one outside. Beside Recipro-CAM stand attention, rollout and what two
other tools mask: the output of a block's first normalisation, with its residual connection whole
(ViT-ReciproCAM's authors, the block before the last) or masked too (OpenVINO XAI, the last block).

    python tools/measure_pointing.py tests/assets/scene-vit/textures.onnx textures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from scenes import HELD_OUT_SEED, IMAGE_SIZE, Box, make_scenes

from ov_recipro import Explainer
from ov_recipro.cut.tokens import Tokens, find_tokens
from ov_recipro.images.drawing import softened
from ov_recipro.methods import METHODS, Subject
from ov_recipro.plans.stream.stream_plan import GAUSSIAN
from ov_recipro.splitting.split import open_source

Maps = Callable[[np.ndarray], np.ndarray]
"""From an image [1,3,H,W] to a map for each class, [K,h,w]."""


@dataclass(frozen=True)
class Pointing:
    """One map's result: hits on its object and on another, AUC, and the range of its scores."""

    single: bool
    hit: bool
    other: bool
    auc: float
    span: float


def judge(saliency: np.ndarray, box: Box, others: list[Box], single: bool) -> Pointing:
    """Compare a map [h,w] with its object's place."""
    cell = IMAGE_SIZE // saliency.shape[0]
    centres = (np.arange(saliency.shape[0]) + 0.5) * cell
    row, column = np.unravel_index(int(saliency.argmax()), saliency.shape)
    point = (centres[row], centres[column])
    inside = np.array([[box.contains(y, x) for x in centres] for y in centres]).ravel()
    on, off = saliency.ravel()[inside][:, None], saliency.ravel()[~inside][None]
    area = float(np.mean((on > off) + 0.5 * (on == off)))
    hits = [each.contains(*point, margin=cell / 2) for each in (box, *others)]
    return Pointing(single, hits[0], any(hits[1:]), area, float(np.ptp(saliency)))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def at_block(explainer: Explainer, score: Callable[[np.ndarray], np.ndarray], soft: bool) -> Maps:
    classes = range(explainer.bundle.manifest.classes)

    def maps(image: np.ndarray) -> np.ndarray:
        found = score(explainer.explain_tensor(image, classes).raw)
        return np.stack([softened(each) for each in found]) if soft else found

    return maps


def of_method(subject: Subject, name: str) -> Maps:
    """Return a method whose map is the same for every class."""
    classes = subject.explainer.bundle.manifest.classes
    return lambda image: np.stack([METHODS[name](subject, image[0], 0)] * classes)


def tokens_of(path: Path) -> Tokens:
    tokens = find_tokens(open_source(path).graph)
    if tokens is None:
        raise SystemExit(f"{path} has no tokens")
    return tokens


def of_normalisation(path: Path, block: int, with_skip: bool, use_softmax: bool) -> Maps:
    """Return maps of Gaussian masks on the output of a block's first normalisation.

    Args:
        path: the model, as PyTorch's TorchScript exporter writes timm's.
        block: its number.
        with_skip: mask the residual connection too.
        use_softmax: compare softmax scores instead of logits.
    """
    tokens = tokens_of(path)
    height, width = tokens.grid
    proto = onnx.load(path)
    stream = tokens.blocks[block]
    norm = next(n for n in proto.graph.node if stream in n.input and "Normalization" in n.op_type)
    replaced = {norm.output[0]: "masked norm"}
    if with_skip:
        replaced[stream] = "masked stream"
    for node in proto.graph.node:
        if node.name != norm.name:
            node.input[:] = [replaced.get(name, name) for name in node.input]
    place = next(i for i, n in enumerate(proto.graph.node) if n.name == norm.name)
    for name, masked in replaced.items():
        place += 1
        proto.graph.node.insert(place, onnx.helper.make_node("Mul", [name, "mask"], [masked]))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("mask", 1, [1, tokens.count, 1]))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    masks = np.ones((height * width, tokens.count), np.float32)
    for cell in range(height * width):
        plane = np.eye(height * width, dtype=np.float32)[cell].reshape(height, width)
        around = cv2.filter2D(plane, -1, GAUSSIAN, borderType=cv2.BORDER_CONSTANT)
        masks[cell, tokens.prefix :] = around.ravel()

    def maps(image: np.ndarray) -> np.ndarray:
        feeds = ({"image": image, "mask": mask[None, :, None]} for mask in masks)
        logits = np.concatenate([session.run(None, feed)[0] for feed in feeds]).T
        return (softmax(logits) if use_softmax else logits).reshape(-1, height, width)

    return maps


def definitions(path: Path) -> Iterator[tuple[str, int | None, Maps]]:
    """Yield what is measured: its name, the block, and what makes the maps."""
    tokens = tokens_of(path)
    for block in range(len(tokens.cuts)):
        for mask in ("cell", "weight", "spread"):
            explainer = Explainer(path, layer=f"blocks.{block}", mask=mask, score="none")
            yield f"{mask}, softmax", block, at_block(explainer, softmax, False)
            if mask == "cell":
                yield "cell, logit", block, at_block(explainer, np.asarray, False)
                yield "cell, softmax, softened", block, at_block(explainer, softmax, True)
    subject = Subject(Explainer(path))
    if tokens.prefix:
        yield "attention of the class token", None, of_method(subject, "attention")
    yield "rollout", None, of_method(subject, "rollout")
    last = len(tokens.blocks) - 1
    yield "ViT-ReciproCAM's definition", last - 1, of_normalisation(path, last - 1, False, True)
    yield "OpenVINO XAI's definition", last, of_normalisation(path, last, True, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("task", help="what its scenes hold; see tools/scenes.py")
    parser.add_argument("--images", type=int, default=60, help="of one object, and of two")
    arguments = parser.parse_args()
    sets = [
        make_scenes(arguments.task, arguments.images, (HELD_OUT_SEED, objects), objects)
        for objects in (1, 2)
    ]
    right = Explainer(arguments.model, layer="blocks.-1", score="none")
    chosen = []
    for scenes in sets:
        for image, boxes in zip(scenes.images, scenes.boxes, strict=True):
            best = right.explain_tensor(image[None], 0).predictions[0].index
            if len(boxes) > 1 or best == boxes[0].class_index:  # what the model got right
                chosen.append((image[None], boxes))
    print(f"{len(chosen)} of {2 * arguments.images} images are explained\n")
    print("| maps | block | hit, 1 object | hit, 2 objects (the other) | AUC, 1 | AUC, 2 | range |")
    print("|---|---|---|---|---|---|---|")
    for name, block, maps in definitions(arguments.model):
        found = []
        for image, boxes in chosen:
            by_class = maps(image)
            for box in boxes:
                others = [each for each in boxes if each is not box]
                found.append(judge(by_class[box.class_index], box, others, len(boxes) == 1))
        one, two = ([f for f in found if f.single is single] for single in (True, False))
        hits = [np.mean([f.hit for f in group]) for group in (one, two)]
        areas = [np.mean([f.auc for f in group]) for group in (one, two)]
        other = np.mean([f.other for f in two])
        span = np.median([f.span for f in found])
        where = "" if block is None else str(block)
        print(f"| {name} | {where} | {hits[0]:.2f} | {hits[1]:.2f} ({other:.2f}) | "
              f"{areas[0]:.2f} | {areas[1]:.2f} | {span:.2g} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
