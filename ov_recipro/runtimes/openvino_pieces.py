"""OpenVINO: a bundle's whole model and its tail, each run by itself, from several threads."""

from __future__ import annotations

from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Bundle
from ov_recipro.options import Running
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.stream.stream_openvino import activation_bytes
from ov_recipro.plans.stream.stream_plan import is_batched
from ov_recipro.runtimes.infer_requests import device_errors
from ov_recipro.runtimes.model_graphs import tail_at, whole_model
from ov_recipro.runtimes.openvino_runtime import check_device, parallel_requests
from ov_recipro.runtimes.runtime import Floats
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import (
    Runner,
    compiled,
)


class CompiledPieces:
    """A bundle's model as deployed, and its tail.

    Args:
        bundle: what `split` made.
        running: device, precision, hint and memory; the plan is ignored.
        most: the most feature maps that the tail takes at once.

    Attributes:
        parallel: images that the device infers at once.
    """

    def __init__(self, bundle: Bundle, running: Running, most: int = 64) -> None:
        check_device(running.device)
        model = compiled(whole_model(bundle), running.device, running.precision, running.hint)
        self.parallel = parallel_requests(model, running.hint)
        self._whole = shared_runner(model)
        self._shapes = bundle.manifest.boundary_shapes
        self._prefix = bundle.manifest.cut.prefix
        self._values = bundle.manifest.values
        fitting = max(1, running.batch_memory // max(1, activation_bytes(tail_at(bundle, batch=1))))
        self._batch = min(most, fitting) if bundle.manifest.any_batch else 1
        self._tail = shared_runner(compiled(tail_at(bundle, self._batch), running.device))

    def infer(self, image: Array) -> tuple[list[Array], Floats]:
        """Run the whole model on one image.

        Returns:
            The feature map with the tensors that bypass the cut, and the logits [classes].
        """
        values = self._whole([image])
        return values[: len(self._shapes)], np.asarray(values[-1], np.float32).reshape(-1)

    def tail(self, features: Array, bypass: list[Array]) -> Floats:
        """Run the tail on feature maps [n,C,H,W] (or [n,H,W,C]) of an image.

        Args:
            features: float32; they are converted to what the tail takes.
            bypass: that image's tensors that bypass the cut.

        Returns:
            Logits [n,classes].
        """
        repeated = [
            np.repeat(value, self._batch, axis=0) if is_batched(value.shape) else value
            for value in bypass
        ]
        found = []
        for start in range(0, len(features), self._batch):
            chunk = features[start : start + self._batch]
            filled = np.zeros((self._batch, *chunk.shape[1:]), chunk.dtype)
            filled[: len(chunk)] = chunk
            logits = self._tail([filled, *repeated])[0].reshape(self._batch, self._values)
            found.append(np.asarray(logits[: len(chunk)], np.float32))
        return np.concatenate(found)

    def zero(self, mask: Mask, image: Array) -> Floats:
        """Return the tail's logits [values] where the masks begin (see `runtimes.zero_runner`)."""
        (features, *bypass), _ = self.infer(image)
        if mask != "drop":
            features = np.array(features)
            features[:, self._prefix :] = 0
        return np.asarray(self.tail(features, bypass)[0])


def shared_runner(model: ov.CompiledModel) -> Runner:
    """Return a function from a model's inputs to its outputs that any thread may call."""
    free: SimpleQueue[ov.InferRequest] = SimpleQueue()

    def run(inputs: Sequence[Array]) -> list[Array]:
        try:
            request = free.get_nowait()
        except Empty:
            request = model.create_infer_request()
        try:
            for index, value in enumerate(inputs):
                kind = model.inputs[index].get_element_type().to_dtype()
                request.set_input_tensor(
                    index, ov.Tensor(np.ascontiguousarray(value, kind), shared_memory=True)
                )
            with device_errors():
                request.infer()
            return [np.array(tensor.data) for tensor in request.output_tensors]
        finally:
            free.put(request)

    return run
