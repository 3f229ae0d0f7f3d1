"""OpenVINO: a bundle's head and tail on one of its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import DeviceError
from ov_recipro.options import Hint, Precision, Running
from ov_recipro.plans import sparse
from ov_recipro.plans.sparse import SparsePlan
from ov_recipro.plans.stream import Mask, StreamPlan
from ov_recipro.plans.verdict import Logits, PlanRefused, verdict_file
from ov_recipro.runtimes.infer_requests import run_request
from ov_recipro.runtimes.joint_values import logits_by_cells
from ov_recipro.runtimes.masked_runs import (
    MaskedOf,
    compiled_on_demand,
    joint_runs,
    own_request,
    sparse_logits,
    stream_logits,
)
from ov_recipro.runtimes.model_graphs import (
    fused_model,
    joint_model,
    plain_model,
    sparse_model,
    stream_model,
    tail_at,
    whole_model,
)
from ov_recipro.runtimes.runtime import Device, Floats, Inference, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import compiled, core

_Infer: TypeAlias = Callable[[Array], Inference]

_PLUGINS = {
    "CPU": "OpenVINO's CPU plugin does not run on this processor",
    "GPU": "no Intel GPU with its compute driver (OpenCL, Level Zero)",
    "NPU": "no Intel NPU with its driver",
}
_VIRTUAL_DEVICES = ("AUTO", "MULTI", "HETERO", "BATCH")


class OpenVINORuntime:
    """A bundle's head and tail, compiled for one OpenVINO device; see `runtimes.runtime.Runtime`.

    Args:
        bundle: what `split` made.
        running: how it is run. The tail always runs in float32: the scores of neighbouring cells
            differ by less than bfloat16 resolves.
        mask: what is kept of the feature map (see `plans.stream.Mask`).

    Raises:
        DeviceError: the device is missing or can't run the model.
        OptionError: the plan does not apply.
    """

    plan: StreamPlan | SparsePlan
    reason: str | None
    parallel: int
    versions: dict[str, str]

    def __init__(self, bundle: Bundle, running: Running, mask: Mask = "cell") -> None:
        check_device(running.device)
        self.versions = {"openvino": version("openvino")}
        self._bundle, self._running, self._mask = bundle, running, mask
        infer, self.reason = sparse.chosen(
            bundle.manifest, running.plan, mask, open_sparse=self._sparse, open_stream=self._stream
        )
        self._free: SimpleQueue[_Infer] = SimpleQueue()
        for _ in range(self.parallel):
            self._free.put(infer())

    @contextmanager
    def infer(self, image: Array) -> Iterator[Inference]:
        """Run one image, [1,3,H,W] or [1,H,W,3]; the result is valid inside the context."""
        infer = self._free.get()
        try:
            yield infer(image)
        finally:
            self._free.put(infer)

    def _compiled(self, model: ov.Model, precision: Precision = "f32") -> ov.CompiledModel:
        return compiled(model, self._running.device, precision, self._running.hint)

    def _stream(self) -> Callable[[], _Infer]:
        """Compile the model, and the tail on batches of masked maps."""
        plain = self._compiled(whole_model(self._bundle), self._running.precision)
        self.parallel = parallel_requests(plain, self._running.hint)
        model, plan = stream_model(self._bundle, self._running.batch_memory, self._mask)
        self.plan = plan
        return _apart(plain, own_request(self._compiled(model), partial(stream_logits, plan)))

    def _sparse(self) -> Callable[[], _Infer]:
        """Compile the plan into one graph, once it is checked against the dense tail.

        A head in the device's own precision stays a graph of its own, so that all of the tail runs
        in float32.
        """
        bundle, mask, memory = self._bundle, self._mask, self._running.batch_memory
        refusal = sparse_refusal(bundle, mask, self._running.device, memory)
        if refusal is not None:
            raise PlanRefused(refusal)
        joint = sparse.is_joint(bundle.manifest)
        if self._running.precision == "f32" and not joint:
            model, self.plan = fused_model(bundle, mask, memory)
            together = self._compiled(model)
            self.parallel = parallel_requests(together, self._running.hint)
            return _together(together)
        demanded, tail = None, None
        if joint:
            model, scattered, rows = joint_model(bundle, mask, memory)
            if rows.macs > rows.plain_macs:
                dense = partial(dense_runner, bundle, self._running.device, memory, mask)
                demanded = compiled_on_demand(
                    bundle, mask, self._running, tail_at(bundle, 1), dense
                )
            if demanded is not None and demanded.at_once:
                tail = demanded.plan.lowered.plain
        plain = self._compiled(whole_model(bundle, tail), self._running.precision)
        self.parallel = parallel_requests(plain, self._running.hint)
        if joint:
            self.plan = rows
            runs = joint_runs(scattered, self._compiled(model), rows.macs, demanded)
            return _apart(plain, runs, len(bundle.manifest.boundary_shapes))
        model, self.plan = sparse_model(bundle, mask, memory)
        return _apart(plain, own_request(self._compiled(model), sparse_logits))


def sparse_refusal(bundle: Bundle, mask: Mask, device: str, memory: int) -> str | None:
    """Return why the sparse plan is not used for a bundle's tail; None where it is.

    The plan is built and checked once; the verdict is kept in the user's cache.
    """
    file = verdict_file(bundle.manifest, mask, device, memory)
    return sparse.refusal(file, lambda: _sparse_error(bundle, mask, device, memory))


def _sparse_error(bundle: Bundle, mask: Mask, device: str, memory: int) -> float:
    """Compare the plan with the dense tail; return the error."""
    manifest, scattered = bundle.manifest, None
    plan: SparsePlan
    if sparse.is_joint(manifest):
        model, scattered, plan = joint_model(bundle, mask, memory)
    else:
        model, plan = sparse_model(bundle, mask, memory)
    try:
        request = compiled(model, device).create_infer_request()
    except DeviceError as failure:  # it may still run the dense tail
        raise PlanRefused(str(failure)) from failure

    got = logits_by_cells(partial(run_request, request), scattered)
    return sparse.error(manifest, plan.name, got, dense_runner(bundle, device, memory, mask))


def dense_runner(
    bundle: Bundle, device: str, memory: int, mask: Mask = "cell"
) -> Callable[[Sequence[int]], Logits]:
    """Return a slow reference for any cells: the whole tail for each of them."""
    model, stream = stream_model(bundle, memory, mask)
    dense = compiled(model, device).create_infer_request()
    tail = compiled(tail_at(bundle, batch=1), device).create_infer_request()

    def logits_of(cells: Sequence[int]) -> Logits:
        def run(*features: Floats) -> tuple[Floats, Floats]:
            found = []
            for start in range(0, len(cells), stream.batch):
                chunk = np.array(cells[start : start + stream.batch], np.int32)
                filled = np.resize(chunk, stream.batch)
                logits = run_request(dense, [*features, filled])[0].reshape(stream.batch, -1)
                found.append(np.array(logits[: len(chunk)], np.float32))
            return np.concatenate(found), run_request(tail, [*features])[0].reshape(-1)

        return run

    return logits_of


def _together(model: ov.CompiledModel) -> Callable[[], _Infer]:
    """Return a function that makes one more request for a model that gives all in one run."""

    def make() -> _Infer:
        request = model.create_infer_request()

        def infer(image: Array) -> Inference:
            logits, terms, total = run_request(request, [image])
            return Inference(
                logits=logits[-1],
                softmax_terms=terms[-1:],
                finite=bool(np.isfinite(total)),
                masked=selected(iter([(logits[:-1], terms[:-1])])),
            )

        return infer

    return make


def _apart(
    plain: ov.CompiledModel, tail: Callable[[], MaskedOf], features: int = -1
) -> Callable[[], _Infer]:
    """Return a function that makes one more set of requests: for the whole model and the tail.

    The model's first outputs are the `features`; but for its logits, the last, all by default.
    """

    def make() -> _Infer:
        request, masked = plain.create_infer_request(), tail()

        def infer(image: Array) -> Inference:
            values = run_request(request, [image])
            return Inference(
                logits=np.asarray(values[-1], np.float32).reshape(-1),
                softmax_terms=None,
                finite=all(bool(np.isfinite(value).all()) for value in values[:features]),
                masked=masked(values),
            )

        return infer

    return make


def plain_runner(bundle: Bundle, running: Running) -> Callable[[Array], Floats]:
    """Compile a bundle's whole model to its logits alone, as a pipeline that only infers would."""
    model = compiled(plain_model(bundle), running.device, running.precision)
    request = model.create_infer_request()
    return lambda image: np.array(run_request(request, [image])[0])


def check_device(device: str) -> None:
    """Raise ReciproError when OpenVINO has no such device here."""
    available = core().available_devices
    for name in device.partition(":")[2].split(",") if ":" in device else [device]:
        family = name.partition(".")[0]
        if family not in _VIRTUAL_DEVICES and not any(
            name == known or (family == known.partition(".")[0] and "." not in name)
            for known in available
        ):
            raise DeviceError(
                f"Device '{name}' is not available here; OpenVINO finds: {', '.join(available)}."
            )


def describe_devices() -> list[Device]:
    """Return the devices that OpenVINO finds here, and its plugins that found none."""
    found = list(core().available_devices)
    devices = [Device(d, True, str(core().get_property(d, "FULL_DEVICE_NAME"))) for d in found]
    for family, lacking in _PLUGINS.items():
        if not any(name.partition(".")[0] == family for name in found):
            devices.append(Device(family, False, lacking))
    return devices


def parallel_requests(model: ov.CompiledModel, hint: Hint) -> int:
    """Return how many images are best inferred at once."""
    return 1 if hint == "latency" else int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
