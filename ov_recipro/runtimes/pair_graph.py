"""Two feature maps in one graph: one cell is kept at the earlier, one emptied at the later.

The later is where a bundle is cut. The earlier lies in front of the last operation that mixes
cells: a cell that is kept there still speaks of little more than its own pixels, but the network
has one more look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cells import Cells
from ov_recipro.errors import OptionError
from ov_recipro.plans import rows
from ov_recipro.plans.nodes import Key, Port, key_of, prepared
from ov_recipro.plans.rows import Reach, RowsPlan, Step, downstream, estimate, steps_of
from ov_recipro.plans.rows.windows import window_of
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.runtimes.model_graphs import tail_at, whole_model
from ov_recipro.saliency import Floats
from ov_recipro.sources.openvino_models import core, name_of, runner

_MOST = 2.5  # inferences that an image may take
_WINDOWS = frozenset({"AvgPool", "Convolution", "GroupConvolution", "MaxPool"})


@dataclass(frozen=True)
class Earlier:
    """The earlier feature map.

    Attributes:
        name: of its tensor; shape: [1,C,h,w].
        tail: from it to the logits, at batch 1.
    """

    name: str
    shape: tuple[int, ...]
    tail: ov.Model

    def empty(self) -> Floats:
        """Return the logits [classes] of none of its cells."""
        zeros = np.zeros(self.shape, np.float32)
        return np.asarray(runner(self.tail.clone())([zeros])[0].reshape(-1))


@dataclass(frozen=True)
class Layers:
    """Both feature maps in the whole model.

    Attributes:
        model: from the image to the bundle's outputs.
        start: the earlier map's tensor in it; later: the later map's.
        earlier: the earlier map; macs: multiply-accumulates of one plain inference.
    """

    model: ov.Model
    start: Port
    later: Port
    earlier: Earlier
    macs: int


@dataclass(frozen=True)
class PairGraph:
    """Both looks in one model.

    Attributes:
        model: from the image to the logits of each cell of the earlier map alone [N,classes]; of
            the later map without each cell and, last, of all of it [M+1,classes]; and the sum of
            the later map, which is finite where all of it is.
        earlier: the earlier map; plan: how its cells are run.
    """

    model: ov.Model
    earlier: Earlier
    plan: RowsPlan


def pair_graph(bundle: Bundle, memory: int, max_cost: float | None = None) -> PairGraph:
    """Build the graph.

    Args:
        bundle: cut at the later feature map.
        memory: bytes that activations may take.
        max_cost: see `find_earlier`.

    Raises:
        OptionError: the model has no earlier feature map that fits, or it costs too much.
    """
    found = find_earlier(bundle, max_cost)
    kept, dropped, plan = looks(bundle, found, found.start, found.later, memory)
    total = ops.reduce_sum(found.later, np.arange(len(found.later.shape)), False)
    results = [ops.result(each) for each in (kept, dropped, total)]
    return PairGraph(ov.Model(results, found.model.get_parameters(), "pair"), found.earlier, plan)


def looks(
    bundle: Bundle, found: Layers, start: Port, later: Port, memory: int
) -> tuple[Port, Port, RowsPlan]:
    """Build both looks on two feature maps.

    Args:
        bundle: cut at the later one.
        found: where they are in the model.
        start, later: what the looks read in their place.
        memory: bytes that activations may take.

    Returns:
        The logits [N,classes] of each cell of the earlier map alone; those of the later map without
        each cell and, last, of all of it [M+1,classes]; and the plan of the first.

    Raises:
        OptionError: plan `rows` does not apply.
    """
    tail, macs = found.earlier.tail.clone(), found.macs
    try:
        kept, plan = rows.build(tail, start, core(), memory, macs, plain=False)
        dropped, _ = rows.build(tail_at(bundle, 1), later, core(), memory, macs, True, "drop")
    except PlanRefused as failure:
        raise OptionError(f"Method 'recipro-pair' can't be used: {failure}.") from failure
    return kept.logits, dropped.logits, plan


def find_earlier(bundle: Bundle, max_cost: float | None = None) -> Layers:
    """Find the earlier feature map.

    Args:
        bundle: cut at the later feature map.
        max_cost: inferences that an image may take, if fewer than 2.5.

    Raises:
        OptionError: the model has no earlier feature map that fits, or it costs too much.
    """
    manifest = bundle.manifest
    reason = rows.applies(manifest, "cell")
    if reason is None and manifest.deployed_scores:
        reason = "the model computes in fewer than 32 bits up to its scores"
    if reason is not None:
        raise OptionError(f"Method 'recipro-pair' can't be used: {reason}.")
    whole = prepared(whole_model(bundle))
    later = whole.get_results()[0].input_value(0)
    steps = steps_of(whole)
    plain = sum(step.macs for step in steps)
    path = downstream(steps, [key_of(port) for port in _images(whole)])
    start = _start(path, key_of(later))
    cost = 1 + sum(_cost(steps, port) for port in (start, later)) / plain
    most = _MOST if max_cost is None else min(_MOST, max_cost)
    if cost > most:
        raise OptionError(
            f"Method 'recipro-pair' can't be used: with '{name_of(start)}' as its second layer it "
            f"would cost about {cost:.3g} inferences an image; the limit is {most:g}."
        )
    tail = _tail_from(whole.clone(), key_of(start))
    earlier = Earlier(name_of(start), tuple(int(size) for size in start.shape), tail)
    return Layers(whole, start, later, earlier, plain)


def _images(model: ov.Model) -> list[ov.Output]:
    return [parameter.output(0) for parameter in model.get_parameters()]


def _cost(steps: Sequence[Step], port: ov.Output) -> int:
    """Return the multiply-accumulates of the rows behind a feature map."""
    height, width = (int(size) for size in list(port.shape)[2:])
    cells = Cells((height, width))
    tail, start = downstream(steps, [key_of(port)]), key_of(port)
    return estimate(tail, {start: Reach.of(cells, cells.grid)}, cells.count).rows


def _start(path: Sequence[Step], later: Key) -> ov.Output:
    """Return the feature map in front of the last operation that mixes cells on the way to `later`.

    All of the image must pass it. Of those with that operation alone behind them it is the deepest
    of the fewest channels: the input of the network's last block.

    Raises:
        OptionError: there is none.
    """
    until = next(i for i, step in enumerate(path) if later in step.outputs)
    before = path[: until + 1]
    last_read = {key: i for i, step in enumerate(before) for key in step.inputs}
    alive: set[Key] = set()  # what is still to be read
    found: list[tuple[int, int, int, ov.Output]] = []
    for place, step in enumerate(before[:-1]):
        port = step.node.output(0)
        alive = {key for key in (*alive, *step.outputs) if last_read.get(key, -1) > place}
        if alive != {key_of(port)} or len(port.partial_shape) != 4:
            continue
        mixing = sum(_mixes(each.node) for each in before[place + 1 :])
        if mixing:
            found.append((mixing, int(port.shape[1]), -place, port))
    if not found:
        raise OptionError(
            "Method 'recipro-pair' can't be used: the model has no second layer that all of the "
            "image passes."
        )
    return min(found, key=lambda each: each[:3])[3]


def _mixes(node: ov.Node) -> bool:
    """Whether an operation's output pixels read more than one input pixel."""
    kind = node.get_type_name()
    return kind == "Interpolate" or (kind in _WINDOWS and window_of(node).kernel != (1, 1))


def _tail_from(whole: ov.Model, start: Key) -> ov.Model:
    """Return what leads from a tensor of the whole model, which is used up, to the logits."""
    port = next(
        port for node in whole.get_ordered_ops() for port in node.outputs() if key_of(port) == start
    )
    feature = ops.parameter(list(port.shape), port.get_element_type(), name="feature")
    logits = whole.get_results()[-1]
    for reader in list(port.get_target_inputs()):
        if reader.get_node().get_type_name() != "Result":
            reader.replace_source_output(feature.output(0))
    return ov.Model([logits], [feature], "tail")
