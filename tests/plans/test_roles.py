"""Rules of the plan `tokens`, one operation at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from ov_recipro.plans.nodes import key_of
from ov_recipro.plans.tokens.roles import Counts, PerMask, PerToken, Role, roles_of
from ov_recipro.plans.verdict import PlanRefused

Make = Callable[[ov.Node], ov.Node]
COUNTS = Counts(tokens=13, prefix=2)


def roles(make: Make) -> list[Role]:
    """Return the roles of what an operation makes of tokens [1,13,16]."""
    tokens = ops.parameter([1, 13, 16], np.float32)
    node = make(tokens)
    model = ov.Model([ops.result(port) for port in node.outputs()], [tokens])
    found = roles_of(model.get_ordered_ops(), key_of(tokens.output(0)), COUNTS)[1]
    return [found[key_of(port)] for port in node.outputs()]


def strided(
    starts: list[int], stops: list[int], **masks: list[int]
) -> Callable[[ov.Node], ov.Node]:
    """Return a StridedSlice; `masks` are its masks, by their names without "_mask"."""
    given = {"begin": [0] * len(starts), "end": [0] * len(starts), **masks}
    names = ("begin", "end", "new_axis", "shrink_axis", "ellipsis")
    settings = {f"{name}_mask": given.get(name, []) for name in names}
    return lambda x: ops.strided_slice(x, starts, stops, [1] * len(starts), **settings)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: ops.gather(x, np.int64(1), np.int64(1)), [PerMask((1,))]),
        (lambda x: ops.gather(x, numbers(0, -12), np.int64(1)), [PerMask((0, 1))]),
        (strided([0, 0], [1, 1], begin=[1, 0], end=[1, 0], shrink_axis=[0, 1]), [PerMask((0,))]),
        (strided([0, 2], [1, 13], begin=[1, 0], end=[1, 1]), [PerToken(1, 2)]),
        (lambda x: ops.slice(x, [2], [99], [1], [1]), [PerToken(1, 2)]),
        (lambda x: ops.slice(x, [0], [8], [1], [2]), [PerToken(1)]),
        (
            lambda x: ops.variadic_split(x, np.int64(1), numbers(1, 1, 11)),
            [PerMask((0,)), PerMask((1,)), PerToken(1, 2)],
        ),
        (lambda x: ops.split(x, np.int64(2), 2), [PerToken(1)] * 2),
        (lambda x: ops.transpose(x, numbers(1, 0, 2)), [PerToken(0)]),
        (lambda x: ops.reshape(x, numbers(1, 13, 4, 4), False), [PerToken(1)]),
        (lambda x: ops.reduce_mean(x, numbers(1), False), [PerMask()]),
        (lambda x: ops.reduce_mean(x, numbers(2), False), [PerToken(1)]),
        (lambda x: ops.add(x, np.ones((1, 13, 16), np.float32)), [PerToken(1)]),
    ],
)
def test_rules(make: Make, expected: list[Role]) -> None:
    assert roles(make) == expected


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: ops.gather(x, np.int64(5), np.int64(1)), "reads single cells"),
        (strided([0, 7], [1, 8], shrink_axis=[0, 1]), "reads tokens 7 to 7"),
        (strided([0], [1], ellipsis=[1]), "not a slice along one axis"),
        (lambda x: ops.slice(x, [0], [13], [2], [1]), "not a slice along one axis"),
        (lambda x: ops.variadic_split(x, np.int64(1), numbers(6, 7)), "reads tokens 0 to 5"),
        (lambda x: ops.reshape(x, numbers(1, 208), False), "joins tokens with something else"),
        (lambda x: ops.reduce_mean(x, numbers(1, 2), False), "not covered"),
        (lambda x: ops.cum_sum(x, np.int64(1)), "may tell tokens apart"),
        (
            lambda x: ops.add(x, np.arange(13, dtype=np.float32).reshape(1, 13, 1)),
            "a constant for each token",
        ),
        (lambda x: ops.matmul(x, np.ones((1, 13, 3), np.float32), True, False), "mixes tokens"),
    ],
)
def test_what_tells_tokens_apart(make: Make, reason: str) -> None:
    with pytest.raises(PlanRefused, match=reason):
        roles(make)
