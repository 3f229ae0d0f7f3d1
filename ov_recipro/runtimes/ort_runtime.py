"""ONNX Runtime: a bundle's head and tail on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import DeviceError, OptionError
from ov_recipro.options import Hint, Running, thread_limit
from ov_recipro.plans import closed_form as closed_forms
from ov_recipro.plans.closed_form import ClosedFormPlan, NoClosedForm, closed_form
from ov_recipro.plans.stream import Mask, StreamPlan
from ov_recipro.plans.stream.stream_onnx import CELLS, IR_VERSION, OPSET, TOTAL, mask_model
from ov_recipro.plans.verdict import TOLERANCE, largest_error
from ov_recipro.runtimes.openvino_runtime import stream_plan
from ov_recipro.runtimes.runtime import Device, Floats, Inference, selected
from ov_recipro.saliency import Array

_CUDA = "CUDAExecutionProvider"
_SILENT, _WARNINGS = 4, 2  # ONNX Runtime's log levels; the second is its own default
_LARGEST_TAIL = 1 << 30  # bytes that are still rewritten: a model in memory has 2 GiB at most


class ONNXRuntime:
    """A bundle's head and tail in ONNX Runtime; see `runtimes.runtime.Runtime`.

    The feature map stays on the device between head and tail.

    Args:
        bundle: what `split` made from an ONNX file.
        running: how it is run, on "ort-cpu", "cuda" or "cuda:1". The precision "native" lets an
            NVIDIA GPU use TF32 in the head; the plan "auto" is the closed form where there is one.
        mask: what is kept of the feature map (see `plans.stream.Mask`).

    Raises:
        DeviceError: the device is missing or can't run the model.
        OptionError: the plan does not apply.
    """

    plan: StreamPlan | ClosedFormPlan
    reason: str | None
    parallel: int
    versions: dict[str, str]

    def __init__(self, bundle: Bundle, running: Running, mask: Mask = "cell") -> None:
        if running.plan in ("rows", "tokens"):
            raise OptionError(
                f"The plan '{running.plan}' can't be used: it needs an OpenVINO device."
            )
        if bundle.tail.suffix != ".onnx":
            raise OptionError(
                f"'{running.device}' can't be used: ONNX Runtime does not read OpenVINO models."
            )
        manifest = bundle.manifest
        self._manifest = manifest
        self._device = _Device(running.device, running.hint)
        self.parallel = self._device.parallel
        self.versions = {"onnxruntime": self._device.version}
        self._head = self._device.session(bundle.head, tf32=running.precision == "native")
        self._tail = self._device.session(bundle.tail)
        tail = onnx.load(bundle.tail, load_external_data=False)
        types = [value.type.tensor_type.elem_type for value in tail.graph.input]
        self._mask = self._device.session(mask_model(manifest, types, mask))
        self._stream = stream_plan(bundle, running.batch_memory)
        self.plan = self._stream
        self._closed = None
        asked = running.plan == "stream"
        self.reason = "asked for" if asked else closed_forms.applies(manifest, mask)
        if self.reason is None:
            try:
                self._closed = self._closed_form(bundle)
                self.plan = ClosedFormPlan(self._stream.cells)
            except NoClosedForm as failure:
                self.reason = f"the tail has no closed form: {failure}"

    @contextmanager
    def infer(self, image: Array) -> Iterator[Inference]:
        """Run one image, [1,3,H,W] or [1,H,W,3]."""
        manifest = self._manifest
        deployed = manifest.head.outputs[-1:] if manifest.deployed_scores else ()
        values = self._device.run(
            self._head, {manifest.image.name: image}, manifest.head.outputs, deployed
        )
        features = dict(zip(manifest.tail.inputs, values, strict=False))
        if self._closed is not None:
            cells, plain, finite = self._run_closed(self._closed, features)
            masked: Iterator[tuple[Floats, Floats | None]] = iter([(cells, None)])
        else:
            one_cell: dict[str, Any] = {CELLS: np.zeros(1, np.int64)}
            (total,) = self._device.run(self._mask, features | one_cell, (TOTAL,), (TOTAL,))
            finite = bool(np.isfinite(total.numpy()))
            masked = ((each, None) for each in self._masked_logits(features))
            plain = np.zeros(0, np.float32)
            if not deployed:
                plain = self._logits(self._tail, features)
        if deployed:
            plain = values[-1].numpy()
        logits = np.asarray(plain, np.float32).reshape(-1)
        yield Inference(logits, None, finite, selected(masked))

    def zero(self, image: Array) -> Floats:
        """Return the tail's logits [values] where the masks begin (see `runtimes.zero_runner`)."""
        manifest = self._manifest
        values = self._device.run(
            self._head, {manifest.image.name: image}, manifest.head.outputs, ()
        )
        names = manifest.tail.inputs
        feeds = dict(zip(names, values, strict=False))
        feeds |= {CELLS: np.array([self._stream.cells], np.int64)}  # beyond all: none is marked
        masked = self._device.run(self._mask, feeds, tuple(f"masked:{n}" for n in names), ())
        return self._logits(self._tail, dict(zip(names, masked, strict=True))).reshape(-1)

    def _run_closed(self, closed: Any, features: dict[str, Any]) -> tuple[Floats, Floats, bool]:
        """Return the logits [N,classes] of the cells, [classes] of the map, and if it is finite."""
        names = (*self._manifest.tail.outputs, TOTAL)
        logits, total = self._device.run(closed, features, names, names)
        entries = logits.numpy().reshape(self._stream.cells + 1, -1)
        return entries[:-1], entries[-1], bool(np.isfinite(total.numpy()))

    def _masked_logits(self, features: dict[str, Any]) -> Iterator[Floats]:
        names = self._manifest.tail.inputs
        masked = tuple(f"masked:{name}" for name in names)
        left = self._stream.cells
        for cells in self._stream.batches():
            feeds = {**features, CELLS: cells.astype(np.int64)}
            values = self._device.run(self._mask, feeds, masked, ())
            logits = self._logits(self._tail, dict(zip(names, values, strict=True)))
            yield logits.reshape(len(cells), -1)[:left]
            left -= len(cells)

    def _logits(self, tail: Any, features: dict[str, Any]) -> Floats:
        names = self._manifest.tail.outputs
        return np.asarray(self._device.run(tail, features, names, names)[0].numpy(), np.float32)

    def _closed_form(self, bundle: Bundle) -> Any:
        """Return a session of the closed form, checked on every cell against the dense tail."""
        if sum(file.stat().st_size for file in bundle.folder.glob("tail.*")) > _LARGEST_TAIL:
            raise NoClosedForm("it is too large to be rewritten")
        shape = self._manifest.boundary_shapes[0]
        closed = closed_form(onnx.load(bundle.tail), shape)
        try:
            session = self._device.session(closed)
        except DeviceError as failure:  # it may still run the dense tail
            raise NoClosedForm(str(failure)) from failure
        (name,) = self._manifest.tail.inputs

        def of_closed(features: Floats) -> tuple[Floats, Floats]:
            return self._run_closed(session, {name: features})[:2]

        def of_tail(features: Floats) -> tuple[Floats, Floats]:
            feeds = {name: features}
            cells = np.concatenate(list(self._masked_logits(feeds)))
            return cells, self._logits(self._tail, feeds).reshape(-1)

        error = largest_error(of_closed, of_tail, shape)
        if not error <= TOLERANCE:
            raise NoClosedForm(
                f"it differs from the dense tail by {error:.1e} of the logits' spread"
            )
        return session


