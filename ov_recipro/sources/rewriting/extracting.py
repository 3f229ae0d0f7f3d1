"""Taking a part of an ONNX graph out as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ov_recipro.errors import ModelError
from ov_recipro.sources.onnx_file import one_line


def extracted(model: ir.Model, inputs: Iterable[str], outputs: Iterable[str]) -> ir.Model:
    """Return the part of a model between some of its tensors.

    Raises:
        ModelError: the outputs depend on more than the inputs.
    """
    try:
        graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    except ValueError as error:
        raise ModelError(f"The model can't be cut there: {one_line(error)}") from error
    # the model's own order: extract() gives another one each time
    weights = {
        name: graph.initializers[name]
        for name in model.graph.initializers
        if name in graph.initializers
    }
    graph.initializers.clear()
    graph.initializers.update(weights)
    return ir.Model(graph, ir_version=model.ir_version, producer_name="ov-recipro")
