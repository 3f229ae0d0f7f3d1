"""A model as KServe's SDK serves it: `predict` and `explain` by both of its protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from ov_recipro.errors import DeviceError, OptionError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation
from ov_recipro.images.reading import ImageFile
from ov_recipro.limits import ANSWER_SECONDS
from ov_recipro.output import as_json
from ov_recipro.saliency import Array
from ov_recipro.serving.answers import Answers
from ov_recipro.serving.inference_request import read_inference_request
from ov_recipro.serving.parameters import (
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


@dataclass(frozen=True)
class Undecoded:
    """A request as it came: it is read where it does not hold up others.

    Attributes:
        body: its bytes.
        length: of the JSON in front, as the header of the Open Inference Protocol says.
    """

    body: bytes
    length: str | None = None


@dataclass(frozen=True)
class Answer:
    """An answer as it goes.

    Attributes:
        body: its bytes; length: of the JSON in front, where tensors follow it.
    """

    body: bytes
    length: int | None = None


class ServedModel(Model):  # type: ignore[misc] # the SDK ships no type information
    """A model of the server.

    Args:
        name: in the addresses of requests.
        explainer: explains its images, for all requests.
        workers: how many at once.

    Attributes:
        explainer, workers: as given.
        answers: made with the explainer.
    """

    def __init__(self, name: str, explainer: Explainer, workers: int) -> None:
        super().__init__(name)
        self.explainer, self.workers = explainer, workers
        self.answers = Answers(explainer)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._free = asyncio.Semaphore(workers)  # so that nothing waits in the pool itself
        self._provenance = msgspec.Raw(as_json(explainer.provenance()))
        self.ready = True

    def close(self) -> None:
        """Give up what is still at work."""
        self.explainer.interrupt()
        self._pool.shutdown(cancel_futures=True)

    async def predict(
        self,
        payload: Undecoded | InferRequest,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - the SDK passes it
        response_headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Answer | InferResponse:
        """Answer `:predict` of protocol V1, or a request that came by gRPC.

        Raises:
            ReciproError: the request is not valid, or a model fails.
        """
        if isinstance(payload, InferRequest):
            return await self.call(partial(self._response, payload))
        return await self.call(partial(self._predicted, payload))

    async def infer(self, request: Undecoded) -> Answer:
        """Answer a request of the Open Inference Protocol that came by HTTP.

        Raises:
            ReciproError: the request is not valid, or a model fails.
        """

        def inferred() -> Answer:
            read = read_inference_request(request.body, request.length, self.name)
            content, length = self._response(read).to_rest()
            return Answer(as_json(content) if isinstance(content, dict) else content, length)

        return await self.call(inferred)

    async def explain(
        self,
        payload: Undecoded,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Answer:
        """Answer `:explain`.

        Raises:
            ReciproError: the request is not valid, or a model fails.
        """
        return await self.call(partial(self._explained, payload))

    async def call(self, work: Callable[[], Result]) -> Result:
        """Do work in one of the model's threads.

        Raises:
            DeviceError: it takes too long. What has begun runs on and keeps its thread.
        """
        seconds = ANSWER_SECONDS.value
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
                future = asyncio.get_running_loop().run_in_executor(self._pool, work)
                future.add_done_callback(lambda _: self._free.release())
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise DeviceError(
                f"There was no answer within {seconds} seconds ({ANSWER_SECONDS.variable})."
            ) from error

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs: an image file's bytes, or the model's own."""
        entry = self.explainer.bundle.manifest.image
        own = {
            "name": entry.name,
            "datatype": _DATATYPES[entry.dtype],
            "shape": list(entry.shape),
        }
        return [{"name": ENCODED, "datatype": "BYTES", "shape": [1]}, own]

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

    def _predicted(self, request: Undecoded) -> Answer:
        body = read_body(request.body)
        if body.parameters != type(body.parameters)():
            raise OptionError("':predict' takes no parameters.")
        if self.explainer.bundle.manifest.task == "embedding":
            raise OptionError(
                "An embedding predicts nothing; its vector is an output of the Open Inference "
                "Protocol."
            )
        entry = self.explainer.bundle.manifest.image
        found = [self.answers.predictions(read_instance(each, entry)) for each in body.instances]
        return Answer(as_json({"predictions": found, "provenance": self._provenance}))

    def _explained(self, request: Undecoded) -> Answer:
        body = read_body(request.body)
        asked, count = body.parameters, len(body.instances)
        targets = self.explainer.find_targets(asked.as_targets())
        found = []
        for instance in body.instances:
            source = read_instance(instance, self.explainer.bundle.manifest.image)
            explanation = self.answers.explanation(source, targets, count)
            found.append(self.answers.entry(explanation, asked, count))
        return Answer(as_json({"explanations": found, "provenance": self._provenance}))

    def _response(self, request: InferRequest) -> InferResponse:
        """Return the outputs that a request of the Open Inference Protocol wants."""
        output = self.explainer.bundle.manifest.output
        known = [output, *(name for name in _EXPLAINED if name != output)]
        wanted = [each.name for each in request.request_outputs or ()]
        for name in wanted:
            if name not in known:
                raise OptionError(
                    f"The server gives no output '{name}'; it gives {', '.join(known)}."
                )
        if len(set(wanted)) < len(wanted):
            raise OptionError("An output is asked for twice.")
        wanted = wanted or [name for name in known if name != _NOT_SENT]
        asked = read_parameters(_plain(request.parameters))
        source = self._input(request)
        outputs: dict[str, Array] = {}
        if output in wanted:
            shape = self.explainer.bundle.manifest.scores_shape
            own = self.answers.outputs(source)
            outputs[output] = own.reshape(shape) if own.size == np.prod(shape) else own
        if set(wanted) - {output}:
            targets = self.explainer.find_targets(asked.as_targets())
            found = self.answers.explanation(source, targets)
            outputs |= {name: _EXPLAINED[name](found) for name in wanted if name != output}
        return InferResponse(
            response_id=request.id or "",
            model_name=self.name,
            infer_outputs=[_output(name, outputs[name]) for name in wanted],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _input(self, request: InferRequest) -> ImageFile | Array:
        entry = self.explainer.bundle.manifest.image
        datatypes = {ENCODED: "BYTES", entry.name: _DATATYPES[entry.dtype]}
        if len(request.inputs) != 1 or request.inputs[0].name not in datatypes:
            raise OptionError(f"A request takes one input: '{ENCODED}' or '{entry.name}'.")
        (given,) = request.inputs
        wanted = datatypes[given.name]
        if given.datatype != wanted:
            raise OptionError(
                f"Input '{given.name}' must be of datatype {wanted}; {given.datatype} was sent."
            )
        values = _values(given)
        if given.name == entry.name:
            return values
        if values.size != 1:
            raise OptionError(f"'{ENCODED}' takes one image, not {values.size}.")
        content = values.reshape(-1)[0]
        if isinstance(content, bytes):
            return image_from(content)
        return Encoded(str(content)).decoded()  # as JSON holds no bytes


def _values(given: InferInput) -> Array:
    """Return an input's values, of its own shape and datatype."""
    try:
        return np.require(given.as_numpy(), requirements="W")  # as inference wants memory
    except Exception as error:  # of whatever kind, of what a client sent
        raise OptionError(f"Input '{given.name}' can't be read: {error}.") from error


def _output(name: str, values: Array) -> InferOutput:
    kind = "BYTES" if values.dtype == np.object_ else _DATATYPES[values.dtype.name]
    output = InferOutput(name=name, shape=list(values.shape), datatype=kind, data=None)
    output.set_data_from_numpy(values, binary_data=True)  # the form that goes by HTTP and gRPC
    return output


def _plain(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a request's parameters as plain values, without those of the protocol itself."""
    found = {name: _plain_value(name, each) for name, each in dict(parameters or {}).items()}
    return {name: value for name, value in found.items() if name not in _OF_PROTOCOL}


def _plain_value(name: str, value: Any) -> Any:
    """Return a parameter's value, which gRPC wraps."""
    which = getattr(value, "WhichOneof", None)
    if which is None:
        return value
    choice = which("parameter_choice")
    if choice is None:
        raise OptionError(f"Parameter '{name}' has no value.")
    return getattr(value, choice)
