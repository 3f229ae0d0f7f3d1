"""Small ONNX graphs for tests: each situation a cut can meet, written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and random weights; every method returns the name of its output."""

    def __init__(
        self, shape: Sequence[int | str] = (1, 3, 16, 16), opset: int = 17, seed: int = 0
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.opset = opset
        self.image = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))
        self.outputs: list[onnx.ValueInfoProto] = []
        self.channels: dict[str, int] = {"image": 3}

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"/{name}", **attributes))
        self.channels[name] = self.channels.get(inputs[0], 0) if inputs else 0
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def conv(
        self, source: str, channels: int, kernel: int = 3, output: str | None = None, **more: Any
    ) -> str:
        group = more.get("group", 1)
        width = self.channels[source] // group
        scale = 1 / np.sqrt(width * kernel * kernel)
        weight = self.constant(scale * self.random.normal(size=(channels, width, kernel, kernel)))
        bias = self.constant(0.3 * self.random.normal(size=channels))
        more.setdefault("pads", [kernel // 2] * 4)
        name = self.add("Conv", source, weight, bias, output=output, **more)
        self.channels[name] = channels
        return name

    def head(self, source: str, classes: int = 5, output: str = "scores") -> str:
        """Global average pool, flatten, linear."""
        pooled = self.add("GlobalAveragePool", source)
        return self.linear(self.add("Flatten", pooled), self.channels[source], classes, output)

    def linear(self, source: str, width: int, classes: int = 5, output: str = "scores") -> str:
        weight = self.constant(self.random.normal(size=(width, classes)))
        bias = self.constant(self.random.normal(size=classes))
        return self.add("Gemm", source, weight, bias, output=output)

    def save(self, path: Path, *outputs: str, dtype: int = TensorProto.FLOAT) -> Path:
        values = [
            helper.make_tensor_value_info(name, dtype, None) for name in outputs or ["scores"]
        ]
        graph = helper.make_graph(self.nodes, "test", [self.image], values, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        onnx.save(model, path)
        return path


def residual(path: Path, seed: int = 0) -> Path:
    """One residual block between two convolutions."""
    b = Builder(seed=seed)
    stem = b.add("Relu", b.conv("image", 4, output="stem", strides=[2, 2]), output="stem_relu")
    inner = b.conv(b.add("Relu", b.conv(stem, 4, output="a")), 4, output="b")
    block = b.add("Relu", b.add("Add", inner, stem, output="sum"), output="block")
    b.head(block)
    return b.save(path)
