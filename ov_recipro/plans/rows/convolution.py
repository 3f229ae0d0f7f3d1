"""Convolutions of all channels: one matrix product, then a sum over the taps that reach a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import numpy as np
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, Port, constant, gather, reshape
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.tensors import (
    Rows,
    differences,
    places_in,
    plus_background,
    with_background,
)
from ov_recipro.plans.rows.windows import Window

_CLEARLY_LESS = 0.75  # share of the multiplications below which parts are multiplied apart


def convolution_macs(read: int, written: int, window: Window, weight: list[int]) -> int:
    """Return the multiply-accumulates of `convolution`.

    Args:
        read: active input pixels; `written`: active output pixels.
        window: its geometry; weight: the weight's shape.
    """
    return (written if window.kernel == (1, 1) else read) * prod(weight)


def apart(parts: Sequence[tuple[int, int]], count: int, pixels: int) -> int:
    """Return how many numbers a 1x1 convolution reads if it multiplies joined tensors one by one.

    A part is multiplied at its own active pixels. Where it has none but the whole has some, its
    background is multiplied instead, once for all cells.

    Args:
        parts: the active pixels and channels of each.
        count: active pixels of the whole; pixels: those of one map.

    Returns:
        The number; 0 if that is not clearly less than the whole has.
    """
    read = sum((own + pixels * (own < count)) * channels for own, channels in parts)
    whole = count * sum(channels for _, channels in parts)
    return read if read < _CLEARLY_LESS * whole else 0


def convolution(rows: Rows, window: Window, weight: Array, background: Background) -> Rows:
    """Lower a convolution with weight [O,C,kh,kw].

    A convolution is linear: its output is the background's plus what the active pixels'
    differences from the background add. Each active pixel is multiplied with all taps at once, and
    each active output pixel sums up the products that reach it. Strides, dilations, pads and
    borders only change the tables.
    """
    outputs, channels = weight.shape[:2]
    active = window.reached(rows.active)
    if window.kernel == (1, 1):
        numbers = window.pick(rows.lookup, next(window.taps()), -1)[active]
        matrix = constant(weight.reshape(outputs, channels))
        if len(numbers) == rows.count and (numbers == np.arange(rows.count)).all():
            sizes = [(part.count, part.channels) for part in rows.parts]
            if apart(sizes, rows.count, rows.active[0].size):
                return Rows(_sum_of_products(rows, matrix), active, background)
            source = rows.port
        else:
            source = gather(rows.port, numbers)
        product = ops.matmul(source, matrix, False, True)
        return Rows(product.output(0), active, background)
    taps = window.kernel[0] * window.kernel[1]
    # transposed in the graph, so that a model with the same weights can share them
    by_tap = ops.transpose(constant(weight), constant([2, 3, 0, 1], np.int32)).output(0)
    matrix = reshape(by_tap, [taps * outputs, channels])
    products = ops.matmul(differences(rows), matrix, False, True).output(0)
    products = reshape(products, [rows.count * taps, outputs])
    numbers = np.stack([window.pick(rows.lookup, tap, -1)[active] for tap in window.taps()], 1)
    used = numbers >= 0
    bags = (numbers * taps + np.arange(taps))[used]
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))[:-1]])
    sums = ops.embedding_bag_offsets_sum(
        products, constant(bags, np.int32), constant(offsets, np.int32)
    ).output(0)
    return Rows(plus_background(sums, background, active), active, background)


def _sum_of_products(rows: Rows, matrix: Port) -> Port:
    """Return the product [P,O] of joined rows and a matrix [O,C], summed over their parts."""
    lengths = constant([part.channels for part in rows.parts], np.int64)
    matrices = ops.variadic_split(matrix, constant(1, np.int64), lengths).outputs()
    products = []
    for part, own in zip(rows.parts, matrices, strict=True):
        table = part.port if part.count == rows.count else with_background(part)
        product = ops.matmul(table, own, False, True).output(0)
        # even where that moves nothing: OpenVINO 2026.4 can make an addition part of a product,
        # and then fails to compile some graphs
        products.append(gather(product, places_in(part.lookup, rows.active, part.count)))
    return reduce(lambda one, other: ops.add(one, other).output(0), products)
