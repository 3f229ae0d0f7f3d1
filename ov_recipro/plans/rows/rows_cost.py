"""The plan's cost, estimated before anything is built: multiply-accumulates of all cells.

The pixels that a cell at row u and column v can change are, except for rare unions, the product
of the rows that u reaches and the columns that v reaches. The estimate follows only these two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import openvino as ov

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import ELEMENTWISE, Key, key_of, macs_of, sources_of
from ov_recipro.plans.rows import patches, pooling
from ov_recipro.plans.rows.anchor_rules import FOLDS, RULES
from ov_recipro.plans.rows.blocks import Block
from ov_recipro.plans.rows.convolution import apart, convolution_macs
from ov_recipro.plans.rows.resampling import Resampling, reached_lines, resampling_of
from ov_recipro.plans.rows.tensors import Mask
from ov_recipro.plans.rows.windows import fused_pad, padded, window_of

MAX_SHARE_OF_DENSE = 0.7  # share of the dense plan's cost above which rows are not worth it, ...
CHEAP = 0.25  # ... unless both cost less than this share of one plain inference
NO_SAVING = "rows would cost about as much as the dense plan"


@dataclass(frozen=True)
class Estimate:
    """Multiply-accumulates of all cells.

    Attributes:
        rows: as rows; dense: with the whole tail run for each cell.
        largest: bytes that the largest operation reads and writes as rows.
        dense_from: the first operation that no rule covers; None where there is none.
    """

    rows: int
    dense: int
    largest: int
    dense_from: str | None

    def is_worth_it(self, plain: int) -> bool:
        """Whether rows are clearly cheaper; `plain` is the cost of one plain inference."""
        return self.rows <= max(MAX_SHARE_OF_DENSE * self.dense, CHEAP * plain)


@dataclass(frozen=True)
class Reach:
    """A tensor's active pixels: the rows [H,h] and columns [W,w] that those of a cell reach."""

    rows: Mask
    columns: Mask

    @classmethod
    def of(cls, cells: Cells, size: tuple[int, int], block: Block | None = None) -> Reach:
        """Return the pixels of a map of this size that lie in each cell, or each of a block."""
        rows, columns = cells.shares(size)
        if block is not None:
            rows, columns = rows[block.rows], columns[block.columns]
        return cls(rows > 0, columns > 0)

    @property
    def count(self) -> int:
        """Number of active pixels of all cells."""
        return int(self.rows.sum()) * int(self.columns.sum())

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.rows) * len(self.columns)

    @property
    def pixels(self) -> int:
        """Number of pixels of one map."""
        return int(self.rows.shape[1] * self.columns.shape[1])

    def fits(self, size: tuple[int, ...]) -> bool:
        """Whether a map of this height and width has these pixels."""
        return size == (self.rows.shape[1], self.columns.shape[1])


@dataclass(frozen=True)
class Step:
    """An operation.

    Attributes:
        node: the operation; `macs`: its multiply-accumulates.
        inputs, outputs: the tensors that it reads and writes.
        pad: a Pad in front of it that becomes part of it (see `windows.fused_pad`). What the Pad
            reads is then among the inputs too, and the Pad is not a step of its own.
    """

    node: ov.Node
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]
    macs: int
    pad: ov.Node | None = None

    @cached_property
    def resampling(self) -> Resampling | None:
        """What it does along each axis, if it resizes a feature map."""
        return resampling_of(self.node) if self.node.get_type_name() == "Interpolate" else None


def steps_of(model: ov.Model) -> list[Step]:
    """Return a model's operations in order, without its results."""
    steps = []
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() != "Result"]
    pads = {node.get_friendly_name(): fused_pad(node) for node in nodes}
    fused = {pad.get_friendly_name() for pad in pads.values() if pad is not None}
    for node in nodes:
        if node.get_friendly_name() in fused:
            continue
        pad = pads[node.get_friendly_name()]
        sources = [*sources_of(node), *([] if pad is None else [pad.input_value(0)])]
        inputs = tuple(key_of(port) for port in sources)
        outputs = tuple(key_of(port) for port in node.outputs())
        steps.append(Step(node, inputs, outputs, macs_of(node), pad))
    return steps


def downstream(steps: Sequence[Step], starts: Iterable[Key]) -> list[Step]:
    """Return the operations that depend on the tensors `starts`."""
    reached, found = set(starts), []
    for step in steps:
        if not reached.isdisjoint(step.inputs):
            reached.update(step.outputs)
            found.append(step)
    return found


def estimate(
    steps: Sequence[Step],
    starts: Mapping[Key, Reach],
    cells: int,
    to_the_end: bool = False,
) -> Estimate:
    """Estimate the cost of applying `steps` to masked feature maps.

    Args:
        steps: the operations that depend on them, in order.
        starts: the pixels of each feature map that lie in each cell.
        cells: their number.
        to_the_end: see `lowering.Lowering`.
    """
    walk = _Walk(dict(starts), to_the_end)
    for step in steps:
        walk.visit(step, cells)
    dense = cells * sum(step.macs for step in steps)
    return Estimate(walk.macs, dense, walk.largest, walk.dense_from)


