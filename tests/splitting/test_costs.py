"""The estimated cost against what is counted exactly, and against the compiled plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from graphs import Builder
from ov_recipro import Explainer
from ov_recipro.cut.points import cut_points
from ov_recipro.plans.rows import RowsPlan, build, steps_of
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.sources.openvino_models import core
from ov_recipro.splitting.costs import costs
from ov_recipro.splitting.split import open_source
from places import LIGHT


@pytest.mark.parametrize("layer", ["auto", "blocks.14", "blocks.12"])
def test_the_estimate_is_the_compiled_plans_bound(layer: str, lite0: Path) -> None:
    explainer = Explainer(lite0, layer=layer)
    plan, manifest = explainer.plan, explainer.bundle.manifest
    assert isinstance(plan, RowsPlan)
    assert manifest.cost is not None
    assert manifest.cost.plan == "rows"
    assert manifest.cost.inferences == pytest.approx(1 + plan.macs / plan.plain_macs, rel=1e-6)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"strides": [2, 1]},
    {"kernel": 5, "dilations": [1, 2], "pads": [3, 4, 2, 4]},
    {"kernel": 1},
]


def test_active_pixels_are_counted_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions with strides, dilations and uneven pads, against masks pushed through ones."""
    monkeypatch.setattr("ov_recipro.plans.rows.rows_cost.CHEAP", 1e9)
    b = Builder(shape=(1, 3, 22, 18))
    x = b.conv("image", 4, output="feature", strides=[2, 2])
    for options in CONVOLUTIONS:
        x = b.add("Relu", b.conv(x, 4, **options))
    b.head(x)
    source = open_source(b.save(tmp_path / "m.onnx"))
    (cost,) = costs(source, [p for p in cut_points(source.graph) if p.tensor == "feature"])
    assert cost is not None
    assert cost.plan == "rows"

    active = np.eye(99, dtype=np.float32).reshape(99, 1, 11, 9)
    rows = tail = 0
    for options in CONVOLUTIONS:
        weights = 16 * options.get("kernel", 3) ** 2
        before, active = active, reached(active, **options)
        rows += weights * int((active if options.get("kernel") == 1 else before).sum())
        tail += weights * active[0].size
    linear = 4 * 5
    head = 11 * 9 * 4 * 3 * 9
    assert cost.inferences == pytest.approx(1 + (rows + 99 * linear) / (head + tail + linear))
    assert cost.stream == pytest.approx(1 + 99 * (tail + linear) / (head + tail + linear))


def padded_net(path: Path) -> Path:
    """Write a network with a Pad in front of everything that reads one, as PyTorch's static one."""
    b = Builder(shape=(1, 3, 36, 36))
    x = b.conv("image", 8, strides=[4, 4], pads=[1, 1, 1, 1])
    layers: list[tuple[list[int], dict[str, Any]]] = [
        ([2, 2, 2, 2], {"kernel": 5, "group": 8, "pads": [0] * 4}),
        ([0, 1, 1, 0], {"pads": [1, 0, 0, 1]}),
        ([0, 0, 0, 0], {"kernel": 1, "pads": [0] * 4}),
        ([1, 1, 1, 1], {"group": 8, "pads": [0] * 4}),
    ]
    for pads, options in layers:
        widths = b.constant([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
        wide = b.add("Pad", x, widths, b.constant(0.0))
        b.channels[wide] = 8
        x = b.add("Relu", b.conv(wide, 8, **options))
    pools: list[tuple[str, dict[str, Any]]] = [
        ("AveragePool", {"count_include_pad": 1}),
        ("MaxPool", {}),
    ]
    for op, more in pools:
        widths = b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        wide = b.add("Pad", x, widths, b.constant(0.0))
        x = b.add(op, wide, kernel_shape=[3, 3], **more)
    b.channels[x] = 8
    for mode in ("reflect", "constant"):
        widths = b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        wide = b.add("Pad", x, widths, mode=mode)
        b.channels[wide] = 8
        x = b.conv(wide, 8, pads=[0] * 4)
        if mode == "reflect":
            x = b.add("Relu", x)
    b.head(x)
    return b.save(path)


NETS = ["lite0", "padded", "light_squeezenet"]


@pytest.mark.parametrize("net", NETS)
def test_layers_says_what_the_plan_does(net: str, lite0: Path, tmp_path: Path) -> None:
    """At every clean layer of few cells: the same plan, and the same cost."""
    if net == "padded":
        path = padded_net(tmp_path / "m.onnx")
    else:
        path = lite0 if net == "lite0" else LIGHT / f"{net}.onnx"
    source = open_source(path)
    points = [p for p in cut_points(source.graph) if p.clean and np.prod(p.grid) <= 200]
    assert len(points) >= 8
    plain = sum(step.macs for step in steps_of(source.outline()[0]))
    plans = set()
    for point, cost in zip(points, costs(source, points), strict=True):
        parts = source.write_split(point, tmp_path)
        tail = core().read_model(tmp_path / parts.tail.file)
        tail.reshape(source.graph.shapes[point.tensor])
        feature = ops.parameter(list(tail.inputs[0].shape), np.float32)
        try:
            _, plan = build(tail, feature.output(0), core(), 64 << 20, plain, True)
            expected: tuple[str, Any, str | None] = ("rows", 1 + plan.macs / plain, None)
        except PlanRefused as failure:
            expected = ("stream", cost and cost.stream, str(failure))
        assert cost is not None
        found = (cost.plan, pytest.approx(cost.inferences, rel=1e-6), cost.reason)
        assert found == expected, point.tensor
        plans.add(cost.plan)
    assert "rows" in plans


def reached(active: np.ndarray, kernel: int = 3, **options: Any) -> np.ndarray:
    """Return which output pixels read an active input pixel, by a convolution of ones."""
    pads = options.get("pads", [kernel // 2] * 4)
    data = ops.parameter(list(active.shape), np.float32)
    ones = ops.constant(np.ones((1, 1, kernel, kernel), np.float32))
    strides, dilations = options.get("strides", [1, 1]), options.get("dilations", [1, 1])
    made = ops.convolution(data, ones, strides, pads[:2], pads[2:], dilations)
    sums = core().compile_model(ov.Model([made], [data]), "CPU")([active])[0]
    return np.asarray(sums > 0.5, np.float32)
