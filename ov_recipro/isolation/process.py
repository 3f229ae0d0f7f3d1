"""The process of an isolated model, seen from its parent."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock
from typing import IO

from ov_recipro.errors import CODES, DeviceError, ReciproError
from ov_recipro.isolation.channel import (
    Arena,
    ConnectionLost,
    Gone,
    Silent,
    receive,
    send,
    shared_file,
)
from ov_recipro.isolation.messages import MEMORY, Answer, Ask, Opening, Wanted
from ov_recipro.limits import ISOLATED_BYTES, ISOLATED_SECONDS
from ov_recipro.runtimes.runtime import Floats, Indices
from ov_recipro.saliency import Array

_CHILD = "ov_recipro.isolation.child"
_PATIENCE = 5  # seconds for a process to end


class Process:
    """The other process, with an open model.

    Attributes:
        opening: what it said of the model.
        free: channels to it that nobody uses.
        died: what it did in the end; None while it lives.
        interrupted: whether it was ended on purpose.

    Args:
        wanted: the model, and how it is opened and run.
        folder: for its temporary files.

    Raises:
        ReciproError: the model can't be opened, or the process died of it.
    """

    def __init__(self, wanted: Wanted, folder: str) -> None:
        self.died: str | None = None
        self.interrupted = False
        self.free: SimpleQueue[Channel] = SimpleQueue()
        self._lock = Lock()
        self._control, theirs = socket.socketpair()
        lifeline, ours = socket.socketpair()  # closed at our end, it ends the process
        self._control.settimeout(ISOLATED_SECONDS.value)
        self._told = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `_end`
        own = {"PYTHONPATH": os.pathsep.join(filter(os.path.isabs, sys.path)), "TMPDIR": folder}
        with theirs, lifeline:
            fds = [theirs.fileno(), lifeline.fileno()]
            self._process = subprocess.Popen(  # noqa: S603 - this package
                [sys.executable, "-P", "-m", _CHILD, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._told,
                env=os.environ | own,
            )
        weakref.finalize(self, _end, self._process, self._control, ours, self._told)
        try:
            send(self._control, wanted)
            self.opening = receive(self._control, Opening)
            if self.opening.error is not None:
                raise _error_from(self.opening.error)
            for _ in range(self.opening.parallel):
                self.free.put(self._new_channel())
        except ConnectionLost as lost:
            text = f"While the model was opened: {self.lost(lost)}"
            raise DeviceError(text) from lost

    def _new_channel(self) -> Channel:
        ours, theirs = socket.socketpair()
        ours.settimeout(ISOLATED_SECONDS.value)
        files = shared_file(), shared_file()
        channel = Channel(ours, Arena(files[0]), Arena(files[1]))
        with theirs:
            try:
                socket.send_fds(self._control, [b"."], [theirs.fileno(), *files])
                if self._control.recv(1) != b".":  # it has them: ours can be closed
                    raise Gone
            except TimeoutError as error:
                raise Silent from error
            except OSError as error:
                raise Gone from error
        return channel

    def interrupt(self) -> None:
        """End the process; images that are at work in it are not tried again."""
        self.interrupted = True
        self._process.kill()

    def lost(self, lost: ConnectionLost) -> str:
        """End what does not answer; return, as a sentence, what became of the process."""
        with self._lock:
            if self.died is None:
                self.died = f"The process that runs the model {self._fate(lost)}."
            return self.died

    def _fate(self, lost: ConnectionLost) -> str:
        if not isinstance(lost, Gone):
            _end(self._process)
            if isinstance(lost, Silent):
                seconds = f"{ISOLATED_SECONDS.value} seconds ({ISOLATED_SECONDS.variable})"
                return f"did not answer for {seconds}"
            return str(lost)
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            _end(self._process)
            return "closed its connection"
        if status >= 0:
            self._told.seek(0)
            lines = self._told.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            return f"ended with status {status}{': ' * bool(last)}{last[:200].strip()}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = ", perhaps for its memory" if name == "SIGKILL" else ""
        return f"was ended by {name}{why}"


class Channel:
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
        if answer.number > number:
            raise ConnectionLost("sent an invalid answer")
        found = self._found.read(answer.arrays)
        if answer.error is not None:
            raise _error_from(answer.error)
        return answer, found

    def masked(self, columns: Indices | None) -> Iterator[tuple[Floats, Floats | None]]:
        """See `runtimes.runtime.Inference.masked`."""
        answer, found = self.ask("masked", {} if columns is None else {"columns": columns})
        while found:
            if "logits" not in found:
                raise ConnectionLost("sent an invalid answer")
            yield found["logits"], found.get("terms")
            if not answer.more:
                return
            answer, found = self.ask("next", {})


def _error_from(error: tuple[str, str]) -> Exception:
    """Return an error that was raised in the other process."""
    kinds: dict[str, type[ReciproError]] = {kind.__name__: kind for kind in CODES}
    name, text = error
    if name == MEMORY:
        most = f"{ISOLATED_BYTES.value:,} bytes allowed to an isolated model"
        return ConnectionLost(f"needs more than the {most} ({ISOLATED_BYTES.variable})")
    return kinds[name](text) if name in kinds else RuntimeError(text)


def _end(process: subprocess.Popen[bytes], *files: socket.socket | IO[bytes]) -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # in a driver that does not return
        process.wait(_PATIENCE)
    for each in files:
        each.close()


def _close(connection: socket.socket, *arenas: Arena) -> None:
    connection.close()
    for arena in arenas:
        arena.close()
