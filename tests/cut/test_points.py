"""Which tensors cut a graph, and what `--layer` leads to."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphs import Builder, residual
from ov_recipro.cut.graph import Graph, Node
from ov_recipro.cut.points import cut_points, find_cut
from ov_recipro.errors import ReciproError
from ov_recipro.splitting.split import open_source


def graph(*nodes: tuple[str, str, str], scores: str = "y") -> Graph:
    """Build a graph of ("op", "inputs", "outputs") with one-letter names."""
    made = tuple(
        Node(name=outputs, op=op, inputs=tuple(inputs), outputs=tuple(outputs))
        for op, inputs, outputs in nodes
    )
    shapes = {name: (1, 2, 4, 4) for node in made for name in node.outputs}
    return Graph(made, "x", scores, "none", scores, {**shapes, "x": (1, 3, 8, 8)})


def test_every_tensor_of_a_chain_is_clean() -> None:
    chain = graph(("Conv", "x", "a"), ("Relu", "a", "b"), ("Gemm", "b", "y"))
    assert chain.clean_tensors == ("x", "a", "b", "y")


def test_tensors_inside_a_residual_block_are_not_clean() -> None:
    block = graph(("Conv", "x", "a"), ("Conv", "a", "b"), ("Add", "ab", "c"), ("Gemm", "c", "y"))
    assert block.clean_tensors == ("x", "a", "c", "y")
    assert block.bypass("b") == ("a",)
    assert block.bypass("c") == ()


def test_branches_are_not_clean_and_their_join_is() -> None:
    split = graph(("Conv", "x", "a"), ("Conv", "x", "b"), ("Concat", "ab", "c"), ("Gemm", "c", "y"))
    assert split.clean_tensors == ("x", "c", "y")
    assert split.bypass("a") == ("b",)


def test_both_outputs_of_one_node_bypass_each_other() -> None:
    both = graph(
        ("Split", "x", "ab"), ("Conv", "a", "c"), ("Concat", "cb", "d"), ("Gemm", "d", "y")
    )
    assert both.clean_tensors == ("x", "d", "y")
    assert both.bypass("a") == ("b",)


def test_reading_only_the_shape_goes_round_nothing() -> None:
    shape = graph(("Shape", "x", "s"), ("Conv", "x", "a"), ("Reshape", "as", "y"))
    assert shape.clean_tensors == ("x", "a", "y")


def test_dead_branches_do_not_count() -> None:
    dead = graph(("Conv", "x", "a"), ("Conv", "x", "b"), ("Gemm", "a", "y"))
    assert dead.clean_tensors == ("x", "a", "y")


def test_bypass_of_a_dense_connection_carries_all_earlier_features() -> None:
    dense = graph(
        ("Conv", "x", "a"),
        ("Conv", "a", "b"),
        ("Concat", "ab", "c"),
        ("Conv", "c", "d"),
        ("Concat", "cd", "e"),
        ("Gemm", "e", "y"),
    )
    assert dense.bypass("b") == ("a",)
    assert dense.bypass("d") == ("c",)


def test_auto_is_the_last_clean_feature_map(tmp_path: Path) -> None:
    cut = find_cut(open_source(residual(tmp_path / "m.onnx")).graph)
    assert cut.point.tensor == "block"
    assert cut.point.shape == (4, 8, 8)
    assert cut.point.stride == 2


def test_a_leaky_convolution_moves_to_the_end_of_its_block(tmp_path: Path) -> None:
    found = open_source(residual(tmp_path / "m.onnx")).graph
    moved = find_cut(found, "b")
    assert (moved.named, moved.point.tensor, moved.moved) == ("b", "sum", True)
    exact = find_cut(found, "b", exact=True)
    assert (exact.point.tensor, exact.point.bypass) == ("b", ("stem_relu",))


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [
        ("stem", "stem"),
        ("/stem", "stem"),
        ("st*_relu", "stem_relu"),
        ("-1", "block"),
        ("0", "stem"),
        ("+1", "stem_relu"),
        ("conv1", "block"),
    ],
)
def test_forms_of_a_layer(layer: str, tensor: str, tmp_path: Path) -> None:
    assert find_cut(open_source(residual(tmp_path / "m.onnx")).graph, layer).point.tensor == tensor


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("stemm", "Did you mean stem"),
        ("relu", "ambiguous"),
        ("99", "out of range"),
        ("conv5", "stride 32"),
        ("scores", "no spatial grid"),
    ],
)
def test_layers_that_lead_nowhere(layer: str, message: str, tmp_path: Path) -> None:
    b = Builder()
    first = b.add("Relu", b.conv("image", 4, output="stem"), output="one/relu")
    b.head(b.add("Relu", b.conv(first, 4), output="two/relu"))
    found = open_source(b.save(tmp_path / "m.onnx")).graph
    with pytest.raises(ReciproError, match=message):
        find_cut(found, layer)


def test_modules_of_both_exporters_name_their_last_feature_map(tmp_path: Path) -> None:
    b = Builder()
    first = b.add("Relu", b.conv("image", 4, output="body/one/conv"), output="body/one/relu")
    b.head(b.add("Relu", b.conv(first, 4, output="body/two/conv"), output="body/two/relu"))
    path = b.save(tmp_path / "m.onnx")
    assert find_cut(open_source(path).graph, "body/one").point.tensor == "body/one/relu"
    assert find_cut(open_source(path).graph, "body").point.tensor == "body/two/relu"
    import onnx

    model = onnx.load(path)
    for node, scope in zip(model.graph.node, ["l.0", "l.0", "l.1", "l.1"], strict=False):
        entry = node.metadata_props.add()
        entry.key = "pkg.torch.onnx.name_scopes"
        entry.value = f"['', 'l', '{scope}', 'x']"
    onnx.save(model, path)
    assert find_cut(open_source(path).graph, "l.0").point.tensor == "body/one/relu"


def test_an_index_is_no_suffix(lite0: Path) -> None:
    found = open_source(lite0).graph
    assert find_cut(found, "0").point.tensor == cut_points(found)[0].tensor


def test_stages_of_the_resnet_paper(lite0: Path) -> None:
    found = open_source(lite0).graph
    grids = [find_cut(found, f"conv{i}").point.grid for i in range(1, 6)]
    assert grids == [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)]
    assert find_cut(found, "conv5").point.tensor == find_cut(found).point.tensor


def test_cut_points_are_clean_tensors_and_convolutions(lite0: Path) -> None:
    points = cut_points(open_source(lite0).graph)
    assert all(point.clean or point.op == "Conv" for point in points)
    assert {point.grid for point in points} == {(n, n) for n in (112, 56, 28, 14, 7)}
