"""ov-recipro: saliency maps for vision models that exist only as files.

Implements Recipro-CAM (Byun & Lee, "Recipro-CAM: Gradient-free reciprocal class activation map",
2023) for ONNX and OpenVINO models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ov_recipro.cut.bundle import Bundle, open_bundle
    from ov_recipro.embedding import embed
    from ov_recipro.errors import (
        CrashError,
        DeviceError,
        ImageError,
        ModelError,
        OptionError,
        ReciproError,
        TargetError,
    )
    from ov_recipro.explainer import Explainer
    from ov_recipro.explanation import Explanation, Prediction, Target
    from ov_recipro.faithfulness.verification import Verification, verify
    from ov_recipro.images.drawing import Style
    from ov_recipro.images.preprocess import Preprocessing
    from ov_recipro.methods import Subject
    from ov_recipro.options import Cut, Running, Targets
    from ov_recipro.splitting.split import split

__all__ = [
    "Bundle",
    "CrashError",
    "Cut",
    "DeviceError",
    "Explainer",
    "Explanation",
    "ImageError",
    "ModelError",
    "OptionError",
    "Prediction",
    "Preprocessing",
    "ReciproError",
    "Running",
    "Style",
    "Subject",
    "Target",
    "TargetError",
    "Targets",
    "Verification",
    "embed",
    "open_bundle",
    "split",
    "verify",
]

_HOMES = {
    "CrashError": "errors",
    "Cut": "options",
    "DeviceError": "errors",
    "ImageError": "errors",
    "ModelError": "errors",
    "OptionError": "errors",
    "Running": "options",
    "Style": "images.drawing",
    "TargetError": "errors",
    "Targets": "options",
    "Bundle": "cut.bundle",
    "Explainer": "explainer",
    "Explanation": "explanation",
    "Prediction": "explanation",
    "Preprocessing": "images.preprocess",
    "ReciproError": "errors",
    "Subject": "methods",
    "Target": "explanation",
    "Verification": "faithfulness.verification",
    "embed": "embedding",
    "open_bundle": "cut.bundle",
    "split": "splitting.split",
    "verify": "faithfulness.verification",
}


_OLD_MODULES = {"draw": "images.drawing"}  # names that earlier documentation gave


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command line starts without the runtimes."""
    if name in _OLD_MODULES:
        return import_module(f"ov_recipro.{_OLD_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'ov_recipro' has no attribute '{name}'")
    return getattr(import_module(f"ov_recipro.{_HOMES[name]}"), name)
