"""The Open Inference Protocol by gRPC."""

from __future__ import annotations

from typing import Any

import grpc
from grpc import StatusCode, aio
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from kserve.protocol.grpc.servicer import InferenceServicer

from ov_recipro.errors import OptionError
from ov_recipro.limits import REQUEST_BYTES
from ov_recipro.serving.application import Protocols, failure_of

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
                await context.abort(_CODES.get(status, StatusCode.INTERNAL), text)

        return grpc.unary_unary_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )


def open_grpc(protocols: Protocols, host: str, port: int, most: int) -> aio.Server:
    """Return a server that listens, to be started.

    Args:
        protocols: with the models.
        host, port: where it listens.
        most: calls at once; of further ones clients are told to try later.

    Raises:
        OptionError: the address can't be listened at.
    """
    server = aio.server(
        interceptors=[_Statuses()],
        maximum_concurrent_rpcs=most,
        options=[
            ("grpc.max_receive_message_length", REQUEST_BYTES.value),
            ("grpc.max_send_message_length", _ANSWER_BYTES),
            ("grpc.so_reuseport", 0),
        ],
    )
    add_GRPCInferenceServiceServicer_to_server(
        InferenceServicer(protocols, protocols.fixed), server
    )
    try:
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OptionError(f"{host}:{port} can't be listened at for gRPC: {error}.") from error
    return server
