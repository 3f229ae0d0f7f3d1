"""Running the server until it is told to stop."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ov_recipro.errors import OptionError
from ov_recipro.limits import ANSWER_SECONDS, REQUEST_BYTES, REQUEST_SECONDS, SERVED_PIXELS
from ov_recipro.serving.application import application, protocols_of
from ov_recipro.serving.grpc_server import open_grpc
from ov_recipro.serving.http_protocol import BoundedHttp
from ov_recipro.serving.served_model import ServedModel

_CONNECTIONS = 1024
_MORE = 5  # seconds that a stop waits beyond what a request may take


def serve(
    models: Sequence[ServedModel],
    host: str,
    port: int,
    grpc_port: int | None,
    queue: int,
    started: Callable[[str], None],
) -> None:
    """Serve models until SIGINT or SIGTERM; requests that have arrived by then are answered first.

    Args:
        models: what is served.
        host: the address to listen on.
        port: for HTTP, 0 for any that is free; grpc_port: for gRPC, None for no gRPC.
        queue: requests that may wait for a worker; clients of further ones are told to try later.
        started: called with the server's URL once it listens.

    Raises:
        OptionError: it can't listen there, or the variable of a limit is not a number.
    """
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.WARNING,
    )
    longest = sum(each.value for each in (REQUEST_SECONDS, ANSWER_SECONDS)) + _MORE
    for limit in (REQUEST_BYTES, SERVED_PIXELS):
        _ = limit.value
    max_requests = queue + sum(model.workers for model in models)
    protocols = protocols_of(models)
    if grpc_port is not None:
        _listening(host, grpc_port).close()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if grpc_port is None:
            yield
            return
        server = open_grpc(protocols, host, grpc_port, max_requests)
        await server.start()
        yield
        await server.stop(longest)

    with _listening(host, port) as listening:
        config = uvicorn.Config(
            application(protocols, max_requests, lifespan),
            http=BoundedHttp,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            lifespan="on",
            timeout_graceful_shutdown=longest,
        )
        for each in (signal.SIGINT, signal.SIGTERM):  # raised again when all is answered
            signal.signal(each, _leave)
        name = f"[{host}]" if ":" in host else host
        started(f"http://{name}:{listening.getsockname()[1]}/")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            for model in models:
                model.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OptionError(f"Can't listen on {host}:{port}: {error}.") from error


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(0)
