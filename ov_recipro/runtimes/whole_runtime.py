"""A model run whole, image by image, for explainers that need no cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import OptionError
from ov_recipro.options import Running
from ov_recipro.runtimes import plain_runner, runs_on_openvino
from ov_recipro.runtimes.infer_requests import device_errors
from ov_recipro.runtimes.openvino_runtime import check_device
from ov_recipro.runtimes.runtime import Floats, Inference, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import compiled, keep_outputs, read


@dataclass(frozen=True)
class WholePlan:
    """No cells: the model runs whole on each masked image."""

    cells: int = 0

    name = "whole"


class WholeRuntime:
    """A model without a cut, compiled for a device; see `runtimes.runtime.Runtime`.

    Args:
        bundle: a split model, or a model that can't be split (see `splitting.whole`).
        running: how it is run.

    Raises:
        DeviceError: the device is missing or can't run the model.
        OptionError: the device does not run models that can't be split.
    """

    plan = WholePlan()
    reason = None
    parallel = 1

    def __init__(self, bundle: Bundle, running: Running) -> None:
        self.versions = {_library(running.device): version(_library(running.device))}
        self._lock = Lock()
        self._run: Callable[[Array], Floats]
        self._run = _outputs(bundle, running) if bundle.whole else plain_runner(bundle, running)

    def run(self, image: Array) -> Floats:
        """Return the outputs that targets are scored by for one input, in a row [V]."""
        with self._lock:
            return np.asarray(self._run(image), np.float32).reshape(-1)

    @contextmanager
    def infer(self, image: Array) -> Iterator[Inference]:
        """Run one input; there are no masked runs."""
        yield Inference(self.run(image), None, True, selected(iter(())))


def _library(device: str) -> str:
    return "openvino" if runs_on_openvino(device) else "onnxruntime"


def _outputs(bundle: Bundle, running: Running) -> Callable[[Array], Floats]:
    """Compile a model's own outputs; their numbers follow each other in a row."""
    if not runs_on_openvino(running.device):
        raise OptionError(
            f"'{running.device}' can't be used: a model that can't be split runs only on OpenVINO."
        )
    check_device(running.device)
    manifest = bundle.manifest
    model = read(bundle.head, [manifest.image.shape])
    request: Any = compiled(
        keep_outputs(model, manifest.head.outputs), running.device, running.precision
    ).create_infer_request()

    def run(image: Array) -> Floats:
        with device_errors():
            request.infer([ov.Tensor(np.ascontiguousarray(image))])
        rows = [np.ravel(tensor.data) for tensor in request.output_tensors]
        return np.concatenate(rows, dtype=np.float32, casting="unsafe")

    return run
