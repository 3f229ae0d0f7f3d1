"""Grouped convolutions and pools: the native operation on each cell's small window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from ov_recipro.plans.nodes import Array, Port, constant, gather, reshape
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.tensors import (
    Indices,
    Mask,
    Rows,
    differences,
    plus_background,
    with_background,
)
from ov_recipro.plans.rows.windows import Window

_SATURATED = 0.95  # windows of this share of the map save nothing
_PRODUCTS = 1.5  # what products cost, for as many pixels, as they pass through memory
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Patch:
    """A window of one size around each cell's active output pixels.

    Attributes:
        active: the active output pixels, [N,H',W'].
        top, left: the window's place for each cell, [N] each; size: its height and width.
    """

    active: Mask
    top: Indices
    left: Indices
    size: tuple[int, int]


def patch_of(rows: Rows, window: Window) -> Patch:
    """Return the smallest windows that hold what the active pixels reach."""
    active = window.reached(rows.active)
    not_empty = np.asarray(active.any(axis=(1, 2)))
    top, height = extent(np.asarray(active.any(axis=2)), not_empty)
    left, width = extent(np.asarray(active.any(axis=1)), not_empty)
    return Patch(active, top, left, (height, width))


def extent(lines: Mask, not_empty: Mask) -> tuple[Indices, int]:
    """Return where each cell's window over its active lines [N,n] begins, and its length."""
    begin = lines.argmax(axis=1)
    end = lines.shape[1] - lines[:, ::-1].argmax(axis=1)
    length = int((end - begin)[not_empty].max()) if not_empty.any() else 1
    return np.where(not_empty, np.minimum(begin, lines.shape[1] - length), 0), length


def is_saturated(size: Sequence[int], window: Window, active: int, pixels: int) -> bool:
    """Whether windows of this size save nothing over the whole map.

    Args:
        size: of the windows.
        window: geometry of the operation.
        active: active input pixels of all cells; `pixels`: all input pixels of all cells.
    """
    share = size[0] * size[1] / (window.target[0] * window.target[1])
    return share >= _SATURATED and active >= 0.8 * pixels


def are_cheaper(size: Sequence[int], read: int, cells: int) -> bool:
    """Whether windows of this size are cheaper than a product of each active pixel and each tap.

    Args:
        size: of the windows; read: active input pixels of all cells; cells: their number.
    """
    return cells * size[0] * size[1] <= _PRODUCTS * read


def grouped_convolution(
    node: ov.Node, rows: Rows, window: Window, patch: Patch, background: Background
) -> Rows:
    """Lower a grouped convolution: linear, so the windows hold differences from the background."""
    patches = _difference_patches(rows, window, patch)
    weight = node.input_value(1)
    attributes = {**node.get_attributes(), "pads_begin": [0, 0], "pads_end": [0, 0],
                  "auto_pad": "explicit"}  # fmt: skip
    factory = NodeFactory(node.get_type_info().version_id)
    result = factory.create(node.get_type_name(), [patches, weight], attributes).output(0)
    port = _active_rows(result, patch, background.shape[0])
    return Rows(plus_background(port, background, patch.active), patch.active, background)


def windowed_convolution(
    node: ov.Node, rows: Rows, window: Window, patch: Patch, background: Background
) -> Rows:
    """Lower a convolution, grouped or not, on windows that hold the values themselves.

    That costs what the same pixels of a map would, and no sums of products in memory; but pixels
    of the background are multiplied too.
    """
    height, width = window.source
    attributes = node.get_attributes()
    if rows.count == rows.active.size and patch.size == window.target:
        maps = reshape(rows.port, [len(rows.active), height, width, rows.channels])
        windows = ops.transpose(maps, constant([0, 3, 1, 2], np.int32)).output(0)
    else:
        table = _with_row(with_background(rows), np.zeros(rows.channels))
        inactive = rows.count + np.arange(height * width).reshape(height, width)
        windows = _gathered(rows, window, patch, table, inactive, rows.count + height * width)
        attributes |= {"pads_begin": [0, 0], "pads_end": [0, 0], "auto_pad": "explicit"}
    factory = NodeFactory(node.get_type_info().version_id)
    made = factory.create(node.get_type_name(), [windows, node.input_value(1)], attributes)
    port = _active_rows(made.output(0), patch, background.shape[0])
    return Rows(port, patch.active, background)


