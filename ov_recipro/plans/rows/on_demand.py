"""The tail of a joint cut as rows of which only those are computed that wanted numbers depend on.

One graph serves all demands (see `demand_graph`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import Array, Key, Port, constant, key_of, sources_of
from ov_recipro.plans.rows.anchors import Anchors
from ov_recipro.plans.rows.backgrounds import ImageBackground, of_image
from ov_recipro.plans.rows.demand import Regions
from ov_recipro.plans.rows.demand_graph import DemandGraph, Placed, Table
from ov_recipro.plans.rows.lowering import Lowering
from ov_recipro.plans.rows.rows_cost import downstream, steps_of
from ov_recipro.plans.rows.scattered import selecting
from ov_recipro.plans.verdict import PlanRefused


def by_pixel(feature: Array) -> Array:
    """Return a feature map [1,C,h,w] as [h*w,C]."""
    return np.ascontiguousarray(feature.reshape(feature.shape[1], -1).T, np.float32)


@dataclass(frozen=True)
class LoweredOnDemand:
    """The tail of a joint cut as rows on demand.

    Attributes:
        model: from the feature maps [h*w,C] (for the pixels in a cell), the backgrounds [h*w,C],
            the tables, and which numbers are wanted of each piece (see `scattered.selecting`), to
            these numbers.
        plain: from the feature maps [1,C,h,w] to the backgrounds, as such maps, and, last, all
            values. It lays none of them out by pixel: where OpenVINO lets tensors share memory,
            another reshape of an output may overwrite it.
        tables: what makes each table.
        regions: of the tail.
        end: the last tensor, in pieces, each with rows of the level of its size.
    """

    model: ov.Model
    plain: ov.Model
    tables: tuple[Table, ...]
    regions: Regions
    end: Anchors


def lower_on_demand(tail: ov.Model, cells: Cells, core: ov.Core, drop: bool) -> LoweredOnDemand:
    """Compile a prepared tail of several inputs [1,C,h,w].

    Args:
        tail: the tail at batch 1.
        cells: those of the cut.
        core: to evaluate constants with.
        drop: whether what lies in a cell is lost; else it is all that is kept.

    Raises:
        PlanRefused: an operation has no rule.
    """
    starts = [parameter.output(0) for parameter in tail.get_parameters()]
    steps = downstream(steps_of(tail), [key_of(port) for port in starts])
    nodes = [step.node for step in steps]
    varying = frozenset({*(key_of(p)[0] for p in starts), *(n.get_friendly_name() for n in nodes)})
    backgrounds = {
        **of_image(nodes, {node.get_friendly_name(): node for node in nodes}),
        **{key_of(port): ImageBackground(port) for port in starts},
    }
    resamplings = {step.node.get_friendly_name(): step.resampling for step in steps}
    rules = Lowering(core, varying, backgrounds, True, resamplings)
    work = DemandGraph(rules, Regions(cells))
    maps = []
    values: dict[Key, Placed | Anchors] = {}
    for port in starts:
        _, channels, height, width = (int(size) for size in port.shape)
        maps.append(ops.parameter([height * width, channels], np.float32))
        values[key_of(port)] = work.start(key_of(port), maps[-1].output(0), (height, width), drop)
    for node in nodes:
        for port, made in zip(node.outputs(), work.lowered(node, values), strict=False):
            values[key_of(port)] = made
    end = work.laid_out(values[key_of(tail.get_results()[0].input_value(0))])
    _open(end, work.starts, work.levels)
    asked, given = selecting([piece.port for piece in end.pieces])
    inputs = [*maps, *work.backgrounds.values(), *(each for each, _ in work.tables), *asked]
    model = ov.Model([ops.result(port) for port in given], inputs, "on demand")
    tables = tuple(table for _, table in work.tables)
    plain = _plain(tail, list(work.backgrounds))
    return LoweredOnDemand(model, plain, tables, work.regions, end)


def _plain(tail: ov.Model, backgrounds: Sequence[Key]) -> ov.Model:
    """Return a copy of the tail that gives some of its tensors too, first."""
    copy = tail.clone()
    known = {node.get_friendly_name(): node for node in copy.get_ordered_ops()}
    ports = [known[name].output(index) for name, index in backgrounds]
    results = [*(ops.result(port) for port in ports), *copy.get_results()]
    return ov.Model(results, copy.get_parameters(), "plain")


def _open(end: Anchors, starts: frozenset[str], levels: Mapping[int, Port]) -> None:
    """Let what the rules of anchors made for all pixels of a map work on any rows of a level.

    Args:
        end: the last tensor; starts: the names of the operations that give the levels' rows.
        levels: the pixel of each row, by how many pixels a map has.
    """
    left, seen = [piece.port.get_node() for piece in end.pieces], set(starts)
    while left:
        node = left.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        sources = [port.get_node() for port in sources_of(node)]
        left += sources
        numbers = sources[1].data if len(sources) > 1 and _is_constant(sources[1]) else None
        if numbers is None:
            continue
        if node.get_type_name() == "Reshape":
            node.input(1).replace_source_output(constant([-1, *numbers[1:]], np.int64))
        elif node.get_type_name() == "Gather" and _is_constant(sources[0]):
            if not np.array_equal(numbers, np.arange(len(sources[0].data))):
                raise PlanRefused("a constant is not read pixel by pixel")
            node.input(1).replace_source_output(levels[len(numbers)])


def _is_constant(node: ov.Node) -> bool:
    return bool(node.get_type_name() == "Constant")
