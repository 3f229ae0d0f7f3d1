"""Plan `rows` against the dense tail: every rule, every cell, and bugs planted to be caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs import Builder
from oracle import Oracle, run
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.cut.bundle import Bundle
from ov_recipro.options import Running
from ov_recipro.plans.nodes import gather
from ov_recipro.plans.rows import convolution, patches, pooling
from ov_recipro.plans.rows.tensors import Rows
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes import open_runtime
from ov_recipro.runtimes.model_graphs import sparse_model
from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime
from ov_recipro.sources.openvino_models import compiled

MASKS: tuple[Mask, ...] = ("cell", "drop")
DEVICES = ("CPU", "ort-cpu")  # OpenVINO's graph, and the same in ONNX


def norm(b: Builder, x: str) -> str:
    parameters = [b.constant(b.random.uniform(0.5, 1.5, b.channels[x])) for _ in range(4)]
    return b.add("BatchNormalization", x, *parameters)


def grouped(b: Builder, x: str) -> str:
    return b.conv(x, 6, group=2, strides=[2, 1])


def joined(b: Builder, x: str) -> str:
    name = b.add("Concat", x, b.conv(x, 3), axis=1)
    b.channels[name] = b.channels[x] + 3
    return name


def halves(b: Builder, x: str) -> str:
    from onnx import helper

    b.nodes.append(helper.make_node("Split", [x], [f"{x}l", f"{x}r"], axis=1))
    b.channels |= {f"{x}l": 2, f"{x}r": 2}
    name = b.add("Concat", b.conv(f"{x}r", 3), f"{x}l", axis=1)
    b.channels[name] = 5
    return name


RULES: dict[str, Callable[[Builder, str], str]] = {
    "1x1": lambda b, x: b.conv(x, 5, kernel=1),
    "1x1 strided": lambda b, x: b.conv(x, 5, kernel=1, strides=[2, 2]),
    "3x3": lambda b, x: b.conv(x, 5),
    "3x3 strided": lambda b, x: b.conv(x, 5, strides=[2, 2]),
    "5x5 dilated, uneven pads": lambda b, x: b.conv(
        x, 5, kernel=5, dilations=[2, 1], pads=[3, 2, 4, 1]
    ),
    "same padding": lambda b, x: b.conv(x, 5, strides=[2, 2], auto_pad="SAME_UPPER", pads=None),
    "no padding": lambda b, x: b.conv(x, 5, pads=[0] * 4),
    "depthwise": lambda b, x: b.conv(x, b.channels[x], group=b.channels[x]),
    "depthwise strided": lambda b, x: b.conv(
        x, b.channels[x], kernel=5, group=b.channels[x], strides=[2, 2]
    ),
    "depthwise twice": lambda b, x: b.conv(
        b.conv(x, b.channels[x], group=b.channels[x]), b.channels[x], group=b.channels[x]
    ),
    "grouped": grouped,
    "norm": norm,
    "relu": lambda b, x: b.add("Relu", x),
    "sigmoid": lambda b, x: b.add("Sigmoid", x),
    "hard swish": lambda b, x: b.add("HardSwish", x),
    "clip": lambda b, x: b.add("Clip", x, b.constant(0), b.constant(0.4)),
    "a constant over the map": lambda b, x: b.add(
        "Add", x, b.constant(b.random.normal(size=(1, b.channels[x], 12, 12)))
    ),
    "prelu": lambda b, x: b.add(
        "PRelu", x, b.constant(b.random.normal(size=(b.channels[x], 1, 1)))
    ),
    "max pool": lambda b, x: b.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
    "average pool": lambda b, x: b.add(
        "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]
    ),
    "average pool with pads": lambda b, x: b.add(
        "AveragePool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1
    ),
    "residual": lambda b, x: b.add("Add", x, b.conv(b.add("Relu", b.conv(x, 3)), b.channels[x])),
    "concat": joined,
    "split": halves,
    "gate": lambda b, x: b.add(
        "Mul", x, b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", x), b.channels[x], 1))
    ),
    "instance norm": lambda b, x: b.add(
        "InstanceNormalization", x, b.constant(np.ones(4)), b.constant(np.full(4, 0.1))
    ),
}


def network(rule: str, path: Path, flatten: bool) -> Bundle:
    """A convolution with bias and norm (so that the background is not zero), the rule, a head."""
    b = Builder(shape=(1, 3, 24, 24))
    x = b.add("Tanh", b.conv("image", 4, strides=[2, 2]), output="feature")
    x = norm(b, b.conv(x, 4, kernel=1))
    x = b.add("Relu", RULES[rule](b, x))
    x = b.add("Relu", b.conv(x, 6))
    if flatten:
        import onnx

        model_path = b.save(path, x)
        shape = onnx.shape_inference.infer_shapes(onnx.load(model_path)).graph.output[0]
        sizes = [d.dim_value for d in shape.type.tensor_type.shape.dim]
        b.linear(b.add("Flatten", x), int(np.prod(sizes)), classes=7)
    else:
        b.head(x, classes=7)
    return split(b.save(path), path.with_suffix(".recipro"), layer="feature")


def all_logits(
    bundle: Bundle, plan: Any, image: np.ndarray, mask: Mask = "cell", **options: Any
) -> tuple[np.ndarray, Any]:
    """Return the logits [N+1,classes] of each cell, and of the whole image last, and the plan."""
    runtime = open_runtime(bundle, Running(plan=plan, **options), mask)
    whole, cells = run(runtime, image)
    return np.concatenate([cells, whole[None]]), runtime.plan


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no verdict of another test
    monkeypatch.setattr("ov_recipro.plans.rows.rows_cost.CHEAP", 1e9)


@pytest.mark.parametrize("flatten", [False, True], ids=["pool", "flatten"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_exact(
    rule: str, flatten: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = network(rule, tmp_path / "m.onnx", flatten)
    image = np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)
    tolerance = 1e-4 if rule == "instance norm" else 1e-5  # it divides by a small deviation
    for mask in MASKS:
        oracle = Oracle(tmp_path / "m.onnx", "feature", drop=mask == "drop")
        expected = np.append(oracle.logits(image, (12, 12)), oracle.plain(image)[None], axis=0)
        atol = tolerance * np.abs(expected).max()
        for device in DEVICES:
            got, plan = all_logits(bundle, "rows", image, mask, device=device)
            np.testing.assert_allclose(got, expected, atol=atol, err_msg=f"{mask}, {device}")
            if rule in ("gate", "instance norm"):
                assert plan.dense_from is not None
            elif not flatten:
                assert plan.dense_from is None
        # the plan's own check is slow, and the oracle checks more
        monkeypatch.setattr("ov_recipro.plans.sparse.refusal", lambda *_: None)


@pytest.mark.parametrize("mask", MASKS)
def test_a_dense_remainder_runs_in_chunks(mask: Mask, tmp_path: Path) -> None:
    bundle = network("gate", tmp_path / "m.onnx", flatten=False)
    image = np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)
    expected, _ = all_logits(bundle, "stream", image, mask)
    for device in DEVICES:
        got, _ = all_logits(bundle, "rows", image, mask, device=device, batch_memory=80_000)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("flatten", [False, True], ids=["pool", "flatten"])
def test_without_the_whole_map_the_cells_are_the_same(flatten: bool, tmp_path: Path) -> None:
    bundle = network("3x3", tmp_path / "m.onnx", flatten)
    features = np.random.default_rng(0).standard_normal((1, 4, 12, 12)).astype(np.float32)
    for mask in MASKS:
        both, cells = (
            compiled(sparse_model(bundle, mask, 64 << 20, plain=plain)[0], "CPU")(features)[0]
            for plain in (True, False)
        )
        assert cells.shape == (144, 7)
        np.testing.assert_allclose(cells, both[:-1], atol=1e-6 * np.abs(both).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("rule", "module", "name"),
    [
        ("3x3", convolution, "convolution"),
        ("depthwise", patches, "depthwise_once"),
        ("depthwise twice", patches, "grouped_convolution"),
        ("average pool", patches, "average_pool"),
        ("max pool", patches, "max_pool"),
    ],
)
def test_an_error_at_one_pixel_of_one_cell_is_caught(
    rule: str,
    module: Any,
    name: str,
    mask: Mask,
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted in one row of one tensor; the plan is refused, with the reason, for `stream`."""
    right = getattr(module, name)

    def wrong(*arguments: Any) -> Rows:
        from openvino import opset13 as ops

        made = right(*arguments)
        off = np.zeros((made.count, 1), np.float32)
        off[made.count // 3] = 0.5
        return Rows(ops.add(made.port, ops.constant(off)).output(0), made.active, made.background)

    monkeypatch.setattr(module, name, wrong)
    bundle = network(rule, tmp_path / "m.onnx", flatten=False)
    runtime = open_runtime(bundle, Running(device), mask)
    assert runtime.plan.name == "stream"
    assert runtime.reason is not None
    assert "differs from the dense tail" in runtime.reason
    with pytest.raises(ReciproError, match="differs from the dense tail"):
        open_runtime(bundle, Running(device, plan="rows"), mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_wrong_place_in_one_table_is_caught(
    mask: Mask, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of one cell is taken from its neighbour."""
    right: Any = vars(convolution)["differences"]

    def wrong(rows: Rows) -> Any:
        made = right(rows)
        numbers = np.arange(rows.count)
        numbers[rows.count // 3] += 1
        return gather(made, numbers)

    monkeypatch.setattr(convolution, "differences", wrong)
    bundle = network("3x3", tmp_path / "m.onnx", flatten=False)
    runtime = open_runtime(bundle, Running(device), mask)
    assert "differs from the dense tail" in (runtime.reason or "")


@pytest.mark.parametrize("device", DEVICES)
def test_a_wrong_sum_over_one_cell_is_caught(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Any = vars(pooling)["summed_per_cell"]

    def wrong(port: Any, cells: np.ndarray, count: int) -> Any:
        cells = cells.copy()
        cells[np.flatnonzero(cells == 7)[-1]] = 8  # one row is counted for its neighbour
        return right(port, np.sort(cells), count)

    monkeypatch.setattr(pooling, "summed_per_cell", wrong)
    bundle = network("3x3", tmp_path / "m.onnx", flatten=False)
    assert open_runtime(bundle, Running(device), "cell").plan.name == "stream"


def test_a_compiler_that_fails_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Rows:  # noqa: ARG001
        raise ValueError("no such window")

    monkeypatch.setattr(convolution, "convolution", failing)
    runtime = OpenVINORuntime(network("3x3", tmp_path / "m.onnx", flatten=False), Running())
    assert runtime.reason == "ValueError: no such window"


def test_the_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = network("3x3", tmp_path / "m.onnx", flatten=False)
    first = OpenVINORuntime(bundle, Running())
    monkeypatch.setattr("ov_recipro.runtimes.openvino_runtime._sparse_error", None)
    assert OpenVINORuntime(bundle, Running()).plan == first.plan


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"mask": "spread"}, "keeps more than one cell"),
        ({"layer": "blocks.14/depthwise_conv/Conv", "exact": True}, "bypass the cut"),
        ({"plan": "stream"}, "asked for"),
    ],
)
def test_where_rows_do_not_apply(arguments: dict[str, Any], reason: str, lite0: Path) -> None:
    explainer = Explainer(lite0, **arguments)
    assert explainer.plan.name == "stream"
    assert explainer.plan_reason is not None
    assert reason in explainer.plan_reason
