"""How large a file from elsewhere may be: checked before memory is spent on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ov_recipro.errors import ReciproError


@dataclass(frozen=True)
class Limit:
    """A largest count.

    Attributes:
        variable: the environment variable that sets it.
        default: what it is without that.
        unit: what is counted.
    """

    variable: str
    default: int
    unit: str

    def check(self, count: int, subject: str) -> None:
        """Raise ReciproError where `subject` has a larger count.

        Raises:
            ReciproError: it has, or the environment variable is not a whole number.
        """
        most = self.value
        if count > most:
            raise ReciproError(
                f"{subject} has {count:,} {self.unit}; at most {most:,} are read. Set "
                f"{self.variable} to raise this limit."
            )

    @property
    def value(self) -> int:
        """The limit in force.

        Raises:
            ReciproError: the environment variable is not a whole number.
        """
        text = os.environ.get(self.variable)
        if text is None:
            return self.default
        if not text.strip().isdecimal():
            raise ReciproError(f"{self.variable} must be a whole number, not '{text}'.")
        return int(text)


PIXELS = Limit("OV_RECIPRO_MAX_PIXELS", 1 << 28, "pixels")
IMAGE_BYTES = Limit("OV_RECIPRO_MAX_IMAGE_BYTES", 1 << 29, "bytes")
TENSOR_BYTES = Limit("OV_RECIPRO_MAX_TENSOR_BYTES", 1 << 30, "bytes")
NODES = Limit("OV_RECIPRO_MAX_NODES", 200_000, "nodes")
FUNCTION_DEPTH = Limit("OV_RECIPRO_MAX_FUNCTION_DEPTH", 64, "levels of nested functions")
CACHE_BYTES = Limit("OV_RECIPRO_MAX_CACHE_BYTES", 8 << 30, "bytes")
