"""Convolutions of all channels: one matrix product, then a sum over the taps that reach a pixel."""

from __future__ import annotations

from math import prod

import numpy as np
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, constant, gather, reshape
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.tensors import Rows, differences, plus_background
from ov_recipro.plans.rows.windows import Window


def convolution_macs(read: int, written: int, window: Window, weight: list[int]) -> int:
    """Return the multiply-accumulates of `convolution`.

    Args:
        read: active input pixels; `written`: active output pixels.
        window: its geometry; weight: the weight's shape.
    """
    return (written if window.kernel == (1, 1) else read) * prod(weight)


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
        source = rows.port
        if len(numbers) != rows.count or (numbers != np.arange(rows.count)).any():
            source = gather(source, numbers)
        product = ops.matmul(source, constant(weight.reshape(outputs, channels)), False, True)
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
