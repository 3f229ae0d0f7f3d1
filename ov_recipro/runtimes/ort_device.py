"""ONNX Runtime's devices: sessions opened on one of them, and run with bound memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ov_recipro.errors import DeviceError
from ov_recipro.options import Hint, thread_limit
from ov_recipro.plans.onnx_graph import IR_VERSION, OPSET

_CUDA = "CUDAExecutionProvider"
_SILENT, _WARNINGS = 4, 2  # ONNX Runtime's log levels; the second is its own default


class ORTDevice:
    """One of ONNX Runtime's devices: opens sessions and runs them with bound memory.

    Args:
        name: "ort-cpu", "cuda", "cuda:1" and so on.
        hint: what its sessions are for.

    Attributes:
        version: of ONNX Runtime; parallel: images that are best run at once.
        is_cpu: whether it is the CPU.

    Raises:
        DeviceError: it can't be used here.
    """

    def __init__(self, name: str, hint: Hint) -> None:
        self._ort = _library(name)
        self.version = str(self._ort.__version__)
        kind, _, number = name.partition(":")
        self._name = name
        self.is_cpu = kind != "cuda"
        if (self.is_cpu and name != "ort-cpu") or (number and not number.isdigit()):
            raise DeviceError(
                f"There is no device '{name}'; ONNX Runtime's are ort-cpu, cuda, cuda:1 and so on."
            )
        self._place = ("cpu", 0) if self.is_cpu else ("cuda", int(number or 0))
        self.parallel = 1
        if hint == "throughput" and self.is_cpu:
            self.parallel = _cores()
        if not self.is_cpu and _CUDA not in self._ort.get_available_providers():
            raise DeviceError(
                f"'{name}' can't be used: this onnxruntime lacks CUDA. Uninstall onnxruntime and "
                "install 'ov-recipro[cuda]'."
            )
        self.session(_identity_model().SerializeToString())

    def session(self, model: Path | bytes, tf32: bool = False) -> Any:
        """Open a model, a file or its bytes, on this device and on no other."""
        options = self._ort.SessionOptions()
        options.log_severity_level = _SILENT
        # head and tail have threads of their own; spinning ones would take the other's cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = 1 if self.parallel > 1 else thread_limit() or 0
        providers: list[Any] = ["CPUExecutionProvider"]
        if not self.is_cpu:
            providers = [(_CUDA, {"device_id": self._place[1], "use_tf32": int(tf32)}), *providers]
        source = str(model) if isinstance(model, Path) else model
        self._ort.set_default_logger_severity(_SILENT)  # providers log failures, raised below
        try:
            session = self._ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # its error types share no narrower base
            raise DeviceError(
                f"ONNX Runtime can't run this model on '{self._name}': {_reason(error)}"
            ) from error
        finally:
            self._ort.set_default_logger_severity(_WARNINGS)
        if not self.is_cpu and _CUDA not in session.get_providers():
            raise DeviceError(
                f"'{self._name}' can't be used: ONNX Runtime finds no such NVIDIA GPU, no "
                "driver for it, or no CUDA and cuDNN libraries (pip install 'ov-recipro[cuda]')."
            )
        return session

    def run(
        self,
        session: Any,
        feeds: dict[str, Any],
        outputs: Sequence[str],
        on_cpu: Sequence[str],
    ) -> list[Any]:
        """Run a session on arrays or values of this device; return values of this device.

        Args:
            session: what to run.
            feeds: an array, or an OrtValue of an earlier run, for each input.
            outputs: names of the outputs wanted; `on_cpu`: those to copy to the CPU.
        """
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            place = ("cpu", 0) if name in on_cpu else self._place
            binding.bind_output(name, *place)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # see above
            raise DeviceError(f"ONNX Runtime failed on '{self._name}': {_reason(error)}") from error
        return list(binding.get_outputs())


def _library(device: str) -> Any:
    """Import onnxruntime, and the CUDA libraries that come as Python packages."""
    extra = "cuda" if device.partition(":")[0] == "cuda" else "ort"
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"'{device}' needs ONNX Runtime: pip install 'ov-recipro[{extra}]'."
        ) from error
    if extra == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(StringIO()):  # opening a session reports what is missing
            onnxruntime.preload_dlls()
    return onnxruntime


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if (threads := thread_limit()) is not None:
        return threads
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or ["unknown reason"])[0][:300]


def _identity_model() -> onnx.ModelProto:
    """Return the smallest model, to try a device with."""
    scalar = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, []) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", scalar[:1], scalar[1:]
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
