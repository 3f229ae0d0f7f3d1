"""Random small networks against the slow oracle, and damaged files against the reader."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphs import Builder, residual
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.cut.points import cut_points
from ov_recipro.options import Cut
from ov_recipro.splitting.split import open_source

BLOCKS = ("conv", "depthwise", "grouped", "residual", "concat", "gate", "maxpool", "avgpool",
          "norm", "relu", "hardswish", "pad")  # fmt: skip
TAILS = ("pool", "flatten", "frozen-reshape", "convolution", "softmax", "two-outputs")


def block(b: Builder, x: str, kind: str) -> str:
    """Append one block to the network."""
    channels = b.channels[x]
    if kind == "conv":
        return b.conv(x, int(b.random.integers(2, 7)), kernel=int(b.random.choice([1, 3])))
    if kind == "depthwise":
        return b.conv(x, channels, kernel=3, group=channels)
    if kind == "grouped":
        return b.conv(b.conv(x, 4, kernel=1), 6, kernel=3, group=2)
    if kind == "residual":
        return b.add("Add", b.conv(b.add("Relu", b.conv(x, 5)), channels, kernel=1), x)
    if kind == "concat":
        name = b.add("Concat", x, b.conv(x, 3), axis=1)
        b.channels[name] = channels + 3
        return name
    if kind == "gate":
        gate = b.conv(b.add("GlobalAveragePool", x), channels, kernel=1)
        return b.add("Mul", x, b.add("Sigmoid", gate))
    if kind == "maxpool":
        return b.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    if kind == "avgpool":
        return b.add("AveragePool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
    if kind == "norm":
        parameters = [b.constant(b.random.uniform(0.5, 1.5, channels)) for _ in range(4)]
        return b.add("BatchNormalization", x, *parameters)
    if kind == "pad":
        return b.add("Pad", x, b.constant([0, 0, 1, 0, 0, 0, 0, 1], np.int64))
    return b.add({"relu": "Relu", "hardswish": "HardSwish"}[kind], x)


def network(folder: Path, kinds: list[str], tail: str, seed: int) -> Path:
    b = Builder(shape=(1, 3, 8, 8), seed=seed)
    x = b.conv("image", 4, strides=[2, 2])
    for kind in kinds:
        x = block(b, x, kind)
    channels = b.channels[x]
    height = 4 + kinds.count("pad")
    if tail == "flatten":
        b.linear(b.add("Flatten", x), channels * height * height)
    elif tail == "frozen-reshape":
        pooled = b.add("GlobalMaxPool", x)
        b.linear(b.add("Reshape", pooled, b.constant([1, channels], np.int64)), channels)
    elif tail == "convolution":
        pooled = b.add("GlobalAveragePool", b.conv(x, 5, kernel=1))
        b.add("Flatten", pooled, output="scores")
    elif tail == "softmax":
        b.add("Softmax", b.head(x, output="logits"), output="scores")
    else:
        b.head(x)
    if tail == "two-outputs":
        b.head(x, output="other")
    return b.save(folder / "m.onnx", *(["scores", "other"] if tail == "two-outputs" else []))


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    kinds=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5),
    tail=st.sampled_from(TAILS),
    seed=st.integers(0, 1 << 16),
    place=st.integers(0, 1 << 16),
    as_ir=st.booleans(),
)
def test_random_networks_equal_the_oracle(
    kinds: list[str], tail: str, seed: int, place: int, as_ir: bool
) -> None:
    from oracle import Oracle, run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = network(folder, kinds, tail, seed)
        points = cut_points(open_source(path, Cut(output_name="scores")).graph)
        tensor = points[place % len(points)].tensor
        file = path
        if as_ir:
            file = folder / "m.xml"
            ov.save_model(ov.convert_model(path), file, compress_to_fp16=False)
            known = cut_points(open_source(file, Cut(output_name="scores")).graph)
            if tensor not in [point.tensor for point in known]:
                return  # fused away on conversion
        bundle = split(file, folder / "b.recipro", layer=tensor, exact=True, output="scores")
        explainer = Explainer(bundle, score="none")
        image = np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)
        logits = "logits" if tail == "softmax" else "scores"
        _show(path, logits)
        oracle = Oracle(path, tensor, logits)
        expected = oracle.logits(image, bundle.manifest.cut.grid)
        _, got = run(explainer._runtime, image)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got, expected, atol=1e-4 * scale)


def _show(path: Path, tensor: str) -> None:
    """Make `tensor` an output of the model."""
    import onnx

    model = onnx.load(path)
    if tensor not in [value.name for value in model.graph.output]:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
        )
        onnx.save(model, path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    path = residual(folder / "m.onnx")
    ov.save_model(ov.convert_model(path), folder / "m.xml", compress_to_fp16=False)
    return folder


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.floats(0.2, 1.5),
)
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_damaged_files_end_in_one_clear_line(
    suffix: str, changes: list[tuple[float, int]], cut: float, whole: Path
) -> None:
    """Bytes changed and ends lost: a split, or a ReciproError and nothing left; never a crash."""
    data = bytearray((whole / f"m{suffix}").read_bytes())
    for place, byte in changes:
        data[int(place * (len(data) - 1))] = byte
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        (folder / "in" / f"m{suffix}").write_bytes(data[: int(cut * len(data))])
        (folder / "in" / "m.bin").write_bytes((whole / "m.bin").read_bytes())
        before = sorted(p.name for p in (folder / "in").iterdir())
        message = ""
        try:
            split(folder / "in" / f"m{suffix}", folder / "out" / "b.recipro")
        except ReciproError as error:
            message = str(error)
        written = [p.name for p in (folder / "out").iterdir()]
        assert written == ([] if message else ["b.recipro"])
        assert "\n" not in message
        assert sorted(p.name for p in (folder / "in").iterdir()) == before
        assert {p.name for p in folder.iterdir()} == {"in", "out"}


def test_the_fuzz_oracle_is_the_model(tmp_path: Path) -> None:
    """With every cell kept, the oracle's network is the plain one."""
    from oracle import Oracle

    path = network(tmp_path, ["residual", "gate"], "pool", 0)
    oracle = Oracle(path, "conv_0")
    image = np.ones((1, 3, 8, 8), np.float32)
    feed = {"image": image, "mask": np.ones((1, 1, 4, 4), np.float32)}
    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = plain.run(None, {"image": image})[0]
    np.testing.assert_allclose(oracle._session.run(["scores"], feed)[0], expected, atol=1e-6)
