"""A model as KServe's SDK serves it: `predict` and `explain` by both of its protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from ov_recipro.errors import DeviceError, OptionError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation
from ov_recipro.images.reading import ImageFile
from ov_recipro.limits import ANSWER_SECONDS
from ov_recipro.options import Targets
from ov_recipro.output import as_json
from ov_recipro.saliency import Array
from ov_recipro.serving.answering import Answerer
from ov_recipro.serving.asking import (
    Asked,
    Encoded,
    image_from,
    read_body,
    read_instance,
    read_parameters,
)
from ov_recipro.serving.sdk import InferInput, InferOutput, InferRequest, InferResponse, Model

ENCODED = "encoded_image"
"""The input of the Open Inference Protocol that takes an image file's bytes."""

_DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{
        f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32)
    },
    "int64": "INT64",
}
_EXPLAINED: dict[str, Callable[[Explanation], Array]] = {
    "saliency_map": lambda found: found.maps,
    "raw_scores": lambda found: found.raw,
    "targets": lambda found: np.array([each.index for each in found.targets], np.int64),
    "target_scores": lambda found: np.array([each.score for each in found.targets], np.float64),
    "record": lambda found: np.array(
        [as_json({**found.provenance, "images": [found.record()]})], np.object_
    ),
}
"""What an explanation gives as outputs of the Open Inference Protocol."""

_OF_PROTOCOL = ("binary_data_output",)
_NOT_SENT = "record"  # unless it is asked for by its name

Result = TypeVar("Result")


