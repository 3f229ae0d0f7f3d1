"""Plan `rows` on demand: some values at a time, against the tail run cell by cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_joint_rows import CELLS, MASKS, RULES, Floats, expected_of, features, tail_of

from ov_recipro import split
from ov_recipro.cut.cells import Cells
from ov_recipro.options import Running
from ov_recipro.plans.nodes import prepared
from ov_recipro.plans.rows import demand, zones
from ov_recipro.plans.rows.demand import rounded
from ov_recipro.plans.rows.on_demand import by_pixel, lower_on_demand
from ov_recipro.plans.rows.zones import OnDemand, Zone
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.runtimes import masked_runs
from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime
from ov_recipro.sources.openvino_models import core, runner
from places import SCENE_DETECTOR

REFUSED = {  # a mean with borders, and convolutions of moved channels
    "average pool",
    "parts, shuffled",
    "shuffled",
}


class Tail:
    """A tail of `test_joint_rows`, and its values on demand."""

    def __init__(self, rule: str, mask: Mask, cells: Cells = CELLS) -> None:
        self.expected, self.whole = expected_of(tail_of(RULES[rule]), mask, cells)
        lowered = lower_on_demand(prepared(tail_of(RULES[rule])), cells, core(), mask == "drop")
        self.plan = OnDemand(lowered)
        self.rows = 0
        self._run = runner(lowered.model)
        self._maps = [by_pixel(each) for each in features()]
        given = features() if mask == "drop" else [np.zeros_like(each) for each in features()]
        *maps, values = runner(lowered.plain)(given)
        self._backgrounds, self._elsewhere = [by_pixel(each) for each in maps], values.reshape(-1)

    def select(
        self,
        columns: Iterable[int],
        cells: npt.NDArray[np.int64] | None = None,
        parts: Sequence[Zone] | None = None,
    ) -> Floats:
        """Return some values of some cells, and count the pixels that are computed for them."""
        self.rows = 0

        def run(tables: list[Any]) -> list[Floats]:
            self.rows += sum(len(each) for each in tables if each.ndim == 2)
            return self._run([*self._maps, *self._backgrounds, *tables])

        wanted = np.array(list(columns))
        zones = self.zones(wanted) if parts is None else parts
        return self.plan.select(run, wanted, self._elsewhere, zones, cells)

    def zones(self, columns: npt.NDArray[np.int64]) -> list[Zone]:
        found = self.plan.zones(columns)
        assert found is not None
        return found

    def check(self, got: Floats, columns: Iterable[int], cells: Any = slice(None)) -> None:
        expected = self.expected[cells][:, list(columns)]
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(self.expected).max())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rule", sorted(RULES.keys() - REFUSED))
def test_every_rule_is_exact(rule: str, mask: Mask) -> None:
    tail = Tail(rule, mask)
    every = range(tail.plan.values)
    tail.check(tail.select(every), every)
    for seed in range(5):
        columns = np.random.default_rng(seed).permutation(tail.plan.values)[: 1 + 2 * seed]
        tail.check(tail.select(columns), columns)
    assert np.ptp(tail.expected, axis=0).max() > 1e-2 * np.abs(tail.expected).max()


@pytest.mark.parametrize("rule", sorted(REFUSED))
def test_what_has_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(PlanRefused, match="no rule covers"):
        lower_on_demand(prepared(tail_of(RULES[rule])), CELLS, core(), True)


def test_fewer_pixels_are_computed_for_fewer_values() -> None:
    cells = Cells((8, 6))
    tail = Tail("nearest", "drop", cells)
    whole = tail.plan.values
    tail.select(range(whole))
    of_all = tail.rows
    tail.select([0])  # in a corner
    assert tail.rows < of_all / 4
    costs = [sum(z.macs for z in tail.zones(np.arange(n))) for n in (1, 5, whole)]
    assert 0 < costs[0] < costs[1] < costs[2]
    assert [zone.macs for zone in tail.plan.zones(np.arange(5), costs[1]) or ()] == [costs[1]]
    assert tail.plan.zones(np.arange(5), costs[1] - 1) is None


def test_values_far_from_each_other_are_zones_of_their_own() -> None:
    tail = Tail("levels", "drop", Cells((8, 6)))
    size = 4 * 3 * 3  # of the first level, 4 x 3 pixels of 3 numbers
    second = 8 * 6 * 3
    corners = np.array([size, size + 1, size + second - 1])
    found = tail.zones(corners)
    assert sorted(tuple(zone.chosen.tolist()) for zone in found) == [(0, 1), (2,)]
    assert len(tail.zones(np.arange(tail.plan.values))) == 1
    together = sum(zone.macs for zone in found)
    assert len(tail.plan.zones(corners, together) or ()) == 2
    assert tail.plan.zones(corners, together - 1) is None
    tail.check(tail.select(corners), corners)


@pytest.mark.parametrize("mask", MASKS)
def test_some_cells(mask: Mask) -> None:
    tail = Tail("priors", mask)
    columns, cells = np.arange(3, tail.plan.values, 7), np.array([0, 5, 11])
    tail.check(tail.select(columns, cells), columns, cells)
    quarters = tail.plan.quarters(columns)
    assert len(quarters) == 4
    tail.check(tail.select(columns, cells, quarters), columns, cells)


def test_blocks_of_cells_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tail = Tail("distances", "drop")
    columns = range(0, tail.plan.values, 3)
    tail.select(columns)
    at_once = tail.rows
    monkeypatch.setattr(zones, "_HELD", 500)
    tail.check(tail.select(columns), columns)
    assert tail.rows > at_once  # each block is rounded up


def test_few_lengths_are_asked_for() -> None:
    found = [rounded(count) for count in range(1, 20_000)]
    assert len(set(found)) < 50
    assert all(count <= more <= max(1.25 * count + 1, 32) for count, more in enumerate(found, 1))


def test_a_wrong_table_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of these tests can fail: pixels are read from the one beside them."""
    right = demand.taps

    def wrong(*args: Any) -> Any:
        return np.roll(right(*args), 1, axis=0)

    monkeypatch.setattr(demand, "taps", wrong)
    tail = Tail("levels", "drop")
    off = np.abs(tail.select(range(tail.plan.values)) - tail.expected)
    assert off.max() > 1e-3 * np.abs(tail.expected).max()


