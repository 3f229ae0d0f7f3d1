"""OpenVINO: running models, and tails on masked feature maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.bundle import Bundle
from ov_recipro.errors import ReciproError
from ov_recipro.plans import rows
from ov_recipro.plans.rows import NotWorthIt, RowsPlan, Verdict, macs_of
from ov_recipro.plans.stream import StreamPlan, plan_stream

Array = npt.NDArray[Any]
Mask = Literal["cell", "spread", "weight"]
Plan = Literal["auto", "rows", "stream"]
Precision = Literal["f32", "native"]
Runner: TypeAlias = Callable[[Sequence[Array]], list[Array]]
"""From a model's inputs to its outputs, in order."""

_F32: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
_PLUGINS = {
    "CPU": "OpenVINO's CPU plugin does not run on this processor",
    "GPU": "no Intel GPU with its compute driver (OpenCL, Level Zero)",
    "NPU": "no Intel NPU with its driver",
}
_VIRTUAL_DEVICES = ("AUTO", "MULTI", "HETERO", "BATCH")
_GAUSSIAN = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 16


class OpenVINORuntime:
    """A bundle's head and tail, compiled for one OpenVINO device.

    Args:
        bundle: what `split` made.
        device: an OpenVINO device name, such as "CPU", "GPU.1" or "AUTO".
        precision: "f32", or "native" for the device's own choice in the head. The tail always
            runs in float32: the scores of neighbouring cells differ by less than bfloat16 resolves.
        batch_memory: bytes that the tail's activations may take.
        mask: "cell" keeps one cell of the feature map and zeroes the rest (Eq. 5 of the paper);
            "spread" copies that cell's vector to its 3x3 neighbours with Gaussian weights; "weight"
            multiplies the neighbours' own vectors by these weights.
        plan: "rows" or "stream", or "auto" for rows where they apply and save.

    Attributes:
        plan: how the tail is run.
        reason: why that is not the plan `rows`; None where it is.

    Raises:
        ReciproError: the device is not there or can't run the model, or `plan` does not apply.
    """

    plan: StreamPlan | RowsPlan
    reason: str | None

    def __init__(
        self,
        bundle: Bundle,
        device: str = "CPU",
        precision: Precision = "f32",
        batch_memory: int = 256 << 20,
        mask: Mask = "cell",
        plan: Plan = "auto",
    ) -> None:
        check_device(device)
        self._bundle, self._device = bundle, device
        self._batch_memory, self._mask = batch_memory, mask
        plain = _whole(bundle)
        plain_macs = sum(macs_of(node) for node in plain.get_ordered_ops())
        options = _F32 if precision == "f32" else {}
        self._plain = _compile(plain, device, options).create_infer_request()
        self.reason = "asked for" if plan == "stream" else rows.applies(bundle.manifest, mask)
        if self.reason is None:
            try:
                self._tail, self.plan = self._rows(plain_macs)
            except NotWorthIt as failure:
                self.reason = str(failure)
        if self.reason is not None:
            if plan == "rows":
                raise ReciproError(f"The plan 'rows' can't be used: {self.reason}.")
            self._tail, self.plan = self._stream()

    def infer(self, image: Array) -> tuple[list[Array], npt.NDArray[np.float32]]:
        """Run the whole model once.

        Args:
            image: the model's input, [1,3,H,W] or [1,H,W,3].

        Returns:
            The feature map and its bypass tensors, and the logits [classes].
        """
        results = self._plain.infer([image], share_inputs=True)
        values = [np.asarray(results[i]) for i in range(len(results))]
        return values[:-1], np.asarray(values[-1], np.float32).reshape(-1)

    def masked_logits(self, features: Sequence[Array]) -> Iterator[npt.NDArray[np.float32]]:
        """Run the tail with every cell of the feature map alone.

        Args:
            features: what `infer` returned.

        Yields:
            The logits float32 [b, classes] of the next b cells; b sums up to the plan's cells.
        """
        return _run_plan(self.plan, self._tail, features)

    def _stream(self) -> tuple[ov.InferRequest, StreamPlan]:
        bundle = self._bundle
        tail = _tail_at(bundle, batch=1)
        height, width = bundle.manifest.cut.grid
        plan = plan_stream(
            cells=height * width,
            bytes_per_cell=_activation_bytes(tail),
            batch_memory=self._batch_memory if bundle.manifest.any_batch else 1,
        )
        if plan.batch > 1:
            tail = _tail_at(bundle, batch=plan.batch)
        masked = _masked(tail, bundle, plan.batch, self._mask)
        return _compile(masked, self._device, _F32).create_infer_request(), plan

    def _rows(self, plain_macs: int) -> tuple[ov.InferRequest, RowsPlan]:
        """Build the plan, and check every cell against the dense tail unless that was done."""
        file = rows.verdict_file(self._bundle.manifest, self._device)
        verdict = rows.read_verdict(file)
        if verdict is not None and verdict.reason is not None:
            raise NotWorthIt(verdict.reason)
        try:
            error = verdict.error if verdict is not None else None
            tail = _tail_at(self._bundle, batch=1)
            model, plan = rows.build(tail, core(), self._batch_memory, plain_macs, error or 0.0)
            request = _compile(model, self._device, _F32).create_infer_request()
            if error is None:
                plan = dataclasses.replace(plan, error=self._check(request, plan))
        except (NotWorthIt, ReciproError) as failure:
            rows.keep_verdict(file, Verdict(None, str(failure)))
            raise NotWorthIt(str(failure)) from failure
        if error is None:
            rows.keep_verdict(file, Verdict(plan.error, None))
        return request, plan

    def _check(self, request: ov.InferRequest, plan: RowsPlan) -> float:
        dense, stream = self._stream()

        def logits(plan: StreamPlan | RowsPlan, request: ov.InferRequest) -> rows.Logits:
            return lambda features: np.concatenate(list(_run_plan(plan, request, [features])))

        shape = self._bundle.manifest.boundary_shapes[0]
        error = rows.largest_error(logits(plan, request), logits(stream, dense), shape)
        if not error <= rows.TOLERANCE:
            raise NotWorthIt(f"rows differ from the dense tail by {error:.1e} of the spread")
        return error


