"""OpenVINO: running a request, and what its failures become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import openvino as ov

from ov_recipro.errors import DeviceError
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import reason


def run_request(request: ov.InferRequest, inputs: Sequence[Array]) -> list[Array]:
    """Run a request; the outputs are its own memory, valid until it runs again.

    Raises:
        DeviceError: the device failed.
    """
    for index, value in enumerate(inputs):
        tensor = ov.Tensor(np.ascontiguousarray(value), shared_memory=True)
        request.set_input_tensor(index, tensor)
    with device_errors():
        request.infer()
    return [tensor.data for tensor in request.output_tensors]


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn OpenVINO's errors while a model runs into DeviceError."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO's device failed: {reason(error)}") from error
