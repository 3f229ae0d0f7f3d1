"""What a client asks: read from the bytes of a request, and checked."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from ov_recipro.cut.bundle import ImageInput
from ov_recipro.errors import OptionError
from ov_recipro.images.reading import ImageFile, decode_file
from ov_recipro.limits import SERVED_PIXELS
from ov_recipro.options import Targets
from ov_recipro.saliency import Array

MAX_IMAGES = 32
"""How many images a request may hold to be explained, and as many to compare them with."""

_NAME = "the image"

Kind = TypeVar("Kind")
Part = Literal["maps", "raw", "overlay", "verification"]


class Encoded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bytes of an image file, in base64."""

    b64: str

    def decoded(self) -> ImageFile:
        """Return the image.

        Raises:
            OptionError: it is not base64.
            ImageError: it is not an image, a truncated one, or too large.
        """
        try:
            data = base64.b64decode(self.b64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise OptionError(f"'b64' is not base64: {error}.") from error
        return image_from(data)


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of a request: fields of `options.Targets`, and what the answer holds.

    Attributes:
        targets: classes by name or index, or "top1", "top5", ...; one or several.
        top_k: short for the target "topK".
        similar_to, unlike, centre: images.
        include: what an answer holds of each target: its map ("maps"), the scores before scaling
            ("raw"), a PNG of the image with heat ("overlay"), a verdict ("verification").
    """

    targets: str | int | list[str | int] | None = None
    top_k: int | None = None
    against: str | int | None = None
    gamma: float = Targets.gamma
    similar_to: tuple[Encoded, ...] = ()
    unlike: tuple[Encoded, ...] = ()
    centre: tuple[Encoded, ...] = ()
    region: tuple[float, float, float, float] | None = None
    pixel: tuple[float, float] | None = None
    position: int | None = None
    box: str | int | tuple[float, float, float, float] | None = None
    threshold: float = Targets.threshold
    nms: float = Targets.nms
    include: tuple[Part, ...] = ("maps",)

    def as_targets(self) -> Targets:
        """Return what is asked; its images are decoded one by one, when they are drawn.

        Raises:
            OptionError: parameters contradict each other, or there are too many images.
        """
        if self.top_k is not None and (self.targets is not None or self.top_k < 1):
            raise OptionError("'top_k' must be at least 1 and can't be combined with 'targets'.")
        count = len(self.similar_to) + len(self.unlike) + len(self.centre)
        if count > MAX_IMAGES:
            raise OptionError(f"A request compares with at most {MAX_IMAGES} images, not {count}.")
        given = self.targets if self.top_k is None else f"top{self.top_k}"
        if given is None:
            given = list(Targets.classes)
        return Targets(
            classes=(given,) if isinstance(given, str | int) else tuple(given),
            against=self.against,
            gamma=self.gamma,
            similar_to=_decoded(self.similar_to),
            unlike=_decoded(self.unlike),
            centre=_decoded(self.centre),
            region=self.region,
            pixel=self.pixel,
            position=self.position,
            box=self.box,
            threshold=self.threshold,
            nms=self.nms,
        )


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request of protocol V1.

    Attributes:
        instances: images, each {"b64": ...} or a tensor as nested lists, without the batch axis.
        parameters: what is asked about all of them.
        signature_name: of the protocol; it says nothing here.
    """

    instances: list[Any]
    parameters: Parameters = Parameters()
    signature_name: str | None = None


def read_body(data: bytes) -> Body:
    """Return a request of protocol V1 from its JSON.

    Raises:
        OptionError: it is not one.
    """
    try:
        body = msgspec.json.decode(data, type=Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError(f"The request can't be read: {error}.") from error
    if not 1 <= len(body.instances) <= MAX_IMAGES:
        raise OptionError(
            f"A request takes 1 to {MAX_IMAGES} instances; this one has {len(body.instances)}."
        )
    return body


def read_parameters(parameters: Mapping[str, Any]) -> Parameters:
    """Return the parameters of a request of the Open Inference Protocol.

    Its values are plain: lists are written as JSON.

    Raises:
        OptionError: they are not valid.
    """
    values = dict(parameters)
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("["):
            try:
                values[name] = msgspec.json.decode(value)
            except msgspec.DecodeError as error:
                raise OptionError(f"Parameter '{name}' is not valid JSON: {error}.") from error
    return _converted(values, Parameters, "The parameters")


def read_instance(instance: Any, entry: ImageInput) -> ImageFile | Array:
    """Return an image, or a model's input with its batch axis.

    Args:
        instance: see `Body`.
        entry: the model's input.

    Raises:
        OptionError: it is neither.
        ImageError: see `Encoded.decoded`.
    """
    if isinstance(instance, dict):
        return _converted(instance, Encoded, "An instance").decoded()
    try:
        return np.asarray(instance, np.dtype(entry.dtype))[None]
    except (ValueError, TypeError, OverflowError) as error:
        shape = list(entry.shape[1:])
        raise OptionError(
            f'An instance is neither {{"b64": ...}} nor numbers of shape {shape}.'
        ) from error


def image_from(data: bytes) -> ImageFile:
    """Return the image in the bytes of a file.

    Raises:
        ImageError: it is not an image, a truncated one, or too large.
    """
    return decode_file(data, _NAME, SERVED_PIXELS)


def in_parameters(text: str) -> str:
    """Return an error's text with options of the command line called by their parameters' names."""

    def renamed(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return f"'{name}'" if name in {each.name for each in fields(Targets)} else found[0]

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", renamed, text)


def _decoded(images: tuple[Encoded, ...]) -> Iterable[ImageFile]:
    return map(Encoded.decoded, images) if images else ()


def _converted(value: Any, kind: type[Kind], subject: str) -> Kind:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise OptionError(f"{subject} can't be read: {error}.") from error
