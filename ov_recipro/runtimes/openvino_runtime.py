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
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import DeviceError, OptionError
from ov_recipro.options import Hint, Precision, Running
from ov_recipro.plans import sparse
from ov_recipro.plans.nodes import macs_of
from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.sparse import SparsePlan
from ov_recipro.plans.stream import Mask, StreamPlan, batched, plan_stream
from ov_recipro.plans.stream.stream_openvino import activation_bytes, masked
from ov_recipro.plans.verdict import Logits, PlanRefused, verdict_file
from ov_recipro.runtimes.infer_requests import run_request
from ov_recipro.runtimes.masked_runs import (
    MaskedOf,
    compiled_on_demand,
    joint_logits,
    joint_runs,
    own_request,
    sparse_logits,
    stream_logits,
)
from ov_recipro.runtimes.runtime import Device, Floats, Inference, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import compiled, core, read

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
        asked = running.plan == "stream"
        self.reason = "asked for" if asked else sparse.applies(bundle.manifest, mask, running.plan)
        if self.reason is None:
            try:
                infer = self._sparse()
            except PlanRefused as failure:
                self.reason = str(failure)
        if self.reason is not None:
            if running.plan in ("rows", "tokens"):
                raise OptionError(f"The plan '{running.plan}' can't be used: {self.reason}.")
            infer = self._stream()
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

    def of_plan(features: Floats) -> tuple[Floats, Floats]:
        logits = run_request(request, [features])[0]
        return logits[:-1], logits[-1]

    dense, error = dense_runner(bundle, device, memory, mask), 0.0
    for cells in sparse.checked_cells(manifest):
        got = of_plan if scattered is None else joint_logits(scattered, request, cells)
        error = max(error, sparse.error_of(manifest, got, dense(cells)))
    return sparse.tolerated(plan.name, error)


def dense_logits(bundle: Bundle, device: str, memory: int, mask: Mask = "cell") -> Logits:
    """Return the slow reference for all cells, or the sample of tokens that is checked."""
    (cells,) = sparse.checked_cells(bundle.manifest)
    return dense_runner(bundle, device, memory, mask)(cells)


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


def plain_model(bundle: Bundle) -> ov.Model:
    """Return the model from the image to the logits alone."""
    model = whole_model(bundle)
    return ov.Model([model.get_results()[-1]], model.get_parameters(), "plain")


def whole_model(bundle: Bundle, tail: ov.Model | None = None) -> ov.Model:
    """Return the model from the image to the head's outputs and, last, the logits.

    Between these it has what else a `tail` of one's own gives, which is used up.
    """
    head = _head(bundle)
    if bundle.manifest.deployed_scores:
        return head
    tail = tail or tail_at(bundle, batch=1)
    for result, parameter in zip(head.get_results(), tail.get_parameters(), strict=True):
        source = result.input(0).get_source_output()
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source)
    return ov.Model([*head.get_results(), *tail.get_results()], head.get_parameters(), "model")


def _head(bundle: Bundle) -> ov.Model:
    return read(bundle.head, [bundle.manifest.image.shape])


def tail_at(bundle: Bundle, batch: int) -> ov.Model:
    """Read the tail with its feature map and bypass tensors at this batch."""
    return read(bundle.tail, [batched(shape, batch) for shape in bundle.manifest.boundary_shapes])


def stream_model(bundle: Bundle, memory: int, mask: Mask) -> tuple[ov.Model, StreamPlan]:
    """Return the tail from a feature map, bypass tensors and cell numbers to their logits."""
    plan = stream_plan(bundle, memory)
    return masked(tail_at(bundle, plan.batch), bundle.manifest, plan.batch, mask), plan


def stream_plan(bundle: Bundle, memory: int) -> StreamPlan:
    """Choose how many cells run at once."""
    return plan_stream(
        cells=bundle.manifest.cut.cells.count,
        bytes_per_cell=activation_bytes(tail_at(bundle, batch=1)),
        batch_memory=memory if bundle.manifest.any_batch else 1,
    )


def sparse_model(
    bundle: Bundle, mask: Mask, memory: int, plain: bool = True
) -> tuple[ov.Model, SparsePlan]:
    """Return the sparse plan from a feature map to logits, and these logits' plan.

    They are [N+1,classes], the whole feature map's last, or [N,classes] if not `plain`.
    """
    feature = ops.parameter(list(bundle.manifest.boundary_shapes[0]), np.float32, name="feature")
    logits, plan = _built(bundle, mask, _head(bundle), feature.output(0), memory, plain)
    return ov.Model([ops.result(logits)], [feature], plan.name), plan


def fused_model(bundle: Bundle, mask: Mask, memory: int) -> tuple[ov.Model, SparsePlan]:
    """Return the head with the sparse plan built on it.

    Its outputs are the logits [N+1,classes] of the cells and, last, of the image, the
    `saliency.softmax_terms` of both, and the sum of the feature map, which is finite where all of
    it is.
    """
    head = _head(bundle)
    results = [result.input_value(0) for result in head.get_results()]
    deployed = bundle.manifest.deployed_scores
    logits, plan = _built(bundle, mask, head, results[0], memory, plain=not deployed)
    if deployed:
        flat = ops.reshape(results[-1], np.array([1, -1]), False)
        logits = ops.concat([logits, ops.convert(flat, np.float32)], 0).output(0)
    total = ops.reduce_sum(results[0], np.arange(len(results[0].shape)), False)
    outputs = [ops.result(port) for port in (logits, _softmax_terms(logits), total)]
    return ov.Model(outputs, head.get_parameters(), "fused"), plan


def joint_model(bundle: Bundle, mask: Mask, memory: int) -> tuple[ov.Model, Scattered, SparsePlan]:
    """Return a detector's plan from its feature maps to values (see `sparse.build_joint`)."""
    tail, macs = _tail_and_macs(bundle, _head(bundle))
    return sparse.build_joint(bundle.manifest, mask, tail, core(), memory, macs)


def _softmax_terms(logits: ov.Output) -> ov.Node:
    """Return `saliency.softmax_terms` of logits [N,classes] as a graph."""
    over, zero = np.array([1]), np.float32(0)
    highest = ops.reduce_max(logits, over, True)
    change = ops.subtract(logits, highest)
    below = ops.convert(ops.less(change, zero), np.float32)
    others = ops.reduce_sum(ops.multiply(ops.exp(change), below), over, True)
    count = ops.reduce_sum(below, over, True)
    ties = ops.subtract(np.float32(logits.shape[1]), count)
    return ops.concat([highest, others, ties], 1)


def _built(
    bundle: Bundle, mask: Mask, head: ov.Model, feature: ov.Output, memory: int, plain: bool
) -> tuple[ov.Output, SparsePlan]:
    tail, macs = _tail_and_macs(bundle, head)
    return sparse.build(bundle.manifest, mask, tail, feature, core(), memory, macs, plain)


def _tail_and_macs(bundle: Bundle, head: ov.Model) -> tuple[ov.Model, int]:
    """Return the tail, and the multiply-accumulates of one plain inference."""
    tail = tail_at(bundle, batch=1)
    models = [head] if bundle.manifest.deployed_scores else [head, tail]
    return tail, sum(macs_of(node) for model in models for node in model.get_ordered_ops())


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
