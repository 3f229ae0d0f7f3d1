"""ONNX Runtime: a bundle's head and tail on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import DeviceError, OptionError
from ov_recipro.options import Running
from ov_recipro.plans import sparse
from ov_recipro.plans.onnx_graph import LEAST_OPSET, opset_of
from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.sparse import SparsePlan
from ov_recipro.plans.stream import Mask, StreamPlan
from ov_recipro.plans.stream.stream_onnx import TOTAL
from ov_recipro.plans.verdict import PlanFailed, PlanRefused, verdict_file
from ov_recipro.runtimes import onnx_models
from ov_recipro.runtimes.joint_values import joint_values, logits_by_cells
from ov_recipro.runtimes.model_graphs import joint_model, sparse_model
from ov_recipro.runtimes.ort_device import ORTDevice
from ov_recipro.runtimes.ort_pieces import ORTPieces
from ov_recipro.runtimes.runtime import Device, Floats, Indices, Inference, MaskedRuns, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.onnx_file import load_again

_LOGITS = "ov_recipro/logits"

_Infer: TypeAlias = Callable[[Array], Inference]
_MaskedOf: TypeAlias = Callable[[dict[str, Any]], MaskedRuns]
"""From the tensors that the tail reads to an image's `Inference.masked`."""


class ONNXRuntime:
    """A bundle's head and tail in ONNX Runtime; see `runtimes.runtime.Runtime`.

    The feature map stays on the device between head and tail. A sparse plan and the head are one
    session where that is possible.

    Args:
        bundle: what `split` made from an ONNX file.
        running: how it is run, on "ort-cpu", "cuda" or "cuda:1". TF32 is off; the precision
            "native" lets an NVIDIA GPU use it in the head.
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
        if bundle.tail.suffix != ".onnx":
            raise OptionError(
                f"'{running.device}' can't be used: ONNX Runtime does not read OpenVINO models."
            )
        self._bundle, self._running, self._mask = bundle, running, mask
        self._device = ORTDevice(running.device, running.hint)
        self.parallel = self._device.parallel
        self.versions = {"onnxruntime": self._device.version}
        self._pieces = ORTPieces(bundle, running, self._device, mask)
        self._infer, self.reason = sparse.chosen(
            bundle.manifest, running.plan, mask, open_sparse=self._sparse, open_stream=self._stream
        )

    @contextmanager
    def infer(self, image: Array) -> Iterator[Inference]:
        """Run one image, [1,3,H,W] or [1,H,W,3]."""
        yield self._infer(image)

    def zero(self, image: Array) -> Floats:
        """Return the tail's logits [values] where the masks begin (see `runtimes.zero_runner`)."""
        features, _ = self._pieces.head(image)
        beyond = np.array([self._pieces.stream.cells], np.int64)  # no cell is marked
        return self._pieces.masked_logits(features, beyond).reshape(-1)

    @cached_property
    def _opset(self) -> int:
        """The head's."""
        return opset_of(load_again(self._bundle.head, weights=False))

    def _stream(self) -> _Infer:
        """Open the head, and the tail for batches of masked maps."""
        self.plan = self._pieces.stream
        return self._apart(self._pieces.streamed)

    def _sparse(self) -> _Infer:
        """Open the plan, once it is checked against the dense tail."""
        bundle, mask, memory = self._bundle, self._mask, self._running.batch_memory
        name = f"{self._running.device}, ONNX Runtime {self._device.version}"
        file = verdict_file(bundle.manifest, mask, name, memory)
        refusal = sparse.refusal(file, self._error)
        if refusal is not None:
            raise PlanRefused(refusal)
        if sparse.is_joint(bundle.manifest):
            run, scattered, self.plan = self._joint()
            names = bundle.manifest.tail.inputs

            def masked_of(features: dict[str, Any]) -> MaskedRuns:
                values = [features[name] for name in names]

                def masked(columns: Indices | None) -> Iterator[tuple[Floats, None]]:
                    return joint_values(scattered, lambda asked: run([*values, *asked]), columns)

                return masked

            return self._apart(masked_of)
        one_precision = self._device.is_cpu or self._running.precision == "f32"
        if one_precision and onnx_models.can_be_fused(bundle, self._opset):
            model, self.plan = onnx_models.fused(bundle, mask, memory, _LOGITS)
            try:
                return self._together(model)
            except DeviceError:
                pass  # what was checked is the plan by itself, which is opened now
        return self._in_two()

    def _together(self, model: onnx.ModelProto) -> _Infer:
        """Open a model that gives all in one run."""
        manifest = self._bundle.manifest
        session = self._device.session(model.SerializeToString())
        names = [_LOGITS, TOTAL, *manifest.head.outputs[-1:]][: len(model.graph.output)]
        cells = manifest.cut.cells.count

        def infer(image: Array) -> Inference:
            feeds = {manifest.image.name: image}
            logits, total, *own = (
                value.numpy() for value in self._device.run(session, feeds, names, names)
            )
            runs = selected(iter([(logits[:cells], None)]))
            return _inference(own[0] if own else logits[-1], bool(np.isfinite(total)), runs)

        return infer

    def _in_two(self) -> _Infer:
        """Open the head and the plan, each by itself."""
        pieces = self._pieces
        run, self.plan = self._alone()
        (feature,) = self._bundle.manifest.tail.inputs
        pieces.open(tail=False)

        def infer(image: Array) -> Inference:
            features, deployed = pieces.head(image)
            (logits,) = run([features[feature]])
            plain = logits[-1] if deployed is None else deployed
            runs = selected(iter([(logits[:-1], None)]))
            return _inference(plain, pieces.is_finite(features), runs)

        return infer

    def _apart(self, masked_of: _MaskedOf) -> _Infer:
        """Run the head, and then what gives the masked runs on its feature map."""
        pieces = self._pieces
        pieces.open(tail=True)

        def infer(image: Array) -> Inference:
            features, deployed = pieces.head(image)
            logits = pieces.logits(features) if deployed is None else deployed
            return _inference(logits, pieces.is_finite(features), masked_of(features))

        return infer

    def _error(self) -> float:
        """Compare the plan with the dense tail; return the error."""
        manifest = self._bundle.manifest
        # of its own, so that what it opens is closed again
        pieces = ORTPieces(self._bundle, self._running, self._device, self._mask)
        try:
            if sparse.is_joint(manifest):
                run, scattered, plan = self._joint()
            else:
                (run, plan), scattered = self._alone(), None
        except DeviceError as failure:  # it may still run the dense tail
            raise PlanFailed(str(failure)) from failure

        def guarded(values: Sequence[Any]) -> list[Array]:
            try:
                return run(values)
            except DeviceError as failure:
                raise PlanFailed(str(failure)) from failure

        return sparse.error(manifest, plan.name, logits_by_cells(guarded, scattered), pieces.dense)

    def _alone(self) -> tuple[Callable[[Sequence[Any]], list[Array]], SparsePlan]:
        """Return what runs the plan on a feature map, at the head's opset, and the plan."""
        model, plan = sparse_model(self._bundle, self._mask, self._running.batch_memory)
        opset = max(LEAST_OPSET, self._opset)
        return self._opened(onnx_models.as_onnx(model, [_LOGITS], opset)), plan

    def _joint(self) -> tuple[Callable[[Sequence[Any]], list[Array]], Scattered, SparsePlan]:
        """Return what runs a detector's plan (see `joint_values`), its tables and the plan."""
        model, scattered, plan = joint_model(self._bundle, self._mask, self._running.batch_memory)
        outputs = [f"rows/{number}" for number in range(len(model.outputs))]
        return self._opened(onnx_models.as_onnx(model, outputs)), scattered, plan

    def _opened(self, model: onnx.ModelProto) -> Callable[[Sequence[Any]], list[Array]]:
        """Open a model; return a function from its inputs to its outputs, both in order."""
        session = self._device.session(model.SerializeToString())
        inputs = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]

        def run(values: Sequence[Any]) -> list[Array]:
            feeds = dict(zip(inputs, values, strict=True))
            return [each.numpy() for each in self._device.run(session, feeds, outputs, outputs)]

        return run


def _inference(logits: Floats, finite: bool, masked: MaskedRuns) -> Inference:
    return Inference(
        logits=np.asarray(logits, np.float32).reshape(-1),
        softmax_terms=None,
        finite=finite,
        masked=masked,
    )


def plain_runner(bundle: Bundle, running: Running) -> Callable[[Array], Floats]:
    """Open a bundle's whole model to its logits alone, as a pipeline that only infers would."""
    manifest = bundle.manifest
    place = ORTDevice(running.device, "latency")
    if manifest.deployed_scores:
        session, output = place.session(bundle.head), manifest.head.outputs[-1]
    else:
        model, output = onnx_models.plain(bundle)
        session = place.session(model.SerializeToString(), tf32=running.precision == "native")
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
            device = ORTDevice(name, "latency")
        except DeviceError as error:
            devices.append(Device(name, False, str(error)))
        else:
            devices.append(Device(name, True, description.format(device.version)))
    return devices
