"""Export many architectures with randomised weights, as people's exporters do.

Weights AND batch-norm statistics are random: a network fresh from its constructor gives exactly
zero on a zero input, and would hide every error about what masked cells become. Run it in the
environment of ``tools/export-requirements.txt``:

    python tools/export_zoo.py build/zoo
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

TORCHVISION = {
    "alexnet": 224,
    "resnet18": 96,
    "resnet50": 96,
    "resnext50_32x4d": 96,
    "densenet121": 96,
    "squeezenet1_1": 96,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 96,
    "efficientnet_b0": 96,
    "googlenet": 96,
    "inception_v3": 139,
    "mnasnet1_0": 96,
    "regnet_y_400mf": 96,
    "shufflenet_v2_x1_0": 96,
    "convnext_tiny": 96,
    "swin_t": 224,
    "vit_b_16": 224,
}
TIMM = {
    "hrnet_w18_small": 96,
    "dla34": 96,
    "dpn68": 96,
    "ghostnet_100": 96,
    "repvgg_a0": 96,
    "res2net50_26w_4s": 96,
    "resnest14d": 96,
    "resnetv2_50": 96,
    "nf_resnet26": 96,
    "legacy_seresnet18": 96,
    "cspresnet50": 96,
    "rexnet_100": 96,
    "gernet_s": 96,
    "ese_vovnet19b_dw": 96,
    "xception41": 96,
    "lcnet_050": 96,
    "mobileone_s0": 96,
    "poolformer_s12": 96,
    "mobilevit_xs": 128,
    "edgenext_xx_small": 96,
    "efficientformer_l1": 224,
    "coatnet_nano_rw_224": 224,
    "deit_tiny_patch16_224": 224,
    "mixer_s16_224": 224,
}
EXPORTERS = ("torchscript", "torchscript-dynamic", "dynamo", "dynamo-dynamic")


def randomise(network: torch.nn.Module) -> None:
    """Give normalisation layers statistics and affine parameters as after training."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.6, 1.4)
        if type(module).__name__.endswith(("Norm", "Norm2d", "BatchNorm2d", "BatchNormAct2d")):
            if getattr(module, "weight", None) is not None:
                uniform(module.weight, 0.7, 1.3)
            if getattr(module, "bias", None) is not None:
                uniform(module.bias, -0.3, 0.3)


def import_torchvision() -> object:
    """Import torchvision, whose compiled operators the CPU build of torch lacks."""
    library = torch.library.Library("torchvision", "DEF")
    forward = ("nms", "qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool", "ps_roi_pool")
    pooled = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
    for name in (*forward, "deform_conv2d", *(f"_{name}_backward" for name in pooled)):
        library.define(f"{name}(Tensor x) -> Tensor")
    import torchvision

    torchvision.keep_alive = library
    return torchvision


def builders() -> dict[str, tuple[Callable[[], torch.nn.Module], int]]:
    """Return each architecture's constructor and image size."""
    torchvision = import_torchvision()
    import timm  # imports torchvision in its turn

    made: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {}
    for name, size in TORCHVISION.items():
        more = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        constructor = getattr(torchvision.models, name)
        made[name] = (lambda c=constructor, m=more: c(weights=None, num_classes=100, **m), size)
    for name, size in TIMM.items():
        made[name] = (lambda n=name: timm.create_model(n, num_classes=100), size)
    return made


def export(network: torch.nn.Module, size: int, exporter: str, path: Path) -> None:
    """Write `network` with one of the four ways of PyTorch's two exporters."""
    image = torch.randn(1, 3, size, size)
    common = {"input_names": ["image"], "output_names": ["scores"], "verbose": False}
    if exporter.startswith("torchscript"):
        free = {"image": {0: "N"}, "scores": {0: "N"}} if exporter.endswith("dynamic") else None
        torch.onnx.export(network, (image,), str(path), dynamo=False, opset_version=17,
                          dynamic_axes=free, **common)  # fmt: skip
    elif exporter == "dynamo":
        torch.onnx.export(network, (image,), str(path), dynamo=True, external_data=False, **common)
    else:
        pair = torch.cat([image, image])
        shapes = ({0: torch.export.Dim("N")},)
        torch.onnx.export(network, (pair,), str(path), dynamo=True, external_data=False,
                          dynamic_shapes=shapes, **common)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="architectures to export")
    parser.add_argument("--size", type=int, help="image size, instead of each one's own")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, (build, size) in builders().items():
        if arguments.only and name not in arguments.only:
            continue
        torch.manual_seed(0)
        network = build().eval()
        randomise(network)
        for exporter in EXPORTERS:
            path = arguments.folder / f"{name}.{exporter}.onnx"
            size = arguments.size or size
            started = time.time()
            try:
                export(network, size, exporter, path)
                print(f"{path.name}: {time.time() - started:.1f} s", flush=True)
            except Exception as error:  # the exporter's own failure is a row of the table
                path.unlink(missing_ok=True)
                path.with_suffix(".failed").write_text(type(error).__name__)
                print(f"{path.name}: failed: {type(error).__name__}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
