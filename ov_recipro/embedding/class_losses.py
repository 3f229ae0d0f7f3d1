"""What a detector's classes lose inside a graph, from the rows of plan `rows`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from openvino import opset13 as ops

from ov_recipro.cut.box_layout import BoxLayout, Content, Indices
from ov_recipro.plans.nodes import Port, constant, gather, reshape
from ov_recipro.plans.rows.joint_compiler import LoweredJoint
from ov_recipro.plans.rows.scattered import Numbers
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.targets.candidates import FASTESTDET_POWERS

_TINY = np.float32(1e-30)  # the least number of which a logarithm is taken


@dataclass(frozen=True)
class ClassLosses:
    """What the classes of a detector lose where cells are emptied.

    Attributes:
        losses: float32 [N,T] of N cells and T classes, 0..1: the largest loss of a candidate's
            score.
        best: float32 [1,T], the highest score of a candidate where nothing is emptied.
    """

    losses: Port
    best: Port


def class_losses(lowered: LoweredJoint, layout: BoxLayout, classes: Indices) -> ClassLosses:
    """Append what classes lose to the rows of a detector's tail under the mask "drop".

    The loss of class c where cell k is emptied is max(0, max_a (p[a,c] - p_k[a,c])), with p the
    scores of the candidates a as `targets.candidates.decode` gives them.

    Args:
        lowered: the rows.
        layout: how the tail's values hold candidates, of which there is a fixed number.
        classes: the classes, [T].

    Raises:
        PlanRefused: the numbers of a candidate are not those of one pixel.
    """
    channels: dict[Content, Indices] = {"scores": _score_channels(layout, classes)}
    if "objectness" in layout.contents():
        channels["objectness"] = np.zeros(1, np.int64)
    reading = _Reading(layout, classes, channels)
    plain = reading.scores({name: reading.plain(lowered.plain, name) for name in channels})
    plain = reshape(plain, [layout.anchors, len(classes)])
    negative = ops.negative(plain).output(0)
    lowest: Port | None = None
    for group in _groups(lowered, reading):
        changes = _lowest_changes(lowered, reading, group, negative)
        lowest = changes if lowest is None else ops.minimum(lowest, changes).output(0)
    if lowest is None:
        lowest = constant(np.zeros((lowered.scattered.count, len(classes))))
    losses = ops.relu(ops.negative(lowest)).output(0)
    return ClassLosses(losses, ops.reduce_max(plain, np.array([0]), True).output(0))


@dataclass(frozen=True)
class _Reading:
    """Which numbers of a candidate are read, and how they become scores.

    Attributes:
        layout, classes: see `class_losses`.
        channels: the numbers of scores and, where there is some, objectness, counted within these.
    """

    layout: BoxLayout
    classes: Indices
    channels: dict[Content, Indices]

    def plain(self, values: Port, content: Content) -> Port:
        """Return numbers of all candidates, [1,A,C], from the values [V] of an image."""
        layout, found = self.layout, []
        parts = [part for part in layout.parts if part.content == content]
        for part in sorted(parts, key=lambda part: part.first):
            start, count = layout.offset(part.output), layout.count(part)
            end = start + count * part.width
            port = ops.slice(values, *(np.array([each]) for each in (start, end, 1))).output(0)
            sizes = (part.width, count) if part.channels_first else (count, part.width)
            port = gather(
                reshape(port, list(sizes)),
                self.channels[content] + part.channels[0],
                0 if part.channels_first else 1,
            )
            if part.channels_first:
                port = ops.transpose(port, np.array([1, 0])).output(0)
            found.append(port)
        port = found[0] if len(found) == 1 else ops.concat(found, 0).output(0)
        return reshape(port, [1, layout.anchors, len(self.channels[content])])

    def scores(self, numbers: dict[Content, Port]) -> Port:
        """Return class scores [n,m,T] from numbers of candidates [n,m,C]."""
        layout, scores = self.layout, numbers["scores"]
        if layout.activation == "sigmoid":
            scores = ops.sigmoid(scores).output(0)
        if layout.activation == "softmax":
            wanted = self.classes + (layout.background == "first")
            scores = gather(ops.softmax(scores, 2).output(0), wanted, 2)
        if "objectness" not in numbers:
            return scores
        if layout.family != "fastestdet":
            return ops.multiply(scores, numbers["objectness"]).output(0)
        powers = [  # faster than powers themselves
            ops.multiply(ops.log(ops.maximum(port, _TINY)), np.float32(power))
            for port, power in zip((numbers["objectness"], scores), FASTESTDET_POWERS, strict=True)
        ]
        return ops.exp(ops.add(powers[1], powers[0])).output(0)


@dataclass(frozen=True)
class _Group:
    """Candidates whose numbers lie in the same pieces, R at each pixel.

    Attributes:
        pixels: the pixels that have some, [p]; candidates: theirs, [p,R].
        pieces: for each content the piece of each number, [C].
        columns: for each content the column of each number in its piece, [R,C].
    """

    pixels: Indices
    candidates: Indices
    pieces: dict[Content, Indices]
    columns: dict[Content, Indices]


def _groups(lowered: LoweredJoint, reading: _Reading) -> list[_Group]:
    """Return the groups of candidates that some cell changes."""
    layout, scattered = reading.layout, lowered.scattered
    owners = np.full((3, scattered.values), -1, np.int64)
    for number, elements in enumerate(scattered.elements):
        pixels, columns = np.nonzero(elements >= 0)
        owners[:, elements[pixels, columns]] = np.full_like(pixels, number), pixels, columns
    anchors = np.arange(layout.anchors)
    read = [layout.places(name, anchors, numbers) for name, numbers in reading.channels.items()]
    pieces, pixels, columns = owners[:, np.concatenate(read, axis=1)]
    ends = np.cumsum([len(numbers) for numbers in reading.channels.values()])[:-1]
    found = []
    kinds, kind = np.unique(pieces, axis=0, return_inverse=True)
    for number, of_kind in enumerate(kinds):
        if (of_kind < 0).all():
            continue
        members = np.flatnonzero(kind.reshape(-1) == number)
        where = pixels[members]
        used, counts = np.unique(where[:, 0], return_counts=True)
        if (of_kind < 0).any() or (where != where[:, :1]).any() or (counts != counts[0]).any():
            raise PlanRefused("the numbers of a candidate are not those of one pixel")
        candidates = members[np.argsort(where[:, 0], kind="stable")].reshape(len(used), -1)
        by_pixel = columns[candidates]
        if (by_pixel != by_pixel[0]).any():
            raise PlanRefused("the candidates of a pixel are not in the same order everywhere")
        split = (np.split(each, ends, axis=-1) for each in (of_kind, by_pixel[0]))
        by_content = (dict(zip(reading.channels, each, strict=True)) for each in split)
        found.append(_Group(used, candidates, *by_content))
    return found


def _lowest_changes(
    lowered: LoweredJoint, reading: _Reading, group: _Group, negative: Port
) -> Port:
    """Return the lowest change [N,T] of a score that a cell makes, 0 where it makes none.

    Args:
        lowered, reading: see `class_losses`; group: of which candidates.
        negative: the scores of all candidates where nothing is emptied, [A,T], times -1.
    """
    scattered = lowered.scattered
    places, start = np.full(scattered.count, -1), 0
    found: list[Port] = []
    pieces = np.unique(np.concatenate(list(group.pieces.values()))).tolist()
    for block, (cells, of_block) in enumerate(zip(scattered.cells, scattered.rows, strict=True)):
        rows = {piece: of_block[piece][:, group.pixels] for piece in pieces}
        active = np.logical_or.reduce([each >= 0 for each in rows.values()])
        some = np.flatnonzero(active.any(axis=1))
        if not len(some):
            continue
        window = _windows(active[some])
        chosen = {
            piece: np.take_along_axis(each[some], window, axis=1) for piece, each in rows.items()
        }
        numbers = {
            name: _numbers(lowered, group, name, block, chosen, window) for name in reading.channels
        }
        own = gather(negative, group.candidates[window].reshape(len(some), -1))
        changes = ops.add(reading.scores(numbers), own)
        found.append(ops.reduce_min(changes, np.array([1]), False).output(0))
        places[cells[some]] = start + np.arange(len(some))
        start += len(some)
    zeros = constant(np.zeros((1, len(reading.classes))))
    table = ops.concat([*found, zeros], 0).output(0)
    return gather(table, np.where(places < 0, start, places))


def _windows(active: np.ndarray) -> Indices:
    """Return the numbers of the active pixels [n,p] of each cell, [n,m]; the last one repeats."""
    counts = active.sum(axis=1)
    order = np.argsort(~active, axis=1, kind="stable")
    steps = np.minimum(np.arange(counts.max())[None], counts[:, None] - 1)
    return np.take_along_axis(order, steps, axis=1)


def _numbers(
    lowered: LoweredJoint,
    group: _Group,
    content: Content,
    block: int,
    rows: dict[int, Numbers],
    window: Indices,
) -> Port:
    """Return one content's numbers of the candidates at each cell's pixels, [n,m*R,C].

    Args:
        lowered, group: see `_lowest_changes`.
        content: which; block: of which cells.
        rows: by piece, int32 [n,m]: the row of each pixel, -1 where it is the image's own.
        window: [n,m], the pixels, by their place in `group.pixels`.
    """
    found, order = list[Port](), list[Indices]()
    sizes = [window.shape[0], window.size // len(window) * group.candidates.shape[1]]
    for piece in np.unique(group.pieces[content]).tolist():
        numbers = np.flatnonzero(group.pieces[content] == piece)
        columns = group.columns[content][:, numbers].reshape(-1)
        port = lowered.pieces[block * len(lowered.scattered.elements) + piece]
        count, width = (int(size) for size in port.shape)
        if not np.array_equal(columns, np.arange(width)):
            port = gather(port, columns, 1)
        chosen = rows[piece]
        if (chosen < 0).any():
            elements = lowered.scattered.elements[piece][group.pixels][:, columns]
            port = ops.concat([port, gather(lowered.plain, elements)], 0).output(0)
            chosen = np.where(chosen < 0, count + window, chosen)
        if not np.array_equal(chosen.reshape(-1), np.arange(count)):
            port = gather(port, chosen)
        found.append(reshape(port, [*sizes, len(numbers)]))
        order.append(numbers)
    port = found[0] if len(found) == 1 else ops.concat(found, 2).output(0)
    places = np.argsort(np.concatenate(order))
    return port if np.array_equal(places, np.arange(len(places))) else gather(port, places, 2)


def _score_channels(layout: BoxLayout, classes: Indices) -> Indices:
    """Return which of the numbers of class scores are read."""
    first, end = layout.channels("scores")
    if layout.activation == "softmax":
        return np.arange(end - first)
    return classes + (layout.background == "first")
