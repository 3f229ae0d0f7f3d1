"""Progress of long work: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from ov_recipro.cli.option_groups import note

Advance: TypeAlias = Callable[[int, int], None]
"""Called with how many items were done since the last call, and how many of these failed."""

_LINE_SECONDS = 30.0


@contextmanager
def progress(verb: str, total: int, quiet: bool, kept: int = 0) -> Iterator[Advance]:
    """Show on stderr how many items are done and failed, how fast, and how much time is left.

    Args:
        verb: what is done, as in "Explaining".
        total: number of images or frames; nothing is shown for a single one.
        quiet: show nothing.
        kept: how many of them an earlier run has done.
    """
    if quiet or total < 2:
        yield lambda *_: None
    elif sys.stderr.isatty():
        with _bar(verb, total, kept) as advance:
            yield advance
    else:
        yield _lines(verb, total, kept)


@contextmanager
def inferences(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how many inferences of an image are done.

    Args:
        quiet: show nothing.

    Yields:
        What is called with their number so far, and the highest that it can become.
    """
    if quiet:
        yield lambda *_: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Inferences", total=None)
            yield lambda done, most: bar.update(task, completed=done, total=most)
        return
    said = time.monotonic()

    def tell(done: int, most: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _LINE_SECONDS:
            said = time.monotonic()
            note(f"Inferences: {done} of {most} at most")

    yield tell


@contextmanager
def _bar(verb: str, total: int, kept: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    failures = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=total, completed=kept, rate="starting", failed=0)

        def advance(done: int, failed: int) -> None:
            nonlocal failures
            failures += failed
            bar.advance(task, done)
            speed = bar.tasks[task].speed
            rate = f"{speed:.1f}/s" if speed else "starting"
            bar.update(task, rate=rate, failed=failures)

        yield advance


def _lines(verb: str, total: int, kept: int) -> Advance:
    started = said = time.monotonic()
    finished = failures = 0

    def advance(done: int, failed: int) -> None:
        nonlocal finished, failures, said
        finished, failures = finished + done, failures + failed
        now = time.monotonic()
        if now - said < _LINE_SECONDS:
            return
        said = now
        rate = finished / (now - started)
        left = (total - kept - finished) / rate if rate else 0
        shown = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
        note(
            f"{verb}: {kept + finished} of {total}, {rate:.1f}/s, {failures} failed, "
            f"about {shown} left"
        )

    return advance
