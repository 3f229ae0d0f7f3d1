"""The rows that a tail starts from: what a mask leaves of the feature maps it works on."""

from __future__ import annotations

import numpy as np
from openvino import opset13 as ops

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import Port, constant, gather
from ov_recipro.plans.rows.backgrounds import Background, FixedBackground, ImageBackground
from ov_recipro.plans.rows.blocks import Block
from ov_recipro.plans.rows.tensors import Rows
from ov_recipro.plans.stream import Mask


def seeds(feature: Port, cells: Cells, mask: Mask, block: Block | None = None) -> Rows:
    """Return a feature map [1,C,h,w] under each cell's mask, as rows.

    A pixel is active where some of it lies in the cell. Under "cell" it keeps this share, over
    zeros; under "drop" it loses it, over the map itself.

    Args:
        feature: the map; cells: those of the cut, which cover what the map covers.
        mask: "cell" or "drop".
        block: which cells; all by default.
    """
    of_map = ImageBackground(feature)
    channels, height, width = of_map.shape
    rows, columns = cells.shares((height, width))
    if block is not None:
        rows, columns = rows[block.rows], columns[block.columns]
    shares = np.einsum("uy,vx->uvyx", rows, columns).reshape(-1, height, width)
    active = shares > 0
    kept = shares[active]
    background: Background = of_map
    if mask == "drop":
        kept = 1 - kept
    else:
        background = FixedBackground(np.zeros((1, *of_map.shape), np.float32))
    if not kept.any():
        return Rows(constant(np.zeros((len(kept), channels))), active, background)
    pixels = np.flatnonzero(active) % (height * width)
    port = of_map.table
    if len(pixels) != height * width or (pixels != np.arange(height * width)).any():
        port = gather(port, pixels)
    if (kept != 1).any():
        port = ops.multiply(port, constant(kept[:, None])).output(0)
    return Rows(port, active, background)