@dataclass
class _Walk:
    reached: dict[Key, Reach]
    to_the_end: bool
    dense: set[Key] = field(default_factory=set)
    laid_out: set[Key] = field(default_factory=set)
    joined: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    macs: int = 0
    largest: int = 0
    dense_from: str | None = None

    def visit(self, step: Step, cells: int) -> None:
        """Follow one operation and count its cost."""
        if all(key in self.reached for key in step.outputs):
            return  # done together with an earlier one
        reached = [self.reached[key] for key in step.inputs if key in self.reached]
        kind = step.node.get_type_name()
        output = None
        if reached and self.dense.isdisjoint(step.inputs):
            output = self._spatial(step, reached)
            if output is None and self.to_the_end and step.macs == 0 and kind in RULES - set(FOLDS):
                output = _laid_out(reached)
                self.laid_out.update(step.outputs)
        if output is not None:
            self.reached |= dict.fromkeys(step.outputs, output)
            self.largest = max(self.largest, self._bytes(step))
            return
        self.dense.update(step.outputs)
        flattened = self._flattened(step.node, reached)
        self.macs += flattened or cells * step.macs
        weighs = [key for key in step.inputs if key in self.reached or key in self.dense]
        laid_out = self.to_the_end and kind in RULES and (step.macs == 0 or len(weighs) == 1)
        if kind in FOLDS and reached:  # over the pixels, or over the numbers of each
            laid_out &= int(np.prod(list(step.node.output(0).shape))) % reached[0].pixels == 0
        if not (flattened or laid_out) and self.dense_from is None:
            self.dense_from = kind

    def _bytes(self, step: Step) -> int:
        ports = {key_of(port): port for port in (*sources_of(step.node), *step.node.outputs())}
        known = ((self.reached[key], port) for key, port in ports.items() if key in self.reached)
        return sum(
            4 * reach.count * (int(np.prod(list(port.shape))) // reach.pixels)
            for reach, port in known
        )

    def _spatial(self, step: Step, reached: list[Reach]) -> Reach | None:
        """Return the active pixels of the output, None where it is dense or has no pixels."""
        node, first = step.node, reached[0]
        kind = node.get_type_name()
        if kind == "Pad":
            return first if node.output(0).shape == node.input_value(0).shape else None
        if kind in ELEMENTWISE or kind in ("FakeQuantize", "BatchNormInference"):
            if any(r.pixels != first.pixels for r in reached):
                return None
            return _union(reached)
        if kind == "Concat":
            full = len(reached) == len(node.inputs()) and len(node.output(0).shape) == 4
            if not full or node.get_attributes()["axis"] % 4 != 1:
                return None
            if self.laid_out.isdisjoint(step.inputs):
                channels = [int(port.shape[1]) for port in sources_of(node)]
                counts = [each.count for each in reached]
                self.joined[step.outputs[0]] = list(zip(counts, channels, strict=True))
            return _union(reached)
        if kind in ("Split", "VariadicSplit"):
            return first if len(node.output(0).shape) == 4 else None
        if kind == "Interpolate" and self.to_the_end:
            how = step.resampling
            if how is None or not first.fits((len(how.rows[0]), len(how.columns[0]))):
                return None
            return Reach(
                reached_lines(how.rows, first.rows), reached_lines(how.columns, first.columns)
            )
        if kind not in ("Convolution", "GroupConvolution", "AvgPool", "MaxPool"):
            return None
        if len(reached) > 1 or len(node.output(0).shape) != 4:
            return None
        window = window_of(node)
        if step.pad is not None and key_of(node.input_value(0)) not in self.reached:
            window = padded(window, step.pad)
        pools_all = kind == "AvgPool" and window.target == (1, 1)
        if not first.fits(window.source) or (self.to_the_end and pools_all):
            return None
        output = Reach(window.reached_lines(first.rows, 0), window.reached_lines(first.columns, 1))
        both = (output.rows, output.columns)
        size = [patches.extent(lines, np.asarray(lines.any(axis=1)))[1] for lines in both]
        by_windows = kind != "Convolution" or (
            self.to_the_end
            and window.kernel != (1, 1)
            and patches.are_cheaper(size, first.count, first.cells)
        )
        if not by_windows:
            shape = list(node.input_value(1).shape)
            parts = self.joined.get(step.inputs[0], [])
            read = apart(parts, first.count, first.pixels)
            if read and window.kernel == (1, 1) and output.count == first.count:
                self.macs += read * shape[0]
                products = (len(parts) + 1) * first.count * shape[0]
                self.largest = max(self.largest, 4 * products)
            else:
                self.macs += convolution_macs(first.count, output.count, window, shape)
            return output
        if not self.to_the_end and patches.is_saturated(
            size, window, first.count, first.cells * first.pixels
        ):
            return None
        if kind in ("Convolution", "GroupConvolution"):
            weights = int(np.prod(list(node.input_value(1).shape)))
            self.macs += first.cells * size[0] * size[1] * weights
        return output

    def _flattened(self, node: ov.Node, reached: list[Reach]) -> int:
        """Return the cost of the linear layer behind a Flatten; 0 where `node` is not one."""
        linear = pooling.flattened_linear(node)
        if linear is None or len(reached) != 1:
            return 0
        counts = np.outer(reached[0].rows.sum(axis=0), reached[0].columns.sum(axis=0))
        shape = list(linear.input_value(1).shape)
        cost = pooling.flat_linear_macs(counts, int(np.prod(shape)))
        if cost > MAX_SHARE_OF_DENSE * reached[0].cells * int(np.prod(shape)):
            return 0
        self.dense |= {key_of(port) for port in linear.outputs()}
        self.reached |= {key_of(port): reached[0] for port in linear.outputs()}
        return cost


def _laid_out(reached: list[Reach]) -> Reach | None:
    """Return the pixels that anchors belong to, however a tensor's axes are ordered."""
    sizes = {(each.rows.shape[1], each.columns.shape[1]) for each in reached}
    return _union(reached) if len(sizes) == 1 else None


def _union(reached: list[Reach]) -> Reach:
    rows, columns = reached[0].rows, reached[0].columns
    for each in reached[1:]:
        rows, columns = rows | each.rows, columns | each.columns
    return Reach(rows, columns)
