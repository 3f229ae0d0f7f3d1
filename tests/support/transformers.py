"""Small vision transformers as ONNX files, in the forms that exporters give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import helper

from graphs import Builder

Attention = Literal[
    "fused", "separate", "heads first", "operator", "relative", "rotary", "mixer", "sequence first"
]
Readout = Literal["class", "mean", "both", "query", "neck", "split"]


@dataclass(frozen=True)
class Form:
    """How a transformer is written down.

    Attributes:
        grid: cells of the patch embedding; patch: pixels of a cell's side.
        prefix: tokens in front; blocks: number of blocks.
        attention: queries, keys and values from one product ("fused") or three ("separate"); with
            the axis of heads as the batch, as torch's MultiheadAttention has it; as ONNX's own
            operator; with a bias for each pair of tokens ("relative") or with positions turned into
            queries and keys ("rotary"); or a product over tokens ("mixer"). "sequence first" is
            "mixer" on tokens laid out [T,1,C].
        readout: the first token, the mean over all or over both, attention with a constant query,
            a convolution on the cells' tokens as a feature map, or a split of first token and
            others, whose mean is read too.
        clipped: clip attention's weights, as 8-bit models do.
        guarded: add a mask of zeros to attention's scores and replace weights that are not numbers,
            as exports of PyTorch's attention do.
        norm_operator: LayerNormalization as one operator instead of its parts.
    """

    grid: tuple[int, int] = (3, 4)
    patch: int = 4
    prefix: int = 1
    blocks: int = 2
    attention: Attention = "fused"
    readout: Readout = "class"
    clipped: bool = False
    guarded: bool = False
    norm_operator: bool = True

    @property
    def count(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


WIDTH, HEADS = 16, 2


class _Writer(Builder):
    def __init__(self, form: Form) -> None:
        height, width = (size * form.patch for size in form.grid)
        opset = 23 if form.attention == "operator" else 17
        super().__init__((1, 3, height, width), opset=opset, seed=3)
        self.form = form

    def matrix(self, rows: int, columns: int, gain: float = 1.5) -> str:
        return self.constant(gain * self.random.normal(size=(rows, columns)) / rows**0.5)

    def dense(self, x: str, rows: int, columns: int, gain: float = 1.5) -> str:
        product = self.add("MatMul", x, self.matrix(rows, columns, gain))
        return self.add("Add", product, self.constant(0.2 * self.random.normal(size=columns)))

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def norm(self, x: str) -> str:
        gain = self.constant(1 + 0.3 * self.random.normal(size=WIDTH))
        bias = self.constant(0.3 * self.random.normal(size=WIDTH))
        if self.form.norm_operator:
            return self.add("LayerNormalization", x, gain, bias, axis=-1, epsilon=1e-6)
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1]))
        square = self.add("Pow", centred, self.constant(2.0))
        variance = self.add("ReduceMean", square, axes=[-1])
        scale = self.add("Sqrt", self.add("Add", variance, self.constant(1e-6)))
        return self.add("Add", self.add("Mul", self.add("Div", centred, scale), gain), bias)

    def heads(self, x: str) -> str:
        """[1,T,C] -> [1,heads,T,d], or [heads,T,d]."""
        count = self.form.count
        if self.form.attention == "heads first":
            rows = self.add("Transpose", x, perm=[1, 0, 2])
            rows = self.add("Reshape", rows, self.ints(count, HEADS, WIDTH // HEADS))
            return self.add("Transpose", rows, perm=[1, 0, 2])
        rows = self.add("Reshape", x, self.ints(1, count, HEADS, WIDTH // HEADS))
        return self.add("Transpose", rows, perm=[0, 2, 1, 3])

    def attended(self, x: str) -> str:
        form, count, size = self.form, self.form.count, WIDTH // HEADS
        if form.attention == "operator":
            q, k, v = (self.dense(x, WIDTH, WIDTH, gain) for gain in (2.5, 2.5, 1.5))
            mask = [self.constant(np.zeros((1, 1, count, count)))] if form.guarded else []
            joined = self.add("Attention", q, k, v, *mask, q_num_heads=HEADS, kv_num_heads=HEADS)
            return self.dense(joined, WIDTH, WIDTH)
        if form.attention == "fused":
            qkv = self.dense(x, WIDTH, 3 * WIDTH, 2.5)
            qkv = self.add("Reshape", qkv, self.ints(1, count, 3, HEADS, size))
            qkv = self.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
            index = [self.constant(i, np.int64) for i in range(3)]
            q, k, v = (self.add("Gather", qkv, i, axis=0) for i in index)
        else:
            q, k, v = (self.heads(self.dense(x, WIDTH, WIDTH, g)) for g in (2.5, 2.5, 1.5))
        if form.attention == "rotary":
            turns = self.constant(self.random.normal(size=(count, size)))
            q, k = self.add("Mul", q, turns), self.add("Mul", k, turns)
        last = [1, 0, 2] if form.attention == "heads first" else [0, 2, 1, 3]
        keys = [0, 2, 1] if form.attention == "heads first" else [0, 1, 3, 2]
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=keys))
        scores = self.add("Mul", scores, self.constant(size**-0.5))
        if form.attention == "relative":
            bias = self.random.normal(size=(HEADS, count, count))
            scores = self.add("Add", scores, self.constant(bias))
        if form.guarded:
            scores = self.add("Add", scores, self.constant(np.zeros((1, 1, count, count))))
        weights = self.add("Softmax", scores, axis=-1)
        if form.guarded:
            zero = self.constant(0.0)
            weights = self.add("Where", self.add("IsNaN", weights), zero, weights)
        if form.clipped:
            limits = [self.constant(value) for value in (0.0, 0.15)]
            weights = self.add("Clip", weights, *limits)
        joined = self.add("Transpose", self.add("MatMul", weights, v), perm=last)
        flat = self.ints(count, 1, WIDTH) if form.attention == "heads first" else None
        if flat is not None:
            rows = self.add("Reshape", joined, flat)
            joined = self.add("Transpose", rows, perm=[1, 0, 2])
        else:
            joined = self.add("Reshape", joined, self.ints(1, count, WIDTH))
        return self.dense(joined, WIDTH, WIDTH)

    def mixed(self, x: str) -> str:
        if self.form.attention == "sequence first":
            turned = self.add("Transpose", x, perm=[1, 2, 0])
            hidden = self.add("Tanh", self.dense(turned, self.form.count, 8))
            return self.add("Transpose", self.dense(hidden, 8, self.form.count), perm=[2, 0, 1])
        if self.form.attention != "mixer":
            return self.attended(x)
        turned = self.add("Transpose", x, perm=[0, 2, 1])
        hidden = self.add("Tanh", self.dense(turned, self.form.count, 8))
        return self.add("Transpose", self.dense(hidden, 8, self.form.count), perm=[0, 2, 1])

    def read_out(self, x: str) -> str:
        form = self.form
        if form.attention == "sequence first":
            return self.add("ReduceMean", x, axes=[0], keepdims=0)
        if form.readout == "neck":
            height, width = form.grid
            turned = self.add("Transpose", x, perm=[0, 2, 1])
            back = self.add("Reshape", turned, self.ints(1, WIDTH, height, width))
            self.channels[back] = WIDTH
            neck = self.add("Relu", self.conv(back, WIDTH), output="neck")
            return self.add("Flatten", self.add("GlobalAveragePool", neck))
        if form.readout == "split":
            names = ["split_first", "split_others"]
            sizes = self.ints(1, form.count - 1)
            self.nodes.append(helper.make_node("Split", [x, sizes], names, axis=1))
            mean = self.add("ReduceMean", names[1], axes=[1], keepdims=1)
            both = self.add("Concat", names[0], mean, axis=2)
            return self.add("Reshape", both, self.ints(1, 2 * WIDTH))
        first = self.add("Gather", x, self.constant(0, np.int64), axis=1)
        if form.readout == "class":
            return first
        if form.readout == "query":
            keys = self.add("Transpose", self.dense(x, WIDTH, WIDTH), perm=[0, 2, 1])
            query = self.constant(self.random.normal(size=(1, 1, WIDTH)))
            weights = self.add("Softmax", self.add("MatMul", query, keys), axis=-1)
            pooled = self.add("MatMul", weights, self.dense(x, WIDTH, WIDTH))
            return self.add("Reshape", pooled, self.ints(1, WIDTH))
        ends = [self.ints(n) for n in (form.prefix, form.count, 1)]
        patches = self.add("Slice", x, *ends) if form.prefix else x
        if self.opset >= 18:
            mean = self.add("ReduceMean", patches, self.ints(1), keepdims=0)
        else:
            mean = self.add("ReduceMean", patches, axes=[1], keepdims=0)
        return mean if form.readout == "mean" else self.add("Concat", first, mean, axis=1)


def save(path: Path, form: Form = Form()) -> Path:
    """Write a transformer with random weights; the tokens that block k reads are "stream_k"."""
    b = _Writer(form)
    cells = form.grid[0] * form.grid[1]
    patches = b.conv(
        "image", WIDTH, kernel=form.patch, pads=[0] * 4, strides=[form.patch] * 2, output="patches"
    )
    x = b.add("Reshape", patches, b.ints(1, WIDTH, cells))
    x = b.add("Transpose", x, perm=[0, 2, 1])
    if form.prefix:
        front = b.constant(b.random.normal(size=(1, form.prefix, WIDTH)))
        x = b.add("Concat", front, x, axis=1)
    if form.attention == "sequence first":
        x = b.add("Transpose", x, perm=[1, 0, 2])
    positions = b.constant(0.7 * b.random.normal(size=(1, form.count, WIDTH)))
    if form.attention == "sequence first":
        positions = b.add("Transpose", positions, perm=[1, 0, 2])
    x = b.add("Add", x, positions, output="stream_0")
    for number in range(form.blocks):
        x = b.add("Add", x, b.mixed(b.norm(x)), output=f"middle_{number}")
        hidden = b.add("Tanh", b.dense(b.norm(x), WIDTH, 2 * WIDTH))
        x = b.add("Add", x, b.dense(hidden, 2 * WIDTH, WIDTH), output=f"stream_{number + 1}")
    width = 2 * WIDTH if form.readout in ("both", "split") else WIDTH
    b.linear(b.read_out(b.norm(x)), width)
    return b.save(path)
