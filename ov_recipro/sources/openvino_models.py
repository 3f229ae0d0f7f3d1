"""OpenVINO: single models read, compiled and run, and what their tensors are called."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.errors import DeviceError, ModelError
from ov_recipro.options import Hint, Precision, thread_limit
from ov_recipro.output import user_cache
from ov_recipro.saliency import Array
from ov_recipro.sources.companions import open_companion
from ov_recipro.sources.references import located

Runner: TypeAlias = Callable[[Sequence[Array]], list[Array]]
"""From a model's inputs to its outputs, in order."""


@functools.cache
def core() -> ov.Core:
    """Return the process's one OpenVINO core."""
    found = ov.Core()
    threads = thread_limit()
    if threads is not None and "CPU" in found.available_devices:
        # otherwise, several processes would all be pinned to the same first cores
        limits = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        found.set_property("CPU", limits)
    return found


def read_model_file(path: Path) -> ov.Model:
    """Read a model file; an IR's weights only from a regular file inside its folder.

    Raises:
        ModelError: the weights lie elsewhere.
        RuntimeError: OpenVINO can't read it.
    """
    weights = path.with_suffix(".bin").name
    if path.suffix.lower() != ".xml" or not os.path.lexists(path.with_name(weights)):
        return core().read_model(path)
    with open_companion(path, weights) as file:
        opened = Path(f"/proc/self/fd/{file.fileno()}")  # the file that was checked, not its name
        return core().read_model(path, opened if opened.exists() else path.with_name(weights))


def read(path: Path, shapes: Sequence[Sequence[int]] | None = None) -> ov.Model:
    """Read a model file and give its inputs, in order, these static shapes."""
    try:
        model = read_model_file(path)
        if shapes is not None:
            model.reshape({i: ov.PartialShape(list(s)) for i, s in enumerate(shapes)})
    except RuntimeError as error:
        raise ModelError(f"OpenVINO can't read {path.name}: {reason(error)}") from error
    return model


def sizes_of(port: ov.Output) -> list[int | None] | None:
    """Return a tensor's sizes, None for those that are open, or None where their number is."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    return [None if size.is_dynamic else size.get_length() for size in shape]


def name_of(port: ov.Output) -> str:
    """Return the one name used for a tensor: its shortest, or its node's where it has none."""
    if names := port.get_names():
        return str(min(names, key=lambda name: (len(name), name)))
    node = port.get_node()
    name = str(node.get_friendly_name())
    return name if node.get_output_size() == 1 else f"{name}:{port.get_index()}"


def ports(model: ov.Model) -> Iterable[tuple[ov.Node, ov.Output]]:
    """Yield every output of every operation, with its node; constants and results left out."""
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Result", "Constant"):
            for port in node.outputs():
                yield node, port


@contextmanager
def as_file(model: str | Path | ov.Model) -> Iterator[Path]:
    """Give a model as a file: its own, one fetched, or a temporary one for a model in memory."""
    if isinstance(model, str | Path):
        yield located(model)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        yield path


def runner(model: ov.Model) -> Runner:
    """Compile a model on the CPU in float32; return a function from its inputs to its outputs."""
    request = compiled(model, "CPU").create_infer_request()

    def run(inputs: Sequence[Array]) -> list[Array]:
        results = request.infer(list(inputs))
        return [np.array(results[i]) for i in range(len(results))]

    return run


def tensor_names(model: ov.Model) -> dict[str, ov.Output]:
    """Return all tensors by each of their names."""
    return {name: port for _, port in ports(model) for name in (name_of(port), *port.get_names())}


def keep_outputs(model: ov.Model, names: Sequence[str]) -> ov.Model:
    """Return `model` with these tensors, in this order, as its only outputs."""
    known = tensor_names(model)
    missing = [name for name in names if name not in known]
    if missing:
        raise ModelError(f"The model, as OpenVINO reads it, has no tensor '{missing[0]}'.")
    results = [ops.result(known[name]) for name in names]
    return ov.Model(results, model.get_parameters(), model.get_friendly_name())


def compiled(
    model: ov.Model, device: str, precision: Precision = "f32", hint: Hint = "latency"
) -> ov.CompiledModel:
    """Compile a model for a device.

    Raises:
        DeviceError: the device can't run it.
    """
    config = {"PERFORMANCE_HINT": hint.upper()}
    if precision == "f32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if device != "CPU":  # compiling is slow there, so a cache pays off; on the CPU it does not
        config["CACHE_DIR"] = str(user_cache("compiled"))
    try:
        return core().compile_model(model, device, config)
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO can't run this model on {device}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the informative line of OpenVINO's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (informative or lines or ["unknown reason"])[-1][:300]
