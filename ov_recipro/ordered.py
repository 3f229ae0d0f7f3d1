"""Doing many things at once, in order, with a bounded number of them in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Call a function on each item in threads; yield the results in the items' order.

    At most twice as many items as workers are in flight, including those whose results wait to
    be taken. Items are drawn in the caller's thread.

    Args:
        function: may raise; its error is raised at the item's turn and ends the rest.
        items: any iterable, even without an end.
        workers: number of threads.
        stop: called when there is an error or the caller leaves, before the calls in flight are
            waited for.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                while pending and (len(pending) >= 2 * workers or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException:
            stop()
            raise
        finally:
            for future in pending:
                future.cancel()