class ServedModel(Model):  # type: ignore[misc] # the SDK ships no type information
    """A model of the server.

    Args:
        name: in the addresses of requests.
        explainer: explains its images, for all requests.
        workers: how many at once.

    Attributes:
        explainer, workers: as given.
    """

    def __init__(self, name: str, explainer: Explainer, workers: int) -> None:
        super().__init__(name)
        self.explainer, self._answerer = explainer, Answerer(explainer)
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._provenance = msgspec.json.decode(as_json(explainer.provenance()))
        self.ready = True

    def close(self) -> None:
        """Give up what is still at work."""
        self.explainer.interrupt()
        self._pool.shutdown(cancel_futures=True)

    async def predict(
        self,
        payload: dict[str, Any] | InferRequest,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - the SDK passes it
        response_headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, Any] | InferResponse:
        """Answer `:predict`, or a request of the Open Inference Protocol.

        Raises:
            ReciproError: the request is not valid, or a model fails.
        """
        if isinstance(payload, InferRequest):
            return await self._inferred(payload)
        body = read_body(payload)
        found = await self._all([partial(self._predicted, each) for each in body.instances])
        return {"predictions": found, "provenance": self._provenance}

    async def explain(
        self,
        payload: dict[str, Any],
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Answer `:explain`.

        Raises:
            ReciproError: the request is not valid, or a model fails.
        """
        body = read_body(payload)
        (targets,) = await self._all([lambda: self._targets(body.parameters)])
        include = body.parameters.include

        def explained(instance: Any) -> dict[str, Any]:
            source = read_instance(instance, self.explainer.bundle.manifest.image)
            return self._answerer.entry(self._answerer.explanation(source, targets), include)

        found = await self._all([partial(explained, each) for each in body.instances])
        return {"explanations": found, "provenance": self._provenance}

    async def explained_file(self, data: bytes, asked: Asked) -> tuple[Explanation, dict[str, Any]]:
        """Explain the image in a file's bytes; return that, and what an answer holds of it.

        Raises:
            ReciproError: see `Explainer.__call__`.
        """

        def explained() -> tuple[Explanation, dict[str, Any]]:
            found = self._answerer.explanation(image_from(data), self._targets(asked))
            return found, self._answerer.entry(found, asked.include)

        (answer,) = await self._all([explained])
        return answer

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs: an image file's bytes, or the model's own."""
        entry = self.explainer.bundle.manifest.image
        return [
            {"name": ENCODED, "datatype": "BYTES", "shape": [1]},
            {
                "name": entry.name,
                "datatype": _DATATYPES[entry.dtype],
                "shape": list(entry.shape),
            },
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the outputs: the model's own, and what an explanation gives."""
        manifest = self.explainer.bundle.manifest
        grid = list(manifest.cut.grid) if self.explainer.plan.cells else [-1, -1]
        return [
            {"name": manifest.output, "datatype": "FP32", "shape": list(manifest.scores_shape)},
            {"name": "saliency_map", "datatype": "FP32", "shape": [-1, *grid]},
            {"name": "raw_scores", "datatype": "FP32", "shape": [-1, *grid]},
            {"name": "targets", "datatype": "INT64", "shape": [-1]},
            {"name": "target_scores", "datatype": "FP64", "shape": [-1]},
            {"name": "record", "datatype": "BYTES", "shape": [1]},
        ]

    def _targets(self, asked: Asked) -> Targets:
        return self.explainer.find_targets(asked.as_targets())

    def _predicted(self, instance: Any) -> list[dict[str, Any]]:
        source = read_instance(instance, self.explainer.bundle.manifest.image)
        if isinstance(source, ImageFile):
            found = self.explainer.predict(source)
        else:
            found = self.explainer.predict_tensor(source)
        return [dict(msgspec.to_builtins(each)) for each in found]

    async def _inferred(self, request: InferRequest) -> InferResponse:
        output = self.explainer.bundle.manifest.output
        known = [output, *(name for name in _EXPLAINED if name != output)]
        wanted = [each.name for each in request.request_outputs or ()]
        for name in wanted:
            if name not in known:
                raise OptionError(f"There is no output '{name}'; there are {', '.join(known)}.")
        wanted = wanted or [name for name in known if name != _NOT_SENT]
        asked = read_parameters(_plain(request.parameters))
        outputs: dict[str, Array] = {}

        def run() -> None:
            source = self._input(request)
            if output in wanted:
                outputs[output] = self._own(source)
            if set(wanted) - {output}:
                found = self._answerer.explanation(source, self._targets(asked))
                for name in set(wanted) - {output}:
                    outputs[name] = _EXPLAINED[name](found)

        await self._all([run])
        return InferResponse(
            response_id=request.id,
            model_name=self.name,
            infer_outputs=[_output(name, outputs[name]) for name in wanted],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _input(self, request: InferRequest) -> ImageFile | Array:
        entry = self.explainer.bundle.manifest.image
        if len(request.inputs) != 1 or request.inputs[0].name not in (ENCODED, entry.name):
            raise OptionError(f"A request takes one input: '{ENCODED}' or '{entry.name}'.")
        (given,) = request.inputs
        values = _values(given)
        if given.name == entry.name and given.datatype == _DATATYPES[entry.dtype]:
            return values
        if given.name == entry.name or given.datatype != "BYTES":
            wanted = "BYTES" if given.name == ENCODED else _DATATYPES[entry.dtype]
            raise OptionError(
                f"Input '{given.name}' is of datatype {wanted}, not {given.datatype}."
            )
        if values.size != 1:
            raise OptionError(f"'{ENCODED}' takes one image, not {values.size}.")
        content = values.reshape(-1)[0]
        if isinstance(content, bytes):
            return image_from(content)
        return Encoded(str(content)).decoded()  # as JSON holds no bytes

    def _own(self, source: ImageFile | Array) -> Array:
        shape = self.explainer.bundle.manifest.scores_shape
        if isinstance(source, ImageFile):
            found = self.explainer.vector(source)
        else:
            found = self.explainer.outputs(source)
        return found.reshape(shape) if found.size == np.prod(shape) else found

    async def _all(self, calls: list[Callable[[], Result]]) -> list[Result]:
        """Call in the threads; when one fails, those that have not begun are given up."""
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._pool, call) for call in calls]
        seconds = ANSWER_SECONDS.value
        try:
            return await asyncio.wait_for(asyncio.gather(*futures), seconds)
        except TimeoutError as error:
            raise DeviceError(
                f"There was no answer within {seconds} seconds ({ANSWER_SECONDS.variable})."
            ) from error
        finally:
            for future in futures:
                future.cancel()


def _values(given: InferInput) -> Array:
    """Return an input's values, of its own shape and datatype."""
    try:
        return np.asarray(given.as_numpy())
    except Exception as error:  # of whatever kind, of what a client sent
        raise OptionError(f"Input '{given.name}' can't be read: {error}.") from error


def _output(name: str, values: Array) -> InferOutput:
    kind = "BYTES" if values.dtype == np.object_ else _DATATYPES[values.dtype.name]
    output = InferOutput(name=name, shape=list(values.shape), datatype=kind, data=None)
    output.set_data_from_numpy(values, binary_data=True)  # the form that goes by HTTP and gRPC
    return output


def _plain(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a request's parameters as plain values, without those of the protocol itself."""
    found = {name: _plain_value(value) for name, value in dict(parameters or {}).items()}
    return {name: value for name, value in found.items() if name not in _OF_PROTOCOL}


def _plain_value(value: Any) -> Any:
    """Return a parameter's value, which gRPC wraps."""
    which = getattr(value, "WhichOneof", None)
    return value if which is None else getattr(value, which("parameter_choice"))
