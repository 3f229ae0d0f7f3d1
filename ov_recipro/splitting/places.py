"""The proof that a model's tokens stand for the places on the image that they are taken for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.tokens import find_tokens
from ov_recipro.errors import ModelError
from ov_recipro.sources import openvino_models as openvino
from ov_recipro.sources.source import Source
from ov_recipro.splitting.proof import random_images

_OVERLAP = 1  # cells by which a stem of several convolutions may move what it sees
_ROUNDING = 1e-6  # of the largest value: what a prefix token may change by


def prove_places(source: Source, head: Path, cut: CutPoint) -> None:
    """Change the image, and single patches of it, and see which tokens change.

    This is done on the tokens in front of the first block, which have not been mixed yet.

    Args:
        source: the model.
        head: the model's part up to the cut.
        cut: the tokens that are masked.

    Raises:
        ModelError: prefix tokens depend on the image, or the others are not in the order of the
            patches, row by row.
    """
    tokens = find_tokens(source.graph)
    if tokens is None:
        raise ModelError(f"{source.path} has no tokens.")
    model = openvino.read(head, [source.image_shape])
    known = openvino.tensor_names(model)
    unmixed = tokens.streams[: tokens.streams.index(tokens.blocks[0]) + 1]
    name = next((name for name in reversed(unmixed) if name in known), None)
    if name is None:
        raise ModelError(f"{source.path}, as OpenVINO reads it, has no tokens before its blocks.")
    run = openvino.runner(openvino.keep_outputs(model, [name]))
    one, other = random_images(source.image_shape, source.image_dtype)
    first, second = (run([image])[0][0].astype(np.float64) for image in (one, other))
    changes = np.abs(first - second).max(axis=1)
    if (changes[: cut.prefix] > _ROUNDING * np.abs(first).max()).any():
        raise ModelError(
            f"{source.path}: of its {tokens.count} tokens, the first ones (prefix {cut.prefix}) "
            "should be the same for every image, but are not: they may stand for places, or the "
            "prefix may be at the end."
        )
    (height, width), axes = cut.grid, _spatial_axes(source)
    for row, column in ((0, width - 1), (height - 1, 0), (height // 2, width // 3)):
        image, area = one.copy(), [slice(None)] * 4
        for axis, place, count in zip(axes, (row, column), (height, width), strict=True):
            size = image.shape[axis]
            area[axis] = slice(place * size // count, (place + 1) * size // count)
        image[tuple(area)] = other[tuple(area)]
        found = int(np.abs(run([image])[0][0] - first).max(axis=1).argmax())
        there, across = divmod(found - cut.prefix, width)
        if max(abs(there - row), abs(across - column)) > _OVERLAP:
            raise ModelError(
                f"{source.path}: its tokens are not in the order of its patches: what changes in "
                f"row {row}, column {column} shows most in token {found}, which stands for row "
                f"{there}, column {across}."
            )


def _spatial_axes(source: Source) -> tuple[int, int]:
    graph = source.graph
    return (1, 2) if graph.image in graph.channels_last else (2, 3)
