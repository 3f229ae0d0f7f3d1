"""Export detectors of several libraries, each with the boxes that its library itself finds.

Weights are random; batch normalisation and the thresholds are fitted so that some boxes remain.
``NAME.onnx`` is the model; ``NAME.npz`` has an image [1,3,h,w] as the model takes it, and the
library's boxes [n,4] (left, top, right, bottom in the input's pixels), scores [n], labels [n] and
the thresholds that it used; tests/targets/test_exported_detectors.py compares. Run it in an
environment of its own:

    pip install --requirement tools/export-requirements.txt ultralytics loguru tabulate setuptools
    pip install --no-deps --no-build-isolation yolox==0.3.0
    python tools/export_detectors.py build/detectors
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

OVERLAP = 0.5
ULTRALYTICS = {"yolov8n": False, "yolo11n": False, "yolov5nu": False, "yolov8n-nms": True,
               "yolo26n": True}  # fmt: skip


class Found(NamedTuple):
    """What a library's own decoding finds in an image."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def calibrate(network: nn.Module, images: Any) -> None:
    """Give batch normalisation the statistics of images, so that what they show gets through."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for _ in range(3):
        network(images)
    network.eval()


def suppressed(boxes: Tensor, scores: Tensor, overlap: float = OVERLAP) -> Tensor:
    """Return which boxes [n,4] remain, best first, as `torchvision.ops.nms` does."""
    order, kept = scores.argsort(descending=True, stable=True), []
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[order, :2], boxes[best, :2])
        high = torch.minimum(boxes[order, 2:], boxes[best, 2:])
        common = (high - low).clamp(min=0).prod(1)
        order = order[common / (areas[order] + areas[best] - common) <= overlap]
    return torch.stack(kept) if kept else order


def above(scores: Tensor, count: int) -> float:
    """Return a threshold that the `count` highest scores pass."""
    return float(scores.sort(descending=True).values[count - 1 : count + 1].mean())


def nothing_to_assert() -> None:
    """Stand in for torchvision's check, in TorchScript too."""


def import_torchvision() -> None:
    """Import torchvision without its compiled operators, which the CPU build of torch lacks."""
    library = torch.library.Library("torchvision", "DEF")
    forward = ("qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool", "ps_roi_pool")
    pooled = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
    for name in (*forward, "deform_conv2d", *(f"_{name}_backward" for name in pooled)):
        library.define(f"{name}(Tensor x) -> Tensor")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", suppressed, "CPU")
    import torchvision

    torchvision.keep_alive = library
    torchvision.ops.boxes._assert_has_ops = nothing_to_assert


def write(
    folder: Path,
    name: str,
    image: Tensor,
    found: Found,
    threshold: float,
    overlap: float | None = OVERLAP,
) -> None:
    """Write what the library finds; an overlap of None says that nothing is left to suppress."""
    order = found.scores.argsort(descending=True)
    np.savez_compressed(
        folder / f"{name}.npz",
        image=image.numpy(),
        boxes=found.boxes[order].detach().numpy(),
        scores=found.scores[order].detach().numpy(),
        labels=found.labels[order].numpy(),
        threshold=threshold,
        overlap=np.nan if overlap is None else overlap,
    )
    print(f"{name}: {len(order)} boxes", flush=True)


def picture(size: tuple[int, int], scale: float = 1.0) -> Tensor:
    """Return a smooth random image [1,3,h,w], 0..scale."""
    coarse = torch.rand(1, 3, 12, 12)
    return nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * scale


def ultralytics(folder: Path, name: str, inside: bool) -> None:
    """Export with Ultralytics' own exporter; `inside` suppresses overlapping boxes in the model."""
    from ultralytics import YOLO
    from ultralytics.utils.nms import non_max_suppression

    architecture, _, nms = name.partition("-")
    yolo = YOLO(f"{architecture.replace('nu', 'n')}.yaml", task="detect")
    network, image = yolo.model.eval(), picture((320, 320))
    calibrate(network, image)
    for branch in (network.model[-1].cv3, getattr(network.model[-1], "one2one_cv3", ())):
        for level in branch:
            level[-1].bias.data.uniform_(-4, -2)
            level[-1].weight.data.mul_(3)
    end_to_end = inside and not nms
    network.end2end = end_to_end
    raw = network(image)
    raw = raw[0] if isinstance(raw, tuple) else raw
    best = raw[0, :, 4] if raw.shape[2] == 6 else raw[0, 4:].amax(0)
    threshold = above(best, 40)
    rows = non_max_suppression(raw, threshold, OVERLAP, max_det=300, end2end=end_to_end)[0]
    with tempfile.TemporaryDirectory() as scratch:
        yolo.ckpt_path = network.pt_path = str(Path(scratch) / f"{name}.pt")
        network.yaml_file = name
        options = {"nms": True, "conf": threshold, "iou": OVERLAP} if nms else {}
        options |= {"nms": False} if end_to_end else {}
        written = yolo.export(format="onnx", imgsz=320, simplify=False, **options)
        Path(written).replace(folder / f"{name}.onnx")
    found = Found(rows[:, :4], rows[:, 4], rows[:, 5].long())
    write(folder, name, image, found, threshold, None if inside else OVERLAP)


