"""The zoo's transformers: shrunk where that leaves the structure as it is.

`export_zoo.py` exports them. Their libraries are imported when a network is built, because
torchvision, which timm imports, loads only after `export_zoo.import_torchvision`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Size = tuple[int, int]  # height, width
Builder = Callable[[Size], torch.nn.Module]
CLASSES = 100
SHRUNK = {"embed_dim": 64, "depth": 4, "num_heads": 4}
HF_SHRUNK = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
SWIN = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}


class Transformer(NamedTuple):
    """What builds a transformer for an image size, and the size that the zoo uses."""

    build: Builder
    size: Size = (96, 96)


def of_timm(name: str, fused: bool = True, **options: Any) -> Builder:
    """Return the builder of timm's model `name`; unless `fused`, attention is spelled out."""

    def build(size: Size) -> torch.nn.Module:
        import timm

        timm.layers.set_fused_attn(fused)
        try:
            return timm.create_model(name, num_classes=CLASSES, img_size=size, **options)
        finally:
            timm.layers.set_fused_attn(True)

    return build


def shrunk(name: str, **options: Any) -> Builder:
    return of_timm(name, **SHRUNK, **options)


def of_any_size(name: str, **options: Any) -> Builder:
    """Return the builder of timm's model `name`, whose constructor takes no size."""

    def build(_size: Size) -> torch.nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return build


def parallel(size: Size) -> torch.nn.Module:
    """Build a ViT whose attention and MLP read the same normalised tokens."""
    from timm.models.vision_transformer import ParallelScalingBlock

    return shrunk("vit_tiny_patch16_224", block_fn=ParallelScalingBlock)(size)


def mixer(size: Size) -> torch.nn.Module:
    """Build an MLP-Mixer; the constructors of timm's own fix its width."""
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(CLASSES, size, embed_dim=64, num_blocks=4)


