"""The model to use where none is named."""

from __future__ import annotations

import os
from pathlib import Path

from ov_recipro.cut.bundle import MANIFEST, SUFFIX
from ov_recipro.errors import OptionError

MODEL_VARIABLE = "OV_RECIPRO_MODEL"


def default_model() -> Path:
    """Return the model to use where none is named.

    That is `$OV_RECIPRO_MODEL`; else the one bundle in the working directory; else the
    EfficientNet-Lite0 that comes with the package.

    Raises:
        OptionError: there are several bundles in the working directory.
    """
    if named := os.environ.get(MODEL_VARIABLE):
        return Path(named)
    bundles = sorted(p for p in Path().glob(f"*{SUFFIX}") if (p / MANIFEST).is_file())
    if len(bundles) > 1:
        names = ", ".join(map(str, bundles))
        raise OptionError(f"Which model? There are several bundles here: {names}. Choose with -m.")
    return bundles[0] if bundles else bundled_model()


def bundled_model() -> Path:
    """Return the EfficientNet-Lite0 that comes with the package."""
    name = Path("models", "efficientnet-lite0", "efficientnet-lite0.onnx")
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_file() else package.parent / name
