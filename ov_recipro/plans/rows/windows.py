"""Sliding windows: which input pixels an operation's output pixels read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import openvino as ov

from ov_recipro.plans.rows.tensors import Indices, Mask

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool; all pairs are (vertical, horizontal)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    pad: Pair
    source: Pair
    target: Pair

    def taps(self) -> Iterator[tuple[Indices, Indices]]:
        """Yield for each tap, row by row, the input row [H'] and column [W'] it reads."""
        for y in self.lines(0):
            for x in self.lines(1):
                yield y, x

    def lines(self, axis: int) -> Iterator[Indices]:
        """Yield for each tap along an axis the input line that each output line reads."""
        for tap in range(self.kernel[axis]):
            start = tap * self.dilation[axis] - self.pad[axis]
            yield np.arange(self.target[axis]) * self.stride[axis] + start

    def pick(self, values: Indices, tap: tuple[Indices, Indices], outside: int) -> Indices:
        """Return values [N,H,W] as one tap sees them, [N,H',W']; `outside` beyond the border."""
        y, x = tap
        inside = _within(y, self.source[0])[:, None] & _within(x, self.source[1])[None]
        rows = values[:, np.clip(y, 0, self.source[0] - 1)]
        seen = rows[:, :, np.clip(x, 0, self.source[1] - 1)]
        return np.where(inside, seen, outside)

    def reached(self, active: Mask) -> Mask:
        """Return the output pixels [N,H',W'] that read an active input pixel."""
        across = self.reached_lines(active, 1)
        down = self.reached_lines(across.transpose(0, 2, 1), 0)
        return np.ascontiguousarray(down.transpose(0, 2, 1))

    def reached_lines(self, active: Mask, axis: int) -> Mask:
        """Return the output lines along an axis that read an active input line.

        Args:
            active: input lines [...,n]; `axis`: 0 for rows, 1 for columns.
        """
        result = np.zeros((*active.shape[:-1], self.target[axis]), bool)
        for places in self.lines(axis):
            inside = _within(places, self.source[axis])
            result[..., inside] |= active[..., places[inside]]
        return result


def window_of(node: ov.Node) -> Window:
    """Return the geometry of a convolution or pool of one image."""
    attributes = node.get_attributes()
    source = tuple(node.input_value(0).shape)[2:]
    target = tuple(node.output(0).shape)[2:]
    if "Convolution" in node.get_type_name():
        kernel = tuple(node.input_value(1).shape)[-2:]
    else:
        kernel = tuple(attributes["kernel"])
    stride = tuple(attributes["strides"])
    dilation = tuple(attributes.get("dilations") or (1, 1))
    pad = tuple(attributes["pads_begin"])
    automatic = str(attributes.get("auto_pad", "explicit")).lower()
    if automatic == "valid":
        pad = (0, 0)
    elif automatic.startswith("same"):
        needed = [
            max((target[i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - source[i], 0)
            for i in (0, 1)
        ]
        pad = tuple((n + (automatic == "same_lower")) // 2 for n in needed)
    return Window(
        *((int(p[0]), int(p[1])) for p in (kernel, stride, dilation, pad, source, target))
    )


def fused_pad(node: ov.Node) -> ov.Node | None:
    """Return the Pad in front of a convolution or average pool that OpenVINO makes part of it.

    It pads height and width with zeros, nothing else reads it, and a pool counts padding in. By
    the time that the plan is compiled, none is left.
    """
    if node.get_type_name() not in ("Convolution", "GroupConvolution", "AvgPool"):
        return None
    pad = node.input_value(0).get_node()
    if pad.get_type_name() != "Pad" or len(pad.output(0).get_target_inputs()) != 1:
        return None
    numbers = [value.get_node() for value in pad.input_values()[1:]]
    if any(number.get_type_name() != "Constant" for number in numbers):
        return None
    begin, end, *value = (np.asarray(number.data) for number in numbers)
    attributes = node.get_attributes()
    if (
        pad.get_attributes()["pad_mode"] != "constant"
        or any(each.any() for each in value)
        or len(begin) != 4
        or begin[:2].any()
        or end[:2].any()
        or min(*begin, *end) < 0
    ):
        return None
    excludes = attributes.get("exclude-pad", False)
    own = any([*attributes["pads_begin"], *attributes["pads_end"]])
    return None if excludes and own else pad


def padded(window: Window, pad: ov.Node) -> Window:
    """Return a window on a padded map (see `fused_pad`) as one on the map before it was padded."""
    top, left = (int(n) for n in pad.input_value(1).get_node().data[2:])
    height, width = (int(n) for n in pad.input_value(0).shape[2:])
    above, before = window.pad
    return replace(window, pad=(above + top, before + left), source=(height, width))


def _within(places: Indices, size: int) -> Mask:
    return np.asarray((places >= 0) & (places < size))