def of_torchvision(size: Size) -> torch.nn.Module:
    """Build torchvision's ViT, whose attention is `torch.nn.MultiheadAttention`."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(size[0], 16, 4, 4, 64, 256, num_classes=CLASSES)


class Logits(torch.nn.Module):
    """A classifier of Hugging Face that returns its logits alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits [N,classes] of images [N,3,H,W]."""
        return self.model(image).logits


def of_hf(
    family: str, head: str = "ForImageClassification", attention: str | None = None, **options: Any
) -> Builder:
    """Return the builder of Hugging Face's classifier of `family`.

    Args:
        family: as in the names of its classes, such as ``ViT``.
        head: what follows the family in the name of the classifier's class.
        attention: ``eager`` or ``sdpa``; the library's choice by default.
        options: fields of the configuration.
    """

    def build(size: Size) -> torch.nn.Module:
        import transformers

        vision = {"image_size": size[0], **options}
        if family in ("CLIP", "Siglip"):  # these two configure a text model as well
            vision = {"vision_config": vision}
        config = getattr(transformers, f"{family}Config")(
            num_labels=CLASSES, attn_implementation=attention, **vision
        )
        return Logits(getattr(transformers, family + head)(config))

    return build


def shrunk_hf(family: str, patch: int = 16, **options: Any) -> Builder:
    return of_hf(family, patch_size=patch, **HF_SHRUNK, **options)


TRANSFORMERS = {
    # Attention that knows a token's place by its position embedding alone.
    "vit": Transformer(shrunk("vit_tiny_patch16_224")),
    "vit_unfused": Transformer(shrunk("vit_tiny_patch16_224", fused=False)),
    "vit_nonsquare": Transformer(shrunk("vit_tiny_patch16_224"), (96, 160)),
    "vit_torchvision": Transformer(of_torchvision),
    "vit_gap": Transformer(shrunk("vit_tiny_patch16_224", global_pool="avg", class_token=False)),
    "vit_gap_class_token": Transformer(shrunk("vit_tiny_patch16_224", global_pool="avg")),
    "vit_post_norm": Transformer(shrunk("vit_base_patch16_rpn_224")),
    "vit_qk_norm": Transformer(shrunk("vit_tiny_patch16_224", qk_norm=True, init_values=0.1)),
    "vit_parallel": Transformer(parallel),
    "deit": Transformer(shrunk("deit_tiny_patch16_224")),
    "deit_distilled": Transformer(shrunk("deit_tiny_distilled_patch16_224")),
    "deit3": Transformer(shrunk("deit3_small_patch16_224")),
    "dinov2": Transformer(shrunk("vit_small_patch14_dinov2"), (98, 98)),
    "dinov2_registers": Transformer(shrunk("vit_small_patch14_reg4_dinov2"), (98, 98)),
    "clip": Transformer(shrunk("vit_base_patch16_clip_224")),
    "siglip": Transformer(shrunk("vit_base_patch16_siglip_224")),
    # Relative or rotary positions, talking heads, convolutions, or weights for each place.
    "beit": Transformer(shrunk("beit_base_patch16_224")),
    "beit_unfused": Transformer(shrunk("beit_base_patch16_224", fused=False)),
    "eva02": Transformer(shrunk("eva02_tiny_patch14_224"), (98, 98)),
    "eva02_unfused": Transformer(shrunk("eva02_tiny_patch14_224", fused=False), (98, 98)),
    "dinov3": Transformer(shrunk("vit_small_patch16_dinov3")),
    "dinov3_unfused": Transformer(shrunk("vit_small_patch16_dinov3", fused=False)),
    "cait": Transformer(shrunk("cait_xxs24_224")),
    "xcit": Transformer(shrunk("xcit_nano_12_p16_224")),
    "mixer": Transformer(mixer),
    # Feature maps with height and width, between the blocks or in front of them.
    "swin": Transformer(of_timm("swin_tiny_patch4_window7_224", **SWIN), (224, 224)),
    "maxvit": Transformer(
        of_timm("maxvit_tiny_tf_224", stem_width=32, embed_dim=(32, 64, 96, 128), depths=(1,) * 4),
        (224, 224),
    ),
    "pvt_v2": Transformer(of_any_size("pvt_v2_b0")),
    "levit": Transformer(of_timm("levit_128s", depth=(1, 1, 1)), (224, 224)),
    "levit_conv": Transformer(of_timm("levit_conv_128s", depth=(1, 1, 1)), (224, 224)),
    # Hugging Face's own.
    "hf_vit_eager": Transformer(shrunk_hf("ViT", attention="eager")),
    "hf_vit_sdpa": Transformer(shrunk_hf("ViT", attention="sdpa")),
    "hf_deit_distilled": Transformer(shrunk_hf("DeiT", head="ForImageClassificationWithTeacher")),
    "hf_dinov2": Transformer(shrunk_hf("Dinov2", patch=14, mlp_ratio=4), (98, 98)),
    "hf_dinov2_registers": Transformer(shrunk_hf("Dinov2WithRegisters", patch=14), (98, 98)),
    "hf_clip": Transformer(shrunk_hf("CLIP")),
    "hf_siglip": Transformer(shrunk_hf("Siglip")),
    "hf_beit": Transformer(shrunk_hf("Beit", use_relative_position_bias=True)),
    "hf_beit_eager": Transformer(
        shrunk_hf("Beit", use_relative_position_bias=True, attention="eager")
    ),
    "hf_swin": Transformer(of_hf("Swin", window_size=7, **SWIN), (224, 224)),
}

_SCALES = re.compile(r"gamma|lambda")
_TABLES = re.compile(r"(token|embed|embedding)s?$|latent|probe|biases|bias_table")
_ATTENTION = re.compile(r"qkv|in_proj|query|key|value|\.(q|k|v|kv)(_proj)?\.")


def imitate_training(network: torch.nn.Module, size: Size) -> None:
    """Give a transformer random parameters, as large as training leaves them.

    Constructors set positions, extra tokens, biases, LayerScale and often the classifier to zero,
    to one or close to it, and attention starts almost uniform: an error in handling any of them
    would not show. The affine parameters of normalisation layers stay as they are; batch
    normalisation gets the statistics of random images.
    """
    generator = torch.Generator().manual_seed(1)
    for prefix, module in network.named_modules():
        if "Norm" in type(module).__name__:
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if _SCALES.match(leaf):
                value = 0.5 + 0.2 * noise
            elif leaf == "temperature":
                value = 1 + 0.3 * noise
            elif _TABLES.search(leaf) or isinstance(module, torch.nn.Embedding):
                value = 0.7 * noise
            elif parameter.ndim == 1:
                value = 0.2 * noise
            else:
                gain = 2 if _ATTENTION.search(f"{prefix}.{leaf}") else 1.3
                value = gain / parameter[0].numel() ** 0.5 * noise
            parameter.data.copy_(value)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # the next batch's statistics replace the old ones
            module.train()
    with torch.no_grad():
        network(torch.randn(8, 3, *size, generator=generator))
    network.eval()
