"""Where tokens are found, and what names lead to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphs import Builder
from ov_recipro.cut.graph import Graph
from ov_recipro.cut.points import cut_points, find_cut
from ov_recipro.cut.tokens import find_tokens
from ov_recipro.errors import ModelError, OptionError
from ov_recipro.splitting.split import open_source, split
from places import SCENE_VIT
from transformers import Form, save


def graph_of(path: Path) -> Graph:
    return open_source(path).graph


@pytest.mark.parametrize("prefix", range(6))
@pytest.mark.parametrize("grid", [(3, 4), (5, 2), (4, 4)])
def test_grid_and_prefix(prefix: int, grid: tuple[int, int], tmp_path: Path) -> None:
    form = Form(grid=grid, prefix=prefix, readout="class" if prefix else "mean")
    tokens = find_tokens(graph_of(save(tmp_path / "m.onnx", form)))
    assert tokens is not None
    assert (tokens.grid, tokens.prefix, tokens.count) == (grid, prefix, form.count)
    assert tokens.blocks == ("stream_0", "stream_1")
    assert tokens.end == (None if prefix else "stream_2")


@pytest.mark.parametrize("attention", ["operator", "heads first", "mixer", "relative"])
def test_blocks_of_every_kind(attention: str, tmp_path: Path) -> None:
    form = Form(attention=attention, prefix=0, readout="mean")  # type: ignore[arg-type]
    tokens = find_tokens(graph_of(save(tmp_path / "m.onnx", form)))
    assert tokens is not None
    assert tokens.cuts == ("stream_0", "stream_1", "stream_2")


def test_heads_that_are_as_many_as_cells(tmp_path: Path) -> None:
    """With 16 cells and 16 channels, sizes alone don't tell tokens from what was read of them."""
    for readout, end in (("class", None), ("both", "stream_2")):
        form = Form(grid=(4, 4), readout=readout)  # type: ignore[arg-type]
        tokens = find_tokens(graph_of(save(tmp_path / "m.onnx", form)))
        assert tokens is not None
        assert tokens.end == end


def test_a_convolutional_network_has_no_tokens(lite0: Path) -> None:
    assert find_tokens(graph_of(lite0)) is None


def test_attention_is_no_feature_map(tmp_path: Path) -> None:
    """Heads [1,H,T,d] that nothing bypasses have four axes, but no height and width."""
    b = Builder()
    patches = b.conv("image", 8, kernel=4, pads=[0] * 4, strides=[4, 4], output="patches")
    tokens = b.add("Transpose", b.add("Reshape", patches, b.constant([1, 8, 16], np.int64)),
                   perm=[0, 2, 1])  # fmt: skip
    projected = b.add("MatMul", tokens, b.constant(b.random.normal(size=(8, 8))))
    heads = b.add("Reshape", projected, b.constant([1, 16, 2, 4], np.int64))
    turned = b.add("Transpose", heads, perm=[0, 2, 1, 3], output="turned")
    joined = b.add("Reshape", b.add("Tanh", turned), b.constant([1, 128], np.int64))
    b.linear(joined, 128)
    graph = graph_of(b.save(tmp_path / "m.onnx"))
    assert "turned" in graph.clean_tensors
    assert [point.tensor for point in cut_points(graph)] == ["patches"]


def test_names() -> None:
    graph = graph_of(SCENE_VIT / "textures.onnx")
    points = [point for point in cut_points(graph) if point.layout == "NTC"]
    assert [point.block for point in points] == list(range(6))
    assert {(point.prefix, point.grid, point.stride) for point in points} == {(1, (10, 10), 8)}
    names = {
        "auto": 0,
        "blocks.0": 0,
        "blocks.3": 3,
        "blocks.-1": 5,
        "blocks/blocks.4": 4,
        "blocks.2/attn": 2,  # reads what its block reads
        "-1": 5,
        points[1].tensor: 1,
    }
    for name, block in names.items():
        assert find_cut(graph, name).point == points[block], name
    inside = find_cut(graph, "blocks.2/mlp").point
    assert inside.block is None
    assert inside.layout == "NTC"
    assert inside.tensor == "/blocks/blocks.2/Add_output_0"
    assert [point.next_layer for point in points] == [
        "blocks.3", "blocks.3", "blocks.4", "blocks.4", "blocks.5", None
    ]  # fmt: skip


