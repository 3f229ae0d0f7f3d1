"""Where models and images for tests lie; some may be absent."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import onnx.backend.test

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("OV_RECIPRO_SAMPLES", ROOT.parent / "shared" / "imagenet-sample"))
LITE1 = ROOT / "build" / "efficientnet-lite1" / "efficientnet-lite1.onnx"
SCENE_VIT = ROOT / "tests" / "assets" / "scene-vit"
SCENE_DETECTOR = ROOT / "tests" / "assets" / "scene-detector"
DETECTORS = SHARED.parent / "detectors"
TEXT_MODELS = Path(sysconfig.get_path("purelib")) / "rapidocr" / "models"  # PaddleOCR's
LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
