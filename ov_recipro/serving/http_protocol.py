"""HTTP as uvicorn speaks it, with a limit on what stands before a request's body."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 << 10


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request line and headers are too long.

    Uvicorn's other implementation has a limit of its own, but it is slower.
    """

    _is_in_head = False
    _head = 0

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._is_in_head, self._head = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Count no further: the body is bounded by the gate."""
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Pass on what arrives, unless there is too much of it."""
        self._head += len(data)
        if self._is_in_head and self._head > _HEAD_BYTES:
            self.transport.close()
            return
        super().data_received(data)
