"""Plan `rows` of detectors as it runs: against the dense plan, and checked by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphs import Builder
from oracle import run
from ov_recipro import split
from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.points import cut_points
from ov_recipro.options import Running
from ov_recipro.plans import rows, sparse
from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import largest_joint_error
from ov_recipro.runtimes import open_runtime
from ov_recipro.runtimes.model_graphs import joint_model
from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime
from ov_recipro.splitting.costs import costs
from ov_recipro.splitting.split import open_source
from places import DETECTORS, SCENE_DETECTOR

Floats = npt.NDArray[np.float32]
MASKS: tuple[Mask, ...] = ("drop", "cell")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "scenes.recipro"
    return split(SCENE_DETECTOR / "model.onnx", folder)


@pytest.fixture(autouse=True)
def _own_verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(bundle: Bundle) -> npt.NDArray[Any]:
    image = bundle.manifest.image
    values = np.random.default_rng(0).uniform(0, 1, image.shape)
    return values.astype(image.dtype)


def close(got: Floats, expected: Floats) -> None:
    """Compare values [N,V], each by its own size, and each kind's spread."""
    scale = np.ptp(expected, axis=0) + np.abs(expected).max(axis=0)
    rounding = 2e-7  # of a score, which ONNX Runtime's sigmoid gives to so much
    assert (np.abs(got - expected).max(axis=0) <= 1e-4 * scale + rounding).all()


@pytest.mark.parametrize("device", ["CPU", "ort-cpu"])
def test_every_value_of_every_cell_is_the_dense_plans(device: str, detector: Bundle) -> None:
    image, mask = noise(detector), MASKS[0]
    rows = open_runtime(detector, Running(device), mask)
    stream = OpenVINORuntime(detector, Running(plan="stream"), mask)
    assert (rows.plan.name, rows.reason, stream.plan.name) == ("rows", None, "stream")
    (whole, got), (whole_too, expected) = run(rows, image), run(stream, image)
    np.testing.assert_allclose(whole, whole_too, rtol=1e-4, atol=1e-5)
    assert got.shape == (detector.manifest.cut.cells.count, detector.manifest.values)
    close(got, expected)
    columns = np.array([4000, 3, 17])
    with rows.infer(image) as inference:
        ((some, terms),) = inference.masked(columns)
        assert terms is None
        close(some, got[:, columns])


@pytest.mark.parametrize(("name", "layer"), [("fastestdet", "1"), ("ultraface-RFB-320", "auto")])
def test_real_detectors_are_the_dense_plans(name: str, layer: str, tmp_path: Path) -> None:
    path = DETECTORS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there; OV_RECIPRO_SAMPLES names the folder beside it")
    bundle = split(path, tmp_path / "m.recipro", layer=layer)
    image = noise(bundle)
    columns = np.random.default_rng(0).permutation(bundle.manifest.values)[:2000]
    for mask in MASKS:
        found = []
        for running in (
            Running(plan="rows"),
            Running("ort-cpu", plan="rows"),
            Running(plan="stream"),
        ):
            with open_runtime(bundle, running, mask).infer(image) as inference:
                parts = [np.array(values) for values, _ in inference.masked(columns)]
                found.append(np.concatenate(parts))
        for got in found[:2]:
            close(got, found[2])


def test_the_estimate_is_the_plans(detector: Bundle) -> None:
    """At every joint cut, without anything compiled."""
    source = open_source(SCENE_DETECTOR / "model.onnx")
    points = [point for point in cut_points(source.graph) if point.joined]
    assert len(points) > 3
    found = dict(zip((point.name for point in points), costs(source, points), strict=True))
    cost = found[detector.manifest.cut.name]
    _, _, plan = joint_model(detector, "drop", Running().batch_memory)
    assert cost is not None
    assert cost == detector.manifest.cost
    assert cost.plan == "rows"
    assert cost.inferences == pytest.approx(1 + plan.macs / plan.plain_macs, rel=1e-3)
    assert all(each is not None and each.inferences < each.stream for each in found.values())


