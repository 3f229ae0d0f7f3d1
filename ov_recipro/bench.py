"""Measuring what explaining costs: plain inference against explaining, in one process, in turns."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import cv2
import numpy as np

from ov_recipro.cut.bundle import ImageInput, Manifest, open_bundle
from ov_recipro.explainer import Explainer
from ov_recipro.methods import METHODS, NotApplicable, Subject
from ov_recipro.options import Running, Targets
from ov_recipro.plans.rows import RowsPlan
from ov_recipro.plans.tokens import TokensPlan
from ov_recipro.runtimes import plain_runner
from ov_recipro.saliency import Array

Result = TypeVar("Result")
_MIN_TURNS, _MAX_SECONDS = 3, 30.0  # of a method; a slow one stops after these


@dataclass(frozen=True)
class Row:
    """What explaining at one layer costs.

    Attributes:
        layer: the tensor at the cut; grid: its cells as HxW; plan, device, precision: how.
        plain_ms, explain_ms: medians of one plain inference and of one explanation, taken in turns.
        plain_quartiles, explain_quartiles: first and third quartile.
        ratio: explain_ms / plain_ms, the explanation's own inference included.
        bound: what the multiply-accumulates alone allow for the ratio; None for plan `stream`.
        plain_rss_mb, peak_rss_mb: peak memory of a process that only infers, and of one that only
            explains.
        runs: number of turns.
    """

    layer: str
    grid: str
    plan: str
    device: str
    precision: str
    plain_ms: float
    plain_quartiles: tuple[float, float]
    explain_ms: float
    explain_quartiles: tuple[float, float]
    ratio: float
    bound: float | None
    plain_rss_mb: float
    peak_rss_mb: float
    runs: int


def measure(folder: Path, running: Running, runs: int) -> Row:
    """Measure one bundle, each part in a process of its own.

    Args:
        folder: the bundle; one on disk, since other processes read it.
        running: how it is run; without a limit on its cost.
        runs: turns of one plain inference and one explanation.
    """
    explain = partial(_alone, folder, running)
    timed = _in_new_process(partial(_in_turns, folder, running, runs))
    plain = sorted(timed.plain)
    explained = sorted(timed.explain)
    low, middle, high = quantiles(plain, n=4)
    low_e, middle_e, high_e = quantiles(explained, n=4)
    return Row(
        layer=timed.layer,
        grid=timed.grid,
        plan=timed.plan,
        device=running.device,
        precision=running.precision,
        plain_ms=middle,
        plain_quartiles=(low, high),
        explain_ms=middle_e,
        explain_quartiles=(low_e, high_e),
        ratio=middle_e / middle,
        bound=timed.bound,
        plain_rss_mb=_in_new_process(partial(explain, only_plain=True)),
        peak_rss_mb=_in_new_process(partial(explain, only_plain=False)),
        runs=runs,
    )


@dataclass(frozen=True)
class MethodRow:
    """What a method's map costs.

    Attributes:
        method: its name; layer, device, precision: how.
        plain_ms, method_ms: medians of one plain inference and of one map, taken in turns.
        ratio: method_ms / plain_ms; not_applicable: why there are no times.
        runs: number of turns; a slow method has fewer.
    """

    method: str
    layer: str
    device: str
    precision: str
    plain_ms: float | None
    method_ms: float | None
    ratio: float | None
    not_applicable: str | None
    runs: int


def measure_methods(
    folder: Path, running: Running, methods: Sequence[str], runs: int
) -> list[MethodRow]:
    """Measure methods on one bundle, one image at a time, in one process of its own.

    Args:
        folder: the bundle.
        running: how it is run.
        methods: names of `methods.METHODS`.
        runs: turns of one plain inference and one map; at most half a minute for each method.
    """
    return _in_new_process(partial(_methods_in_turns, folder, running, methods, runs))


def _methods_in_turns(
    folder: Path, running: Running, methods: Sequence[str], runs: int
) -> list[MethodRow]:
    bundle = open_bundle(folder)
    subject = Subject(Explainer(bundle, device=running))
    tensor = subject.tensor(_smooth_image(bundle.manifest.image))
    image = subject.image(tensor)
    plain = plain_runner(bundle, running)
    device, precision = running.device, running.precision
    rows = []
    for name in methods:
        make_map = partial(METHODS[name], subject, image, 0)
        layer = bundle.manifest.cut.tensor
        try:
            make_map()  # warms up
        except NotApplicable as refusal:
            rows.append(
                MethodRow(name, layer, device, precision, None, None, None, str(refusal), 0)
            )
            continue
        times: tuple[list[float], list[float]] = ([], [])
        calls: tuple[Callable[[], object], ...] = (partial(plain, tensor), make_map)
        began = time.perf_counter()
        while len(times[0]) < runs and (
            len(times[0]) < _MIN_TURNS or time.perf_counter() - began < _MAX_SECONDS
        ):
            for call, taken in zip(calls, times, strict=True):
                started = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - started))
        plain_ms, map_ms = map(median, times)
        rows.append(
            MethodRow(
                method=name,
                layer=layer,
                device=device,
                precision=precision,
                plain_ms=plain_ms,
                method_ms=map_ms,
                ratio=map_ms / plain_ms,
                not_applicable=None,
                runs=len(times[0]),
            )
        )
    return rows


@dataclass(frozen=True)
class _Timed:
    layer: str
    grid: str
    plan: str
    bound: float | None
    plain: list[float]
    explain: list[float]


def _in_new_process(call: Callable[[], Result]) -> Result:
    """Run a call in a fresh Python process, which shares no caches or memory with others."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call).result()


