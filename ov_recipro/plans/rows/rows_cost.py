"""The plan's cost, estimated before anything is built: multiply-accumulates of all cells.

The pixels that a cell at row u and column v can change are, except for rare unions, the product
of the rows that u reaches and the columns that v reaches. The estimate follows only these two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov

from ov_recipro.plans.nodes import ELEMENTWISE, Key, key_of, macs_of, sources_of
from ov_recipro.plans.rows import patches, pooling
from ov_recipro.plans.rows.convolution import convolution_macs
from ov_recipro.plans.rows.tensors import Mask
from ov_recipro.plans.rows.windows import Window, fused_pad, padded, window_of

MAX_SHARE_OF_DENSE = 0.7  # share of the dense plan's cost above which rows are not worth it, ...
CHEAP = 0.25  # ... unless both cost less than this share of one plain inference
NO_SAVING = "rows would cost about as much as the dense plan"


@dataclass(frozen=True)
class Estimate:
    """Multiply-accumulates of all cells: as rows, and with the whole tail run for each cell."""

    rows: int
    dense: int

    def is_worth_it(self, plain: int) -> bool:
        """Whether rows are clearly cheaper; `plain` is the cost of one plain inference."""
        return self.rows <= max(MAX_SHARE_OF_DENSE * self.dense, CHEAP * plain)


@dataclass(frozen=True)
class Reach:
    """A tensor's active pixels: the rows [H,h] and columns [W,w] that those of a cell reach."""

    rows: Mask
    columns: Mask

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


def estimate(steps: Sequence[Step], start: Key, grid: tuple[int, int]) -> Estimate:
    """Estimate the cost of applying `steps` to a feature map.

    Args:
        steps: the operations that depend on it, in order.
        start: the feature map [1,C,H,W].
        grid: (H, W).
    """
    height, width = grid
    walk = _Walk({start: Reach(np.eye(height, dtype=bool), np.eye(width, dtype=bool))})
    for step in steps:
        walk.visit(step, height * width)
    return Estimate(walk.macs, height * width * sum(step.macs for step in steps))


@dataclass
class _Walk:
    reached: dict[Key, Reach]
    dense: set[Key] = field(default_factory=set)
    macs: int = 0

    def visit(self, step: Step, cells: int) -> None:
        """Follow one operation and count its cost."""
        if all(key in self.reached for key in step.outputs):
            return  # done together with an earlier one
        reached = [self.reached[key] for key in step.inputs if key in self.reached]
        output = None
        if reached and self.dense.isdisjoint(step.inputs):
            output = self._spatial(step, reached)
        if output is not None:
            self.reached |= dict.fromkeys(step.outputs, output)
        else:
            self.dense.update(step.outputs)
            self.macs += self._flattened(step.node, reached) or cells * step.macs

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
            full = len(reached) == len(node.inputs())
            return _union(reached) if full and node.get_attributes()["axis"] % 4 == 1 else None
        if kind in ("Split", "VariadicSplit"):
            return first if len(node.output(0).shape) == 4 else None
        if kind not in ("Convolution", "GroupConvolution", "AvgPool", "MaxPool"):
            return None
        if len(reached) > 1 or len(node.output(0).shape) != 4:
            return None
        window = window_of(node)
        if step.pad is not None and key_of(node.input_value(0)) not in self.reached:
            window = padded(window, step.pad)
        output = Reach(
            _reached_lines(first.rows, window, 0), _reached_lines(first.columns, window, 1)
        )
        if kind == "Convolution":
            shape = list(node.input_value(1).shape)
            self.macs += convolution_macs(first.count, output.count, window, shape)
            return output
        both = (output.rows, output.columns)
        size = [patches.extent(lines, np.asarray(lines.any(axis=1)))[1] for lines in both]
        if patches.is_saturated(size, window, first.count, first.cells * first.pixels):
            return None
        if kind == "GroupConvolution":
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


def _union(reached: list[Reach]) -> Reach:
    rows, columns = reached[0].rows, reached[0].columns
    for each in reached[1:]:
        rows, columns = rows | each.rows, columns | each.columns
    return Reach(rows, columns)


def _reached_lines(lines: Mask, window: Window, axis: int) -> Mask:
    result = np.zeros((len(lines), window.target[axis]), bool)
    for places in window.lines(axis):
        inside = (places >= 0) & (places < window.source[axis])
        result[:, inside] |= lines[:, places[inside]]
    return result
