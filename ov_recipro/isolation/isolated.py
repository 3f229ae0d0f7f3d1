"""A model opened and run in a process of its own, which may crash, hang or run out of memory."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Lock
from typing import Any

from ov_recipro.black_boxes.attribution import Method
from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cells import Cells
from ov_recipro.errors import CODES, CrashError, DeviceError, OptionError, ReciproError
from ov_recipro.isolation.channel import Arena, ConnectionLost, receive, send, shared_file
from ov_recipro.isolation.messages import MASKED, Answer, Ask, Opening, Wanted
from ov_recipro.isolation.opened import Result
from ov_recipro.limits import ISOLATED_SECONDS
from ov_recipro.options import Cut, Running
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes.pair_runtime import PairInference
from ov_recipro.runtimes.pooled_runtime import PooledInference
from ov_recipro.runtimes.runtime import Floats, Indices, Inference, MaskedRuns, selected
from ov_recipro.saliency import Array

_CHILD = "ov_recipro.isolation.child"
_PATIENCE = 5  # seconds for a process to end


@dataclass(frozen=True)
class IsolatedPlan:
    """How the other process runs the tail."""

    name: str
    cells: int


def open_isolated(
    source: Path | Bundle,
    cut: Cut,
    running: Running,
    mask: Mask | None,
    method: Method,
    signed: bool,
) -> IsolatedModel:
    """Open a model in a process of its own; see `opened.open_model`."""
    here = dataclasses.replace(running, isolate=False)  # what runs there is not isolated again
    if not isinstance(source, Bundle):
        return IsolatedModel(Wanted(str(source), None, False, cut, here, mask, method, signed))
    bundle = str(source.folder), source.manifest, source.whole
    return IsolatedModel(Wanted(*bundle, cut, here, mask, method, signed))


class IsolatedModel:
    """A model in a process of its own; see `opened.Model` and `runtimes.runtime.Runtime`.

    The process that dies is replaced when it is next needed.

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
        self._wanted, self._lock, self._turns = wanted, Lock(), _Turns()
        self._process = _Process(wanted)
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
            answer, numbers = channel.ask("infer", {"image": image})
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
        try:
            with self._turns.shared():
                return explain()
        except _Died:  # of this image, or of one beside it
            pass
        with self._turns.alone():
            try:
                return explain()
            except _Died as death:
                raise CrashError(str(death)) from death

    def _outputs(self, what: str, tensor: Array) -> Floats:
        with self._channel() as channel:
            _, arrays = channel.ask(what, {"image": tensor})
            return arrays["outputs"].copy()

    @contextmanager
    def _channel(self) -> Iterator[_Channel]:
        """Take a channel to the process, which is started if there is none."""
        with self._lock:
            if self._process.died is not None:
                bundle = self.bundle
                again = dataclasses.replace(
                    self._wanted,
                    path=str(bundle.folder),
                    manifest=bundle.manifest,
                    whole=bundle.whole,
                )
                self._process = _Process(again)
            process = self._process
        channel = process.free.get()
        try:
            yield channel
        except ConnectionLost as lost:
            raise _Died(f"{process.lost(lost)}.") from lost
        finally:
            process.free.put(channel)

    def _inference(self, channel: _Channel, numbers: dict[str, Array], finite: bool) -> Inference:
        masked: MaskedRuns = channel.masked
        if f"{MASKED}logits" in numbers:
            run = numbers[f"{MASKED}logits"], numbers.get(f"{MASKED}terms")
            masked = selected(iter([run]))
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
    """The other process died, or had to be killed."""


class _Process:
    """The other process, with an open model.

    Attributes:
        opening: what it said of the model.
        free: channels to it that nobody uses.
        died: why it died; None while it lives.

    Raises:
        ReciproError: the model can't be opened, or the process died of it.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.died: str | None = None
        self.free: SimpleQueue[_Channel] = SimpleQueue()
        self._lock = Lock()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ISOLATED_SECONDS.value)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this package
                [sys.executable, "-m", _CHILD, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        weakref.finalize(self, _end, self._process, self._control)
        try:
            send(self._control, wanted)
            self.opening = receive(self._control, Opening)
        except ConnectionLost as lost:
            raise DeviceError(f"{self.lost(lost)} while it opened the model.") from lost
        if self.opening.error is not None:
            raise _told(self.opening.error)
        for _ in range(self.opening.parallel):
            ours, their_end = socket.socketpair()
            ours.settimeout(ISOLATED_SECONDS.value)
            files = shared_file(), shared_file()
            with their_end:
                socket.send_fds(self._control, [b"."], [their_end.fileno(), *files])
            self.free.put(_Channel(ours, Arena(files[0]), Arena(files[1])))

    def lost(self, lost: ConnectionLost) -> str:
        """Kill what does not answer; return what became of the process."""
        with self._lock:
            if self.died is None:
                self.died = f"The process that runs the model {self._fate(lost)}"
            return self.died

    def _fate(self, lost: ConnectionLost) -> str:
        if str(lost) != "is gone":
            _end(self._process)
            return f"{lost} for {ISOLATED_SECONDS.value} seconds ({ISOLATED_SECONDS.variable})"
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            _end(self._process)
            return "closed its connection"
        if status >= 0:
            return f"ended with status {status}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = ", perhaps for its memory" if name == "SIGKILL" else ""
        return f"was ended by {name}{why}"


class _Channel:
    """A way to ask the process about one image at a time."""

    def __init__(self, connection: socket.socket, given: Arena, found: Arena) -> None:
        self._connection, self._given, self._found = connection, given, found
        self._numbers = itertools.count()
        weakref.finalize(self, _close, connection, given, found)

    def ask(self, what: str, arrays: dict[str, Array]) -> tuple[Answer, dict[str, Array]]:
        """Ask; return the answer and its arrays, which are valid until the next question.

        Raises:
            ConnectionLost: the process is gone or does not answer.
            ReciproError: as it is raised there.
        """
        number = next(self._numbers)
        send(self._connection, Ask(number, what, self._given.write(arrays)))
        answer = receive(self._connection, Answer)
        while answer.number < number:  # to a question that was given up
            answer = receive(self._connection, Answer)
        found = self._found.read(answer.arrays)
        if answer.error is not None:
            raise _told(answer.error)
        return answer, found

    def masked(self, columns: Indices | None) -> Iterator[tuple[Floats, Floats | None]]:
        """See `runtimes.runtime.Inference.masked`."""
        answer, found = self.ask("masked", {} if columns is None else {"columns": columns})
        while found:
            yield found["logits"], found.get("terms")
            if not answer.more:
                return
            answer, found = self.ask("next", {})


class _Turns:
    """Many at once, or one alone, who waits until all others are done."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = self._waiting = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Come in beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_alone or self._waiting))
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Come in when nobody else is inside, and let nobody in."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not (self._is_alone or self._inside))
            self._waiting -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


def _told(error: tuple[str, str]) -> Exception:
    """Return an error that the other process told of."""
    kinds: dict[str, type[ReciproError]] = {kind.__name__: kind for kind in CODES}
    name, text = error
    return kinds[name](text) if name in kinds else RuntimeError(text)


def _end(process: subprocess.Popen[bytes], *connections: socket.socket) -> None:
    process.kill()
    process.wait()
    for each in connections:
        each.close()


def _close(connection: socket.socket, *arenas: Arena) -> None:
    connection.close()
    for arena in arenas:
        arena.close()
