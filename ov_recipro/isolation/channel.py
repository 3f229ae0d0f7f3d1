"""Between two processes: a socket for messages, shared memory for arrays."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np

from ov_recipro.isolation.messages import Placed
from ov_recipro.saliency import Array

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 64  # bytes
_LEAST = 1 << 20  # bytes of shared memory
_LONGEST = 1 << 26  # bytes of a message
_DTYPES = frozenset(np.dtype(code).str for code in "?bBhHiIlLqQefd")

Message = TypeVar("Message")


class ConnectionLost(Exception):
    """The other process can't be talked to any more; the message says what it did."""


class Gone(ConnectionLost):
    """It has ended."""


class Silent(ConnectionLost):
    """It does not answer in time."""


class Arena:
    """Shared memory for the arrays of one message at a time.

    Args:
        fd: an open file, made by `shared_file`; it belongs to the arena from now on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._memory: mmap.mmap | None = None

    def write(self, arrays: Mapping[str, Array]) -> dict[str, Placed]:
        """Copy arrays, in place of all earlier ones; return where they lie."""
        placed, end = {}, 0
        for name, values in arrays.items():
            placed[name] = Placed(values.dtype.str, values.shape, end)
            end += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None or len(self._memory) < end:
            if os.fstat(self._fd).st_size < end:
                os.truncate(self._fd, max(end, _LEAST))
            self._memory = mmap.mmap(self._fd, 0) if end else None
        for name, values in arrays.items():
            self._view(placed[name])[...] = values
        return placed

    def read(self, placed: Mapping[str, Placed]) -> dict[str, Array]:
        """Return arrays where they lie, until the next message.

        Raises:
            ConnectionLost: there is no such place.
        """
        try:
            return {name: self._view(each) for name, each in placed.items()}
        except (ValueError, OverflowError, OSError) as error:
            raise ConnectionLost("sent invalid arrays") from error

    def close(self) -> None:
        """Close the file; what is mapped of it stays until nothing uses it."""
        os.close(self._fd)

    def _view(self, place: Placed) -> Array:
        if place.dtype not in _DTYPES:
            raise ValueError("only numbers can be shared")
        dtype = np.dtype(place.dtype)
        count = math.prod(place.shape)
        if min((*place.shape, place.offset)) < 0:
            raise ValueError("sizes can't be negative")
        if not count:
            return np.empty(place.shape, dtype)
        if self._memory is None or place.offset + count * dtype.itemsize > len(self._memory):
            self._memory = mmap.mmap(self._fd, 0)
        return np.frombuffer(self._memory, dtype, count, place.offset).reshape(place.shape)


def shared_file() -> int:
    """Return an open file without a name, for an `Arena`."""
    if sys.platform == "linux":
        fd = os.memfd_create("ov-recipro", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # which would end who reads it
        return fd
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def send(to: socket.socket, message: object) -> None:
    """Send a message.

    Raises:
        Gone: the other process has ended.
    """
    data = msgspec.msgpack.encode(message)
    try:
        to.sendall(_LENGTH.pack(len(data)) + data)
    except OSError as error:
        raise Gone from error


def receive(source: socket.socket, kind: type[Message]) -> Message:
    """Wait for a message.

    Raises:
        ConnectionLost: the other process has ended, is silent for longer than the socket's time
            limit, or says something else.
    """
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    if length > _LONGEST:
        raise ConnectionLost("sent an invalid answer")
    try:
        return msgspec.msgpack.decode(_exactly(source, length), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConnectionLost("sent an invalid answer") from error


def _exactly(source: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        try:
            part = source.recv(min(count, 1 << 20))
        except TimeoutError as error:
            raise Silent from error
        except OSError as error:
            raise Gone from error
        if not part:
            raise Gone
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
