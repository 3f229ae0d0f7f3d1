"""OpenVINO: an image's masked runs at two feature maps, in one graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from queue import SimpleQueue

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cells import Cells
from ov_recipro.errors import OptionError
from ov_recipro.options import Running
from ov_recipro.plans import rows, sparse
from ov_recipro.plans.verdict import Logits, largest_error, verdict_file
from ov_recipro.runtimes import runs_on_openvino
from ov_recipro.runtimes.infer_requests import run_request
from ov_recipro.runtimes.openvino_runtime import check_device, parallel_requests, sparse_refusal
from ov_recipro.runtimes.pair_graph import Earlier, pair_graph
from ov_recipro.runtimes.runtime import Floats, Inference, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import compiled, core


@dataclass(frozen=True)
class PairInference(Inference):
    """An inference whose `masked` runs lack one cell of the later feature map each.

    Attributes:
        kept: the logits [N,classes] of each cell of the earlier feature map alone.
        empty: of none of these, [classes].
        earlier, later: the cells of both.
    """

    kept: Floats
    empty: Floats
    earlier: Cells
    later: Cells


class PairRuntime:
    """A model whose feature maps are masked at two layers; see `runtimes.runtime.Runtime`.

    Args:
        bundle: cut at the later layer.
        running: how it is run.

    Attributes:
        layer: the tensor of the earlier layer; earlier: its cells.

    Raises:
        DeviceError: the device is missing or can't run the model.
        OptionError: the model has no second layer that fits, or an option is not for this method.
    """

    reason = None

    def __init__(self, bundle: Bundle, running: Running) -> None:
        if not runs_on_openvino(running.device):
            raise OptionError("Method 'recipro-pair' needs an OpenVINO device.")
        if running.precision != "f32" or running.plan not in ("auto", "rows"):
            raise OptionError("Method 'recipro-pair' runs only in float32 and by plan 'rows'.")
        check_device(running.device)
        self.versions = {"openvino": version("openvino")}
        graph = pair_graph(bundle, running.batch_memory, running.max_cost)
        refusal = pair_refusal(bundle, graph.earlier, running.device, running.batch_memory)
        if refusal is not None:
            raise OptionError(f"Method 'recipro-pair' can't be used: {refusal}.")
        self.plan = graph.plan
        self.layer = graph.earlier.name
        self.earlier = Cells((graph.earlier.shape[2], graph.earlier.shape[3]))
        self._later = bundle.manifest.cut.cells
        self._empty = graph.earlier.empty()
        model = compiled(graph.model, running.device, "f32", running.hint)
        self.parallel = parallel_requests(model, running.hint)
        self._free: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(self.parallel):
            self._free.put(model.create_infer_request())

    @contextmanager
    def infer(self, image: Array) -> Iterator[PairInference]:
        """Run one image, [1,3,H,W] or [1,H,W,3]; the result is valid inside the context."""
        request = self._free.get()
        try:
            kept, dropped, total = run_request(request, [image])
            yield PairInference(
                logits=dropped[-1],
                softmax_terms=None,
                finite=bool(np.isfinite(total)),
                masked=selected(iter([(dropped[:-1], None)])),
                kept=kept,
                empty=self._empty,
                earlier=self.earlier,
                later=self._later,
            )
        finally:
            self._free.put(request)


def pair_refusal(bundle: Bundle, earlier: Earlier, device: str, memory: int) -> str | None:
    """Return why a plan at one of two feature maps is not used; None where both are.

    Both are compared with the dense tail once.
    """
    file = verdict_file(bundle.manifest, f"keep at {earlier.name}", device, memory)
    refusal = sparse.refusal(file, lambda: _error(earlier, device, memory))
    return refusal or sparse_refusal(bundle, "drop", device, memory)


def _error(earlier: Earlier, device: str, memory: int) -> float:
    """Compare the plan at the earlier feature map with the dense tail; return the error."""
    feature = ops.parameter(list(earlier.shape), np.float32, name="feature")
    macs = sum(step.macs for step in rows.steps_of(earlier.tail)) * int(np.prod(earlier.shape[2:]))
    made, plan = rows.build(
        earlier.tail.clone(), feature.output(0), core(), memory, macs, plain=True
    )
    model = ov.Model([ops.result(made.logits)], [feature], "kept")
    request = compiled(model, device).create_infer_request()
    tail = compiled(earlier.tail.clone(), device).create_infer_request()

    def dense(features: Array) -> tuple[Array, Array]:
        found = []
        for cell in np.ndindex(*earlier.shape[2:]):
            masked = np.zeros_like(features)
            masked[(..., *cell)] = features[(..., *cell)]
            found.append(np.array(run_request(tail, [masked])[0].reshape(-1)))
        return np.stack(found), np.array(run_request(tail, [features])[0].reshape(-1))

    got: Logits = sparse.logits_of(lambda values: run_request(request, values))
    return sparse.tolerated(plan.name, largest_error(got, dense, earlier.shape))
