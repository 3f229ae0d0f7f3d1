"""The Open Inference Protocol by gRPC."""

from __future__ import annotations

import logging
from typing import Any

import grpc
from grpc import StatusCode, aio

from ov_recipro.limits import REQUEST_BYTES
from ov_recipro.serving.application import Protocols, failure_of
from ov_recipro.serving.sdk import InferenceServicer, add_grpc_servicer

log = logging.getLogger(__name__)

_ANSWER_BYTES = 256 << 20
_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    404: StatusCode.NOT_FOUND,
    422: StatusCode.INVALID_ARGUMENT,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
}
"""The status by the one of HTTP; any other is an internal error."""


class _Statuses(aio.ServerInterceptor):  # type: ignore[misc]
    """Turns errors into the status of a call, and one line."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None

        async def call(request: Any, context: Any) -> Any:
            try:
                return await handler.unary_unary(request, context)
            except Exception as error:  # answered, whatever it is
                status, text = failure_of(error)
                if status not in _CODES:
                    log.error("internal error", exc_info=error)
                await context.abort(_CODES.get(status, StatusCode.INTERNAL), text)

        return grpc.unary_unary_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )


def open_grpc(protocols: Protocols, host: str, port: int, max_requests: int) -> aio.Server:
    """Return a server that listens, to be started.

    Args:
        protocols: with the models.
        host, port: where it listens.
        max_requests: calls at once; further ones end with RESOURCE_EXHAUSTED.

    Raises:
        RuntimeError: it can't listen there.
    """
    server = aio.server(
        interceptors=[_Statuses()],
        maximum_concurrent_rpcs=max_requests,
        options=[
            ("grpc.max_receive_message_length", REQUEST_BYTES.value),
            ("grpc.max_send_message_length", _ANSWER_BYTES),
            ("grpc.so_reuseport", 0),
        ],
    )
    add_grpc_servicer(InferenceServicer(protocols, protocols.fixed), server)
    server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return server
