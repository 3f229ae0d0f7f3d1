"""How large a file from elsewhere may be: checked before memory is spent on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ov_recipro.errors import DeviceError, ImageError, ModelError, OptionError, ReciproError


@dataclass(frozen=True)
class Limit:
    """A limit on a count.

    Attributes:
        variable: the environment variable that sets it.
        default: the limit where that is not set.
        unit: what is counted.
        error: what is raised above it.
    """

    variable: str
    default: int
    unit: str
    error: type[ReciproError]

    def check(self, count: int, subject: str) -> None:
        """Raise `error` where `subject` has a larger count.

        Raises:
            ReciproError: it has (`error`).
            OptionError: the environment variable is not a whole number.
        """
        limit = self.value
        if count > limit:
            raise self.error(
                f"{subject} has {count:,} {self.unit}; at most {limit:,} are read. Set "
                f"{self.variable} to raise this limit."
            )

    @property
    def value(self) -> int:
        """The limit in force.

        Raises:
            OptionError: the environment variable is not a whole number.
        """
        text = os.environ.get(self.variable)
        if text is None:
            return self.default
        if not text.strip().isdecimal():
            raise OptionError(f"{self.variable} must be a whole number, not '{text}'.")
        return int(text)


PIXELS = Limit("OV_RECIPRO_MAX_PIXELS", 1 << 28, "pixels", ImageError)
IMAGE_BYTES = Limit("OV_RECIPRO_MAX_IMAGE_BYTES", 1 << 29, "bytes", ImageError)
TENSOR_BYTES = Limit("OV_RECIPRO_MAX_TENSOR_BYTES", 1 << 30, "bytes", ModelError)
NODES = Limit("OV_RECIPRO_MAX_NODES", 200_000, "nodes", ModelError)
FUNCTION_DEPTH = Limit(
    "OV_RECIPRO_MAX_FUNCTION_DEPTH", 64, "levels of nested functions", ModelError
)
ISOLATED_BYTES = Limit("OV_RECIPRO_ISOLATED_BYTES", 8 << 30, "bytes", DeviceError)
ISOLATED_SECONDS = Limit("OV_RECIPRO_ISOLATED_SECONDS", 300, "seconds", DeviceError)
REQUEST_BYTES = Limit("OV_RECIPRO_MAX_REQUEST_BYTES", 32 << 20, "bytes", OptionError)
REQUEST_SECONDS = Limit("OV_RECIPRO_REQUEST_SECONDS", 30, "seconds", OptionError)
SERVED_PIXELS = Limit("OV_RECIPRO_MAX_SERVED_PIXELS", 1 << 25, "pixels", ImageError)
ANSWER_SECONDS = Limit("OV_RECIPRO_ANSWER_SECONDS", 60, "seconds", DeviceError)
CACHE_BYTES = Limit("OV_RECIPRO_MAX_CACHE_BYTES", 8 << 30, "bytes", ReciproError)