def _run_plan(
    plan: StreamPlan | RowsPlan, request: ov.InferRequest, features: Sequence[Array]
) -> Iterator[npt.NDArray[np.float32]]:
    if isinstance(plan, RowsPlan):
        yield np.array(request.infer([features[0]], share_inputs=True)[0], np.float32)
        return
    left = plan.cells
    for cells in plan.batches():
        logits = request.infer([*features, cells], share_inputs=True)[0]
        yield np.asarray(logits, np.float32).reshape(len(cells), -1)[:left]
        left -= len(cells)


@cache
def core() -> ov.Core:
    """Return the process's one OpenVINO core."""
    return ov.Core()


def check_device(device: str) -> None:
    """Raise ReciproError when OpenVINO has no such device here."""
    available = core().available_devices
    for name in device.partition(":")[2].split(",") if ":" in device else [device]:
        family = name.partition(".")[0]
        if family not in _VIRTUAL_DEVICES and not any(
            name == known or (family == known.partition(".")[0] and "." not in name)
            for known in available
        ):
            raise ReciproError(
                f"Device '{name}' is not to be had here; OpenVINO sees: {', '.join(available)}."
            )


@dataclass(frozen=True)
class Device:
    """A device, by OpenVINO's name for it: its full name, or why it can't be used here."""

    device: str
    available: bool
    name: str


def describe_devices() -> list[Device]:
    """Return the devices that OpenVINO finds here, and those of its plugins that found none."""
    found = list(core().available_devices)
    devices = [Device(d, True, str(core().get_property(d, "FULL_DEVICE_NAME"))) for d in found]
    for family, lacking in _PLUGINS.items():
        if not any(name.partition(".")[0] == family for name in found):
            devices.append(Device(family, False, lacking))
    return devices


def plain_runner(
    bundle: Bundle, device: str, precision: Precision
) -> Callable[[Array], npt.NDArray[np.float32]]:
    """Compile a bundle's whole model, to its logits alone, as a pipeline would that only infers."""
    whole = _whole(bundle)
    logits = ov.Model([whole.get_results()[-1]], whole.get_parameters(), "plain")
    request = _compile(logits, device, _F32 if precision == "f32" else {}).create_infer_request()
    return lambda image: np.array(request.infer([image], share_inputs=True)[0])


def _whole(bundle: Bundle) -> ov.Model:
    """Return the model from the image to the head's outputs and, last, the logits."""
    head = read(bundle.head, [bundle.manifest.image.shape])
    if bundle.manifest.deployed_scores:
        return head
    return _join(head, _tail_at(bundle, batch=1))


def read(path: Path, shapes: Sequence[Sequence[int]] | None = None) -> ov.Model:
    """Read a model file and give its inputs, in order, these static shapes."""
    try:
        model = core().read_model(path)
        if shapes is not None:
            model.reshape({i: ov.PartialShape(list(s)) for i, s in enumerate(shapes)})
    except RuntimeError as error:
        raise ReciproError(f"OpenVINO can't read {path.name}: {reason(error)}") from error
    return model


@contextmanager
def as_file(model: str | Path | ov.Model) -> Iterator[Path]:
    """Give a model as a file: the one that it is, or a temporary one of a model in memory."""
    if isinstance(model, str | Path):
        yield Path(model)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        yield path


def runner(model: ov.Model) -> Runner:
    """Compile a model on the CPU in float32; return a function from its inputs to its outputs."""
    compiled = _compile(model, "CPU", _F32)

    def run(inputs: Sequence[Array]) -> list[Array]:
        results = compiled(list(inputs))
        return [np.array(results[i]) for i in range(len(compiled.outputs))]

    return run


