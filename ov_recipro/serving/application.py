"""The server's addresses: KServe's protocols, health, metrics and the start page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from importlib.metadata import version
from logging import getLogger
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from ov_recipro.errors import ReciproError, codes_of, printable
from ov_recipro.serving.binary_request import binary_request
from ov_recipro.serving.gate import App, Gate
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
from ov_recipro.serving.served_model import ServedModel
from ov_recipro.serving.start_page import register_start_page

log = getLogger(__name__)

_STATUSES: dict[type[Exception], int] = {
    InvalidInput: 400,
    RequestValidationError: 400,
    ModelNotFound: 404,
    ModelNotReady: 503,
    NotImplementedError: 501,
}
"""The status of an answer by the class of an error that is not a `ReciproError`."""

_LENGTH = "inference-header-content-length"


class _Fixed(ModelRepositoryExtension):  # type: ignore[misc]
    """Refuses clients that would load or unload models."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError(f"'{model_name}' can't be loaded: models are named at the start.")

    async def unload(self, model_name: str) -> None:
        raise NotImplementedError(f"'{model_name}' can't be unloaded by a client.")


class Protocols(DataPlane):  # type: ignore[misc] # the SDK ships no type information
    """Reads requests of both protocols; whatever is wrong with one is the client's mistake.

    Attributes:
        fixed: what clients may do to the models: nothing.
    """

    def __init__(self, models: ModelRepository) -> None:
        super().__init__(model_registry=models)
        self._server_name, self._server_version = "ov-recipro", version("ov-recipro")
        self.fixed = _Fixed(model_registry=models)

    def decode(
        self,
        body: Any,
        headers: Mapping[str, str],
        protocol_version: str = "v1",
        model_name: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Return what a client sent, and the attributes of its event.

        Raises:
            InvalidInput: it can't be read.
        """
        try:
            if protocol_version == "v2" and isinstance(body, bytes):
                return binary_request(body, headers.get(_LENGTH), model_name), {}
            request, attributes = super().decode(body, headers, protocol_version, model_name)
        except (InvalidInput, ReciproError):
            raise
        except Exception as error:  # of whatever kind, of what a client sent
            raise InvalidInput(f"The request can't be read: {error}.") from error
        return request, dict(attributes)


def protocols_of(models: Sequence[ServedModel]) -> Protocols:
    """Return what reads requests and passes them to models."""
    repository = ModelRepository()
    for model in models:
        repository.update(model)
    return Protocols(repository)


def application(
    protocols: Protocols,
    most: int,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> App:
    """Return the server as an ASGI application.

    Args:
        protocols: with the models.
        most: see `Gate`.
        lifespan: what runs beside it.
    """
    app = FastAPI(
        title="ov-recipro", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    register_v1_endpoints(app, protocols, protocols.fixed)
    register_v2_endpoints(app, protocols, protocols.fixed)
    register_start_page(app, list(protocols.model_registry.get_models().values()))
    app.add_api_route("/metrics", _metrics, methods=["GET"])
    for kind in (*_STATUSES, ReciproError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    return Gate(app, most)


def failure_of(error: Exception) -> tuple[int, str]:
    """Return the HTTP status of an error, and what a client is told: one line, without traces."""
    if isinstance(error, ReciproError):
        return codes_of(error)[1], str(error)
    if isinstance(error, HTTPException):
        return error.status_code, printable(str(error.detail))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        return 400, printable(f"The request can't be read: {place}: {first['msg']}.")
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return status, printable(str(error))
    log.error("internal error", exc_info=error)
    return 500, "The server failed; its log says why."


async def _failed(request: Request, error: Exception) -> Response:
    status, text = failure_of(error)
    log.info("%s %s: %d %s", request.method, printable(request.url.path), status, text)
    phrase = text or HTTPStatus(status).phrase
    return Response(msgspec.json.encode({"error": phrase}), status, media_type="application/json")


async def _metrics(request: Request) -> Response:
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), media_type=kind)