def test_a_frozen_batch_is_no_obstacle(detector: Bundle, tmp_path: Path) -> None:
    """Rows never batch; but what they leave to the dense tail does."""
    frozen = dataclasses.replace(detector.manifest, any_batch=False)
    runtime = OpenVINORuntime(Bundle(detector.folder, frozen), Running(), "drop")
    assert runtime.plan.name == "rows"
    b = Builder(shape=(1, 3, 24, 24))
    b.head(b.conv(b.conv("image", 4, output="feature", strides=[2, 2]), 4))
    own = split(b.save(tmp_path / "m.onnx"), tmp_path / "m.recipro", layer="feature")
    assert OpenVINORuntime(own, Running()).plan.name == "rows"
    frozen = dataclasses.replace(own.manifest, any_batch=False)
    assert OpenVINORuntime(Bundle(own.folder, frozen), Running()).reason == (
        "the tail's batch is frozen"
    )


@pytest.mark.parametrize(("mask", "block"), [("drop", 1), ("cell", 2)])
def test_an_error_in_one_table_is_caught(
    mask: Mask, block: int, detector: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of one row of cells are taken from the pixels beside them."""
    right = Scattered.of.__func__  # type: ignore[attr-defined]

    def wrong(cls: type[Scattered], count: int, blocks: Any) -> Scattered:
        made: Scattered = right(cls, count, blocks)
        tables = [[table.copy() for table in of_block] for of_block in made.rows]
        assert len(tables) == 4
        for table in tables[block]:
            for cell in range(min(4, len(table))):
                own = table[cell] >= 0
                table[cell][own] = np.roll(table[cell][own], 1)
        return dataclasses.replace(made, rows=tuple(tuple(each) for each in tables))

    monkeypatch.setattr(Scattered, "of", classmethod(wrong))
    runtime = OpenVINORuntime(detector, Running(), mask)
    assert runtime.plan.name == "stream"
    assert "differs from the dense tail" in (runtime.reason or "")


def test_every_row_and_column_of_each_block_is_checked(detector: Bundle) -> None:
    for grid in ((10, 10), (4, 7), (9, 2), (1, 5)):
        cut = dataclasses.replace(detector.manifest.cut, shape=(3, *grid))
        groups = sparse.checked_cells(dataclasses.replace(detector.manifest, cut=cut))
        for block, cells in zip(rows.blocks_of(cut.cells), groups, strict=True):
            assert set(cells) <= set(block.cells(grid).tolist())
            assert {cell // grid[1] for cell in cells} == set(block.rows.tolist())
            assert {cell % grid[1] for cell in cells} == set(block.columns.tolist())


def test_errors_count_by_the_kind_of_number() -> None:
    """Edges of boxes, of hundreds, do not hide what is wrong with scores."""
    own = np.random.default_rng(0)
    plain = np.concatenate([own.uniform(0, 400, (4, 30)), own.uniform(0, 0.1, (2, 30))])
    cells = plain[None] + own.uniform(0, 1, (5, 6, 30)) * np.array([40] * 4 + [0.1] * 2)[:, None]
    plain, cells = plain.astype(np.float32), cells.astype(np.float32)

    def error(off: npt.NDArray[Any], of_plain: float = 0) -> float:
        def values(array: npt.NDArray[Any]) -> Any:
            return lambda _: (array.reshape(5, -1), plain.reshape(-1) + of_plain)

        shapes = [(1, 2, 3, 3)]
        dense = lambda _: (cells.reshape(5, -1), plain.reshape(-1))  # noqa: E731
        return largest_joint_error(values(off), dense, shapes, [(1, 6, 30)])

    off = np.array(cells)
    assert error(off) == 0
    off[3, 1, 7] += 0.02  # of an edge
    assert error(off) < 1e-3
    off[2, 5, 9] += 0.02  # of a score
    assert 0.05 < error(off) < 0.5
    assert error(np.array(cells), of_plain=0.02) > 0.05
    off[0, 0, 0] = np.nan
    assert error(off) == np.inf
    assert largest_joint_error(
        lambda _: (off.reshape(5, -1)[:, :-1], plain), lambda _: (cells.reshape(5, -1), plain),
        [(1, 2, 3, 3)], [(1, 6, 30)],
    ) == np.inf  # fmt: skip
