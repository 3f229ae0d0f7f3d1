"""OpenVINO's graphs in ONNX's operations: one by one, they give the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import TensorProto, helper
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from ov_recipro.plans.onnx_emission import emit
from ov_recipro.plans.onnx_graph import IR_VERSION, LEAST_OPSET, OPSET, Graph
from ov_recipro.plans.verdict import PlanRefused
from ov_recipro.sources.openvino_models import runner

SHAPE = (2, 4, 6, 5)
ON_CUDA = frozenset(
    {
        "Abs", "Add", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Conv", "Div", "Elu", "Erf",
        "Exp", "Floor", "Gather", "HardSigmoid", "Identity", "Log", "LogSoftmax", "MatMul", "Max",
        "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pow", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceSum", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Slice", "Softmax", "Softplus",
        "Softsign", "Split", "Sqrt", "Sub", "Tanh", "Transpose",
    }
)  # fmt: skip
"""Operations that ONNX Runtime has float kernels for on CUDA, by its docs/OperatorKernels.md."""

Make = Callable[[ov.Output], Any]


def number(*values: float) -> ov.Output:
    return ops.constant(np.array(values, np.float32)).output(0)


def interpolated(
    size: int = 12, scales: tuple[float, float] | None = None, **settings: Any
) -> Make:
    given = {
        "mode": "nearest", "shape_calculation_mode": "sizes", "pads_begin": [0] * 4,
        "pads_end": [0] * 4, "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor", "antialias": False, "cube_coeff": -0.75,
    } | settings  # fmt: skip
    sizes = ops.constant(np.array([size, 9])).output(0)
    if scales is not None:
        sizes = ops.constant(np.array(scales, np.float32)).output(0)
    axes = ops.constant(np.array([2, 3])).output(0)

    def make(x: ov.Output) -> Any:
        return NodeFactory("opset11").create("Interpolate", [x, sizes, axes], given)

    return make


def attention(*, masked: bool, scaled: bool) -> Make:
    mask = ops.constant(np.random.default_rng(3).normal(size=(6, 6)).astype(np.float32))

    def make(x: ov.Output) -> Any:
        inputs = [x, ops.multiply(x, np.float32(0.5)).output(0), ops.tanh(x).output(0)]
        if masked or scaled:
            none = ops.constant(np.float32(0))
            inputs.append((mask if masked else none).output(0))
        if scaled:
            inputs.append(ops.constant(np.float32(0.3)).output(0))
        return NodeFactory("opset13").create("ScaledDotProductAttention", inputs, {"causal": False})

    return make


WEIGHT = np.random.default_rng(1).normal(size=(3, 4, 3, 3)).astype(np.float32)
DEPTHWISE = np.random.default_rng(2).normal(size=(4, 1, 1, 3, 3)).astype(np.float32)
OPERATIONS: dict[str, Make] = {
    "absolute": ops.absolute,
    "ceiling": ops.ceiling,
    "floor": ops.floor,
    "exp": ops.exp,
    "erf": ops.erf,
    "log": lambda x: ops.log(ops.add(ops.absolute(x), np.float32(1))),
    "sqrt": lambda x: ops.sqrt(ops.absolute(x)),
    "negative": ops.negative,
    "softplus": ops.softplus,
    "softsign": ops.softsign,
    "tanh": ops.tanh,
    "sigmoid": ops.sigmoid,
    "power": lambda x: ops.power(x, np.float32(2)),
    "divide": lambda x: ops.divide(x, number(1, 2, 3, 4, 5)),
    "maximum": lambda x: ops.maximum(x, number(0.2)),
    "minimum": lambda x: ops.minimum(x, number(0.2)),
    "squared difference": lambda x: ops.squared_difference(x, number(0.2)),
    "clamp": lambda x: ops.clamp(x, -0.5, 0.25),
    "elu": lambda x: ops.elu(x, 0.7),
    "selu": lambda x: ops.selu(x, np.float32(1.5), np.float32(1.1)),
    "hsigmoid": ops.hsigmoid,
    "hswish": ops.hswish,
    "hard sigmoid": lambda x: ops.hard_sigmoid(x, np.float32(0.3), np.float32(0.4)),
    "swish": ops.swish,
    "swish with beta": lambda x: ops.swish(x, np.float32(1.7)),
    "mish": ops.mish,
    "gelu": lambda x: ops.gelu(x, "erf"),
    "gelu by tanh": lambda x: ops.gelu(x, "tanh"),
    "prelu": lambda x: ops.prelu(x, number(0.2)),
    "prelu by channel": lambda x: ops.prelu(x, number(0.2, 0.3, 0.4, 0.5)),
    "normalised": lambda x: ops.mvn(x, np.array([2, 3]), True, 1e-3, "inside_sqrt"),
    "normalised, epsilon outside": lambda x: ops.mvn(x, np.array([3]), True, 1e-2, "outside_sqrt"),
    "centred": lambda x: ops.mvn(x, np.array([1]), False, 1e-3, "inside_sqrt"),
    "softmax": lambda x: ops.softmax(x, 1),
    "log softmax": lambda x: ops.log_softmax(x, 1),
    "sum": lambda x: ops.reduce_sum(x, np.array([1, 3]), False),
    "mean": lambda x: ops.reduce_mean(x, np.array([2]), True),
    "highest": lambda x: ops.reduce_max(x, np.array([-1]), False),
    "lowest": lambda x: ops.reduce_min(x, np.array([0]), True),
    "slice": lambda x: ops.slice(x, np.array([1]), np.array([5]), np.array([2]), np.array([2])),
    "split": lambda x: ops.concat(ops.split(x, np.int64(1), 2).outputs()[::-1], 1),
    "uneven split": lambda x: ops.concat(
        ops.variadic_split(x, np.int64(2), np.array([1, 5])).outputs()[::-1], 2
    ),
    "squeeze": lambda x: ops.squeeze(ops.unsqueeze(x, np.array([1])), np.array([1])),
    "product": lambda x: ops.matmul(x, x, True, False),
    "product, other side": lambda x: ops.matmul(x, x, False, True),
    "convolution": lambda x: ops.convolution(x, WEIGHT, [2, 1], [1, 0], [0, 2], [1, 1]),
    "convolution, same": lambda x: ops.convolution(
        x, WEIGHT, [2, 2], [0, 0], [0, 0], [1, 1], "same_upper"
    ),
    "depthwise": lambda x: ops.group_convolution(x, DEPTHWISE, [1, 1], [2, 2], [2, 2], [2, 2]),
    "average pool": lambda x: ops.avg_pool(x, [2, 2], [1, 1], [0, 1], [3, 2], True, "floor"),
    "average pool with pads": lambda x: ops.avg_pool(x, [1, 1], [1, 1], [1, 1], [3, 3], False),
    "rounded up": lambda x: ops.max_pool(x, [2, 2], [1, 1], [0, 0], [1, 1], [3, 3], "ceil").output(
        0
    ),
    "average, rounded up": lambda x: ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [3, 3], True, "ceil"),
    "average, rounded up, pads counted": lambda x: ops.avg_pool(
        x, [2, 2], [1, 1], [2, 1], [3, 3], False, "ceil"
    ),
    "max pool, same": lambda x: ops.max_pool(
        x, [2, 2], [1, 1], [0, 0], [0, 0], [3, 3], "floor", "same_upper"
    ).output(0),
    "average, same": lambda x: ops.avg_pool(
        x, [2, 2], [0, 0], [0, 0], [3, 3], False, "floor", "same_lower"
    ),
    "max pool": lambda x: ops.max_pool(x, [2, 1], [1, 2], [1, 0], [1, 1], [2, 2]).output(0),
    "nearest": interpolated(),
    "nearest, by scales": interpolated(shape_calculation_mode="scales", scales=(2, 3)),
    "nearest, asymmetric": interpolated(
        coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "nearest, simple": interpolated(nearest_mode="simple"),
    "linear": interpolated(mode="linear_onnx"),
    "linear, corners aligned": interpolated(
        mode="linear_onnx", coordinate_transformation_mode="align_corners"
    ),
    "cubic": interpolated(mode="cubic"),
    "attention": attention(masked=False, scaled=False),
    "attention with a mask": attention(masked=True, scaled=False),
    "attention with a scale": attention(masked=False, scaled=True),
    "bags": lambda x: ops.embedding_bag_offsets_sum(
        ops.reshape(x, np.array([-1, 5]), False),
        np.array([3, 0, 1, 47, 5, 2, 2], np.int32),
        np.array([0, 2, 3, 6], np.int32),
    ),
}


def made(make: Make) -> ov.Model:
    x = ops.parameter(list(SHAPE), np.float32)
    result = make(x.output(0))
    return ov.Model([ops.result(result)], [x])


@pytest.mark.parametrize("opset", [LEAST_OPSET, OPSET, 18, 21])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str, opset: int) -> None:
    model, graph = made(OPERATIONS[name]), Graph(opset=opset)
    (output,) = emit(graph, model, ["x"])
    assert {node.op_type for node in graph.nodes} <= ON_CUDA
    read = {each for node in graph.nodes for each in node.input}
    assert all(tensor.name in read for tensor in graph.constants if tensor.dims)  # none is left
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "operation",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(model.output().shape))],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x})
    np.testing.assert_allclose(got, runner(model)([x])[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: ops.cum_sum(x, np.int64(1)), "ONNX has no counterpart of OpenVINO's 'CumSum'"),
        (interpolated(antialias=True, mode="linear"), "resizing with antialiasing"),
        (interpolated(pads_begin=[0, 0, 1, 0]), "resizing with padding"),
        (interpolated(size=3, nearest_mode="simple"), "resizing to fewer pixels by 'simple'"),
        (
            interpolated(coordinate_transformation_mode="tf_half_pixel_for_nn"),
            "resizing by 'tf_half_pixel_for_nn'",
        ),
        (
            lambda x: ops.max_pool(x, [3, 3], [1, 1], [0, 1], [0, 1], [2, 2], "ceil").output(0),
            "the last window of 'MaxPool' begins outside its input",
        ),
        (
            lambda x: ops.avg_pool(x, [2, 3], [0, 0], [0, 1], [2, 2], True, "ceil"),
            "the last window of 'AvgPool' begins outside its input",
        ),
        (
            lambda x: ops.avg_pool(x, [2, 2], [1, 1], [0, 0], [3, 3], False, "ceil"),
            "the last window of 'AvgPool' ends outside the padding that it counts",
        ),
        (
            interpolated(shape_calculation_mode="scales", scales=(1.5, 1.3)),
            "resizing by scales that do not match its sizes",
        ),
        (
            lambda x: ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [3, 3], False, "ceil", "valid"),
            "the last window of 'AvgPool' ends outside the padding that it counts",
        ),
        (
            lambda x: ops.max_pool(x, [1, 1], [4, 4], [0, 0], [2, 2], [2, 2], "floor").output(0),
            "'MaxPool' has more padding than ONNX Runtime takes",
        ),
    ],
)
def test_what_has_no_counterpart(make: Make, reason: str) -> None:
    with pytest.raises(PlanRefused, match=reason):
        emit(Graph(), made(make), ["x"])


def test_copies_of_an_operation_stay_apart() -> None:
    """The dense remainder of a plan is in several copies, whose operations share their names."""
    x = ops.parameter(list(SHAPE), np.float32)
    ends = []
    for value in (1, 2):
        added = ops.add(x, np.float32(value))
        added.set_friendly_name("sum")
        ends.append(added.output(0))
    model = ov.Model([ops.result(end) for end in ends], [x])
    assert len(set(emit(Graph(), model, ["x"]))) == 2
