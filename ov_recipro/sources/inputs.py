"""A model's inputs: which is the image, what shape it has, and what the others hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.cut.graph import Shape
from ov_recipro.errors import ModelError, OptionError
from ov_recipro.options import Constants
from ov_recipro.sources import ultralytics


@dataclass(frozen=True)
class Input:
    """A model input.

    Attributes:
        name: its name.
        sizes: its shape, None where a size is open; None where not even the rank is known.
    """

    name: str
    sizes: Sequence[int | None] | None


def choose_image(inputs: Sequence[Input], constants: Constants, path: Path) -> int:
    """Return the position of the image: the one 4-D input that has no constant value.

    Raises:
        ModelError: there is no such input, or more than one.
        OptionError: a constant is for no input, or another input has no value.
    """
    known = [each.name for each in inputs]
    for name in constants:
        if name not in known:
            raise OptionError(f"{path} has no input '{name}'; it has: {', '.join(known)}.")
    variable = [i for i, each in enumerate(inputs) if each.name not in constants]
    images = [i for i in variable if inputs[i].sizes is None or len(inputs[i].sizes or ()) == 4]
    if len(images) > 1:
        images = [i for i in images if _is_picture(inputs[i].sizes)]
    if len(images) != 1:
        listed = ", ".join(f"'{each.name}' {_shape_text(each)}" for each in inputs) or "none"
        raise ModelError(f"{path}: expected one 4-D image input, found: {listed}.")
    if len(variable) > 1:
        others = ", ".join(f"--const {inputs[i].name}=VALUE" for i in variable if i != images[0])
        raise OptionError(
            f"{path}: input '{inputs[images[0]].name}' is the image; give the others values with "
            f"{others}."
        )
    return images[0]


def image_shape(
    image: Input, asked: Sequence[int] | None, path: Path, metadata: Mapping[str, str]
) -> Shape:
    """Return the image's shape at batch 1: the file's, filled in with what the user asked.

    Args:
        image: the input.
        asked: the shape that the user asked for; without it, an Ultralytics export whose height
            and width are open gets those that it was exported for.
        path: the file; metadata: what it says about itself.

    Raises:
        OptionError: the two shapes contradict each other, or a size is open.
        ModelError: there is no axis of 3 colours.
    """
    known: list[int | None] = [None] * 4 if image.sizes is None else list(image.sizes)
    wanted: list[int | None] = [None] * 4 if asked is None else list(asked)
    if asked is None and None in known[2:]:
        export = ultralytics.find_export(metadata, path)
        if export is not None and export.size is not None:
            sides = zip(known[2:], export.size, strict=True)
            wanted[2:] = [size if side is None else None for side, size in sides]
    if len(wanted) != 4:
        raise OptionError("The input shape must have four numbers, as in 1,3,224,224.")
    known[0] = wanted[0] = 1
    pairs = list(zip(known, wanted, strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise OptionError(f"{path}: input '{image.name}' is {_shape_text(image)}, not {wanted}.")
    shape = tuple(size for size in (k if w is None else w for k, w in pairs) if size is not None)
    if len(shape) < 4:
        raise OptionError(
            f"{path}: input '{image.name}' has the open shape {_shape_text(image)}; specify it "
            "with --input-shape, as in --input-shape 1,3,224,224."
        )
    if 3 not in (shape[1], shape[3]):
        raise ModelError(
            f"{path}: input '{image.name}' of shape {list(shape)} has no axis of 3 colours."
        )
    return shape


def constant_value(entry: Input, constants: Constants) -> npt.NDArray[Any]:
    """Return an input's value: its constant throughout its shape, open sizes taken as 1."""
    shape = [1 if size is None else size for size in entry.sizes or ()]
    return np.full(shape, constants[entry.name])


def _is_picture(sizes: Sequence[int | None] | None) -> bool:
    """Whether there is an axis of three colours, and more than one pixel."""
    return sizes is not None and 3 in (sizes[1], sizes[3]) and sizes.count(1) < 3 and sizes[2] != 1


def _shape_text(entry: Input) -> str:
    if entry.sizes is None:
        return "of unknown rank"
    return f"[{','.join('?' if size is None else str(size) for size in entry.sizes)}]"
