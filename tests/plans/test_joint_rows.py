"""Plan `rows` for joint cuts: every rule of detectors' tails against the tail run cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from openvino import opset13 as ops

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.rows import Scattered, build_joint, convolution, patches, scattered
from ov_recipro.plans.rows.anchors import Anchors
from ov_recipro.plans.rows.tensors import Rows
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.sources.openvino_models import core, runner

Floats = npt.NDArray[np.float32]
MASKS: tuple[Mask, ...] = ("drop", "cell")
CELLS = Cells((4, 3))
SHAPES = ((1, 6, 4, 3), (1, 4, 8, 6), (1, 3, 10, 7))  # the last grid does not divide
random = np.random.default_rng(0)


def weights(*shape: int) -> Floats:
    return np.asarray(random.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


def int64(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def shape_of(x: Any) -> list[int]:
    return [int(size) for size in (x if isinstance(x, ov.Output) else x.output(0)).shape]


def conv(x: Any, channels: int, kernel: int = 3, stride: int = 1) -> Any:
    source = shape_of(x)[1]
    pads = [kernel // 2] * 2
    weight = weights(channels, source, kernel, kernel)
    made = ops.convolution(x, weight, [stride] * 2, pads, pads, [1, 1])
    return ops.add(made, weights(1, channels, 1, 1))


def resize(x: Any, size: tuple[int, int], **how: Any) -> Any:
    settings = {"mode": "nearest", "shape_calculation_mode": "sizes"} | how
    return ops.interpolate(x, int64(*size), axes=int64(2, 3), **settings)


def rows_of(x: Any) -> Any:
    """[1,C,h,w] as [1,h*w,C]."""
    channels = shape_of(x)[1]
    return ops.reshape(ops.transpose(x, int64(0, 2, 3, 1)), int64(1, -1, channels), False)


def flat(x: Any) -> Any:
    """[1,C,h,w] as [1,C,h*w]."""
    return ops.reshape(x, int64(1, shape_of(x)[1], -1), False)


def split(x: Any, axis: int, *sizes: int) -> list[Any]:
    return list(ops.variadic_split(x, np.int64(axis), int64(*sizes)).outputs())


def both(make: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """A tail of which the third map is not part of what is tested."""
    return lambda a, b, c: [make(a, b), rows_of(conv(c, 2))]


def one(make: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
    return both(lambda _, b: make(b))


def enlarged(x: Any) -> Any:
    return resize(conv(x, 4), (8, 6), mode="linear_onnx")


def max_pool(x: Any) -> Any:
    return ops.max_pool(x, [1, 1], [1, 1], [2, 2], [2, 2], [5, 5]).output(0)


def depthwise(x: Any) -> Any:
    return ops.group_convolution(x, weights(4, 1, 1, 5, 5), [1, 1], [2, 2], [2, 2], [1, 1])


def joined(a: Any, b: Any) -> Any:
    """Maps of which a cell reaches more and more."""
    return ops.concat([b, conv(b, 4), resize(a, (8, 6)), conv(conv(b, 3), 4)], 1)


def padded(x: Any) -> Any:
    weight = weights(5, shape_of(x)[1], 1, 1)
    return ops.convolution(x, weight, [1, 1], [1, 1], [1, 1], [1, 1])


def turned(x: Any) -> Any:
    """Channels in another order, as ShuffleNet has them."""
    _, channels, height, width = shape_of(x)
    pairs = ops.reshape(x, int64(1, 2, channels // 2, height, width), False)
    return ops.reshape(
        ops.transpose(pairs, int64(0, 2, 1, 3, 4)), int64(1, channels, height, width), False
    )


def by_floor(a: Any, b: Any) -> Any:
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return flat(ops.add(resize(conv(a, 4), (8, 6), **how), b))


def distances(a: Any, b: Any) -> Any:
    """Distributions of distances, decoded as YOLOv8 does."""
    joined = ops.concat([flat(conv(b, 8)), flat(conv(a, 8))], 2)
    sides = ops.reshape(joined, int64(1, 2, 4, -1), False)
    shares = ops.softmax(ops.transpose(sides, int64(0, 2, 1, 3)), 1)
    bins = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    means = ops.convolution(shares, bins, [1, 1], [0, 0], [0, 0], [1, 1])
    found = ops.reshape(means, int64(1, 2, -1), False)
    left, right = split(found, 1, 1, 1)
    anchors = weights(1, 1, 60)
    low, high = ops.subtract(anchors, left), ops.add(anchors, right)
    centre = ops.divide(ops.add(low, high), np.float32(2))
    return ops.multiply(ops.concat([centre, ops.subtract(high, low)], 1), np.abs(weights(1, 60)))


def priors(a: Any, b: Any) -> Any:
    """Three and two candidates a cell, decoded from their priors, as SSD does."""
    first = ops.reshape(rows_of(conv(b, 12)), int64(1, -1, 4), False)
    second = ops.reshape(rows_of(conv(a, 8)), int64(1, -1, 4), False)
    joined = ops.concat([first, second], 1)
    centre, size = split(joined, 2, 2, 2)
    centre = ops.add(ops.multiply(centre, weights(1, 168, 2)), weights(1, 168, 2))
    size = ops.multiply(ops.exp(size), np.float32(0.2))
    half = ops.divide(size, np.float32(2))
    return ops.concat([ops.subtract(centre, half), ops.add(centre, half)], 2)


def priors_first(a: Any, b: Any) -> Any:
    """[1,3,5,h,w], as YOLOv5 has it."""
    found = []
    for x in (a, b):
        height, width = shape_of(x)[2:]
        five = ops.reshape(conv(x, 15), int64(1, 3, 5, height, width), False)
        last = ops.sigmoid(ops.transpose(five, int64(0, 1, 3, 4, 2)))
        place, rest = split(last, 4, 2, 3)
        place = ops.add(ops.power(place, np.float32(2)), weights(1, 1, height, width, 2))
        joined = ops.concat([place, rest], 4)
        found.append(ops.reshape(joined, int64(1, 3 * height * width, 5), False))
    return ops.concat(found, 1)


def objectness(a: Any, b: Any) -> Any:
    """Scores of classes times that of an object; boxes written into their tensor, as by YOLOX."""
    found = []
    for x in (b, a):
        parts = [conv(x, 4, 1), ops.sigmoid(conv(x, 1)), ops.sigmoid(conv(conv(x, 3), 3))]
        found.append(flat(ops.concat(parts, 1)))
    rows = ops.transpose(ops.concat(found, 2), int64(0, 2, 1))
    place, _, object_score, scores = split(rows, 2, 2, 2, 1, 3)
    where = np.stack(np.meshgrid([0], np.arange(60), [0, 1], indexing="ij"), -1).astype(np.int64)
    written = ops.scatter_nd_update(rows, where, ops.multiply(place, np.float32(8)))
    return ops.concat([written, ops.multiply(object_score, scores)], 2)


def shuffled(a: Any, b: Any) -> Any:
    """Channels shuffled as ShuffleNet does, and a convolution behind."""
    return ops.concat([flat(conv(turned(conv(b, 6)), 3)), flat(conv(a, 3))], 2)


def products(a: Any, b: Any) -> Any:
    """Products with constant weights from the right and from the left, and the best class."""
    from_right = ops.matmul(rows_of(conv(b, 4)), weights(4, 2), False, False)
    from_left = ops.matmul(weights(3, 6), flat(a), False, False)
    best = ops.reduce_max(rows_of(conv(b, 5)), int64(2), False)
    parts = [from_right, from_left, best]
    return ops.concat([ops.reshape(each, int64(1, -1), False) for each in parts], 1)


def classes_last(a: Any, b: Any) -> Any:
    """Softmax over the channels of a map that is turned and turned back."""
    x = ops.softmax(ops.transpose(conv(b, 5), int64(0, 2, 3, 1)), 3)
    x = ops.concat([conv(b, 2), ops.transpose(x, int64(0, 3, 1, 2))], 1)
    return ops.concat([flat(x), flat(conv(a, 7))], 2)


RULES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "levels": lambda a, b, c: [rows_of(conv(a, 3)), rows_of(conv(b, 3)), rows_of(conv(c, 3))],
    "1x1 and strided": both(lambda a, b: flat(conv(ops.concat([conv(b, 5, 3, 2), a], 1), 4, 1))),
    "parts": both(lambda a, b: flat(conv(joined(a, b), 5, 1))),
    "parts, padded": both(lambda a, b: flat(padded(joined(a, b)))),
    "parts, shuffled": one(lambda b: flat(conv(ops.concat([b, turned(conv(b, 8))], 1), 5, 1))),
    "nearest": both(lambda a, b: flat(conv(ops.concat([resize(a, (8, 6)), b], 1), 4))),
    "nearest, by floor": both(by_floor),
    "nearest, smaller": one(lambda b: flat(resize(ops.relu(b), (3, 5)))),
    "linear": both(lambda a, b: flat(ops.relu(ops.add(enlarged(a), b)))),
    "linear, smaller": one(lambda b: flat(resize(b, (5, 4), mode="linear_onnx"))),
    "max pool": one(lambda b: flat(max_pool(conv(b, 4)))),
    "average pool": one(
        lambda b: flat(ops.avg_pool(b, [2, 2], [0, 0], [0, 0], [2, 2], True, "floor"))
    ),
    "depthwise": one(lambda b: flat(depthwise(conv(b, 4)))),
    "leaky": one(lambda b: flat(ops.prelu(conv(b, 3), np.array([0.1], np.float32)))),
    "distances": both(distances),
    "priors": both(priors),
    "priors first": both(priors_first),
    "objectness": both(objectness),
    "shuffled": both(shuffled),
    "products": both(products),
    "classes last": both(classes_last),
}


def tail_of(make: Callable[[Any, Any, Any], Any]) -> ov.Model:
    """Return a tail of three feature maps; several outputs follow each other in a row."""
    global random
    random = np.random.default_rng(0)
    maps = [
        ops.parameter(list(shape), np.float32, name=f"map{i}") for i, shape in enumerate(SHAPES)
    ]
    # a bias and a nonlinearity, so that nothing is zero where the maps are
    made = make(*(ops.tanh(conv(each, shape_of(each)[1], 1)) for each in maps))
    if isinstance(made, list):
        made = ops.concat([ops.reshape(each, int64(1, -1), False) for each in made], 1)
    return ov.Model([ops.result(made)], maps, "tail")


def features() -> list[Floats]:
    own = np.random.default_rng(1)
    return [own.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def expected_of(tail: ov.Model, mask: Mask, cells: Cells = CELLS) -> tuple[Floats, Floats]:
    """Return the values [N,V] of the tail on masked maps, cell by cell, and [V] without a mask."""
    run = runner(tail)

    def of(shares: Callable[[tuple[int, int]], Floats | float]) -> Floats:
        maps = [each * shares((each.shape[2], each.shape[3])) for each in features()]
        return run([each.astype(np.float32) for each in maps])[0].reshape(-1)

    found = []
    for cell in range(cells.count):
        row, column = divmod(cell, cells.grid[1])

        def share(size: tuple[int, int], row: int = row, column: int = column) -> Floats:
            rows, columns = cells.shares(size)
            kept = np.outer(rows[row], columns[column])
            return kept if mask == "cell" else 1 - kept

        found.append(of(share))
    return np.stack(found), of(lambda _: 1.0)


def rows_values(
    tail: ov.Model,
    mask: Mask,
    memory: int = 64 << 20,
    cells: Cells = CELLS,
    plain_macs: int = 10**12,
) -> tuple[Floats, Floats, Scattered]:
    """Return the same by rows."""
    model, places, plan = build_joint(tail, cells, core(), memory, plain_macs, mask)
    assert plan.dense_from is None
    compiled = runner(model)
    plain: list[Floats] = []

    def run(wanted: list[Any]) -> list[Floats]:
        outputs = compiled([*features(), *wanted])
        plain.append(outputs[-1])
        return outputs

    return places.select(run, np.arange(places.values)), plain[0], places


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_exact(rule: str, mask: Mask) -> None:
    expected, whole = expected_of(tail_of(RULES[rule]), mask)
    got, plain, _ = rows_values(tail_of(RULES[rule]), mask)
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=atol)
    np.testing.assert_allclose(plain, whole, atol=atol)
    assert np.ptp(expected, axis=0).max() > 1e3 * atol


def test_out_of_reach_nothing_changes() -> None:
    """Dropped, a cell leaves the image's own values, to the last bit, where it can't reach."""
    got, plain, _ = rows_values(tail_of(RULES["levels"]), "drop")
    changed = (got != plain).reshape(12, -1)[:, : 4 * 3 * 3].reshape(4, 3, 4, 3, 3).any(axis=-1)
    rows, columns = (np.arange(size) for size in CELLS.grid)
    near = (abs(rows[:, None] - rows) <= 1)[:, None, :, None]
    near = near & (abs(columns[:, None] - columns) <= 1)[None, :, None, :]
    np.testing.assert_array_equal(changed, near)


@pytest.mark.parametrize("mask", MASKS)
def test_blocks_of_cells_give_the_same(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells grouped by their distance from the border, then halved until they fit the memory."""
    cells = Cells((8, 6))
    tail = tail_of(RULES["nearest"])
    _, _, undivided = rows_values(tail.clone(), mask, cells=cells)
    assert len(undivided.cells) == 1
    expected, _ = expected_of(tail.clone(), mask, cells)
    monkeypatch.setattr("ov_recipro.plans.rows.rows_cost.CHEAP", 1e12)
    for memory, count in ((64 << 20, 4), (20_000, 5)):
        got, _, places = rows_values(tail.clone(), mask, memory, cells, plain_macs=1)
        assert len(places.cells) == count
        assert sorted(np.concatenate(places.cells).tolist()) == list(range(48))
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mask", MASKS)
def test_windows_and_products_give_the_same(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = expected_of(tail_of(RULES["nearest"]), mask)
    for factor in (0, 1e9):
        monkeypatch.setattr(patches, "_PRODUCTS", factor)
        got, _, _ = rows_values(tail_of(RULES["nearest"]), mask)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mask", MASKS)
def test_parts_are_multiplied_apart(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for share in (0.75, 0):
        monkeypatch.setattr(convolution, "_CLEARLY_LESS", share)
        tail = tail_of(RULES["parts"])
        model, _, plan = build_joint(tail.clone(), CELLS, core(), 64 << 20, 10**12, mask)
        products = [each for each in model.get_ordered_ops() if each.get_type_name() == "MatMul"]
        found.append((plan.macs, len(products), rows_values(tail, mask)[0]))
    (apart, several, one), (together, single, other) = found
    assert apart < together
    assert several == single + 3  # four maps are joined
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_some_values_of_some_cells() -> None:
    model, places, _ = build_joint(
        tail_of(RULES["priors"]), CELLS, core(), 64 << 20, 10**12, "drop"
    )
    compiled = runner(model)
    sizes: list[int] = []

    def run(wanted: list[Any]) -> list[Floats]:
        sizes.append(sum(len(each) for each in wanted))
        return compiled([*features(), *wanted])

    every = places.select(run, np.arange(places.values))
    columns = np.random.default_rng(0).permutation(places.values)[:40]
    atol = 1e-5 * np.abs(every).max()
    np.testing.assert_allclose(places.select(run, columns), every[:, columns], atol=atol)
    some = places.select(run, columns, np.array([0, 5, 11]))
    np.testing.assert_allclose(some, every[[0, 5, 11]][:, columns], atol=atol)
    assert sizes[2] < sizes[1] < sizes[0]
    batches = list(places.batches(run, 4 * 4 * places.values))
    assert [len(each) for each in batches] == [4, 4, 4]
    np.testing.assert_allclose(np.concatenate(batches), every, atol=atol)


def test_a_tail_that_no_cell_changes() -> None:
    """Its last tensor is in no piece: every value is the image's own."""
    tail = tail_of(RULES["levels"])
    end = tail.get_results()[0]
    own = ops.constant(np.ones((1, 5), np.float32))
    joined = ops.concat([end.input_value(0), own], 1)
    size = shape_of(joined)[1]
    end.input(0).replace_source_output(
        ops.slice(joined, int64(size - 5), int64(size), int64(1), int64(1)).output(0)
    )
    tail.validate_nodes_and_infer_types()
    got, plain, _ = rows_values(tail, "drop")
    np.testing.assert_array_equal(got, np.ones((CELLS.count, 5)))
    np.testing.assert_array_equal(plain, np.ones(5))


@pytest.mark.parametrize("count", [0, 1, 5, 33, 1000])
def test_places_fill_one_of_few_lengths(count: int) -> None:
    places = np.arange(count) + 7
    filled = scattered._filled(places)
    np.testing.assert_array_equal(filled[:count], places)
    assert max(count, 1) <= len(filled) <= max(1.25 * count, 1)
    assert not filled[count:].any()
    assert len(scattered._filled(places, count)) == max(count, 1)
    assert len({len(scattered._filled(np.arange(n))) for n in range(1000)}) < 40


def gated(b: Any) -> Any:
    return flat(ops.multiply(b, ops.sigmoid(ops.reduce_mean(b, int64(2, 3), True))))


REFUSED: dict[str, Callable[[Any], Any]] = {
    "MVN": lambda b: flat(ops.mvn(b, int64(2, 3), True, 1e-5, "inside_sqrt")),
    "ReduceMean": gated,
    "MatMul": lambda b: ops.matmul(flat(b), flat(b), True, False),
    "Softmax": lambda b: ops.softmax(flat(b), 2),  # over the pixels
    "Gather": lambda b: ops.gather(flat(b), int64(0, 0, 1), np.int64(1)),  # a copy of its own
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_rule_is_refused(kind: str) -> None:
    with pytest.raises(PlanRefused, match=f"no rule covers '{kind}'"):
        build_joint(tail_of(one(REFUSED[kind])), CELLS, core(), 64 << 20, 10**12, "drop")


def test_what_saves_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ov_recipro.plans.rows.rows_cost.MAX_SHARE_OF_DENSE", 0.01)
    with pytest.raises(PlanRefused, match="about as much"):
        build_joint(tail_of(RULES["levels"]), CELLS, core(), 64 << 20, 1, "drop")


def test_a_wrong_row_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of these tests can fail: a row of one cell is taken from its neighbour."""
    right = Anchors.of_rows

    def wrong(rows: Rows) -> Any:
        from ov_recipro.plans.nodes import gather

        numbers = np.arange(rows.count)
        numbers[rows.count // 2] += 1
        return right(Rows(gather(rows.port, numbers), rows.active, rows.background))

    monkeypatch.setattr(Anchors, "of_rows", wrong)
    expected, _ = expected_of(tail_of(RULES["levels"]), "drop")
    got, _, _ = rows_values(tail_of(RULES["levels"]), "drop")
    assert np.abs(got - expected).max() > 1e-3 * np.abs(expected).max()
