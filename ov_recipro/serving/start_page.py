"""The page at `/`: a form for an image, and once there is one, the report of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
import msgspec
from fastapi import FastAPI, Request, Response
from starlette.datastructures import UploadFile

from ov_recipro.errors import OptionError, ReciproError, codes_of
from ov_recipro.explanation import Explanation
from ov_recipro.images.drawing import DEFAULT
from ov_recipro.output import as_json
from ov_recipro.report import card, page, styles
from ov_recipro.serving.asking import Asked
from ov_recipro.serving.served_model import ServedModel

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
        form = await request.form()
        name, targets = str(form.get("model")), str(form.get("targets") or "top3")
        fields = {"name": name, "targets": targets, "verify": "verify" in form}
        try:
            given = form.get("image")
            if name not in by_name or not isinstance(given, UploadFile):
                raise OptionError("Choose an image and one of the models.")
            asked = Asked(
                targets=int(targets) if targets.isdecimal() else targets,
                include=("verification",) if fields["verify"] else (),
            )
            model = by_name[name]
            found, entry = await model.explained_file(await given.read(), asked)
            above = _rendered("form.html", names=names, error=None, **fields)
            html = _report(model, found, entry, given.filename or "image", above)
        except ReciproError as error:
            return answered(codes_of(error)[1], error=str(error), **fields)
        return Response(html, 200, _HEADERS, "text/html")

    app.add_api_route("/", start, methods=["GET"], response_model=None)
    app.add_api_route("/", explain, methods=["POST"], response_model=None)


def _report(
    model: ServedModel, found: Explanation, entry: dict[str, Any], name: str, above: str
) -> bytes:
    """Return the report of one image, with the form above it."""
    explainer = model.explainer
    if found.image is None:
        raise TypeError("an image was explained")
    record = {**entry, "path": name}
    run = {
        **msgspec.json.decode(as_json(explainer.provenance())),
        "layer_asked": explainer.bundle.manifest.layer,
        "plan_reason": explainer.plan_reason,
        "images": [record],
        "errors": [],
    }
    return page(run, [card(record, found.image, found.raw)], DEFAULT, above)


def _rendered(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda each: files(__package__).joinpath(each).read_text(encoding="utf-8")
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