class _Device:
    """One of ONNX Runtime's devices: opens sessions and runs them with bound memory."""

    def __init__(self, name: str, hint: Hint) -> None:
        self._ort = _library(name)
        self.version = str(self._ort.__version__)
        kind, _, number = name.partition(":")
        self._name, self._hint = name, hint
        self._is_cuda = kind == "cuda"
        if number and not (self._is_cuda and number.isdigit()):
            raise DeviceError(
                f"There is no device '{name}'; there are ort-cpu, cuda, cuda:1 and so on."
            )
        self._place = ("cuda", int(number or 0)) if self._is_cuda else ("cpu", 0)
        self.parallel = 1
        if hint == "throughput" and not self._is_cuda:
            self.parallel = _cores()
        if self._is_cuda and _CUDA not in self._ort.get_available_providers():
            raise DeviceError(
                f"'{name}' can't be used: this onnxruntime lacks CUDA. Uninstall onnxruntime and "
                "install 'ov-recipro[cuda]'."
            )

    def session(self, model: Path | onnx.ModelProto, tf32: bool = False) -> Any:
        """Open a model on this device, and on no other."""
        options = self._ort.SessionOptions()
        options.log_severity_level = _SILENT
        # head and tail have threads of their own; spinning ones would take the other's cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = 1 if self.parallel > 1 else thread_limit() or 0
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._is_cuda:
            providers = [(_CUDA, {"device_id": self._place[1], "use_tf32": int(tf32)}), *providers]
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self._ort.set_default_logger_severity(_SILENT)  # providers log failures, raised below
        try:
            session = self._ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # its error types share no narrower base
            raise DeviceError(
                f"ONNX Runtime can't run this model on '{self._name}': {_reason(error)}"
            ) from error
        finally:
            self._ort.set_default_logger_severity(_WARNINGS)
        if self._is_cuda and _CUDA not in session.get_providers():
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
    extra = "ort" if device == "ort-cpu" else "cuda"
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


def plain_runner(bundle: Bundle, running: Running) -> Callable[[Array], Floats]:
    """Open a bundle's whole model to its logits alone, as a pipeline that only infers would."""
    manifest = bundle.manifest
    place = _Device(running.device, "latency")
    if manifest.deployed_scores:
        session, output = place.session(bundle.head), manifest.head.outputs[-1]
    else:
        model, tail = onnx.load(bundle.head), onnx.load(bundle.tail)
        tail = onnx.compose.add_prefix(tail, "tail/", rename_inputs=False)
        model.graph.node.extend(tail.graph.node)
        model.graph.initializer.extend(tail.graph.initializer)
        del model.graph.output[:]
        model.graph.output.extend(tail.graph.output)
        session = place.session(model, tf32=running.precision == "native")
        output = f"tail/{manifest.tail.outputs[0]}"
    (image,) = [value.name for value in session.get_inputs()]

    def run(pixels: Array) -> Floats:
        return np.array(place.run(session, {image: pixels}, (output,), (output,))[0].numpy())

    return run


def describe_devices() -> list[Device]:
    """Return ONNX Runtime's devices and, for those that can't be used, why."""
    devices = []
    for name, description in (("ort-cpu", "ONNX Runtime {} on the CPU"),
                              ("cuda", "ONNX Runtime {} on an NVIDIA GPU")):  # fmt: skip
        try:
            device = _Device(name, "latency")
            device.session(_identity_model())
        except DeviceError as error:
            devices.append(Device(name, False, str(error)))
        else:
            devices.append(Device(name, True, description.format(device.version)))
    return devices


def _identity_model() -> onnx.ModelProto:
    """Return the smallest model, to try a device with."""
    scalar = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, []) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", scalar[:1], scalar[1:]
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