def _in_turns(folder: Path, running: Running, runs: int) -> _Timed:
    bundle = open_bundle(folder)
    explainer = Explainer(bundle, device=running)
    image = _image(bundle.manifest.image.shape, bundle.manifest.image.dtype)
    plain = plain_runner(bundle, running)
    explain = partial(explainer.explain_tensor, targets=_targets(bundle.manifest))
    times: tuple[list[float], list[float]] = ([], [])
    calls: tuple[Callable[[Array], object], ...] = (plain, explain)
    for turn in range(runs + 2):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call(image)
            if turn >= 2:  # the first ones warm up
                taken.append(1e3 * (time.perf_counter() - started))
    height, width = bundle.manifest.cut.grid
    chosen = explainer.plan
    bound = (
        1 + chosen.macs / chosen.plain_macs if isinstance(chosen, RowsPlan | TokensPlan) else None
    )
    return _Timed(bundle.manifest.cut.tensor, f"{height}x{width}", chosen.name, bound, *times)


def _alone(folder: Path, running: Running, only_plain: bool) -> float:
    """Return the peak memory in MB of a process that does nothing else."""
    bundle = open_bundle(folder)
    image = _image(bundle.manifest.image.shape, bundle.manifest.image.dtype)
    run: Callable[[Array], object]
    if only_plain:
        run = plain_runner(bundle, running)
    else:
        explain = Explainer(bundle, device=running).explain_tensor
        run = partial(explain, targets=_targets(bundle.manifest))
    for _ in range(3):
        run(image)
    return _peak_mb()


def _targets(manifest: Manifest) -> Targets:
    """Return something to explain: the best class, one place or a random direction."""
    if manifest.task == "embedding":
        vector = np.random.default_rng(0).standard_normal(manifest.values)
        return Targets(similar_to=vector.astype(np.float32))
    if manifest.task == "segmentation":
        height, width = manifest.image.size
        return Targets(pixel=(width / 2, height / 2))
    if manifest.task == "detector":  # noise holds no objects
        height, width = manifest.image.size
        return Targets(box=(width / 4, height / 4, width / 2, height / 2))
    return Targets(position=0 if manifest.task == "sequence" else None)


def _peak_mb() -> float:
    """Return this process's peak memory; Linux's getrusage would include its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _smooth_image(entry: ImageInput) -> Array:
    """Return an image [C,H,W] of blobs, which excites about as many channels as a photograph.

    Some methods take one inference for each channel.
    """
    height, width = entry.size
    channels = entry.shape[3] if entry.channels_last else entry.shape[1]
    random = np.random.default_rng(0)
    planes = [
        cv2.resize(random.standard_normal((16, 16)), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(channels)
    ]
    values = np.stack(planes).astype(np.float32)
    return 128 + 64 * values if np.issubdtype(np.dtype(entry.dtype), np.integer) else values


def _image(shape: tuple[int, ...], dtype: str) -> Array:
    values = np.random.default_rng(0).standard_normal(shape)
    return np.asarray(values.astype(dtype))