def test_a_name_inside_a_block_leads_to_the_next_clean_tokens() -> None:
    graph = graph_of(SCENE_VIT / "textures.onnx")
    norm = "/blocks/blocks.2/norm1/LayerNormalization_output_0"
    found = find_cut(graph, norm)
    assert found.moved
    assert found.point.tensor == "/blocks/blocks.2/Add_output_0"
    exact = find_cut(graph, norm, exact=True).point
    assert (exact.layout, exact.bypass) == ("NTC", ("/blocks/blocks.1/Add_1_output_0",))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.6", "out of range: there are blocks.0 to blocks.5"),
        ("blocks.-7", "out of range"),
        ("/blocks/blocks.5/Add_1_output_0", "reads only the prefix tokens"),
        ("/norm/LayerNormalization", "reads only the prefix tokens"),
        ("logits", r"has shape 1x6, not \[1,C,H,W\] with more than one cell or \[1,101,C\]"),
    ],
)
def test_what_can_not_be_cut(layer: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        find_cut(graph_of(SCENE_VIT / "textures.onnx"), layer)


def hybrid(kind: str, path: Path) -> Path:
    """Networks that reshape maps to three axes and back, as attention in them does."""
    b = Builder(seed=4)
    x = b.add("Relu", b.conv("image", 8, strides=[2, 2]), output="early")
    flat = b.add("Reshape", x, b.constant([1, 8, 64], np.int64))
    if kind == "non-local":
        turned = b.add("Transpose", flat, perm=[0, 2, 1])
        weights = b.add("Softmax", b.add("MatMul", turned, flat), axis=-1)
        joined = b.add("Transpose", b.add("MatMul", weights, turned), perm=[0, 2, 1])
        back = b.add("Reshape", joined, b.constant([1, 8, 8, 8], np.int64))
        x = b.add("Add", x, back)
    elif kind == "squeeze and excite":
        mean = b.add("ReduceMean", flat, axes=[2], keepdims=1)
        gate = b.add("Sigmoid", b.add("Reshape", mean, b.constant([1, 8, 1, 1], np.int64)))
        x = b.add("Mul", x, gate)
    else:
        mixed = b.add("MatMul", flat, b.constant(b.random.normal(size=(64, 64)) / 8))
        x = b.add("Reshape", mixed, b.constant([1, 8, 8, 8], np.int64))
    x = b.add("Relu", b.conv(x, 8), output="late")
    b.head(x)
    return b.save(path)


@pytest.mark.parametrize("kind", ["non-local", "squeeze and excite", "flattened and back"])
def test_maps_behind_reshapes_stay_maps(kind: str, tmp_path: Path) -> None:
    graph = graph_of(hybrid(kind, tmp_path / "m.onnx"))
    assert find_cut(graph).point.tensor == "late"


def test_a_neck_behind_a_transformer(tmp_path: Path) -> None:
    """Tokens that become a feature map again are explained at that."""
    path = save(tmp_path / "m.onnx", Form(prefix=0, readout="neck"))
    assert find_cut(graph_of(path)).point.tensor == "neck"


def test_as_many_tokens_as_channels(tmp_path: Path) -> None:
    """The flattened patch embedding [1,C,HW] is not tokens, though it has their shape."""
    for form in (Form(grid=(4, 4), prefix=0, readout="mean"), Form(grid=(3, 5), prefix=1)):
        path = save(tmp_path / "m.onnx", form)
        assert split(path, tmp_path / "b.recipro", force=True).manifest.cut.tensor == "stream_0"


def test_a_grid_of_one_row(tmp_path: Path) -> None:
    tokens = find_tokens(graph_of(save(tmp_path / "m.onnx", Form(grid=(1, 6)))))
    assert tokens is not None
    assert tokens.grid == (1, 6)


def test_tokens_of_another_layout_are_refused(tmp_path: Path) -> None:
    """In [T,1,C], the tokens are not behind the batch."""
    path = save(tmp_path / "m.onnx", Form(attention="sequence first", prefix=0, readout="mean"))
    with pytest.raises(ModelError, match=r"works on tokens .*only tokens laid out \[1,T,C\]"):
        find_cut(graph_of(path))
    assert find_cut(graph_of(path), "patches").point.tensor == "patches"
