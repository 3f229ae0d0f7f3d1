"""The errors that users can fix, and the exit code and HTTP status of each."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with all that would not be printed as itself, such as line ends, escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ReciproError(Exception):
    """Something the user can fix; raised itself where a file can't be written.

    The message is one line that says what is wrong and, where it can, what to do. The command line
    prints it without a traceback. What names in it have of line ends and control characters is
    escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class ModelError(ReciproError):
    """A model, a bundle or a file beside it can't be read, cut or trusted."""


class ImageError(ReciproError):
    """An image or a video can't be read, or the model gives no finite numbers for it."""


class TargetError(ReciproError):
    """The model does not know what is to be explained, or it was not explained."""


class OptionError(ReciproError):
    """An option, or a file that it names, does not fit the model or the other options."""


class DeviceError(ReciproError):
    """A device or its library is not available, can't run the model, or failed."""


class CrashError(DeviceError):
    """The process of an isolated model died of an image, or lacked the memory for it."""


CODES: dict[type[ReciproError], tuple[int, int]] = {
    ReciproError: (1, 500),
    ModelError: (1, 500),
    ImageError: (1, 422),
    TargetError: (1, 404),
    OptionError: (1, 400),
    DeviceError: (1, 503),
    CrashError: (1, 503),
}
"""The exit code of the command line and the HTTP status of a server, by class."""

OF_ONE_IMAGE = (ImageError, TargetError, CrashError)
"""After these a run over many images continues; any other error ends it."""


def codes_of(error: ReciproError) -> tuple[int, int]:
    """Return the exit code and the HTTP status of an error, by its nearest class in `CODES`."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
