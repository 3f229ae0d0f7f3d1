"""Runtimes: each module wraps one inference library; a device's name says which one runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ov_recipro.cut.bundle import Bundle
from ov_recipro.options import Running
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes.runtime import Device, Floats, Runtime
from ov_recipro.saliency import Array


def open_runtime(bundle: Bundle, running: Running, mask: Mask) -> Runtime:
    """Make a bundle ready to run on a device.

    Args:
        bundle: what `split` made.
        running: how it is run.
        mask: see `ov_recipro.Explainer`.

    Raises:
        ReciproError: the device is missing or can't run the model, or the plan does not apply.
    """
    if not runs_on_openvino(running.device):
        from ov_recipro.runtimes.ort_runtime import ONNXRuntime

        return ONNXRuntime(bundle, running, mask)
    from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime

    return OpenVINORuntime(bundle, running, mask)


def plain_runner(bundle: Bundle, running: Running) -> Callable[[Array], Floats]:
    """Compile a bundle's whole model to its logits alone, as a pipeline that only infers would."""
    if not runs_on_openvino(running.device):
        from ov_recipro.runtimes import ort_runtime

        return ort_runtime.plain_runner(bundle, running)
    from ov_recipro.runtimes import openvino_runtime

    return openvino_runtime.plain_runner(bundle, running)


def zero_runner(bundle: Bundle, running: Running, mask: Mask) -> Callable[[Array], Floats]:
    """Return a function from an image to what the float32 tail gives where masks begin.

    That is the feature map with no cell kept; under the mask "drop", with none dropped.
    """
    if not runs_on_openvino(running.device):
        from ov_recipro.runtimes.ort_runtime import ONNXRuntime

        return ONNXRuntime(bundle, replace(running, plan="stream"), mask).zero
    from ov_recipro.runtimes.openvino_pieces import CompiledPieces

    return partial(CompiledPieces(bundle, running, most=1).zero, mask)


def describe_devices() -> list[Device]:
    """Return the devices that are available here and, for the others, what is missing."""
    from ov_recipro.runtimes import openvino_runtime, ort_runtime

    return [*openvino_runtime.describe_devices(), *ort_runtime.describe_devices()]


def runs_on_openvino(device: str) -> bool:
    """Whether a device's name is one of OpenVINO's rather than ONNX Runtime's."""
    return device.partition(":")[0] not in ("ort-cpu", "cuda")
