"""Where the spatial axes end: global average pools, and linear layers on flattened maps."""

from __future__ import annotations

import numpy as np
from openvino import opset13 as ops

from ov_recipro.plans.rows.tensors import (
    Array,
    PerCell,
    Port,
    Rows,
    constant,
    differences,
    gather,
    reshape,
    summed_per_cell,
)


def global_average(rows: Rows, shape: list[int]) -> PerCell:
    """Lower a mean over all pixels to [N, ...shape]: the background's, plus the differences'."""
    cells, height, width = rows.active.shape
    sums = summed_per_cell(differences(rows), rows.positions[0], cells)
    means = ops.multiply(sums, constant([1 / (height * width)]))
    means = ops.add(means, constant(rows.background.mean(axis=(1, 2), dtype=np.float64)[None]))
    return PerCell(reshape(means.output(0), [cells, *shape]))


def flat_linear_macs(rows: Rows, weight: Array) -> int:
    """Return the multiply-accumulates of `flat_linear`."""
    _, pixels = rows.positions
    used, counts = np.unique(pixels, return_counts=True)
    return len(used) * int(counts.max()) * len(rows.background) * int(weight.shape[1])


def flat_linear(rows: Rows, weight: Array, background: Array, unmasked: Port | None) -> PerCell:
    """Lower Flatten and MatMul with weight [C*H*W,O]; `background` [O] is their answer to zeros.

    Each pixel has its own slice of the weight, so the rows are sorted by pixel and multiplied in
    one batched product; then each cell sums up its own. `unmasked` [1,C*H*W], the flattened map
    without a mask, goes along as one more cell whose pixels are all active.
    """
    channels, outputs = len(rows.background), weight.shape[1]
    cells, pixels = rows.positions
    table, count = differences(rows), len(rows.active)
    if unmasked is not None:
        places = rows.background[0].size
        map_rows = ops.transpose(reshape(unmasked, [channels, places]), constant([1, 0], np.int32))
        change = ops.subtract(map_rows, constant(rows.background_table))
        table = ops.concat([table, change], 0).output(0)
        cells = np.concatenate([cells, np.full(places, count)])
        pixels = np.concatenate([pixels, np.arange(places)])
        count += 1
    used, inverse, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    most = int(counts.max())
    order = np.argsort(inverse, kind="stable")
    slot = np.empty(len(pixels), np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    slot[order] = np.arange(len(pixels)) - starts[inverse[order]]
    numbers = np.zeros((len(used), most), np.int64)
    numbers[inverse, slot] = np.arange(len(pixels))
    slices = weight.reshape(channels, -1, outputs).transpose(1, 0, 2)[used]
    products = ops.matmul(gather(table, numbers), constant(slices), False, False)
    products = reshape(products.output(0), [len(used) * most, outputs])
    sums = summed_per_cell(gather(products, inverse * most + slot), cells, count)
    sums = ops.add(sums, constant(background.reshape(1, -1))).output(0)
    return PerCell(sums, unmasked is not None)
