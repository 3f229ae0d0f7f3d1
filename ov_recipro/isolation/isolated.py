"""A model opened and run in a process of its own, which may crash, hang or run out of memory."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Any

from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cells import Cells
from ov_recipro.errors import CrashError, DeviceError, OptionError
from ov_recipro.isolation.channel import ConnectionLost, Silent
from ov_recipro.isolation.messages import MASKED, How, Wanted
from ov_recipro.isolation.opened import Result
from ov_recipro.isolation.process import Channel, Process
from ov_recipro.isolation.turns import Turns
from ov_recipro.limits import ISOLATED_BYTES, ISOLATED_SECONDS
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes.pair_runtime import PairInference
from ov_recipro.runtimes.pooled_runtime import PooledInference
from ov_recipro.runtimes.runtime import Floats, Inference, MaskedRuns, selected
from ov_recipro.saliency import Array

_LEAST_BYTES = 512 << 20  # with which the libraries start at all
_MOST = 1 << 48


@dataclass(frozen=True)
class IsolatedPlan:
    """How the other process runs the tail."""

    name: str
    cells: int


def open_isolated(source: Path | Bundle, how: How) -> IsolatedModel:
    """Open a model in a process of its own; see `opened.open_model`."""
    running = dataclasses.replace(how.running, isolate=False)  # it is not isolated again there
    how = dataclasses.replace(how, running=running)
    for limit, least in ((ISOLATED_SECONDS, 1), (ISOLATED_BYTES, _LEAST_BYTES)):
        if not least <= limit.value <= _MOST:
            raise OptionError(f"{limit.variable} must be between {least} and {_MOST}.")
    if not isinstance(source, Bundle):
        return IsolatedModel(Wanted(str(source.absolute()), None, False, how))
    folder = str(source.folder.absolute())
    return IsolatedModel(Wanted(folder, source.manifest, source.whole, how))


class IsolatedModel:
    """A model in a process of its own; see `opened.Model` and `runtimes.runtime.Runtime`.

    A process that dies is replaced when one is next needed.

    Args:
        wanted: the model, and how it is opened and run.

    Raises:
        ReciproError: the model can't be read, cut there or run on that device.
    """

    bundle: Bundle
    mask: Mask
    reason: str | None

    def __init__(self, wanted: Wanted) -> None:
        if not hasattr(socket, "send_fds"):
            raise OptionError("--isolate needs Linux or macOS.")
        self._wanted, self._lock, self._turns = wanted, Lock(), Turns()
        self._folder = mkdtemp(prefix="ov-recipro-")  # for what processes leave behind
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._process = Process(wanted, self._folder)
        opening = self._process.opening
        manifest, self._earlier_grid = opening.manifest, opening.earlier_grid
        if manifest is None:
            raise DeviceError("The process that opened the model did not describe it.")
        self.bundle = Bundle(Path(opening.folder), manifest, opening.whole)
        self.mask, self.reason, self.parallel = opening.mask, opening.reason, opening.parallel
        self.plan = IsolatedPlan(opening.plan, opening.cells)
        self.versions, self.details = opening.versions or {}, opening.details or {}

    @property
    def runtime(self) -> IsolatedModel:
        """What runs the model: this."""
        return self

    @contextmanager
    def infer(self, image: Array) -> Iterator[Inference]:
        """Run one image; the result is valid inside the context."""
        with self._channel() as channel:
            answer, found = channel.ask("infer", {"image": image})
            # all but masked runs outlives the next question
            numbers = {
                name: values if name.startswith(MASKED) else values.copy()
                for name, values in found.items()
            }
            yield self._inference(channel, numbers, answer.finite)

    def zero(self, tensor: Array) -> Floats:
        """See `opened.Model.zero`."""
        return self._outputs("zero", tensor)

    def outputs(self, tensor: Array) -> Floats:
        """See `opened.Model.outputs`."""
        return self._outputs("outputs", tensor)

    def guarded(self, explain: Callable[[], Result]) -> Result:
        """Call what explains one image, and if the process dies of it, once more by itself.

        Raises:
            CrashError: the process died again, with no other image in it.
            ReciproError: see `explain`.
        """
        with self._turns.shared() as stay:
            try:
                return explain()
            except _Died as death:  # of this image, or of one beside it
                if death.is_final(stay.was_alone):
                    raise CrashError(str(death)) from death
        with self._turns.alone():
            try:
                return explain()
            except _Died as death:
                raise CrashError(str(death)) from death

    def interrupt(self) -> None:
        """See `opened.Model.interrupt`."""
        self._process.interrupt()

    def _outputs(self, what: str, tensor: Array) -> Floats:
        with self._channel() as channel:
            _, arrays = channel.ask(what, {"image": tensor})
            return arrays["outputs"].copy()

    @contextmanager
    def _channel(self) -> Iterator[Channel]:
        """Take a channel to the process, which is started if there is none."""
        with self._lock:
            if self._process.died is not None or self._process.interrupted:
                bundle = self.bundle
                again = dataclasses.replace(
                    self._wanted,
                    path=str(bundle.folder),
                    manifest=bundle.manifest,
                    whole=bundle.whole,
                )
                self._process = Process(again, self._folder)
            process = self._process
        channel = process.free.get()
        try:
            yield channel
        except ConnectionLost as lost:
            raise _Died(process.lost(lost), lost, process.interrupted) from lost
        finally:
            process.free.put(channel)

    def _inference(self, channel: Channel, numbers: dict[str, Array], finite: bool) -> Inference:
        masked: MaskedRuns = channel.masked
        if f"{MASKED}logits" in numbers:
            run = numbers[f"{MASKED}logits"], numbers.get(f"{MASKED}terms")
            masked = selected(iter([run]))
        if "logits" not in numbers or (self._earlier_grid and "kept" not in numbers):
            raise ConnectionLost("sent an invalid answer")
        common: dict[str, Any] = {
            "logits": numbers["logits"],
            "softmax_terms": numbers.get("terms"),
            "finite": finite,
            "masked": masked,
        }
        cells = self.bundle.manifest.cut.cells
        if self._earlier_grid is not None:
            earlier = Cells(self._earlier_grid)
            common |= {"kept": numbers["kept"], "empty": numbers["empty"]}
            return PairInference(**common, earlier=earlier, later=cells)
        if "empty" in numbers:
            return PooledInference(**common, empty=numbers["empty"], cells=cells)
        return Inference(**common)


class _Died(Exception):
    """The other process died, or had to be ended.

    Args:
        message: what it did.
        lost: how that was noticed; interrupted: whether it was ended on purpose.
    """

    def __init__(self, message: str, lost: ConnectionLost, interrupted: bool) -> None:
        super().__init__(message)
        self._lost, self._interrupted = lost, interrupted

    def is_final(self, was_alone: bool) -> bool:
        """Whether the image is not tried again, as it was wanted no more, or hangs by itself."""
        return self._interrupted or (was_alone and isinstance(self._lost, Silent))
