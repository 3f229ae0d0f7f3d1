"""Quantise an ONNX classifier to 8 bits, calibrated on photographs, as its deployers would.

python tools/quantise.py FLOAT.onnx qdq.onnx --form qdq --images FOLDER
python tools/quantise.py FLOAT.onnx nncf.xml --form nncf --images FOLDER   # needs nncf
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ov_recipro.cut.bundle import Bundle
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.splitting.bundle_cache import cached_split


def tensors(bundle: Bundle, folder: str, limit: int) -> Iterator[np.ndarray]:
    """Yield preprocessed photographs, spread evenly over the folder."""
    paths = find_images([folder])
    for path in paths[:: max(1, len(paths) // limit)][:limit]:
        yield prepare(read_image(path), bundle.manifest.preprocessing)[0]


def with_onnxruntime(source: Path, target: Path, form: str, data: Iterator[np.ndarray]) -> None:
    """Quantise statically to QDQ or QOperator form, or dynamically."""
    from onnxruntime import quantization as q

    if form == "dynamic":
        q.quantize_dynamic(source, target, weight_type=q.QuantType.QUInt8)
        return

    class Reader(q.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            tensor = next(data, None)
            return None if tensor is None else {"image": tensor}

    q.quantize_static(
        source,
        target,
        Reader(),
        quant_format=q.QuantFormat.QDQ if form == "qdq" else q.QuantFormat.QOperator,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )


def with_nncf(
    source: Path, target: Path, shape: tuple[int, ...], data: Iterator[np.ndarray]
) -> None:
    """Quantise to OpenVINO IR by NNCF's post-training quantisation."""
    import nncf
    import openvino as ov

    model = ov.convert_model(source)
    model.reshape(shape)
    preset = nncf.QuantizationPreset.MIXED
    ov.save_model(nncf.quantize(model, nncf.Dataset(list(data)), preset=preset), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--form", choices=["qdq", "qoperator", "dynamic", "nncf"], required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--limit", type=int, default=50)
    arguments = parser.parse_args()
    bundle = cached_split(arguments.source)
    data = tensors(bundle, arguments.images, arguments.limit)
    if arguments.form == "nncf":
        with_nncf(arguments.source, arguments.target, bundle.manifest.image.shape, data)
    else:
        with_onnxruntime(arguments.source, arguments.target, arguments.form, data)


if __name__ == "__main__":
    main()
