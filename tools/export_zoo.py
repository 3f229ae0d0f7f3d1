"""Export many architectures with randomised weights, as people's exporters do.

Weights AND batch-norm statistics are random: a network fresh from its constructor gives exactly
zero on a zero input, and would hide every error about what masked cells become. The transformers
are in `export_transformers.py`. Run it in the environment of ``tools/export-requirements.txt``:

    python tools/export_zoo.py build/zoo
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from export_transformers import TRANSFORMERS, Builder, Size, imitate_training

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
}
EXPORTERS = ("torchscript", "torchscript-dynamic", "dynamo", "dynamo-dynamic")
OF_TRANSFORMERS = (*EXPORTERS, "dynamo-23")  # opset 23 has attention as one operator


def randomise(network: torch.nn.Module) -> None:
    """Give normalisation layers statistics and affine parameters as after training."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.6, 1.4)
        if type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "BatchNormAct2d")):
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


def builders() -> dict[str, tuple[Builder, Size]]:
    """Return each architecture's constructor and image size."""
    torchvision = import_torchvision()
    import timm  # imports torchvision in its turn

    made: dict[str, tuple[Builder, Size]] = {}
    for name, size in TORCHVISION.items():
        more = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        constructor = getattr(torchvision.models, name)
        made[name] = (
            lambda _size, c=constructor, m=more: c(weights=None, num_classes=100, **m),
            (size, size),
        )
    for name, size in TIMM.items():
        made[name] = (lambda _size, n=name: timm.create_model(n, num_classes=100), (size, size))
    return made | TRANSFORMERS


def export(network: torch.nn.Module, size: Size, exporter: str, path: Path) -> None:
    """Write `network` with one of the ways of PyTorch's two exporters."""
    image = torch.randn(1, 3, *size)
    common = {"input_names": ["image"], "output_names": ["scores"], "verbose": False}
    if exporter.startswith("torchscript"):
        free = {"image": {0: "N"}, "scores": {0: "N"}} if exporter.endswith("dynamic") else None
        torch.onnx.export(network, (image,), str(path), dynamo=False, opset_version=17,
                          dynamic_axes=free, **common)  # fmt: skip
    elif exporter == "dynamo-dynamic":
        pair = torch.cat([image, image])
        shapes = ({0: torch.export.Dim("N")},)
        torch.onnx.export(network, (pair,), str(path), dynamo=True, external_data=False,
                          dynamic_shapes=shapes, **common)  # fmt: skip
    else:
        opset = 23 if exporter == "dynamo-23" else None
        torch.onnx.export(network, (image,), str(path), dynamo=True, external_data=False,
                          opset_version=opset, **common)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="architectures to export")
    parser.add_argument("--size", type=int, help="image size, instead of each one's own")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, (build, own_size) in builders().items():
        if arguments.only and name not in arguments.only:
            continue
        size = (arguments.size, arguments.size) if arguments.size else own_size
        torch.manual_seed(0)
        network = build(size).eval()
        randomise(network)
        if name in TRANSFORMERS:
            imitate_training(network, size)
        for exporter in OF_TRANSFORMERS if name in TRANSFORMERS else EXPORTERS:
            path = arguments.folder / f"{name}.{exporter}.onnx"
            started = time.time()
            try:
                export(network, size, exporter, path)
                print(f"{path.name}: {time.time() - started:.1f} s", flush=True)
            except Exception as error:  # the exporter's own failure is a row of the table
                path.unlink(missing_ok=True)
                reason = f"{type(error).__name__}: {error}"
                path.with_suffix(".failed").write_text(f"{reason}\n")
                print(f"{path.name}: failed: {reason[:300]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
