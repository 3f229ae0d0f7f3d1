"""The page at `/`: a form for an image, and once there is one, the report of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import UploadFile

from ov_recipro.errors import OptionError, ReciproError, codes_of
from ov_recipro.images.drawing import DEFAULT
from ov_recipro.report import card, page, styles, templates
from ov_recipro.serving.parameters import Parameters, image_from
from ov_recipro.serving.served_model import ServedModel

_TEMPLATES = templates(__package__)
_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
}


def register_start_page(app: FastAPI, models: Sequence[ServedModel]) -> None:
    """Add the page to an application."""
    by_name = {model.name: model for model in models}
    names = list(by_name)

    def answered(status: int = 200, **fields: Any) -> Response:
        empty = {"name": names[0], "targets": "top3", "verify": False, "error": None}
        form = _rendered("form.html", names=names, **empty | fields)
        text = _rendered("start.html", form=form, names=names, css=styles())
        return Response(text, status, _HEADERS, "text/html")

    async def start() -> Response:
        return answered()

    async def explain(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=8) as form:
            name, targets = str(form.get("model")), str(form.get("targets") or "top3")
            fields = {"name": name, "targets": targets, "verify": "verify" in form}
            given = form.get("image")
            data = await given.read() if isinstance(given, UploadFile) else b""
            file = (given.filename if isinstance(given, UploadFile) else None) or "image"
        above = _rendered("form.html", names=names, error=None, **fields)

        def explained() -> bytes:
            asked = Parameters(
                targets=int(targets) if re.fullmatch("[0-9]{1,9}", targets) else targets,
                include=("verification",) if fields["verify"] else (),
            )
            return _report(by_name[name], data, asked, file, above)

        try:
            if name not in by_name or not data:
                raise OptionError("Choose an image and one of the models.")
            html = await by_name[name].call(explained)
        except ReciproError as error:
            return answered(codes_of(error)[1], error=str(error), **fields)
        return Response(html, 200, _HEADERS, "text/html")

    app.add_api_route("/", start, methods=["GET"], response_model=None)
    app.add_api_route("/", explain, methods=["POST"], response_model=None)


def _report(model: ServedModel, data: bytes, asked: Parameters, name: str, above: str) -> bytes:
    """Explain the image in a file's bytes; return its report, with the form above it."""
    explainer, image = model.explainer, image_from(data)
    targets = explainer.find_targets(asked.as_targets())
    found = model.answers.explanation(image, targets)
    record = {**model.answers.entry(found, asked), "path": name}
    run = {
        **found.provenance,
        "layer_asked": explainer.bundle.manifest.layer,
        "plan_reason": explainer.plan_reason,
        "images": [record],
        "errors": [],
    }
    return page(run, [card(record, image.pixels, found.raw)], DEFAULT, above)


def _rendered(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)
