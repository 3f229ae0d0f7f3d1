"""Train a tiny detector on synthetic scenes and export it to ONNX.

The scenes (``tools/detector_scenes.py``) have objects whose evidence is known: the body, a part of
it, or a cue outside its box. So a saliency map of this network can be right or wrong. Run it in the
environment of ``tools/export-requirements.txt``:

    python tools/train_scene_detector.py tests/assets/scene-detector
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from detector_scenes import (
    CLASSES,
    HELD_OUT_SEED,
    IMAGE_SIZE,
    PLATES,
    PODS,
    Scene,
    make_scenes,
)
from judge_scene_detector import planes
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
SIDES = ((0, 30), (30, 52), (52, IMAGE_SIZE))  # of the objects that a level is to find, in pixels
BLUR = 1.15  # a level need neither find nor reject sides up to this factor outside its range
WIDTH = 28  # of the neck
BATCH = 16
EASY_STEPS, RAMP_STEPS = 500, 1500
REPORT_EVERY = 200  # steps
METADATA = {
    "description": "Tiny detector of synthetic scenes whose evidence is known",
    "author": "ov-recipro",
    "license": "Apache-2.0",
    "task": "detect",
    "stride": str(max(STRIDES)),
    "batch": "1",
    "imgsz": str([IMAGE_SIZE, IMAGE_SIZE]),
    "names": str(dict(enumerate(CLASSES))),
}


def convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=size % 2 * (size // 2), bias=False),
        nn.BatchNorm2d(after),
        nn.SiLU(inplace=True),
    )


class Backbone(nn.Module):
    """Maps [n,32,20,20], [n,40,10,10] and [n,48,5,5] of images; a cell sees 20, 28 or 44 pixels.

    Convolutions of 2x2 and 1x1 keep the coarser cells to their places.
    """

    widths = (32, 40, 48)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            convolution(3, 24, 4, 4),
            convolution(24, 24, 3),
            convolution(24, 32, 3, 2),
            convolution(32, 32, 1),
        )
        self.middle = nn.Sequential(convolution(32, 40, 2, 2), convolution(40, 40, 1))
        self.coarse = nn.Sequential(convolution(40, 48, 2, 2), convolution(48, 48, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps of images [n,3,160,160], RGB in 0..1."""
        fine = self.fine(images)
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)


