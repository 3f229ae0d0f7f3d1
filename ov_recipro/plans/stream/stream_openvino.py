"""Plan `stream` on OpenVINO: masks made in the tail's graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.plans.stream.stream_plan import GAUSSIAN, Mask, is_batched


def masked(tail: ov.Model, manifest: Manifest, batch: int, mask: Mask) -> ov.Model:
    """Return the tail with masking in the graph.

    Its inputs become the feature maps of one image, that image's bypass tensors, and the cell
    numbers int32 [batch], so that no masked copy of a feature map is ever made outside.
    """
    cells = ops.parameter([batch], np.int32, name="cells")
    cut = manifest.cut
    one_hot = ops.one_hot(cells, cut.cells.count, np.float32(1), np.float32(0), axis=1)
    parameters = []
    for index, shape in enumerate(manifest.boundary_shapes):
        old = tail.get_parameters()[index]
        new = ops.parameter(list(shape), old.get_element_type(), name=old.get_friendly_name())
        parameters.append(new)
        if cut.joined and index < len(cut.masked):
            value = _mask_joined(new, one_hot, cut, mask)
        elif index == 0:
            value = _mask_feature(new, one_hot, cut, mask)
        elif is_batched(shape) and batch > 1:
            value = ops.broadcast(new, _int64([batch, *shape[1:]]))
        else:
            value = new
        for reader in old.output(0).get_target_inputs():
            reader.replace_source_output(value.output(0))
    return ov.Model(tail.get_results(), [*parameters, cells], "masked tail")


def _mask_joined(feature: ov.Node, one_hot: ov.Node, cut: CutPoint, mask: Mask) -> ov.Node:
    """Return one map [1,C,h,w] of a joint cut under each mask (see `_mask_feature`)."""
    batch = one_hot.output(0).shape[0]
    plane = ops.reshape(one_hot, _int64([batch, *cut.grid]), False)
    rows, columns = cut.cells.shares(tuple(feature.output(0).shape)[2:])
    plane = ops.matmul(ops.matmul(rows.T, plane, False, False), columns, False, False)
    plane = ops.unsqueeze(plane, np.int64(1))
    if mask == "drop":
        plane = ops.subtract(np.float32(1), plane)
    return ops.multiply(feature, ops.convert(plane, feature.get_element_type()))


def _mask_feature(
    feature: ov.Node | ov.Output, one_hot: ov.Node, cut: CutPoint, mask: Mask
) -> ov.Node:
    """Return the masked feature maps, one for each row of `one_hot` [batch,N].

    A row of zeros, as of the number N, stands for no cell: under "cell" none is kept, under "drop"
    all are.
    """
    batch = one_hot.output(0).shape[0]
    plane = ops.reshape(one_hot, _int64([batch, 1, *cut.grid]), False)
    kind = feature.get_element_type()
    if mask == "drop":
        plane = ops.subtract(np.float32(1), plane)
    elif mask != "cell":
        kernel = ops.constant(GAUSSIAN[None, None])
        plane = ops.convolution(plane, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    cells, channels, layout = cut.cells.count, cut.shape[0], cut.layout
    if layout != "NCHW":
        sizes = [batch, *cut.grid, 1] if layout == "NHWC" else [batch, cells, 1]
        plane = ops.reshape(plane, _int64(sizes), False)
    prefix: ov.Node | None = None
    if cut.prefix:
        ends = ops.variadic_split(feature, np.int64(1), _int64([cut.prefix, cells]))
        prefix = ops.broadcast(ends.output(0), _int64([batch, cut.prefix, channels]))
        feature = ends.output(1)
    if mask == "spread":
        rows = ops.transpose(feature, _int64([0, 2, 3, 1])) if layout == "NCHW" else feature
        table = ops.reshape(rows, _int64([cells, channels]), False)
        centre = ops.matmul(one_hot, ops.convert(table, ov.Type.f32), False, False)
        shape = {
            "NCHW": [batch, channels, 1, 1],
            "NHWC": [batch, 1, 1, channels],
            "NTC": [batch, 1, channels],
        }[layout]
        feature = ops.convert(ops.reshape(centre, _int64(shape), False), kind)
    masked = ops.multiply(feature, ops.convert(plane, kind))
    return masked if prefix is None else ops.concat([prefix, masked], 1)


def _int64(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def activation_bytes(tail: ov.Model) -> int:
    """Estimate the bytes of live activations that one more cell in the batch takes.

    An operation's inputs and outputs live at once; neighbouring operations overlap. Twice the
    largest operation covers both, weights aside.
    """
    largest = 0
    live: dict[ov.Output, int] = {}
    for node in tail.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        if node.get_type_name() != "Parameter" and not any(value in live for value in sources):
            continue  # made of weights alone
        for value in node.outputs():
            elements = int(np.prod(list(value.shape), dtype=np.int64))
            live[value] = elements * value.get_element_type().size
        largest = max(largest, sum(live.get(value, 0) for value in [*sources, *node.outputs()]))
    return 2 * largest
