"""Operations that work on each pixel by itself: rows stay as they are."""

from __future__ import annotations

from functools import reduce

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, Port, constant, rebuild, rebuilt, sources_of
from ov_recipro.plans.rows.backgrounds import Background
from ov_recipro.plans.rows.tensors import Rows, aligned


def elementwise(node: ov.Node, values: list[Rows | Array], background: Background) -> Rows | None:
    """Lower an elementwise operation of rows and constants; None where shapes do not allow it."""
    rows = [value for value in values if isinstance(value, Rows)]
    if any(value.background.shape != background.shape for value in rows):
        return None
    active = reduce(np.logical_or, (value.active for value in rows))
    inputs = []
    for value in values:
        port = aligned(value, active) if isinstance(value, Rows) else _spread(node, value, active)
        if port is None:
            return None
        inputs.append(port)
    return Rows(rebuild(node, inputs), active, background)


def _spread(node: ov.Node, value: Array, active: np.ndarray) -> Port | None:
    """Return a constant that is broadcast over [N,C,H,W] as one over rows [P,C]."""
    if value.size == 1 or (node.get_type_name() == "PRelu" and value.ndim == 1):
        return constant(value.reshape(-1), value.dtype)
    shape = (1,) * (4 - value.ndim) + value.shape
    if len(shape) != 4 or shape[0] != 1:
        return None
    if shape[2:] == (1, 1):
        return constant(value.reshape(1, -1), value.dtype)
    height, width = active.shape[1:]
    full = np.broadcast_to(value.reshape(shape)[0], (shape[1], height, width))
    pixels = np.flatnonzero(active) % (height * width)
    return constant(full.reshape(shape[1], -1).T[pixels], value.dtype)


def concatenated(values: list[Rows], background: Background) -> Rows:
    """Lower a Concat over channels."""
    active = reduce(np.logical_or, (value.active for value in values))
    port = ops.concat([aligned(value, active) for value in values], 1).output(0)
    return Rows(port, active, background, tuple(values))


def split(node: ov.Node, rows: Rows, backgrounds: list[Background]) -> list[Rows]:
    """Lower a Split or VariadicSplit over channels."""
    made = rebuilt(node, [rows.port, *sources_of(node)[1:]])
    return [
        Rows(made.output(i), rows.active, background) for i, background in enumerate(backgrounds)
    ]
