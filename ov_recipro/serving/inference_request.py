"""Requests of the Open Inference Protocol, with or without binary tensors behind their JSON.

KServe's SDK decodes these, too, but it turns tensors into lists, takes bytes for UTF-8, which an
image file is not, and does so between other requests.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ov_recipro.errors import OptionError
from ov_recipro.serving.sdk import InferInput, InferRequest, RequestedOutput

_Parameters = dict[str, str | int | float | bool]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = {}
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = {}


class _Header(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: _Parameters = {}
    outputs: list[_Output] = []


def read_inference_request(body: bytes, length: str | None, model_name: str) -> InferRequest:
    """Return a request.

    Args:
        body: JSON, and behind it the tensors.
        length: of the JSON, as its header says; all of the body by default.
        model_name: of the model.

    Raises:
        OptionError: it is malformed.
    """
    if length is not None and not (length.isdecimal() and int(length[:12]) <= len(body)):
        raise OptionError(
            f"Inference-Header-Content-Length is {length[:12]}, but the body has {len(body)} bytes."
        )
    end = len(body) if length is None else int(length)
    try:
        header = msgspec.json.decode(body[:end], type=_Header)
        header.id.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise OptionError(f"The request can't be read: {error}.") from error
    inputs = []
    for each in header.inputs:
        if each.data is not None:
            inputs.append(
                InferInput(each.name, each.shape, each.datatype, each.data, each.parameters)
            )
            continue
        count = each.parameters.get("binary_data_size")
        if not isinstance(count, int) or not 0 <= count <= len(body) - end:
            raise OptionError(
                f"Input '{each.name}' has no 'data', and its 'binary_data_size' is not the number "
                "of bytes behind the JSON."
            )
        given = InferInput(each.name, each.shape, each.datatype, None, each.parameters)
        given._raw_data = body[end : end + count]  # as the SDK itself keeps it
        end += count
        inputs.append(given)
    return InferRequest(
        model_name=model_name,
        infer_inputs=inputs,
        request_id=header.id,
        parameters=header.parameters,
        request_outputs=[RequestedOutput(each.name, each.parameters) for each in header.outputs],
    )
