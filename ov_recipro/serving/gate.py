"""The gate that requests pass before their bodies are read: few at once, and none too large."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from ov_recipro.limits import REQUEST_BYTES, REQUEST_SECONDS

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_RETRY_AFTER = 1  # seconds


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

    Others are answered by 503 with Retry-After. So memory is bounded, whatever clients send.

    Args:
        app: the ASGI application behind it.
        most: how many requests may be inside, those that wait for a worker included.
    """

    def __init__(self, app: App, most: int) -> None:
        self._app, self._most = app, most
        self._inside = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request; others than POST have no body and pass at once."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._inside >= self._most:
            await _refuse(send, 503, "All workers are busy and the queue is full; try again later.")
            return
        self._inside += 1
        try:
            try:
                body = await _read(scope, receive)
            except _Refused as refused:
                await _refuse(send, refused.status, str(refused))
                return
            if body is not None:
                await self._app(scope, _replayed(body, receive), send)
        finally:
            self._inside -= 1


async def _read(scope: Message, receive: Receive) -> bytes | None:
    """Return a request's body; None where the client has left."""
    limit = REQUEST_BYTES.value
    too_large = _Refused(
        413, f"The request has more than {limit:,} bytes ({REQUEST_BYTES.variable})."
    )
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > limit:
        raise too_large
    parts, count = [], 0
    try:
        async with asyncio.timeout(REQUEST_SECONDS.value):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                parts.append(message.get("body", b""))
                count += len(parts[-1])
                if count > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        seconds = f"{REQUEST_SECONDS.value} seconds ({REQUEST_SECONDS.variable})"
        raise _Refused(408, f"The request was not complete within {seconds}.") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what first gives a whole body, then what the client does next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _refuse(send: Send, status: int, message: str) -> None:
    """Answer without the body that the client may still be sending."""
    data = msgspec.json.encode({"error": message})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", str(_RETRY_AFTER).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
