"""A model of 3 GB with external data: run with --large, for it writes 6 GB and takes a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphs import Builder

WIDTH, DEPTH = 4096, 45  # 1x1 convolutions of 64 MiB each


def write_large(folder: Path) -> Path:
    """Write a chain of wide convolutions; all their weights lie in one file beside the model."""
    b = Builder(shape=(1, 3, 8, 8))
    x = b.conv("image", WIDTH, kernel=1, strides=[4, 4], pads=[0] * 4)
    random = np.random.default_rng(0)
    block = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.sqrt(WIDTH / 2)
    with (folder / "weights.bin").open("wb") as file:
        for index in range(DEPTH):
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT)
            tensor.dims.extend([WIDTH, WIDTH, 1, 1])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights.bin"),
                ("offset", str(file.tell())),
                ("length", str(block.nbytes)),
            ):
                tensor.external_data.add(key=key, value=value)
            file.write(np.roll(block, index).tobytes())
            b.weights.append(tensor)
            x = b.add("Relu", b.add("Conv", x, f"w{index}"), output=f"block{index}")
    b.channels[x] = WIDTH
    b.head(x)
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    graph = helper.make_graph(b.nodes, "large", [b.image], outputs, b.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "large.onnx").write_bytes(model.SerializeToString())
    return folder / "large.onnx"


@pytest.mark.parametrize("layer", ["auto", "block42"])
def test_a_3_gb_model_splits_in_1_gb(
    layer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--large"):
        pytest.skip("--large runs it: it writes 6 GB")
    path = write_large(tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size > 2.9e9
    code = (
        "import resource, sys; from ov_recipro import split;"
        "bundle = split(sys.argv[1], sys.argv[2], layer=sys.argv[3]);"
        "print(bundle.manifest.parity, bundle.tail.stat().st_size);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "b.recipro", layer],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    peak = int(result.stdout.split()[-1]) * 1024
    tail = sum(f.stat().st_size for f in (tmp_path / "b.recipro").glob("tail.onnx*"))
    assert peak < 1e9 + tail
    head = onnx.load(tmp_path / "b.recipro" / "head.onnx", load_external_data=False)
    assert {
        e.value for t in head.graph.initializer for e in t.external_data if e.key == "location"
    } == {"head.onnx.data"}
    assert not list((tmp_path / "b.recipro").glob("reference*"))
