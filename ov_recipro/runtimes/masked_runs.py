"""OpenVINO: the masked runs of an image, by each plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openvino as ov

from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.stream import StreamPlan
from ov_recipro.plans.verdict import Logits
from ov_recipro.runtimes.infer_requests import MaskedRuns, run_request
from ov_recipro.runtimes.runtime import Floats, Indices, selected
from ov_recipro.saliency import Array

_HELD = 64 << 20  # bytes for the values of some cells, where all values are asked for


def stream_logits(plan: StreamPlan, request: ov.InferRequest, features: list[Array]) -> MaskedRuns:
    """Return `Inference.masked` of an image by plan `stream`."""

    def runs() -> Iterator[tuple[Floats, None]]:
        left = plan.cells
        for cells in plan.batches():
            logits = run_request(request, [*features, cells])[0]
            yield np.asarray(logits, np.float32).reshape(len(cells), -1)[:left], None
            left -= len(cells)

    return selected(runs())


def sparse_logits(request: ov.InferRequest, features: list[Array]) -> MaskedRuns:
    """Return `Inference.masked` of an image by a sparse plan that is a model of its own."""

    def runs() -> Iterator[tuple[Floats, None]]:
        yield run_request(request, features[:1])[0][:-1], None

    return selected(runs())


def joint_values(
    scattered: Scattered, request: ov.InferRequest, features: list[Array]
) -> MaskedRuns:
    """Return `Inference.masked` of a detector's image.

    Of all values only those that are asked for are kept; the model runs each time that it is
    called.

    Args:
        scattered: the tables of the model that `sparse.build_joint` made.
        request: of that model.
        features: the image's feature maps.
    """

    def run(wanted: list[Array]) -> list[Array]:
        return run_request(request, [*features, *wanted])

    def masked(columns: Indices | None) -> Iterator[tuple[Floats, None]]:
        if columns is not None:
            yield scattered.select(run, columns), None
            return
        for values in scattered.batches(run, _HELD):
            yield values, None

    return masked


def joint_logits(scattered: Scattered, request: ov.InferRequest, cells: list[int]) -> Logits:
    """Return a function from feature maps to all values of some cells [n,V] and their own [V]."""

    def values(*features: Floats) -> tuple[Floats, Floats]:
        plain: list[Floats] = []

        def run(wanted: list[Array]) -> list[Array]:
            outputs = run_request(request, [*features, *wanted])
            plain.append(np.array(outputs[-1]))
            return outputs

        masked = scattered.select(run, np.arange(scattered.values), np.array(cells))
        return masked, plain[0]

    return values
