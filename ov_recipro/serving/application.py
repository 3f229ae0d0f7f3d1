"""The server's addresses: KServe's protocols, health, metrics and the start page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from ov_recipro.errors import ReciproError, codes_of, printable
from ov_recipro.serving.gate import App, Gate
from ov_recipro.serving.parameters import in_parameters
from ov_recipro.serving.sdk import (
    DataPlane,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ModelRepository,
    ModelRepositoryExtension,
    register_v1_endpoints,
    register_v2_endpoints,
)
from ov_recipro.serving.served_model import Answer, ServedModel, Undecoded
from ov_recipro.serving.start_page import register_start_page

_STATUSES: dict[type[Exception], int] = {
    InvalidInput: 400,
    ModelNotFound: 404,
    ModelNotReady: 503,
    NotImplementedError: 501,
}
"""The status of an answer by the class of an error that is not a `ReciproError`."""

_LENGTH = "inference-header-content-length"


class _FixedModels(ModelRepositoryExtension):  # type: ignore[misc]
    """Refuses clients that would load or unload models."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError(f"'{model_name}' can't be loaded: models are named at the start.")

    async def unload(self, model_name: str) -> None:
        raise NotImplementedError(f"'{model_name}' can't be unloaded by a client.")


class Protocols(DataPlane):  # type: ignore[misc] # the SDK ships no type information
    """Passes requests of both protocols to models, which read and answer them in their threads.

    Attributes:
        fixed: what clients may do to the models: nothing.
    """

    def __init__(self, models: ModelRepository) -> None:
        super().__init__(model_registry=models)
        self._server_name, self._server_version = "ov-recipro", version("ov-recipro")
        self.fixed = _FixedModels(model_registry=models)

    def decode(
        self,
        body: bytes,
        headers: Mapping[str, str],
        protocol_version: str = "v1",  # noqa: ARG002 - the SDK passes it
        model_name: str | None = None,  # noqa: ARG002
    ) -> tuple[Undecoded, dict[str, Any]]:
        """Return a request as it came; it has no attributes of a cloud event."""
        return Undecoded(body, headers.get(_LENGTH)), {}

    async def infer(
        self, model_name: str, request: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Return a model's answer to `:predict`, or to a request by gRPC."""
        response, _ = await super().infer(model_name, request, headers)
        return response, {}

    async def explain(
        self, model_name: str, request: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Return a model's answer to `:explain`, without the request's headers in it."""
        response, _ = await super().explain(model_name, request, dict(headers or {}))
        return response, {}

    def encode(
        self,
        model_name: str,  # noqa: ARG002
        response: Answer,
        headers: Mapping[str, str],  # noqa: ARG002
        req_attributes: Mapping[str, Any],  # noqa: ARG002
    ) -> tuple[bytes, dict[str, str]]:
        """Return an answer's body and headers."""
        return response.body, _headers(response)


def protocols_of(models: Sequence[ServedModel]) -> Protocols:
    """Return what passes requests to models."""
    repository = ModelRepository()
    for model in models:
        repository.update(model)
    return Protocols(repository)


def application(
    protocols: Protocols,
    max_requests: int,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> App:
    """Return the server as an ASGI application.

    Args:
        protocols: with the models.
        max_requests: see `Gate`.
        lifespan: what runs beside it.
    """
    app = FastAPI(
        title="ov-recipro", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )

    async def infer(model_name: str, request: Request) -> Response:
        model = await protocols.get_model(model_name)
        answer = await model.infer(Undecoded(await request.body(), request.headers.get(_LENGTH)))
        return Response(answer.body, headers=_headers(answer))

    # before the SDK's own, which reads JSON between other requests
    app.add_api_route("/v2/models/{model_name}/infer", infer, methods=["POST"], response_model=None)
    register_v1_endpoints(app, protocols, protocols.fixed)
    register_v2_endpoints(app, protocols, protocols.fixed)
    register_start_page(app, list(protocols.model_registry.get_models().values()))
    app.add_api_route("/metrics", _metrics, methods=["GET"])
    for kind in (*_STATUSES, ReciproError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    return Gate(app, max_requests)


def failure_of(error: Exception) -> tuple[int, str]:
    """Return the HTTP status of an error, and what a client is told: one line, without traces."""
    if isinstance(error, ReciproError):
        return codes_of(error)[1], in_parameters(str(error))
    if isinstance(error, HTTPException):
        return error.status_code, printable(str(error.detail))
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return status, printable(str(error))
    return 500, "The server failed; its log says why."


def _headers(answer: Answer) -> dict[str, str]:
    if answer.length is None:
        return {"Content-Type": "application/json"}
    return {"Content-Type": "application/octet-stream", _LENGTH: str(answer.length)}


async def _failed(request: Request, error: Exception) -> Response:  # noqa: ARG001
    status, text = failure_of(error)
    phrase = text or HTTPStatus(status).phrase
    return Response(msgspec.json.encode({"error": phrase}), status, media_type="application/json")


async def _metrics(request: Request) -> Response:
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), media_type=kind)