def depthwise_once(
    rows: Rows, window: Window, weight: Array, background: Background
) -> Rows | None:
    """Lower a depthwise convolution with weight [C,1,1,kh,kw] whose outputs see one row each.

    That is so right behind the cut, where a cell has one active pixel: each output is that row's
    difference from the background, times one tap. None where an output sees more.
    """
    active = window.reached(rows.active)
    numbers = np.stack([window.pick(rows.lookup, tap, -1)[active] for tap in window.taps()], 1)
    used = numbers >= 0
    if not (used.sum(axis=1) == 1).all():
        return None
    tap = used.argmax(axis=1)
    source = gather(differences(rows), numbers[np.arange(len(tap)), tap])
    by_tap = constant(weight.reshape(rows.channels, -1).T)
    port = ops.multiply(source, gather(by_tap, tap)).output(0)
    return Rows(plus_background(port, background, active), active, background)


def average_pool(
    rows: Rows, window: Window, patch: Patch, background: Background, divisors: Array
) -> Rows:
    """Lower an average pool; `divisors` [H',W'] are the pixel counts that it divides by."""
    patches = _difference_patches(rows, window, patch)
    pooled = ops.avg_pool(
        patches, list(window.stride), [0, 0], [0, 0], list(window.kernel), False, "floor"
    ).output(0)
    port = _active_rows(pooled, patch, background.shape[0])
    pixels = np.flatnonzero(patch.active) % divisors.size
    factors = window.kernel[0] * window.kernel[1] / divisors.reshape(-1)[pixels]
    port = ops.multiply(port, constant(factors[:, None])).output(0)
    return Rows(plus_background(port, background, patch.active), patch.active, background)


def max_pool(rows: Rows, window: Window, patch: Patch, background: Background) -> Rows:
    """Lower a max pool: not linear, so the windows hold the values themselves."""
    table = _with_row(with_background(rows), np.full(rows.channels, _LOWEST))
    height, width = window.source
    inactive = rows.count + np.arange(height * width).reshape(height, width)
    patches = _gathered(rows, window, patch, table, inactive, rows.count + height * width)
    pooled = ops.max_pool(
        patches, list(window.stride), list(window.dilation), [0, 0], [0, 0],
        list(window.kernel), "floor",
    ).output(0)  # fmt: skip
    return Rows(_active_rows(pooled, patch, background.shape[0]), patch.active, background)


def _difference_patches(rows: Rows, window: Window, patch: Patch) -> Port:
    """Return the input windows [N,C,h,w] of differences from the background, 0 where inactive."""
    table = _with_row(differences(rows), np.zeros(rows.channels))
    return _gathered(rows, window, patch, table, np.full((1, 1), rows.count), rows.count)


def _with_row(port: Port, row: np.ndarray) -> Port:
    return ops.concat([port, constant(row[None])], 0).output(0)


def _gathered(
    rows: Rows, window: Window, patch: Patch, table: Port, inactive: np.ndarray, outside: int
) -> Port:
    """Return the input windows [N,C,h,w] from rows of `table`."""

    def reach(size: int, axis: int) -> int:
        kernel = (window.kernel[axis] - 1) * window.dilation[axis] + 1
        return (size - 1) * window.stride[axis] + kernel

    y = patch.top[:, None] * window.stride[0] - window.pad[0] + np.arange(reach(patch.size[0], 0))
    x = patch.left[:, None] * window.stride[1] - window.pad[1] + np.arange(reach(patch.size[1], 1))
    height, width = window.source
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = np.clip(y, 0, height - 1)[:, :, None], np.clip(x, 0, width - 1)[:, None, :]
    numbers = rows.lookup[np.arange(len(y))[:, None, None], y, x]
    empty = np.broadcast_to(inactive, (height, width))[y, x]
    numbers = np.where(numbers >= 0, numbers, empty)
    numbers = np.where(inside, numbers, outside)
    return ops.transpose(gather(table, numbers), constant([0, 3, 1, 2], np.int32)).output(0)


def _active_rows(port: Port, patch: Patch, channels: int) -> Port:
    """Return the active pixels' rows [P,C] of output windows [N,C,h,w]."""
    height, width = patch.size
    count = len(patch.top)
    port = ops.transpose(port, constant([0, 2, 3, 1], np.int32)).output(0)
    port = reshape(port, [count * height * width, channels])
    cells, y, x = np.nonzero(patch.active)
    numbers = (cells * height + y - patch.top[cells]) * width + x - patch.left[cells]
    if len(numbers) == count * height * width and (numbers == np.arange(len(numbers))).all():
        return port
    return gather(port, numbers)