def keep_outputs(model: ov.Model, names: Sequence[str]) -> ov.Model:
    """Return `model` with these tensors, in this order, as its only outputs."""
    known = {
        name: port
        for node in model.get_ordered_ops()
        if node.get_type_name() != "Result"
        for port in node.outputs()
        for name in port.get_names()
    }
    missing = [name for name in names if name not in known]
    if missing:
        raise ReciproError(f"OpenVINO's reading of the model has no tensor '{missing[0]}'.")
    results = [ops.result(known[name]) for name in names]
    return ov.Model(results, model.get_parameters(), model.get_friendly_name())


def _compile(model: ov.Model, device: str, options: dict[str, Any]) -> ov.CompiledModel:
    config = {"PERFORMANCE_HINT": "LATENCY", **options}
    try:
        return core().compile_model(model, device, config)
    except RuntimeError as error:
        raise ReciproError(f"OpenVINO can't run this on {device}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the telling line of OpenVINO's many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or ["unknown reason"])[-1][:300]


def _tail_at(bundle: Bundle, batch: int) -> ov.Model:
    """Read the tail with a feature map of `batch`; its bypass tensors are repeated to it."""
    shapes = [
        (batch, *shape[1:]) if _is_batched(shape) else shape
        for shape in bundle.manifest.boundary_shapes
    ]
    return read(bundle.tail, shapes)


def _is_batched(shape: Sequence[int]) -> bool:
    return len(shape) > 0 and shape[0] == 1


def _join(head: ov.Model, tail: ov.Model) -> ov.Model:
    """Return one model from the image to the head's outputs and the tail's scores."""
    for result, parameter in zip(head.get_results(), tail.get_parameters(), strict=True):
        source = result.input(0).get_source_output()
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source)
    return ov.Model([*head.get_results(), *tail.get_results()], head.get_parameters(), "model")


def _masked(tail: ov.Model, bundle: Bundle, batch: int, mask: Mask) -> ov.Model:
    """Return the tail with masking in the graph.

    Its inputs become the feature map of one image, that image's bypass tensors, and the cell
    numbers int32 [batch], so that no masked copy of the feature map is ever made outside.
    """
    height, width = bundle.manifest.cut.grid
    channels_last = bundle.manifest.cut.channels_last
    cells = ops.parameter([batch], np.int32, name="cells")
    parameters = []
    for index, shape in enumerate(bundle.manifest.boundary_shapes):
        old = tail.get_parameters()[index]
        new = ops.parameter(list(shape), old.get_element_type(), name=old.get_friendly_name())
        parameters.append(new)
        if index == 0:
            one_hot = ops.one_hot(cells, height * width, np.float32(1), np.float32(0), axis=1)
            value = _mask_feature(new, one_hot, (height, width), channels_last, mask)
        elif _is_batched(shape) and batch > 1:
            value = ops.broadcast(new, _int64([batch, *shape[1:]]))
        else:
            value = new
        for reader in old.output(0).get_target_inputs():
            reader.replace_source_output(value.output(0))
    return ov.Model(tail.get_results(), [*parameters, cells], "masked tail")


def _mask_feature(
    feature: ov.Node,
    one_hot: ov.Node,
    grid: tuple[int, int],
    channels_last: bool,
    mask: Mask,
) -> ov.Node:
    """Return the masked feature maps [batch,C,H,W] (or [batch,H,W,C])."""
    batch = one_hot.output(0).shape[0]
    plane = ops.reshape(one_hot, _int64([batch, 1, *grid]), False)
    kind = feature.get_element_type()
    if mask != "cell":
        kernel = ops.constant(_GAUSSIAN[None, None])
        plane = ops.convolution(plane, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    if channels_last:
        plane = ops.reshape(plane, _int64([batch, *grid, 1]), False)
    if mask == "spread":
        axis = 3 if channels_last else 1
        channels = feature.output(0).shape[axis]
        rows = feature if channels_last else ops.transpose(feature, _int64([0, 2, 3, 1]))
        table = ops.reshape(rows, _int64([grid[0] * grid[1], channels]), False)
        centre = ops.matmul(one_hot, ops.convert(table, ov.Type.f32), False, False)
        shape = [batch, 1, 1, channels] if channels_last else [batch, channels, 1, 1]
        feature = ops.convert(ops.reshape(centre, _int64(shape), False), kind)
    return ops.multiply(feature, ops.convert(plane, kind))


def _int64(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _activation_bytes(tail: ov.Model) -> int:
    """Estimate the bytes of live activations that one more cell in the batch takes.

    An operation's inputs and outputs live at once; neighbouring operations overlap. Twice the
    largest operation covers both, weights aside.
    """
    most = 0
    live: dict[ov.Output, int] = {}
    for node in tail.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        if node.get_type_name() != "Parameter" and not any(value in live for value in sources):
            continue  # made of weights alone
        for value in node.outputs():
            elements = int(np.prod(list(value.shape), dtype=np.int64))
            live[value] = elements * value.get_element_type().size
        most = max(most, sum(live.get(value, 0) for value in [*sources, *node.outputs()]))
    return 2 * most
