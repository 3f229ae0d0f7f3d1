"""The walk over the tail: each operation as rows where a rule covers it, the rest densely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

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
    reshape,
    sources_of,
)
from ov_recipro.plans.rows import convolution, patches, pixelwise, pooling
from ov_recipro.plans.rows.backgrounds import Background, FixedBackground, ImageBackground
from ov_recipro.plans.rows.rows_cost import (
    MAX_SHARE_OF_DENSE,
    NO_SAVING,
    downstream,
    estimate,
    steps_of,
)
from ov_recipro.plans.rows.tensors import PerCell, Rows, densified
from ov_recipro.plans.rows.windows import window_of
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused

_F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True)
class Lowered:
    """A tail as rows.

    Attributes:
        logits: [N,classes] of each cell alone, or [N+1,classes] with the whole feature map's last,
            if asked for.
        macs: multiply-accumulates of all cells.
        dense_from: the first operation that is computed densely, None where there is none.
    """

    logits: Port
    macs: int
    dense_from: str | None


def lower(
    tail: ov.Model,
    feature: Port,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    plain: bool,
    mask: Mask = "cell",
) -> Lowered:
    """Compile a prepared tail of one input [1,C,H,W] into rows built on `feature`.

    Args:
        tail: the tail at batch 1; it takes any batch.
        feature: the feature map [1,C,H,W] to read.
        core: to evaluate constants with.
        memory: bytes that the dense remainder's activations may take at once.
        plain_macs: multiply-accumulates of one plain inference.
        plain: also give the whole map's logits. Where each cell is down to one vector, the whole
            map's is treated as one more, so that large weights are read once for all.
        mask: "cell" or "drop".

    Raises:
        PlanRefused: rows don't apply or save too little.
    """
    unmasked = _attached(tail, feature) if plain or mask == "drop" else {}
    return _Compiler(tail, core, memory, plain_macs, plain, mask, unmasked).run(feature)


@dataclass
class _Compiler:
    tail: ov.Model
    core: ov.Core
    memory: int
    plain_macs: int
    plain: bool
    mask: Mask
    unmasked: Mapping[str, ov.Node]
    values: dict[Key, Rows | PerCell] = field(default_factory=dict)
    rest: set[str] = field(default_factory=set)
    boundary: dict[Key, Rows | PerCell] = field(default_factory=dict)
    dense_from: str | None = None

    def run(self, feature: Port) -> Lowered:
        (parameter,) = self.tail.get_parameters()
        _, channels, height, width = parameter.output(0).shape
        cells = height * width
        steps = downstream(steps_of(self.tail), [key_of(parameter.output(0))])
        nodes = [step.node for step in steps]
        cost = estimate(steps, key_of(parameter.output(0)), (height, width))
        if not cost.is_worth_it(self.plain_macs):
            raise PlanRefused(NO_SAVING)
        of_image = ImageBackground(feature)
        self.backgrounds: Mapping[Key, Background]
        at_cut: Background
        if self.mask == "drop":
            self.backgrounds = _of_image(nodes, self.unmasked)
            port, at_cut = constant(np.zeros((cells, channels))), of_image
        else:
            self.backgrounds = _of_zeros(self.tail, nodes, self.core)
            port = of_image.table
            at_cut = FixedBackground(np.zeros((channels, height, width), np.float32))
        one_cell = np.eye(cells, dtype=bool).reshape(cells, height, width)
        self.values[key_of(parameter.output(0))] = Rows(port, one_cell, at_cut)
        for node in nodes:
            if key_of(node.output(0)) in self.values:
                continue  # done together with an earlier one
            outputs = None if self._reads_rest(node) else self._lower(node)
            if outputs is None:
                self._leave(node)
            else:
                self.values |= {key_of(node.output(i)): each for i, each in enumerate(outputs)}
        end = self.tail.get_results()[0].input_value(0)
        value = self.values.get(key_of(end))
        if value is None:
            value = self._densely(cells, nodes)
        count = int(np.prod(list(end.shape)))
        if self.plain and not (isinstance(value, PerCell) and value.whole):
            whole_logits = reshape(self._unmasked(key_of(end)), [1, count])
            masked = reshape(self._slice(value, 0, cells), [cells, count])
            logits = ops.concat([masked, whole_logits], 0).output(0)
        else:
            entries = cells + self.plain
            logits = reshape(self._slice(value, 0, entries), [entries, count])
        return Lowered(logits, cost.rows, self.dense_from)

    def _reads_rest(self, node: ov.Node) -> bool:
        return any(value.get_node().get_friendly_name() in self.rest for value in sources_of(node))

    def _leave(self, node: ov.Node) -> None:
        """Note that `node` is computed densely, on the values that it reads."""
        read = [self.values.get(key_of(value)) for value in sources_of(node)]
        if any(isinstance(value, Rows) for value in read) and self.dense_from is None:
            self.dense_from = node.get_type_name()
        self.rest.add(node.get_friendly_name())
        for value in sources_of(node):
            if key_of(value) in self.values:
                self.boundary[key_of(value)] = self.values[key_of(value)]

    def _densely(self, cells: int, nodes: Sequence[ov.Node]) -> PerCell:
        """Run the remainder on the original operations, in chunks of cells within the memory."""
        remainder = [node for node in nodes if node.get_friendly_name() in self.rest]
        carried = {key_of(port) for node in nodes for port in node.outputs()}
        size = max(
            sum(
                4 * int(np.prod(list(port.shape)))
                for port in [*sources_of(node), *node.outputs()]
                if key_of(port) in carried
            )
            for node in remainder
        )
        chunk = max(1, min(cells, self.memory // (2 * size)))
        borders = [*range(0, cells, chunk), cells]
        per_cell = all(isinstance(value, PerCell) for value in self.boundary.values())
        adds_whole = self.plain and len(borders) == 2 and per_cell
        chunks = []
        for start, stop in pairwise(borders):
            copy = self.tail.clone()
            known = {n.get_friendly_name(): n for n in copy.get_ordered_ops()}
            for key, value in self.boundary.items():
                port = self._slice(value, start, stop)
                if adds_whole and isinstance(value, PerCell):
                    port = self._with_whole(value, key)
                for reader in list(known[key[0]].output(key[1]).get_target_inputs()):
                    if reader.get_node().get_friendly_name() in self.rest:
                        reader.replace_source_output(port)
            for node in copy.get_ordered_ops():
                if node.get_friendly_name() in self.rest:
                    node.validate_and_infer_types()
            chunks.append(copy.get_results()[0].input_value(0))
        port = chunks[0] if len(chunks) == 1 else ops.concat(chunks, 0).output(0)
        return PerCell(port, adds_whole)

    def _slice(self, value: Rows | PerCell, start: int, stop: int) -> Port:
        """Return the entries of a range of cells."""
        if isinstance(value, Rows):
            return densified(value, slice(start, stop))
        if value.port.shape[0] == stop - start:
            return value.port
        ends = [constant([each], np.int64) for each in (start, stop, 1, 0)]
        return ops.slice(value.port, *ends).output(0)

    def _with_whole(self, value: PerCell, key: Key) -> Port:
        if value.whole:
            return value.port
        return ops.concat([value.port, self._unmasked(key)], 0).output(0)

    def _unmasked(self, key: Key) -> Port:
        """Return the whole map's value of one of the tail's tensors."""
        return self.unmasked[key[0]].output(key[1])

    def _lower(self, node: ov.Node) -> list[Rows | PerCell] | None:
        """Return the node's outputs as rows or per-cell entries; None where no rule covers it."""
        kind = node.get_type_name()
        sources = sources_of(node)
        values = [self.values.get(key_of(value)) for value in sources]
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
                value if isinstance(value, Rows) else self._constant(source)
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
            axis = self._constant(sources[1])
            if axis is None or int(axis.reshape(-1)[0]) % 4 != 1:
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
            axes = self._constant(node.input_value(1))
            if axes is None or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
                return None
            return [pooling.global_average(rows, background)]
        if kind == "Reshape":
            return self._flattened(node, rows)
        if kind == "Convolution":
            weight = self._constant(node.input_value(1))
            if weight is None or not is_map:
                return None
            return [convolution.convolution(rows, window_of(node), weight, background)]
        if kind not in ("GroupConvolution", "AvgPool", "MaxPool") or not is_map:
            return None
        window = window_of(node)
        pools_all = window.kernel == (height, width) and background.shape[1:] == (1, 1)
        if kind == "AvgPool" and pools_all:
            return [pooling.global_average(rows, background)]
        if kind == "GroupConvolution":
            weight = self._constant(node.input_value(1))
            if weight is None:
                return None
            if weight.shape[1:3] == (1, 1):
                once = patches.depthwise_once(rows, window, weight, background)
                if once is not None:
                    return [once]
        patch = patches.patch_of(rows, window)
        if patches.is_saturated(patch.size, window, rows.count, rows.active.size):
            return None
        if kind == "GroupConvolution":
            return [patches.grouped_convolution(node, rows, window, patch, background)]
        if kind == "MaxPool":
            if len(node.outputs()) > 1 and node.output(1).get_target_inputs():
                return None
            return [patches.max_pool(rows, window, patch, background)]
        return [patches.average_pool(rows, window, patch, background, self._divisors(node, window))]

    def _flattened(self, node: ov.Node, rows: Rows) -> list[Rows | PerCell] | None:
        """Lower Flatten together with the one linear layer that reads it."""
        linear = pooling.flattened_linear(node)
        if linear is None:
            return None
        weight = self._constant(linear.input_value(1))
        background = self.backgrounds.get(key_of(linear.output(0)))
        if weight is None or background is None:
            return None
        cost = pooling.flat_linear_macs(rows.active.sum(axis=0), weight.size)
        if cost > MAX_SHARE_OF_DENSE * len(rows.active) * weight.size:
            return None
        if linear.get_attributes()["transpose_b"]:
            weight = weight.T
        weight = np.asarray(weight, np.float32)
        unmasked = self._unmasked(key_of(node.output(0))) if self.plain else None
        made = pooling.flat_linear(rows, weight, background, unmasked)
        self.values[key_of(linear.output(0))] = made
        return [made]

    def _constant(self, port: Port) -> Array | None:
        node = port.get_node()
        if node.get_type_name() == "Constant":
            return np.array(node.data)
        if any(key_of(port) in known for known in (self.values, self.boundary)):
            return None
        if node.get_friendly_name() in self.rest or not _is_constant(node):
            return None
        return self._evaluate(port)

    def _evaluate(self, port: Port) -> Array:
        """Return the value of a tensor that depends on no input."""
        compiled = self.core.compile_model(ov.Model([ops.result(port)], []), "CPU", _F32)
        return np.array(compiled([])[0])

    def _divisors(self, node: ov.Node, window: Any) -> Array:
        """Return what an average pool divides by at each pixel, found by running it on ones."""
        source = constant(np.ones((1, 1, *window.source)))
        made = rebuild(node, [source])
        means = self._evaluate(made).reshape(window.target)
        inside = np.ones((1, *window.source), np.int64)
        counts = sum(window.pick(inside, tap, 0)[0] for tap in window.taps())
        return np.asarray(counts / means, np.float32)


