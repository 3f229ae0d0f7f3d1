"""Turns: many at once, or one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition


@dataclass(frozen=True)
class Stay:
    """A visit beside others, if there were any."""

    _alone: Callable[[], bool]

    @property
    def was_alone(self) -> bool:
        """Whether nobody else has been inside since it began."""
        return self._alone()


class Turns:
    """Many at once, or one alone, who waits until all others are done."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = self._waiting = self._entered = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[Stay]:
        """Come in beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_alone or self._waiting))
            self._inside += 1
            self._entered += 1
            first, entered = self._inside == 1, self._entered
        try:
            yield Stay(lambda: first and self._entered == entered)
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Come in when nobody else is inside, and let nobody in."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._is_alone or self._inside))
            finally:
                self._waiting -= 1
                self._changed.notify_all()
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()
