"""ONNX graphs being built."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 17, 8
LEAST_OPSET = 13  # from which on the operations take what `Graph` gives them


class Graph:
    """An ONNX graph being built: each operation returns the name of its output.

    Args:
        prefix: what all names begin with.
        opset: what its operations are those of, `LEAST_OPSET` or later.
    """

    def __init__(self, prefix: str = "", opset: int = OPSET) -> None:
        self.prefix, self.opset = prefix, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append an operation."""
        name = output or self._name()
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def add_several(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Append an operation with `count` outputs."""
        names = [f"{self._name()}:{number}" for number in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Append a constant, unless there is one of the same numbers."""
        array = np.array(values, dtype)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._known:
            self._known[key] = name = f"{self.prefix}constant:{len(self._known)}"
            self.constants.append(numpy_helper.from_array(array, name))
        return self._known[key]

    def reduced(self, op: str, source: str, axes: list[int], keep: bool) -> str:
        """Append a reduction; before opset 18, only a sum's axes are an input."""
        if op == "ReduceSum" or self.opset >= 18:
            return self.add(op, source, self.constant(axes), keepdims=int(keep))
        return self.add(op, source, axes=axes, keepdims=int(keep))

    def _name(self) -> str:
        return f"{self.prefix}made:{len(self.nodes)}"


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operations that a model uses."""
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))
