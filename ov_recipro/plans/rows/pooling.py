"""Where the spatial axes end: global average pools, and linear layers on flattened maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, Port, constant, gather, reshape
from ov_recipro.plans.rows.backgrounds import Background, FixedBackground, ImageBackground
from ov_recipro.plans.rows.tensors import PerCell, Rows, differences, summed_per_cell


def global_average(rows: Rows, background: Background) -> PerCell:
    """Lower a mean over all pixels to [N,...], as `background` [...] is over those of one map.

    Over constants it is the rows' sum, and the constants' elsewhere; over the image's own values
    it is the image's mean, and the sum of what differs from it.
    """
    cells, height, width = rows.active.shape
    values = rows.port if isinstance(rows.background, FixedBackground) else differences(rows)
    sums = summed_per_cell(values, rows.positions[0], cells)
    # OpenVINO would move a single number up to the feature map, where it loses its precision
    share = np.full((cells, 1), 1 / (height * width))
    means = ops.multiply(sums, constant(share)).output(0)
    if isinstance(background, ImageBackground):
        means = ops.add(means, reshape(background.port, [1, rows.channels])).output(0)
    elif isinstance(rows.background, FixedBackground) and not rows.background.is_zero:
        table = rows.background.by_pixel.astype(np.float64)
        inactive = ~rows.active.reshape(cells, -1)
        means = ops.add(means, constant(inactive @ table / (height * width))).output(0)
    return PerCell(reshape(means, [cells, *background.shape]))


def flattened_linear(node: ov.Node) -> ov.Node | None:
    """Return the one linear layer that reads a Flatten [1,C,H,W] -> [1,C*H*W]; else None."""
    source = node.input_value(0).shape
    flat = [1, int(np.prod(list(source)))]
    if node.get_type_name() != "Reshape" or len(source) != 4 or list(node.output(0).shape) != flat:
        return None
    readers = [port.get_node() for port in node.output(0).get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "MatMul":
        return None
    is_plain = len(readers[0].input_value(1).shape) == 2
    return readers[0] if is_plain and not readers[0].get_attributes()["transpose_a"] else None


def flat_linear_macs(counts: npt.NDArray[np.int64], weight: int) -> int:
    """Return the multiply-accumulates of `flat_linear`.

    Args:
        counts: cells at which a pixel is active, [H,W].
        weight: number of the layer's weights.
    """
    return int((counts > 0).sum()) * int(counts.max()) * weight // counts.size


def flat_linear(
    rows: Rows, weight: Array, background: Background, unmasked: Port | None
) -> PerCell:
    """Lower Flatten and MatMul with weight [C*H*W,O]; `background` [O] is their output on it.

    Each pixel has its own slice of the weight, so the rows are sorted by pixel and multiplied in
    one batched product; then each cell sums up its own. `unmasked` [1,C*H*W], the flattened map
    without a mask, is treated as one more cell whose pixels are all active. Where that map is the
    background itself, it always is one more, and its sum is what the others are added to.
    """
    channels, outputs = rows.channels, weight.shape[1]
    cells, pixels = rows.positions
    table, count = differences(rows), len(rows.active)
    places, whole = rows.active[0].size, None
    if isinstance(rows.background, ImageBackground):
        whole = rows.background.table
    elif unmasked is not None:
        map_rows = ops.transpose(reshape(unmasked, [channels, places]), constant([1, 0], np.int32))
        whole = ops.subtract(map_rows, rows.background.table).output(0)
    if whole is not None:
        table = ops.concat([table, whole], 0).output(0)
        cells = np.concatenate([cells, np.full(places, count)])
        pixels = np.concatenate([pixels, np.arange(places)])
        count += 1
    used, inverse, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    longest = int(counts.max())
    order = np.argsort(inverse, kind="stable")
    slot = np.empty(len(pixels), np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    slot[order] = np.arange(len(pixels)) - starts[inverse[order]]
    numbers = np.zeros((len(used), longest), np.int64)
    numbers[inverse, slot] = np.arange(len(pixels))
    slices = weight.reshape(channels, -1, outputs).transpose(1, 0, 2)[used]
    products = ops.matmul(gather(table, numbers), constant(slices), False, False)
    products = reshape(products.output(0), [len(used) * longest, outputs])
    sums = summed_per_cell(gather(products, inverse * longest + slot), cells, count)
    if isinstance(background, FixedBackground):
        added = constant(background.values.reshape(1, -1))
    else:
        others = np.ones((count, 1))
        others[-1] = 0  # the map itself is the last
        added = ops.multiply(constant(others), gather(sums, np.array([count - 1]))).output(0)
    return PerCell(ops.add(sums, added).output(0), whole is not None)
