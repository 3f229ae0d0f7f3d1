"""The last operations of a graph of rows, run on some of its rows: against all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
from openvino import opset13 as ops

from ov_recipro.plans.rows.narrowing import narrowed
from ov_recipro.runtimes.onnx_models import as_onnx
from ov_recipro.sources.openvino_models import runner

ROWS, WIDTH = 6, 4
CHOSEN = np.array([5, 0, 3, 3], np.int32)
random = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return ops.constant(random.standard_normal(shape).astype(np.float32))


def ints(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def split(x: Any) -> Any:
    first, second = ops.variadic_split(x, np.int64(1), ints(1, 3)).outputs()
    return ops.concat([ops.multiply(second, first), first], 1)


BY_ROW: dict[str, Callable[[Any], Any]] = {
    "elementwise": lambda x: ops.relu(ops.add(x, x)),
    "a constant for all rows": lambda x: ops.add(x, numbers(1, WIDTH)),
    "a constant by row": lambda x: ops.multiply(x, numbers(ROWS, WIDTH)),
    "slopes": lambda x: ops.prelu(x, numbers(WIDTH)),
    "product": lambda x: ops.matmul(x, numbers(3, WIDTH), False, True),
    "product by groups": lambda x: ops.matmul(
        ops.reshape(x, ints(ROWS, 2, 2), False), numbers(2, 3), False, False
    ),
    "softmax": lambda x: ops.softmax(x, 1),
    "log softmax": lambda x: ops.log_softmax(x, -1),
    "folded": lambda x: ops.reduce_max(ops.reshape(x, ints(ROWS, 2, 2), False), ints(2), False),
    "parts": split,
    "columns": lambda x: ops.gather(x, ints(2, 0), np.int64(1)),
    "places": lambda x: ops.gather(ops.tanh(x), ints(3, 3, 1, 0, 5, 2), np.int64(0)),
}
TOGETHER: dict[str, Callable[[Any], Any]] = {
    "softmax over rows": lambda x: ops.softmax(x, 0),
    "sum over rows": lambda x: ops.add(x, ops.reduce_sum(x, ints(0), True)),
    "turned": lambda x: ops.matmul(numbers(ROWS, ROWS), x, False, False),
    "first axis transposed": lambda x: ops.matmul(
        ops.transpose(x, ints(1, 0)), numbers(WIDTH, 2), True, False
    ),
    "rows behind rows": lambda x: ops.concat(
        [ops.gather(x, ints(0, 1), np.int64(0)), ops.gather(x, ints(5, 4, 3, 2), np.int64(0))], 0
    ),
    "folded over rows": lambda x: ops.reshape(
        ops.transpose(x, ints(1, 0)), ints(ROWS, WIDTH), False
    ),
}


@pytest.mark.parametrize("name", [*BY_ROW, *TOGETHER])
def test_chosen_rows_are_those_of_the_whole(name: str) -> None:
    make = (BY_ROW | TOGETHER)[name]
    source = ops.parameter([ROWS, WIDTH], np.float32)
    whole = make(source).output(0)
    (chosen,), (port,) = narrowed([whole], [0])
    model = ov.Model([ops.result(whole), ops.result(port)], [source, chosen])
    values = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    every, some = runner(model)([values, CHOSEN])
    assert some.shape == (len(CHOSEN), *every.shape[1:])
    np.testing.assert_allclose(some, every[CHOSEN], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*BY_ROW, *TOGETHER])
def test_in_onnx(name: str) -> None:
    source = ops.parameter([ROWS, WIDTH], np.float32)
    whole = (BY_ROW | TOGETHER)[name](source).output(0)
    (chosen,), (port,) = narrowed([whole], [0])
    model = ov.Model([ops.result(port)], [source, chosen])
    values = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    session = ort.InferenceSession(
        as_onnx(model, ["rows"]).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    (got,) = session.run(None, dict(zip(names, [values, CHOSEN], strict=True)))
    expected = runner(model)([values, CHOSEN])[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BY_ROW)
def test_what_works_by_row_runs_on_chosen_rows_alone(name: str) -> None:
    source = ops.parameter([ROWS, WIDTH], np.float32)
    (chosen,), (port,) = narrowed([BY_ROW[name](source).output(0)], [0])
    model = ov.Model([ops.result(port)], [source, chosen])
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Constant", "Parameter", "Tanh"):
            assert node.output(0).get_partial_shape()[0].is_dynamic, node


def test_what_is_needed_whole_is_computed_once() -> None:
    source = ops.parameter([ROWS, WIDTH], np.float32)
    product = ops.matmul(source, numbers(WIDTH, WIDTH), False, False)
    other = ops.reduce_sum(product, ints(0), False)
    end = ops.tanh(ops.relu(product)).output(0)
    (chosen,), (port,) = narrowed([end], [0])
    model = ov.Model([ops.result(port), ops.result(other)], [source, chosen])
    kinds = Counter(node.get_type_name() for node in model.get_ordered_ops())
    assert kinds["MatMul"] == kinds["Gather"] == kinds["Tanh"] == 1
    values = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    assert runner(model)([values, CHOSEN])[0].shape == (len(CHOSEN), WIDTH)


def test_groups_have_rows_of_their_own() -> None:
    source = ops.parameter([ROWS, WIDTH], np.float32)
    shared = ops.matmul(source, numbers(WIDTH, WIDTH), False, False).output(0)
    one, other = (function(shared).output(0) for function in (ops.relu, ops.tanh))
    chosen, ports = narrowed([one, other, one], [0, 0, 1])
    model = ov.Model([ops.result(port) for port in ports], [source, *chosen])
    values = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    first, second, third = runner(model)([values, CHOSEN, CHOSEN[:1]])
    assert (len(first), len(second), len(third)) == (4, 4, 1)
    np.testing.assert_allclose(third, first[:1], rtol=1e-5, atol=1e-6)
