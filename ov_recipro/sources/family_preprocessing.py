"""How the families of detectors expect their images, for files that do not say it."""

from __future__ import annotations

from dataclasses import replace

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.images.preprocess import Preprocessing

_PAD = 114  # the grey of YOLO's training


def family_preprocessing(layout: BoxLayout, size: tuple[int, int]) -> Preprocessing | None:
    """Return how a detector's family prepares images, None where its layout is not a family's.

    Args:
        layout: of its outputs; size: (height, width) of the model's input.
    """
    rgb = Preprocessing(size=size, resize="standard", mean=(0, 0, 0), scale=(255, 255, 255))
    bgr = replace(rgb, scale=(1, 1, 1), channels="BGR")
    ultralytics = replace(rgb, resize="fit_to_window_letterbox", pad_value=_PAD)
    match layout.family:
        case "suppression":
            return None
        case "yolov8" | "yolov5" | "end-to-end" | "efficient-nms":
            name, found = "Ultralytics'", ultralytics
        case "yolox":
            name, found = "YOLOX's", replace(bgr, resize="fit_to_window", pad_value=_PAD)
        case "fastestdet":
            name, found = "FastestDet's", replace(rgb, channels="BGR")
        case "nanodet":
            mean, scale = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
            letterbox = replace(bgr, resize="fit_to_window_letterbox")
            name, found = "NanoDet's", replace(letterbox, mean=mean, scale=scale)
        case "ssd" if layout.classes == 1 and layout.background == "first":
            name, found = "UltraFace's", replace(rgb, mean=(127,) * 3, scale=(128,) * 3)
        case "detr" if layout.activation == "sigmoid":
            name, found = "RT-DETR's", rgb
        case "detr":
            name, found = "DETR's", Preprocessing(size=size, resize="standard")
        case "torchvision":
            name, found = "torchvision's", rgb
        case _:
            name, found = "OpenVINO Model API's", bgr
    return replace(found, source=f"{name} preset for detectors (assumed)")