def yolox(folder: Path, decoded: bool) -> None:
    """Export YOLOX-nano as its export_onnx.py does, with boxes decoded or not."""
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead

    class Plain(nn.Module):
        """The network without the lists of levels that it also returns."""

        def __init__(self) -> None:
            super().__init__()
            backbone = YOLOPAFPN(0.33, 0.25, in_channels=[256, 512, 1024], depthwise=True)
            head = YOLOXHead(80, 0.25, in_channels=[256, 512, 1024], depthwise=True)
            self.network = YOLOX(backbone, head)

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image)

    network, image = Plain().eval(), picture((320, 320), 255.0)
    calibrate(network, image)
    head = network.network.head
    for level in head.reg_preds:
        level.weight.data.mul_(0.1)  # boxes about their cells, as after training
    (rows,) = network(image)
    best, labels = (rows[:, 5:] * rows[:, 4:5]).max(1)
    threshold = above(best, 40)
    centres, sizes = rows[:, :2], rows[:, 2:4]
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    name = "yolox-nano-decoded" if decoded else "yolox-nano"
    write(folder, name, image, by_class(boxes, best, labels, threshold), threshold)
    head.decode_in_inference = decoded
    export(network, image, folder / f"{name}.onnx", ["output"])


def by_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Found:
    """Return what remains above a threshold when boxes of one class are suppressed."""
    passing = scores >= threshold
    boxes, scores, labels = boxes[passing], scores[passing], labels[passing]
    groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    kept = [group[suppressed(boxes[group], scores[group])] for group in groups]
    chosen = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.long)
    return Found(boxes[chosen], scores[chosen], labels[chosen])


def export(network: nn.Module, image: Tensor, path: Path, outputs: list[str]) -> None:
    names = {"input_names": ["image"], "output_names": outputs}
    torch.onnx.export(network, (image,), str(path), dynamo=False, opset_version=17, **names)


def torchvision_detector(folder: Path, name: str, order: list[str]) -> None:
    """Export a detector of torchvision, which prepares images and suppresses boxes itself."""
    from torchvision.models import detection

    network = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=91, score_thresh=0.0
    ).eval()
    image = picture((320, 320))
    calibrate(network, [image[0], picture((320, 320))[0]])
    (found,) = network([image[0]])
    write(folder, name, image, Found(found["boxes"], found["scores"], found["labels"]), 0.0, None)
    export(network, image, folder / f"{name}.onnx", order)


def transformer(folder: Path, name: str) -> None:
    """Export a DETR of Hugging Face, small and random, and decode as its image processor does."""
    import transformers

    queries, size = 60, (256, 320)
    if name == "rt-detr":
        config = transformers.RTDetrConfig(num_labels=80, num_queries=queries, decoder_layers=2,
                                           anchor_image_size=None)  # fmt: skip
        network = transformers.RTDetrForObjectDetection(config)
    elif name == "yolos":
        config = transformers.YolosConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
            image_size=list(size), num_labels=91, num_detection_tokens=queries,
        )  # fmt: skip
        network = transformers.YolosForObjectDetection(config)
    else:
        backbone = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
            layer_type="basic", out_features=["stage4"],
        )  # fmt: skip
        config = transformers.DetrConfig(
            backbone_config=backbone, backbone=None, use_timm_backbone=False,
            use_pretrained_backbone=False, num_labels=91, num_queries=queries, encoder_layers=2,
            decoder_layers=2, d_model=64, encoder_ffn_dim=64, decoder_ffn_dim=64,
        )  # fmt: skip
        network = transformers.DetrForObjectDetection(config)
    network.eval()
    for parameter in network.parameters():
        if parameter.dim() in (2, 3):
            nn.init.normal_(parameter, std=2 / parameter.shape[-1] ** 0.5)
    image = picture(size)
    calibrate(network, image)

    class Plain(nn.Module):
        """The network with logits and boxes alone."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            out = self.network(image)
            return out.logits, out.pred_boxes

    plain = Plain().eval()
    logits, boxes = (each[0] for each in plain(image))
    sigmoid = name == "rt-detr"
    rated = logits.sigmoid() if sigmoid else logits.softmax(-1)[:, :-1]
    best, labels = rated.max(-1)
    threshold = above(best, len(best) // 2)
    passing = best >= threshold
    centres, sizes = boxes[:, :2], boxes[:, 2:]
    corners = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    corners = corners * torch.tensor([size[1], size[0]] * 2)
    found = Found(corners[passing], best[passing], labels[passing])
    write(folder, name, image, found, threshold, None)
    export(plain, image, folder / f"{name}.onnx", ["logits", "pred_boxes"])


def exports(folder: Path) -> dict[str, Callable[[], None]]:
    """Return what writes each detector."""
    found: dict[str, Callable[[], None]] = {
        name: lambda n=name, i=inside: ultralytics(folder, n, i)
        for name, inside in ULTRALYTICS.items()
    }
    found |= {
        "yolox-nano": lambda: yolox(folder, False),
        "yolox-nano-decoded": lambda: yolox(folder, True),
        "ssdlite320_mobilenet_v3_large": lambda: torchvision_detector(
            folder, "ssdlite320_mobilenet_v3_large", ["boxes", "scores", "labels"]
        ),
        "retinanet_resnet50_fpn": lambda: torchvision_detector(
            folder, "retinanet_resnet50_fpn", ["boxes", "scores", "labels"]
        ),
    }
    return found | {n: lambda n=n: transformer(folder, n) for n in ("detr", "rt-detr", "yolos")}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="detectors to export")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    import_torchvision()
    for name, write_detector in exports(folder).items():
        if arguments.only and name not in arguments.only:
            continue
        torch.manual_seed(0)
        try:
            write_detector()
        except Exception as error:  # a library's own failure must not stop the others
            for suffix in (".onnx", ".npz"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
            print(f"{name}: failed: {type(error).__name__}: {error}"[:600], file=sys.stderr)


if __name__ == "__main__":
    main()
