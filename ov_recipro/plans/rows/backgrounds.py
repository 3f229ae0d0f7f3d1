"""Backgrounds: what a tensor holds at its inactive pixels, the same in every cell's map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, Port, constant, reshape


@dataclass(frozen=True)
class FixedBackground:
    """The tail's values on a feature map of zeros: constants, where a mask keeps one cell.

    Attributes:
        values: [C,H,W]; [O] behind the spatial axes.
    """

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes without the batch axis."""
        return self.values.shape

    @property
    def is_zero(self) -> bool:
        """Whether all values are known to be zero."""
        return not self.values.any()

    @property
    def by_pixel(self) -> Array:
        """The values as an array by pixel, [H*W,C]."""
        return np.ascontiguousarray(self.values.reshape(len(self.values), -1).T)

    @property
    def table(self) -> Port:
        """The values by pixel, [H*W,C]."""
        return constant(self.by_pixel)

    @property
    def negative(self) -> Port:
        """The table's negative."""
        return constant(-self.by_pixel)


@dataclass(frozen=True)
class ImageBackground:
    """The tail's values on the image's own feature map, where a mask empties one cell.

    They are known when the tail runs.

    Attributes:
        port: [1,C,H,W]; [1,O] behind the spatial axes.
    """

    port: Port

    is_zero = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes without the batch axis."""
        return tuple(int(size) for size in self.port.shape)[1:]

    @cached_property
    def table(self) -> Port:
        """The values by pixel, [H*W,C]."""
        channels, height, width = self.shape
        last = ops.transpose(self.port, constant([0, 2, 3, 1], np.int32)).output(0)
        return reshape(last, [height * width, channels])

    @cached_property
    def negative(self) -> Port:
        """The table's negative."""
        return ops.negative(self.table).output(0)


Background: TypeAlias = FixedBackground | ImageBackground
