"""Which rule lowers an operation on feature maps: rows in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import (
    ELEMENTWISE,
    Array,
    Key,
    Port,
    constant,
    key_of,
    rebuild,
    sources_of,
)
from ov_recipro.plans.rows import convolution, patches, pixelwise, pooling
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.resampling import Resampling, resample
from ov_recipro.plans.rows.tensors import Indices, PerCell, Rows
from ov_recipro.plans.rows.windows import Window, window_of

_F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True)
class Lowering:
    """The rules, for one tail.

    Attributes:
        core: to evaluate constants with.
        varying: the names of the operations that depend on what is masked.
        backgrounds: what each tensor holds at its inactive pixels.
        to_the_end: whether rows go on where they save nothing over whole maps, and convolutions
            work on windows where that is cheaper. Class scores have another way to go on.
        resamplings: what operations that resize feature maps do, by their names.
        moves: where the elements of moved tensors come from, by the operation's name: all blocks of
            cells share them (see `anchor_rules`).
    """

    core: ov.Core
    varying: frozenset[str]
    backgrounds: Mapping[Key, Background]
    to_the_end: bool
    resamplings: Mapping[str, Resampling | None] = field(default_factory=dict)
    moves: dict[str, list[Indices]] = field(default_factory=dict)

    def lower(
        self, node: ov.Node, values: Sequence[Rows | PerCell | None]
    ) -> list[Rows | PerCell] | None:
        """Return the node's outputs as rows or per-cell entries; None where no rule covers it.

        Args:
            node: the operation; `values`: what is known of its inputs, in order.
        """
        kind = node.get_type_name()
        sources = sources_of(node)
        backgrounds = [self.backgrounds.get(key_of(port)) for port in node.outputs()]
        rows = [value for value in values if isinstance(value, Rows)]
        if len(rows) != sum(value is not None for value in values) or not rows:
            return None
        background = backgrounds[0]
        if background is None:
            return None
        is_map = len(background.shape) == 3
        if kind in ELEMENTWISE and is_map:
            inputs = [
                value if isinstance(value, Rows) else self.constant(source)
                for value, source in zip(values, sources, strict=True)
            ]
            if any(each is None for each in inputs):
                return None
            made = pixelwise.elementwise(node, inputs, background)  # type: ignore[arg-type]
            return None if made is None else [made]
        if kind == "Concat" and len(rows) == len(values) and is_map:
            if int(node.get_attributes()["axis"]) % 4 != 1:
                return None
            return [pixelwise.concatenated(rows, background)]
        if kind in ("Split", "VariadicSplit"):
            axis = self.constant(sources[1])
            if axis is None or int(axis.reshape(-1)[0]) % 4 != 1 or not is_map:
                return None
            known = [each for each in backgrounds if each is not None]
            return (
                list(pixelwise.split(node, rows[0], known))
                if len(known) == len(backgrounds)
                else None
            )
        if len(rows) > 1:
            return None
        return self._lower_spatial(node, kind, rows[0], background)

    def _lower_spatial(
        self, node: ov.Node, kind: str, rows: Rows, background: Background
    ) -> list[Rows | PerCell] | None:
        height, width = rows.active.shape[1:]
        is_map = len(background.shape) == 3
        if kind == "ReduceMean":
            axes = self.constant(node.input_value(1))
            if axes is None or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
                return None
            return None if self.to_the_end else [pooling.global_average(rows, background)]
        if not is_map:
            return None
        if kind == "Interpolate" and self.to_the_end:
            how = self.resamplings.get(node.get_friendly_name())
            return None if how is None else [resample(rows, how, background)]
        if kind in ("Convolution", "GroupConvolution"):
            return self._lower_convolution(node, rows, background)
        if kind not in ("AvgPool", "MaxPool"):
            return None
        window = window_of(node)
        pools_all = window.kernel == (height, width) and background.shape[1:] == (1, 1)
        if kind == "AvgPool" and pools_all:
            return None if self.to_the_end else [pooling.global_average(rows, background)]
        patch = patches.patch_of(rows, window)
        if self._gives_up(patch, window, rows):
            return None
        if kind == "MaxPool":
            if len(node.outputs()) > 1 and node.output(1).get_target_inputs():
                return None
            return [patches.max_pool(rows, window, patch, background)]
        return [patches.average_pool(rows, window, patch, background, self._divisors(node, window))]

    def _lower_convolution(
        self, node: ov.Node, rows: Rows, background: Background
    ) -> list[Rows | PerCell] | None:
        weight = self.constant(node.input_value(1))
        if weight is None:
            return None
        window = window_of(node)
        if node.get_type_name() == "Convolution":
            if self.to_the_end and window.kernel != (1, 1):
                patch = patches.patch_of(rows, window)
                if patches.are_cheaper(patch.size, rows.count, len(rows.active)):
                    return [patches.windowed_convolution(node, rows, window, patch, background)]
            return [convolution.convolution(rows, window, weight, background)]
        if weight.shape[1:3] == (1, 1):
            once = patches.depthwise_once(rows, window, weight, background)
            if once is not None:
                return [once]
        patch = patches.patch_of(rows, window)
        if self._gives_up(patch, window, rows):
            return None
        if self.to_the_end:
            return [patches.windowed_convolution(node, rows, window, patch, background)]
        return [patches.grouped_convolution(node, rows, window, patch, background)]

    def _gives_up(self, patch: patches.Patch, window: Window, rows: Rows) -> bool:
        if self.to_the_end:
            return False
        return patches.is_saturated(patch.size, window, rows.count, rows.active.size)

    def constant(self, port: Port) -> Array | None:
        """Return the value of a tensor that depends on nothing masked; None where it does."""
        node = port.get_node()
        if node.get_type_name() == "Constant":
            return np.array(node.data)
        return None if node.get_friendly_name() in self.varying else self.evaluate(port)

    def evaluate(self, port: Port) -> Array:
        """Return the value of a tensor that depends on no input."""
        compiled = self.core.compile_model(ov.Model([ops.result(port)], []), "CPU", _F32)
        return np.array(compiled([])[0])

    def _divisors(self, node: ov.Node, window: Window) -> Array:
        """Return what an average pool divides by at each pixel, found by running it on ones."""
        source = constant(np.ones((1, 1, *window.source)))
        made = rebuild(node, [source])
        means = self.evaluate(made).reshape(window.target)
        inside = np.ones((1, *window.source), np.int64)
        counts = sum(window.pick(inside, tap, 0)[0] for tap in window.taps())
        return np.asarray(counts / means, np.float32)
