"""Methods that need nothing of a model but its scores for images with hidden parts.

They need no cut, so they explain models that have none, such as detectors that suppress overlapping
boxes themselves, two-stage detectors and DETR.
"""

from __future__ import annotations

from ov_recipro.black_boxes.hidden_patches import occlusion
from ov_recipro.black_boxes.masked_image import Attribution, MaskedImage, Progress, Run
from ov_recipro.black_boxes.moving_windows import aise
from ov_recipro.black_boxes.random_masks import d_rise, rise

__all__ = ["Attribution", "MaskedImage", "Progress", "Run", "aise", "d_rise", "occlusion", "rise"]
