"""Enlarging and shrinking: each output pixel is a weighted sum of some input pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, constant, gather, rebuild
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.tensors import Mask, Rows, differences, plus_background


@dataclass(frozen=True)
class Resampling:
    """What an operation that resizes a feature map does, along each axis.

    Attributes:
        rows: [h',h], the weights of the input's rows in each of the output's.
        columns: [w',w], likewise.
    """

    rows: Array
    columns: Array

    @property
    def copies(self) -> bool:
        """Whether each output pixel is a copy of an input pixel."""
        return all(
            bool(((each != 0).sum(axis=1) == 1).all() and each.max(axis=1).min() == 1)
            for each in (self.rows, self.columns)
        )

    def reached(self, active: Mask) -> Mask:
        """Return the output pixels [N,h',w'] that read an active input pixel."""
        down = reached_lines(self.columns, active.reshape(-1, active.shape[2]))
        down = down.reshape(len(active), active.shape[1], -1).transpose(0, 2, 1)
        across = reached_lines(self.rows, down.reshape(-1, active.shape[1]))
        return across.reshape(len(active), len(self.columns), -1).transpose(0, 2, 1)


def reached_lines(weights: Array, lines: Mask) -> Mask:
    """Return which output lines read one of the active input lines [n,h], [n,h']."""
    return np.asarray(lines.astype(np.float32) @ (weights != 0).T.astype(np.float32) > 0)


def resampling_of(node: ov.Node) -> Resampling | None:
    """Return what an Interpolate does; None where that is not a weighted sum along each axis.

    It is found by running the operation: on maps of which a single line is 1, then, as a check, on
    a random one.
    """
    shape = [int(size) for size in node.input_value(0).shape]
    target = [int(size) for size in node.output(0).shape]
    if len(shape) != 4 or shape[:2] != target[:2] or shape[0] != 1:
        return None
    source = ops.parameter(shape, np.float32)
    others = [port.get_source_output() for port in node.inputs()[1:]]
    made = ops.result(rebuild(node, [source.output(0), *others]))
    model = ov.Model([made], [source])

    def run(image: Array) -> Array:
        result = ov.Tensor(ov.Type.f32, ov.Shape(target))
        if not model.evaluate([result], [ov.Tensor(image)]):
            raise ValueError(f"'{node.get_friendly_name()}' can't be evaluated")
        return np.array(result.data)

    def lines(axis: int) -> Array:
        found, channels = [], shape[1]
        for start in range(0, shape[axis], channels):
            image = np.zeros(shape, np.float32)
            chosen = np.arange(start, min(start + channels, shape[axis]))
            np.moveaxis(image, axis, 2)[0, chosen - start, chosen] = 1
            found.append(np.moveaxis(run(image), axis, 2)[0, : len(chosen), :, 0])
        return np.concatenate(found).T

    found = Resampling(lines(2), lines(3))
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = found.rows @ image[0, 0] @ found.columns.T
    return found if np.allclose(run(image)[0, 0], expected, atol=1e-4) else None


def resample(rows: Rows, how: Resampling, background: Background) -> Rows:
    """Lower an Interpolate."""
    active = how.reached(rows.active)
    if how.copies:
        y, x = how.rows.argmax(axis=1), how.columns.argmax(axis=1)
        numbers = rows.lookup[:, y][:, :, x][active]
        return Rows(gather(rows.port, numbers), active, background)
    cells, y, x = np.nonzero(active)
    down, across = _sources(how.rows), _sources(how.columns)
    shape = (len(cells), down[0].shape[1], across[0].shape[1])
    numbers = rows.lookup[
        cells[:, None, None],
        np.broadcast_to(down[0][y][:, :, None], shape),
        np.broadcast_to(across[0][x][:, None, :], shape),
    ].reshape(len(cells), -1)
    weights = (down[1][y][:, :, None] * across[1][x][:, None, :]).reshape(len(cells), -1)
    used = (numbers >= 0) & (weights != 0)
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))[:-1]])
    sums = ops.embedding_bag_offsets_sum(
        differences(rows),
        constant(numbers[used], np.int32),
        constant(offsets, np.int32),
        ops.constant(np.int32(0)).output(0),
        constant(weights[used]),
    ).output(0)
    return Rows(plus_background(sums, background, active), active, background)


def _sources(weights: Array) -> tuple[np.ndarray, Array]:
    """Return for each output line the input lines that it reads, and their weights, [h',n] each.

    Lines that read fewer are filled up with weights of 0.
    """
    most = int((weights != 0).sum(axis=1).max())
    order = np.argsort(weights == 0, axis=1, kind="stable")[:, :most]
    return order, np.take_along_axis(weights, order, axis=1)