@pytest.mark.parametrize("mask", MASKS)
def test_the_runtime_computes_what_is_cheaper(
    mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = split(SCENE_DETECTOR / "model.onnx", tmp_path / "m.recipro")
    asked: list[int] = []
    right = OnDemand.select

    def counted(self: OnDemand, run: Any, columns: Any, *args: Any) -> Any:
        asked.append(len(columns))
        return right(self, run, columns, *args)

    runtime = OpenVINORuntime(bundle, Running(), mask)
    monkeypatch.setattr(OnDemand, "select", counted)
    image = np.random.default_rng(0).uniform(0, 1, bundle.manifest.image.shape)
    few, many = np.array([1500, 1501]), np.arange(bundle.manifest.values)
    with runtime.infer(image.astype(bundle.manifest.image.dtype)) as inference:
        found = [next(iter(inference.masked(columns)))[0].copy() for columns in (few, many)]
        assert asked == [2]
        monkeypatch.setattr(masked_runs, "_CLEARLY_LESS", 0)
        (again,) = (values.copy() for values, _ in inference.masked(few))
    assert asked == [2]
    scale = 1e-4 * (np.ptp(again, axis=0) + np.abs(again).max(axis=0))
    assert (np.abs(found[0] - again) <= scale).all()
    assert (np.abs(found[1][:, few] - again) <= scale).all()


def test_a_wrong_plan_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is checked against the dense plan, once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = split(SCENE_DETECTOR / "model.onnx", tmp_path / "m.recipro")
    right = demand.taps
    with monkeypatch.context() as patch:
        patch.setattr(demand, "taps", lambda *args: np.roll(right(*args), 1, axis=0))
        runtime = OpenVINORuntime(bundle, Running(), "drop")
    assert runtime.plan.name == "rows"
    asked = list[int]()
    monkeypatch.setattr(OnDemand, "select", lambda *_: asked.append(1))
    image = np.zeros(bundle.manifest.image.shape, bundle.manifest.image.dtype)
    with runtime.infer(image) as inference:
        assert len(list(inference.masked(np.array([1500])))) == 1
    assert not asked
