"""The process in which a model runs; `isolated` starts it with the number of a socket.

It opens one model, is sent three files for each image that it can run at once (a socket, and
shared memory for questions and for answers), and ends when its parent does and closes a connection.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import CODES, ReciproError
from ov_recipro.isolation.channel import Arena, ConnectionLost, receive, send
from ov_recipro.isolation.messages import MASKED, MEMORY, Answer, Ask, Opening, Wanted
from ov_recipro.isolation.opened import OpenedModel, open_model
from ov_recipro.limits import ISOLATED_BYTES
from ov_recipro.plans.sparse import is_joint
from ov_recipro.runtimes.pair_runtime import PairInference, PairRuntime
from ov_recipro.runtimes.pooled_runtime import PooledInference
from ov_recipro.runtimes.runtime import Floats, Inference
from ov_recipro.saliency import Array

FILES = 3
"""Files of one channel."""

_OF_MEMORY = (
    "bad alloc",
    "can't alloc",
    "failed to allocate",
    "can't start new thread",
    "out of memory",
)


def main() -> None:
    """Serve the parent until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what Ctrl-C means
    control, lifeline = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    try:
        _limit_memory(ISOLATED_BYTES.value)
        model, opening = _opened(receive(control, Wanted))
    except ConnectionLost:
        return
    except Exception as error:  # sent, whatever it is
        send(control, Opening(error=_error_as_text(error)))
        return
    send(control, opening)
    for _ in range(opening.parallel):
        fds = _received(control)
        if not fds:
            return
        control.send(b".")
        Thread(target=_serve, args=(model, *fds), daemon=True).start()
    _end_with_parent(control.fileno())


def _end_with_parent(connection: int) -> None:
    """End this process, whatever native code is at work, when a file is closed at its other end."""
    os.read(connection, 1)
    os._exit(0)


def _limit_memory(count: int) -> None:
    """Limit the memory that this process may write to, in bytes, where the system can."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    count = min(count, sys.maxsize)
    if most != resource.RLIM_INFINITY:
        count = min(count, most)
    resource.setrlimit(resource.RLIMIT_DATA, (count, count))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _opened(wanted: Wanted) -> tuple[OpenedModel, Opening]:
    path = Path(wanted.path)
    source: Path | Bundle = path
    if wanted.manifest is not None:
        source = Bundle(path, wanted.manifest, wanted.whole)
    model = open_model(source, wanted.how)
    runtime, bundle = model.runtime, model.bundle
    return model, Opening(
        folder=str(bundle.folder),
        manifest=bundle.manifest,
        whole=bundle.whole,
        mask=model.mask,
        plan=runtime.plan.name,
        cells=runtime.plan.cells,
        reason=runtime.reason,
        parallel=runtime.parallel,
        versions=runtime.versions,
        details=model.details,
        earlier_grid=runtime.earlier.grid if isinstance(runtime, PairRuntime) else None,
    )


def _received(control: socket.socket) -> list[int]:
    """Return the files of one channel; none where the parent is gone."""
    _, fds, _, _ = socket.recv_fds(control, 1, FILES)
    return fds if len(fds) == FILES else []


def _serve(model: OpenedModel, connection: int, questions: int, answers: int) -> None:
    """Answer what is asked about one image after another."""
    parent = socket.socket(fileno=connection)
    given, made = Arena(questions), Arena(answers)
    with ExitStack() as image:
        asked = _Image(model, image)
        while True:
            try:
                ask = receive(parent, Ask)
            except ConnectionLost:
                return
            try:
                arrays, finite = asked.answer(ask.what, given.read(ask.arrays))
                placed = made.write(arrays)
                answer = Answer(ask.number, placed, finite, more=asked.advance())
            except Exception as error:  # sent, whatever it is
                answer = Answer(ask.number, error=_error_as_text(error))
            send(parent, answer)


class _Image:
    """The image that is at work.

    Args:
        model: what explains it.
        stack: what is open as long as the image is at work.
    """

    def __init__(self, model: OpenedModel, stack: ExitStack) -> None:
        self._model, self._stack = model, stack
        manifest, plan = model.bundle.manifest, model.runtime.plan.name
        self._all_at_once = plan in ("rows", "tokens") and not is_joint(manifest)
        self._inference: Inference | None = None
        self._runs: Iterator[tuple[Floats, Floats | None]] = iter(())
        self._ahead: tuple[Floats, Floats | None] | None = None

    def answer(self, what: str, arrays: dict[str, Array]) -> tuple[dict[str, Array], bool]:
        """Return the arrays that a question asks for, and whether features are finite."""
        if what == "zero":
            return {"outputs": self._model.zero(arrays["image"])}, True
        if what == "outputs":
            return {"outputs": self._model.outputs(arrays["image"])}, True
        if what == "infer":
            self._stack.close()
            found = self._stack.enter_context(self._model.runtime.infer(arrays["image"]))
            self._inference, self._ahead = found, None
            numbers = _numbers(found)
            if self._all_at_once:
                ((logits, terms),) = found.masked(None)
                numbers |= _run(MASKED, logits, terms)
            return numbers, found.finite
        if what == "masked":
            assert self._inference is not None  # noqa: S101 - the parent infers first
            self._runs = self._inference.masked(arrays.get("columns"))
            self._ahead = next(self._runs, None)
        return ({} if self._ahead is None else _run("", *self._ahead)), True

    def advance(self) -> bool:
        """Go on to the next masked runs; return whether there are any."""
        if self._ahead is not None:
            self._ahead = next(self._runs, None)
        return self._ahead is not None


def _numbers(inference: Inference) -> dict[str, Array]:
    """Return what an inference holds, but for its masked runs."""
    found: dict[str, Array] = {"logits": inference.logits}
    if inference.softmax_terms is not None:
        found["terms"] = inference.softmax_terms
    if isinstance(inference, PairInference):
        found["kept"] = inference.kept
    if isinstance(inference, PairInference | PooledInference):
        found["empty"] = inference.empty
    return found


def _run(prefix: str, logits: Floats, terms: Floats | None) -> dict[str, Array]:
    found: dict[str, Array] = {f"{prefix}logits": logits}
    return found if terms is None else found | {f"{prefix}terms": terms}


def _error_as_text(error: Exception) -> tuple[str, str]:
    """Return an error's class and text; of one that nobody foresaw, its traceback."""
    text = str(error).lower().replace("_", " ")
    if isinstance(error, MemoryError) or any(sign in text for sign in _OF_MEMORY):
        return MEMORY, ""
    if isinstance(error, ReciproError):
        kind = next(each for each in type(error).__mro__ if each in CODES)
        return kind.__name__, str(error)
    return "", "".join(traceback.format_exception(error))


if __name__ == "__main__":
    main()
