"""The graph of rows on demand: every rule for what a tail computes of several feature maps.

Each row is computed from values, those of other rows or of the background, as the tail computes a
pixel of a map. How many rows there are, and where each reads its own, are inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from ov_recipro.plans.nodes import ELEMENTWISE, Key, Port, constant, key_of, reshape, sources_of
from ov_recipro.plans.rows import anchor_rules, demand, pixelwise
from ov_recipro.plans.rows.anchors import Anchors
from ov_recipro.plans.rows.blocks import Block
from ov_recipro.plans.rows.demand import Active, Regions
from ov_recipro.plans.rows.lowering import Lowering
from ov_recipro.plans.rows.readings import Reading
from ov_recipro.plans.rows.tensors import Rows
from ov_recipro.plans.rows.windows import window_of
from ov_recipro.plans.verdict import PlanRefused

Size: TypeAlias = tuple[int, int]

_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Work:
    """What is computed in one run: the pixels of each region and level, for a block of cells."""

    block: Block
    computed: Sequence[Active]
    levels: Mapping[Size, Active]


Table: TypeAlias = Callable[[Work], npt.NDArray[np.generic]]
"""What makes an input of the graph."""


@dataclass(frozen=True)
class Placed:
    """A feature map as rows of a region; which pixels they are of, the region says.

    Attributes:
        port: [P,C]; `region`: its number; `key`: the tensor of the tail that it is.
    """

    port: Port
    region: int
    key: Key


@dataclass
class DemandGraph:
    """A graph in the making.

    Attributes:
        rules: for what is computed pixel by pixel.
        regions: of the tail so far.
        backgrounds: inputs [h*w,C] for the values that tensors have where no cell changes them.
        tables: other inputs, and what makes these.
        levels: those for the pixel of each row of a level, by how many pixels its map has.
    """

    rules: Lowering
    regions: Regions
    backgrounds: dict[Key, ov.Node] = field(default_factory=dict)
    tables: list[tuple[ov.Node, Table]] = field(default_factory=list)
    levels: dict[int, Port] = field(default_factory=dict)
    _inputs: dict[tuple[object, ...], Port] = field(default_factory=dict)
    _sources: dict[tuple[Key, float], Port] = field(default_factory=dict)
    _levels: dict[Key, Anchors] = field(default_factory=dict)

    def start(self, key: Key, pixels: Port, size: Size, drop: bool) -> Placed:
        """Return a feature map, given as [h*w,C], under each cell's mask (see `seeds`)."""
        region = self.regions.start(size)
        rows, columns = self.regions.cells.shares(size)

        def share(work: Work) -> npt.NDArray[np.generic]:
            of_block = rows[work.block.rows], columns[work.block.columns]
            shares = work.computed[region].shares(*of_block)
            return 1 - shares if drop else shares

        places = self._input(("start", region), [-1], lambda work: work.computed[region].pixels)
        found = ops.gather(pixels, places, constant(0, np.int32))
        shares = self._input(("shares", region), [-1, 1], share, np.float32)
        return Placed(ops.multiply(found, shares).output(0), region, key)

    def lowered(
        self, node: ov.Node, values: Mapping[Key, Placed | Anchors]
    ) -> Sequence[Placed | Anchors]:
        """Return a node's outputs: as feature maps while they are some, else as anchors."""
        read = [values.get(key_of(port)) for port in sources_of(node)]
        known = [value for value in read if value is not None]
        if all(isinstance(value, Placed) for value in known):
            found = self._maps(node, read)  # type: ignore[arg-type]
            if found is not None:
                return found
        anchors = [None if value is None else self.laid_out(value) for value in read]
        made = anchor_rules.lower(self.rules, node, anchors)
        if made is None:
            name = node.get_friendly_name().partition(":")[2]
            raise PlanRefused(f"no rule covers '{node.get_type_name()}' at '{name}' on demand")
        return made

    @property
    def starts(self) -> frozenset[str]:
        """The names of the operations that give the levels' rows."""
        ports = [piece.port for each in self._levels.values() for piece in each.pieces]
        return frozenset(port.get_node().get_friendly_name() for port in ports)

    def laid_out(self, value: Placed | Anchors) -> Anchors:
        """Return a feature map as anchors, with the rows of its level."""
        if isinstance(value, Anchors):
            return value
        if value.key not in self._levels:
            size = self.regions.computed[value.region].size
            level = self.regions.level(size, value.region)
            if level:
                pixels = partial(_pixels_of_level, size)
                self.levels[prod(size)] = self._input(("level", size), [-1], pixels)
                if len(self.levels) < len(self.regions.levels):
                    raise PlanRefused("two levels have as many pixels, but not as many rows")
            itself = Reading.of_itself(size)

            def table(work: Work) -> npt.NDArray[np.generic]:
                return demand.taps(work.computed[value.region], work.levels[size], itself)

            places = self._input(("to level", value.region), [-1, 1], table)
            port = self._gathered(value, places, 0)[0]
            self._levels[value.key] = Anchors.of_rows(self._rows(value, port))
        return self._levels[value.key]

    def _maps(self, node: ov.Node, read: Sequence[Placed | None]) -> list[Placed] | None:
        """Return a node's outputs as feature maps; None where they are none."""
        kind, output = node.get_type_name(), node.output(0)
        first = next(value for value in read if value is not None)
        if any(len(port.shape) != 4 for port in node.outputs()):
            return None
        if kind in ELEMENTWISE or kind == "Concat":
            return self._together(node, read)
        if kind in ("Split", "VariadicSplit"):
            axis = self.rules.constant(node.input_value(1))
            if axis is None or int(axis.reshape(-1)[0]) % 4 != 1:
                return None
            shapes = [self.rules.backgrounds[key_of(port)] for port in node.outputs()]
            made = pixelwise.split(node, self._rows(first, first.port), shapes)
            return [
                Placed(each.port, first.region, key_of(port))
                for each, port in zip(made, node.outputs(), strict=True)
            ]
        if read[0] is None or sum(value is not None for value in read) > 1:
            return None
        if kind == "Interpolate":
            return self._resampled(node, first)
        if kind == "Convolution":
            weight = self.rules.constant(node.input_value(1))
            return None if weight is None else [self._convolved(node, first, weight)]
        if kind == "GroupConvolution":
            return [self._by_windows(node, first)]
        if kind == "MaxPool" and not any(p.get_target_inputs() for p in node.outputs()[1:]):
            reading = Reading.of_window(window_of(node))
            region, places = self._places(first, reading, self._size(output))
            taken = self._taken(first, places, reading.taps, _LOWEST)
            pooled = ops.reduce_max(taken, constant([1], np.int32), False).output(0)
            return [Placed(pooled, region, key_of(output))]
        return None

    def _together(self, node: ov.Node, read: Sequence[Placed | None]) -> list[Placed] | None:
        """Lower an operation on each pixel of several feature maps by itself."""
        output, background = node.output(0), self.rules.backgrounds[key_of(node.output(0))]
        known = [value for value in read if value is not None]
        size = self._size(output)
        if any(self.regions.computed[value.region].size != size for value in known):
            return None
        numbers = {value.region for value in known}
        (region,) = numbers if len(numbers) == 1 else (self._joined(numbers, size),)
        inputs = [
            self.rules.constant(source)
            if value is None
            else self._rows(value, self._moved(value, region))
            for value, source in zip(read, sources_of(node), strict=True)
        ]
        if any(each is None for each in inputs):
            return None
        maps = [each for each in inputs if isinstance(each, Rows)]
        if node.get_type_name() == "Concat":
            if len(maps) < len(inputs) or int(node.get_attributes()["axis"]) % 4 != 1:
                return None
            return [Placed(pixelwise.concatenated(maps, background).port, region, key_of(output))]
        if any(each.background.shape != background.shape for each in maps):
            return None
        constants = [each for each in inputs if isinstance(each, np.ndarray)]
        if any(len(each.shape) > 1 and prod(each.shape[-2:]) > 1 for each in constants):
            return None
        made = pixelwise.elementwise(node, inputs, background)  # type: ignore[arg-type]
        return None if made is None else [Placed(made.port, region, key_of(output))]

    def _resampled(self, node: ov.Node, value: Placed) -> list[Placed] | None:
        how = self.rules.resamplings.get(node.get_friendly_name())
        if how is None:
            return None
        reading, key = Reading.of_resampling(how), key_of(node.output(0))
        region, places = self._places(value, reading, self._size(node.output(0)))
        if reading.weights is None:
            return [Placed(self._gathered(value, places, 0)[0], region, key)]

        def table(work: Work) -> npt.NDArray[np.generic]:
            return demand.weights(work.computed[region], reading)

        name = ("weights", region, reading.key, *(each.tobytes() for each in reading.weights))
        shares = self._input(name, [-1, reading.taps, 1], table, np.float32)
        parts = ops.multiply(self._taken(value, places, reading.taps, 0), shares)
        return [Placed(ops.reduce_sum(parts, constant([1], np.int32)).output(0), region, key)]

    def _convolved(self, node: ov.Node, value: Placed, weight: npt.NDArray[np.float32]) -> Placed:
        outputs, channels = weight.shape[:2]
        window, key = window_of(node), key_of(node.output(0))
        plain = window.kernel == window.stride == (1, 1) and window.pad == (0, 0)
        region, port = value.region, value.port
        if not plain or window.source != window.target:
            reading = Reading.of_window(window)
            region, places = self._places(value, reading, window.target)
            taken = self._taken(value, places, reading.taps, 0)
            port = reshape(taken, [-1, reading.taps * channels])
            self.regions.computed[region].holds(weight.size, reading.taps * channels)
        else:
            self.regions.computed[region].holds(weight.size, max(outputs, channels))
        matrix = constant(weight.transpose(0, 2, 3, 1).reshape(outputs, -1))
        return Placed(ops.matmul(port, matrix, False, True).output(0), region, key)

    def _by_windows(self, node: ov.Node, value: Placed) -> Placed:
        """Lower a grouped convolution: the operation itself on a window for each cell."""
        window, key = window_of(node), key_of(node.output(0))
        reading = Reading.of_window(window)
        region = self.regions.read_from(window.target, (value.region, reading))
        weight = node.input_value(1)
        self.regions.computed[region].holds(prod(weight.shape), 4 * int(node.output(0).shape[1]))

        def table(which: int, work: Work) -> npt.NDArray[np.generic]:
            return demand.windows(work.computed[value.region], work.computed[region], window)[which]

        name = (value.region, region, reading.key)
        places = self._input(("windows", *name), [-1, -1, -1], partial(table, 0))
        chosen = self._input(("chosen", *name), [-1], partial(table, 1))
        taken, _ = self._gathered(value, places, 0)
        maps = ops.transpose(taken, constant([0, 3, 1, 2], np.int32))
        attributes = {**node.get_attributes(), "pads_begin": [0, 0], "pads_end": [0, 0],
                      "auto_pad": "explicit"}  # fmt: skip
        factory = NodeFactory(node.get_type_info().version_id)
        made = factory.create("GroupConvolution", [maps.output(0), weight], attributes)
        last = ops.transpose(made, constant([0, 2, 3, 1], np.int32)).output(0)
        rows = reshape(last, [-1, int(node.output(0).shape[1])])
        return Placed(ops.gather(rows, chosen, constant(0, np.int32)).output(0), region, key)

    def _joined(self, numbers: set[int], size: Size) -> int:
        itself = Reading.of_itself(size)
        return self.regions.read_from(size, *((number, itself) for number in sorted(numbers)))

    def _moved(self, value: Placed, region: int) -> Port:
        """Return the rows of another region of the same size."""
        if value.region == region:
            return value.port
        itself = Reading.of_itself(self.regions.computed[region].size)
        places = self._taps(value.region, region, itself)
        return self._gathered(value, places, 0)[0]

    def _places(self, value: Placed, reading: Reading, size: Size) -> tuple[int, Port]:
        """Return the region that reads a feature map, and where [P,taps]."""
        region = self.regions.read_from(size, (value.region, reading))
        return region, self._taps(value.region, region, reading)

    def _taps(self, source: int, target: int, reading: Reading) -> Port:
        def table(work: Work) -> npt.NDArray[np.generic]:
            return demand.taps(work.computed[source], work.computed[target], reading)

        return self._input(("taps", source, target, reading.key), [-1, reading.taps], table)

    def _taken(self, value: Placed, places: Port, taps: int, outside: float) -> Port:
        """Return what each row reads, [P,taps,C]."""
        found, channels = self._gathered(value, places, outside)
        return reshape(found, [-1, taps, channels])

    def _gathered(self, value: Placed, places: Port, outside: float) -> tuple[Port, int]:
        """Return rows, or the background, or `outside`, at some places, and how many channels."""
        channels, height, width = self.rules.backgrounds[value.key].shape
        if value.key not in self.backgrounds:
            shape = [height * width, channels]
            self.backgrounds[value.key] = ops.parameter(shape, np.float32)
        if (value.key, outside) not in self._sources:
            last = constant(np.full((1, channels), outside))
            parts = [value.port, self.backgrounds[value.key], last]
            self._sources[value.key, outside] = ops.concat(parts, 0).output(0)
        source = self._sources[value.key, outside]
        if len(places.get_partial_shape()) == 2 and places.get_partial_shape()[1] == 1:
            places = reshape(places, [-1])
        return ops.gather(source, places, constant(0, np.int32)).output(0), channels

    def _input(
        self,
        name: tuple[object, ...],
        shape: list[int],
        table: Table,
        dtype: type[np.generic] = np.int32,
    ) -> Port:
        """Return an input of the graph; the same for the same name."""
        if name not in self._inputs:
            parameter = ops.parameter(ov.PartialShape(shape), dtype)
            self.tables.append((parameter, table))
            self._inputs[name] = parameter.output(0)
        return self._inputs[name]

    def _rows(self, value: Placed, port: Port) -> Rows:
        background = self.rules.backgrounds[value.key]
        return Rows(port, np.ones((1, *background.shape[1:]), bool), background)

    def _size(self, port: Port) -> Size:
        height, width = (int(size) for size in port.shape[2:])
        return height, width


def _pixels_of_level(size: Size, work: Work) -> npt.NDArray[np.generic]:
    return work.levels[size].pixels