class Neck(nn.Module):
    """Combine places: down from the coarse level to the fine one, and up again."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.around = nn.Sequential(
            convolution(coarse, width, 1),
            convolution(width, width, 3),
            convolution(width, width, 3),
        )
        self.middle_down = nn.Sequential(
            convolution(middle + width, width, 1),
            convolution(width, width, 3),
            convolution(width, width, 3),
        )
        self.fine_down = nn.Sequential(
            convolution(fine + width, width, 1), convolution(width, width, 3)
        )
        self.to_middle = convolution(width, width, 2, 2)
        self.middle_up = nn.Sequential(
            convolution(2 * width, width, 1), convolution(width, width, 3)
        )
        self.to_coarse = convolution(width, width, 2, 2)
        self.coarse_up = convolution(2 * width, width, 1)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> list[Tensor]:
        """Return a map [n,width,h,w] of each level, the finest first."""
        coarse = self.around(coarse)
        middle = self.middle_down(torch.cat([_larger(coarse), middle], 1))
        fine = self.fine_down(torch.cat([_larger(middle), fine], 1))
        middle = self.middle_up(torch.cat([self.to_middle(fine), middle], 1))
        coarse = self.coarse_up(torch.cat([self.to_coarse(middle), coarse], 1))
        return [fine, middle, coarse]


def _larger(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")


class Detector(nn.Module):
    """A detector whose output is laid out like YOLOv8's: [n,4+6,525], in pixels and 0..1."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = Neck(Backbone.widths, width)
        self.sides = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        self.classes = nn.ModuleList(nn.Conv2d(width, len(CLASSES), 1) for _ in STRIDES)
        for layer in self.classes:
            nn.init.constant_(layer.bias, -4.0)  # objects are rare
        places, strides = anchors()
        self.register_buffer("places", torch.from_numpy(places.T / strides)[None])
        self.register_buffer("strides", torch.from_numpy(strides)[None])

    def raw(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return boxes [n,4,525], left top right bottom in pixels, and logits [n,6,525]."""
        maps = [
            torch.cat([sides(features), classes(features)], 1)
            for sides, classes, features in zip(self.sides, self.classes, levels, strict=True)
        ]
        joined = torch.cat([each.view(each.shape[0], 4 + len(CLASSES), -1) for each in maps], 2)
        sides, logits = joined.split((4, len(CLASSES)), 1)
        before, after = functional.softplus(sides).split((2, 2), 1)
        corners = torch.cat([self.places - before, self.places + after], 1)
        return corners * self.strides, logits

    def forward(self, images: Tensor) -> Tensor:
        """Return boxes (centre x, centre y, width, height) and scores, [n,4+6,525]."""
        corners, logits = self.raw(self.neck(*self.backbone(images)))
        first, last = corners.split((2, 2), 1)
        return torch.cat([(first + last) / 2, last - first, logits.sigmoid()], 1)


class Hints(nn.Module):
    """What training asks for besides boxes, so that the use of cues is learnt early.

    The backbone's maps are to tell which dots and cues are at a cell, and the neck's which cues are
    at most five fine cells (40 pixels) away.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.here = nn.ModuleList(nn.Conv2d(each, 4, 1) for each in widths)
        self.near = nn.ModuleList(nn.Conv2d(width, 2, 1) for _ in widths)

    def forward(self, taps: Sequence[Tensor], levels: Sequence[Tensor], dots: Tensor) -> Tensor:
        """Return the loss, given where dots and cues are, [n,4,20,20]."""
        around = functional.max_pool2d(dots[:, 2:], 11, stride=1, padding=5)
        loss = torch.zeros(())
        for number, (tap, level) in enumerate(zip(taps, levels, strict=True)):
            for logits, truth in (
                (self.here[number](tap), dots),
                (self.near[number](level), around),
            ):
                wanted = functional.max_pool2d(truth, 2**number)
                loss = loss + functional.binary_cross_entropy_with_logits(
                    logits, wanted, pos_weight=torch.tensor(4.0)
                )
        return loss


def anchors() -> tuple[np.ndarray, np.ndarray]:
    """Return the cells' centres (x, y) [525,2] in pixels, and their strides [525]; float32."""
    centres, strides = [], []
    for stride in STRIDES:
        line = (np.arange(IMAGE_SIZE // stride, dtype=np.float32) + 0.5) * stride
        y, x = np.meshgrid(line, line, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], 1))
        strides.append(np.full(x.size, stride, np.float32))
    return np.concatenate(centres), np.concatenate(strides)


@dataclass(frozen=True)
class Lesson:
    """Scenes and what the network is to say about them.

    images: uint8 [n,3,160,160], RGB.
    wanted: float32 [n,6,525], 1 where an anchor is to find an object of the class.
    counted: float32 [n,6,525], 0 where an anchor may find an object of the class or not.
    corners: float32 [n,4,525], the object's box where there is one to find.
    dots: float32 [n,4,20,20], 1 where there is a dot or cue of a plate's or pod's class.
    """

    images: Tensor
    wanted: Tensor
    counted: Tensor
    corners: Tensor
    dots: Tensor


def lesson(scenes: Sequence[Scene]) -> Lesson:
    """Assign the objects to the anchors near their centres, at the level of their size."""
    centres, strides = anchors()
    count = len(strides)
    wanted = np.zeros((len(scenes), len(CLASSES), count), np.float32)
    counted = np.ones_like(wanted)
    corners = np.zeros((len(scenes), 4, count), np.float32)
    dots = np.zeros((len(scenes), 4, 20, 20), np.float32)
    low, high = (np.repeat(each, [np.sum(strides == stride) for stride in STRIDES])
                 for each in np.array(SIDES, np.float32).T)  # fmt: skip
    for number, scene in enumerate(scenes):
        for each in scene.objects:
            first, last = np.array(each.box[:2]), np.array(each.box[2:])
            side = (last - first).max()
            away = abs(centres - (first + last) / 2)
            near = (away <= 1.5 * strides[:, None]).all(1) & (away < 0.4 * (last - first)).all(1)
            here = near & (low <= side) & (side < high)
            about = near & (low / BLUR <= side) & (side < high * BLUR)
            counted[number, each.class_index, about & ~here] = 0
            wanted[number, each.class_index, here] = 1
            corners[number, :, here] = each.box
        for class_index, box in scene.dots:
            x0, y0, x1, y1 = np.array(box) // STRIDES[0] + np.array([0, 0, 1, 1])
            dots[number, (*PLATES, *PODS).index(class_index), y0:y1, x0:x1] = 1
    images = np.stack([planes(scene.image) for scene in scenes])
    return Lesson(*(torch.from_numpy(part) for part in (images, wanted, counted, corners, dots)))


@dataclass(frozen=True)
class Lessons(torch.utils.data.Dataset[Lesson]):
    """A batch of new scenes for each step: half usual ones, half of pods.

    The pods are alone at first, with their cue; then a growing share is in usual company. Without
    the easy scenes, that cues matter is learnt late.
    """

    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Lesson:
        easy = round(BATCH / 2 * min(1.0, max(0.0, 1 - (step - EASY_STEPS) / RAMP_STEPS)))
        return lesson(
            make_scenes(BATCH // 2, (self.seed, step))
            + make_scenes(easy, (self.seed, step, 1), 1, distractors=False, classes=PODS)
            + make_scenes(BATCH // 2 - easy, (self.seed, step, 2), classes=PODS)
        )


def loss_of(network: Detector, hints: Hints, batch: Lesson) -> Tensor:
    """Return the focal loss of the classes, twice the loss of the boxes (1 - GIoU), the hints'."""
    taps = network.backbone(batch.images.float() / 255)
    levels = network.neck(*taps)
    corners, logits = network.raw(levels)
    cross_entropy = functional.binary_cross_entropy_with_logits(
        logits, batch.wanted, reduction="none"
    )
    focus = (batch.wanted - logits.sigmoid()).abs()
    positive = batch.wanted.amax(1) > 0
    count = positive.sum().clamp(min=1)
    classes = (cross_entropy * focus * batch.counted).sum() / count
    found = corners.transpose(1, 2)[positive]
    truth = batch.corners.transpose(1, 2)[positive]
    boxes = (1 - generalised_overlap(found, truth)).sum() / count
    return classes + 2 * boxes + hints(taps, levels, batch.dots)


def generalised_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return the GIoU [n] (Rezatofighi et al. 2019, equation 3) of boxes [n,4]."""
    inner = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    shared = inner.clamp(min=0).prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - shared
    outer = torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])
    hull = outer.prod(1)
    return shared / union - (hull - union) / hull


def train(steps: int, rate: float, seed: int) -> Detector:
    """Train with AdamW and return the moving average of the network."""
    torch.manual_seed(seed)
    network = Detector().to(memory_format=torch.channels_last)  # faster
    hints = Hints(Backbone.widths, WIDTH)
    learnt = [*network.parameters(), *hints.parameters()]
    averaged = copy.deepcopy(network)
    print(f"{sum(each.numel() for each in network.parameters()):,} parameters", flush=True)
    optimiser = torch.optim.AdamW(learnt, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    batches = torch.utils.data.DataLoader(Lessons(steps, seed), batch_size=None, num_workers=1)
    check = lesson(make_scenes(100, (HELD_OUT_SEED, 2), classes=PODS))
    started, losses = time.perf_counter(), []
    for step, batch in enumerate(batches, 1):
        loss = loss_of(network, hints, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 10.0)
        optimiser.step()
        schedule.step()
        keep = min(0.998, 1 - 1 / step)
        with torch.no_grad():
            for mean, value in zip(averaged.state_dict().values(), network.state_dict().values(),
                                   strict=True):  # fmt: skip
                mean.copy_(mean.lerp(value, 1 - keep) if mean.is_floating_point() else value)
        losses.append(loss.item())
        if step % REPORT_EVERY == 0:
            elapsed = time.perf_counter() - started
            print(f"step {step}: {elapsed:.0f} s, loss {np.mean(losses[-REPORT_EVERY:]):.3f}, "
                  f"{told_apart(averaged, check):.1%} of pods told apart", flush=True)  # fmt: skip
    return averaged.eval()


def told_apart(network: Detector, check: Lesson) -> float:
    """Return the share of the pods' anchors where the right class has the higher score."""
    network.eval()
    with torch.no_grad():
        scores = network(check.images.float() / 255)[:, 4:]
    network.train()
    first, second = PODS
    right = (scores[:, first] > scores[:, second]) == check.wanted[:, first].bool()
    return right[check.wanted.amax(1) > 0].float().mean().item()


def export(network: Detector, path: Path) -> None:
    """Write the network for one image, as PyTorch's TorchScript exporter does."""
    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    torch.onnx.export(network, (image,), str(path), dynamo=False, opset_version=17,
                      input_names=["images"], output_names=["output0"])  # fmt: skip
    model = onnx.load(path)
    onnx.helper.set_model_props(model, METADATA)
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where model.onnx is, or will be")
    parser.add_argument("--steps", type=int, default=4000, help="batches of 16 scenes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # a second core makes the scenes
    network = train(arguments.steps, rate=3e-3, seed=0)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    export(network, arguments.folder / "model.onnx")


if __name__ == "__main__":
    main()
