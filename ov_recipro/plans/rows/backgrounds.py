"""Backgrounds: what a tensor holds at its inactive pixels, the same in every cell's map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, Key, Port, constant, key_of, reshape


@dataclass(frozen=True)
class FixedBackground:
    """The tail's values on a feature map of zeros: constants, where a mask keeps one cell.

    Attributes:
        values: [1,C,H,W]; [1,O] behind the spatial axes; any shape where anchors were laid out.
    """

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes without the batch axis."""
        return self.values.shape[1:]

    @property
    def is_zero(self) -> bool:
        """Whether all values are known to be zero."""
        return not self.values.any()

    @property
    def by_pixel(self) -> Array:
        """The values as an array by pixel, [H*W,C]."""
        return np.ascontiguousarray(self.values.reshape(self.values.shape[1], -1).T)

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
        port: [1,C,H,W]; [1,O] behind the spatial axes; any shape where anchors were laid out.
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

_F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def attached(tail: ov.Model, features: Sequence[Port]) -> dict[str, ov.Node]:
    """Return by name the operations of a copy of `tail` that reads `features`."""
    copy = tail.clone()
    for parameter, feature in zip(copy.get_parameters(), features, strict=True):
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(feature)
    return {node.get_friendly_name(): node for node in copy.get_ordered_ops()}


def of_image(nodes: Sequence[ov.Node], unmasked: Mapping[str, ov.Node]) -> Mapping[Key, Background]:
    """Return the tail's activations on the image's own feature map."""
    return {key: ImageBackground(unmasked[key[0]].output(key[1])) for key in _activations(nodes)}


def _activations(nodes: Sequence[ov.Node]) -> list[Key]:
    """Return the outputs that may have a background."""
    return [
        key_of(port)
        for node in nodes
        for port in node.outputs()
        if port.get_element_type() == ov.Type.f32
    ]


def of_zeros(tail: ov.Model, nodes: Sequence[ov.Node], core: ov.Core) -> Mapping[Key, Background]:
    """Return the tail's activations on feature maps of zeros."""
    copy = tail.clone()
    known = {node.get_friendly_name(): node for node in copy.get_ordered_ops()}
    keys = _activations(nodes)
    results = [ops.result(known[name].output(index)) for name, index in keys]
    parameters = copy.get_parameters()
    compiled = core.compile_model(ov.Model(results, parameters), "CPU", _F32)
    values = compiled([np.zeros(list(p.shape), np.float32) for p in parameters])
    return {key: FixedBackground(np.array(values[i])) for i, key in enumerate(keys)}