def _is_constant(node: ov.Node) -> bool:
    if node.get_type_name() == "Parameter":
        return False
    return all(_is_constant(value.get_node()) for value in sources_of(node))


def _attached(tail: ov.Model, feature: Port) -> dict[str, ov.Node]:
    """Return by name the operations of a copy of `tail` that reads `feature`."""
    copy = tail.clone()
    (parameter,) = copy.get_parameters()
    for reader in parameter.output(0).get_target_inputs():
        reader.replace_source_output(feature)
    return {node.get_friendly_name(): node for node in copy.get_ordered_ops()}


def _of_image(nodes: Sequence[ov.Node], unmasked: Mapping[str, ov.Node]) -> dict[Key, Background]:
    """Return the tail's activations on the image's own feature map."""
    return {key: ImageBackground(unmasked[key[0]].output(key[1])) for key in _activations(nodes)}


def _activations(nodes: Sequence[ov.Node]) -> list[Key]:
    """Return the outputs that may have a background."""
    return [
        key_of(port)
        for node in nodes
        for port in node.outputs()
        if port.get_element_type() == ov.Type.f32 and len(port.shape) in (2, 4)
    ]


def _of_zeros(tail: ov.Model, nodes: Sequence[ov.Node], core: ov.Core) -> dict[Key, Background]:
    """Return the tail's activations on a feature map of zeros."""
    copy = tail.clone()
    known = {node.get_friendly_name(): node for node in copy.get_ordered_ops()}
    keys = _activations(nodes)
    results = [ops.result(known[name].output(index)) for name, index in keys]
    parameters = copy.get_parameters()
    compiled = core.compile_model(ov.Model(results, parameters), "CPU", _F32)
    values = compiled([np.zeros(list(p.shape), np.float32) for p in parameters])
    return {key: FixedBackground(np.array(values[i])[0]) for i, key in enumerate(keys)}
