"""Runtimes: each module wraps one inference library; a device's name tells which it takes."""

from __future__ import annotations

from collections.abc import Callable

from ov_recipro.cut.bundle import Bundle
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes.runtime import Array, Device, Floats, Hint, PlanName, Precision, Runtime


def open_runtime(
    bundle: Bundle,
    device: str,
    precision: Precision,
    batch_memory: int,
    mask: Mask,
    plan: PlanName,
    hint: Hint,
) -> Runtime:
    """Make a bundle ready to run on a device.

    Args:
        bundle: what `split` made.
        device: an OpenVINO device, "ort-cpu", "cuda" or "cuda:1".
        precision, batch_memory, mask, plan, hint: see `ov_recipro.Explainer`.

    Raises:
        ReciproError: the device is not there or can't run the model, or `plan` does not apply.
    """
    if not runs_on_openvino(device):
        from ov_recipro.runtimes.ort_runtime import ONNXRuntime

        return ONNXRuntime(bundle, device, precision, batch_memory, mask, plan, hint)
    from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime

    return OpenVINORuntime(bundle, device, precision, batch_memory, mask, plan, hint)


def plain_runner(bundle: Bundle, device: str, precision: Precision) -> Callable[[Array], Floats]:
    """Make a bundle's whole model ready, to its logits alone, as a pipeline that only infers."""
    if not runs_on_openvino(device):
        from ov_recipro.runtimes import ort_runtime as onnxruntime

        return onnxruntime.plain_runner(bundle, device, precision)
    from ov_recipro.runtimes import openvino_runtime as openvino

    return openvino.plain_runner(bundle, device, precision)


def describe_devices() -> list[Device]:
    """Return what can run here and, of the rest, what it lacks."""
    from ov_recipro.runtimes import ort_runtime as onnxruntime
    from ov_recipro.sources import openvino_models

    return [*openvino_models.describe_devices(), *onnxruntime.describe_devices()]


def runs_on_openvino(device: str) -> bool:
    """Whether a device's name is one for OpenVINO, or one for ONNX Runtime."""
    return device != "ort-cpu" and device.partition(":")[0] != "cuda"
