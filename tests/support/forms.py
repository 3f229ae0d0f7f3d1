"""One network, EfficientNet-Lite0, in all the forms it is deployed in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import openvino as ov
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from ov_recipro import Explainer
from ov_recipro.images.preprocess import Preprocessing, prepare
from ov_recipro.images.reading import read_image


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """The two sample photographs, whole and mirrored."""

    def __init__(self, images: list[Path], how: Preprocessing) -> None:
        tensors = [prepare(read_image(path), how)[0] for path in images]
        tensors += [np.ascontiguousarray(tensor[..., ::-1]) for tensor in tensors]
        self._left: Iterator[npt.NDArray[Any]] = iter(tensors)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        tensor = next(self._left, None)
        return None if tensor is None else {"image": tensor}


@pytest.fixture(scope="session")
def float_lite0(lite0: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with plain float32 weights, as quantisers want it."""
    model = onnx.load(lite0)
    casts = {node.input[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for tensor in model.graph.initializer:
        if tensor.name in casts:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            name = casts[tensor.name].output[0]
            model.graph.node.remove(casts[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    path = tmp_path_factory.mktemp("models") / "float.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def models(float_lite0: Path, explainer: Explainer, cat: Path, coffee: Path) -> dict[str, Path]:
    """One network in all the forms it is deployed in."""
    folder = float_lite0.parent
    logging.disable(logging.WARNING)
    for name, form in (("qdq", QuantFormat.QDQ), ("qoperator", QuantFormat.QOperator)):
        quantize_static(
            float_lite0,
            folder / f"{name}.onnx",
            Calibration([cat, coffee], explainer.preprocessing),
            quant_format=form,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    quantize_dynamic(float_lite0, folder / "dynamic.onnx", weight_type=QuantType.QUInt8)
    logging.disable(logging.NOTSET)
    _save_float16(float_lite0, folder / "float16.onnx")
    converted = ov.convert_model(float_lite0)
    ov.save_model(converted, folder / "ir.xml", compress_to_fp16=False)
    ov.save_model(converted, folder / "ir16.xml", compress_to_fp16=True)
    ov.save_model(ov.convert_model(folder / "qdq.onnx"), folder / "ir8.xml")
    return {path.stem: path for path in (*folder.glob("*.onnx"), *folder.glob("*.xml"))}


def _save_float16(source: Path, path: Path) -> None:
    """Turn a model to float16 throughout, its input and output included."""
    model = onnx.load(source)
    half = onnx.TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = half
    del model.graph.value_info[:]
    onnx.save(model, path)
