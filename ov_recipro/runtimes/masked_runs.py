"""OpenVINO: the masked runs of an image, by each plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Bundle
from ov_recipro.options import Running
from ov_recipro.plans import sparse
from ov_recipro.plans.rows import Scattered
from ov_recipro.plans.rows.on_demand import by_pixel
from ov_recipro.plans.rows.zones import OnDemand, Zone
from ov_recipro.plans.stream import Mask, StreamPlan
from ov_recipro.plans.verdict import Logits, PlanRefused, verdict_file
from ov_recipro.runtimes.infer_requests import run_request
from ov_recipro.runtimes.joint_values import joint_values
from ov_recipro.runtimes.runtime import Floats, Indices, MaskedRuns, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.openvino_models import compiled, core

MaskedOf: TypeAlias = Callable[[list[Array]], MaskedRuns]
"""From what `model_graphs.whole_model` gives for an image to its `Inference.masked`."""

_CLEARLY_LESS = 0.3  # of all cells' cost; what is on demand takes longer for as many operations


@dataclass(frozen=True)
class Demanded:
    """A detector's plan for some of its values at a time, compiled.

    Attributes:
        plan: what `sparse.build_on_demand` made.
        model, plain: its models.
        drop: whether the backgrounds are the image's own; else they are those of zeros.
        at_once: whether the whole model gives the image's own backgrounds too.
    """

    plan: OnDemand
    model: ov.CompiledModel
    plain: ov.CompiledModel
    drop: bool
    at_once: bool


def compiled_on_demand(
    bundle: Bundle,
    mask: Mask,
    running: Running,
    tail: ov.Model,
    dense: Callable[[], Callable[[Sequence[int]], Logits]],
) -> Demanded | None:
    """Compile a detector's plan for some of its values at a time; None where it can't be used.

    Args:
        bundle, mask, running: see `openvino_runtime.OpenVINORuntime`.
        tail: at batch 1; it is used up.
        dense: makes a slow reference for any cells, to check the plan with, once.
    """
    manifest, cells = bundle.manifest, sparse.checked_cells(bundle.manifest)
    if running.device != "CPU":
        return None  # others compile a graph anew for each length
    try:
        plan = sparse.build_on_demand(manifest, mask, tail, core())
    except PlanRefused:
        return None  # all values are computed then
    model, plain = (
        compiled(each, running.device, "f32", running.hint)
        for each in (plan.lowered.model, plan.lowered.plain)
    )
    drop = mask == "drop"
    at_once = drop and running.precision == "f32" and not manifest.deployed_scores
    found = Demanded(plan, model, plain, drop, at_once)

    def error() -> float:
        every = sorted({cell for group in cells for cell in group})
        got, expected = demanded_logits(found, every), dense()(every)
        return sparse.tolerated("rows", sparse.error_of(manifest, got, expected))

    name = f"{mask} on demand"
    file = verdict_file(manifest, name, running.device, running.batch_memory)
    return found if sparse.refusal(file, error) is None else None


_Select: TypeAlias = Callable[[Indices, Sequence[Zone], Indices | None], Floats]
"""From which values [n] are wanted, their zones, and of which cells [m], to the values [m,n]."""


def own_request(
    model: ov.CompiledModel, runs: Callable[[ov.InferRequest, list[Array]], MaskedRuns]
) -> Callable[[], MaskedOf]:
    """Return a function that gives one more request of a model, and features, to `runs`."""

    def make() -> MaskedOf:
        request = model.create_infer_request()
        return lambda values: runs(request, values[:-1])

    return make


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


def joint_runs(
    scattered: Scattered, model: ov.CompiledModel, macs: int, demanded: Demanded | None
) -> Callable[[], MaskedOf]:
    """Return a function that makes one more set of requests for a detector.

    Of all values only those that are asked for are kept. They are computed each time anew: alone,
    where that costs clearly less than all.

    Args:
        scattered, model: of the plan that `sparse.build_joint` made.
        macs: multiply-accumulates of that plan.
        demanded: the plan for some values at a time, if there is one.
    """
    count = len(model.inputs) - scattered.inputs

    def make() -> MaskedOf:
        request = model.create_infer_request()
        select_of = None if demanded is None else _demanded_values(demanded)

        def of_image(values: list[Array]) -> MaskedRuns:
            features = values[:count]
            select = None if select_of is None else select_of(features, values[count:])

            def run(wanted: list[Array]) -> list[Array]:
                return run_request(request, [*features, *wanted])

            def masked(columns: Indices | None) -> Iterator[tuple[Floats, None]]:
                if columns is not None and demanded is not None and select is not None:
                    zones = demanded.plan.zones(columns, _CLEARLY_LESS * macs)
                    if zones is not None:
                        yield select(columns, zones, None), None
                        return
                yield from joint_values(scattered, run, columns)

            return masked

        return of_image

    return make


def _demanded_values(demanded: Demanded) -> Callable[[list[Array], list[Array]], _Select]:
    """Return a function from an image's feature maps to what selects its values.

    With them it takes what else the whole model gives: where this is `at_once`, the backgrounds
    and, last, all values.
    """
    request, own = demanded.model.create_infer_request(), demanded.plain.create_infer_request()

    def tables(plain: list[Array]) -> tuple[list[Array], Array]:
        return [by_pixel(each) for each in plain[:-1]], plain[-1].flatten()

    @cache
    def of_zeros() -> tuple[list[Array], Array]:
        # an output may be an input itself, so that these have to outlive the run
        zeros = [np.zeros(list(port.shape), np.float32) for port in demanded.plain.inputs]
        return tables(run_request(own, zeros))

    def of_image(features: list[Array], further: list[Array]) -> _Select:
        @cache
        def backgrounds() -> tuple[list[Array], Array]:
            if not demanded.drop:
                return of_zeros()
            return tables(further if demanded.at_once else run_request(own, features))

        def select(columns: Indices, zones: Sequence[Zone], cells: Indices | None) -> Floats:
            known, elsewhere = backgrounds()
            first = [*(by_pixel(each) for each in features), *known]

            def run(inputs: Sequence[Array]) -> list[Array]:
                return run_request(request, [*first, *inputs])

            return demanded.plan.select(run, columns, elsewhere, zones, cells)

        return select

    return of_image


def demanded_logits(demanded: Demanded, cells: list[int]) -> Logits:
    """Return a function from feature maps to all values of some cells [n,V] and their own [V]."""
    apart = replace(demanded, at_once=False)
    select_of, plain = _demanded_values(apart), demanded.plain.create_infer_request()

    def values(*features: Floats) -> tuple[Floats, Floats]:
        columns = np.arange(demanded.plan.values)
        quarters = demanded.plan.quarters(columns)
        masked = select_of([*features], [])(columns, quarters, np.array(cells))
        return masked, run_request(plain, [*features])[-1].reshape(-1)

    return values
