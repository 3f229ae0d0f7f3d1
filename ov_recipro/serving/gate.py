"""The gate that requests pass: few at once, none too large, and none before it is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from ov_recipro.limits import REQUEST_BYTES, REQUEST_SECONDS

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_RETRY_AFTER = 1  # seconds
_LARGEST_AT_ONCE = 4  # requests of the largest size whose bodies are held at once
_DRAINED = 1.0  # seconds for which the rest of a refused body is read


class _Refused(Exception):
    """A request is refused.

    Args:
        status: of the answer; message: what it says.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """Lets a bounded number of requests with a body in, and each only once that is complete.

    Others are answered by 503 with Retry-After. So neither the bodies that are held nor the
    requests that wait for a worker grow with the load.

    Args:
        app: the ASGI application behind it.
        max_requests: how many may be inside, those that wait for a worker included.
    """

    def __init__(self, app: App, max_requests: int) -> None:
        self._app, self._max_requests = app, max_requests
        self._inside = 0
        self._held = 0  # bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request; GET and HEAD pass at once, without a body."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        try:
            try:
                self._check_room()
                if not await self._read(scope, receive, parts):
                    return
                self._check_room()
                body = b"".join(parts)
                parts[:] = [body]  # not twice
            except _Refused as refused:
                await _drain(receive)
                await _refuse(send, refused)
                return
            self._inside += 1
            try:
                await self._app(scope, _replayed(body, receive), send)
            finally:
                self._inside -= 1
        finally:
            self._held -= sum(map(len, parts))

    def _check_room(self) -> None:
        if self._inside >= self._max_requests:
            raise _Refused(503, "All workers are busy and the queue is full; try again later.")

    async def _read(self, scope: Message, receive: Receive, parts: list[bytes]) -> bool:
        """Read a request's body; return whether the client is still there."""
        limit = REQUEST_BYTES.value
        too_large = _Refused(
            413, f"The request has more than {limit:,} bytes ({REQUEST_BYTES.variable})."
        )
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            raise too_large
        count = 0
        try:
            async with asyncio.timeout(REQUEST_SECONDS.value):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    parts.append(message.get("body", b""))
                    count += len(parts[-1])
                    self._held += len(parts[-1])
                    if count > limit:
                        raise too_large
                    if self._held > _LARGEST_AT_ONCE * limit:
                        raise _Refused(503, "Too much is being sent; try again later.")
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            seconds = f"{REQUEST_SECONDS.value} seconds ({REQUEST_SECONDS.variable})"
            raise _Refused(408, f"The request was not complete within {seconds}.") from None


async def _drain(receive: Receive) -> None:
    """Read on for a moment: a client that is still sending might not look for an answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAINED):
            while (await receive()).get("more_body", False):
                pass


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what first gives a whole body, then what the client does next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _refuse(send: Send, refused: _Refused) -> None:
    data = msgspec.json.encode({"error": str(refused)})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"connection", b"close"),
    ]
    if refused.status == 503:
        headers.append((b"retry-after", str(_RETRY_AFTER).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
