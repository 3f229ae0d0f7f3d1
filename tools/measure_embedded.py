"""What embedding adds to a model: time of one inference, and bytes of the file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov

from ov_recipro import embed
from ov_recipro.embedding import embed_onnx, save
from ov_recipro.runtimes.ort_device import ORTDevice
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import compiled, core
from ov_recipro.variants import VARIANTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--method", choices=["recipro", *VARIANTS], default="recipro")
    parser.add_argument("--onnx", action="store_true", help="embed as ONNX, run in ONNX Runtime")
    parser.add_argument("--open-batch", action="store_true", help="leave the batch as exported")
    parser.add_argument("--precision", choices=["f32", "native"], default="f32")
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    plain = core().read_model(arguments.model)
    shape = [1, *(size.get_length() for size in list(plain.input(0).get_partial_shape())[1:])]
    how = {"layer": arguments.layer, "method": arguments.method}
    if arguments.onnx:
        added = embed_onnx(arguments.model, **how).SerializeToString()
        calls = [in_onnx_runtime(each) for each in (arguments.model, added)]
        sizes = [arguments.model.stat().st_size, len(added)]
    else:
        if not arguments.open_batch:
            plain.reshape(shape)
        models = (plain, embed(plain, **how))
        calls = [in_openvino(model, arguments.precision) for model in models]
        sizes = [size_of(model) for model in models]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(arguments.runs):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call(image)
            if turn > 2:
                taken.append(time.perf_counter() - started)
    print(
        f"plain {1e3 * median(times[0]):.2f} ms, ratio {median(times[1]) / median(times[0]):.3f}; "
        f"file {sizes[0] / 1e6:.2f} MB, grows by {(sizes[1] - sizes[0]) / 1e6:.2f} MB"
    )


def in_openvino(model: ov.Model, precision: str) -> Callable[[Array], object]:
    request = compiled(model, "CPU", precision).create_infer_request()
    return lambda image: request.infer([image], share_inputs=True, share_outputs=True)


def in_onnx_runtime(model: Path | bytes) -> Callable[[Array], object]:
    session = ORTDevice("ort-cpu", "latency").session(model)
    (name,) = [value.name for value in session.get_inputs()]
    return lambda image: session.run(None, {name: image})


def size_of(model: ov.Model) -> int:
    with TemporaryDirectory() as folder:
        save(model, Path(folder) / "m.xml")
        return sum(file.stat().st_size for file in Path(folder).iterdir())


if __name__ == "__main__":
    main()
