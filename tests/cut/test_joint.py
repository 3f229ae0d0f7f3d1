"""Joint cuts: the maps at which a detector's levels part, found in graphs alone."""

from __future__ import annotations

import pytest

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.detectors import find_layout
from ov_recipro.cut.graph import Graph, Node
from ov_recipro.cut.joint import joint_points
from ov_recipro.cut.points import find_cut
from ov_recipro.errors import OptionError

SHAPES = {
    "image": (1, 3, 64, 64),
    "c3": (1, 8, 8, 8),
    "c4": (1, 8, 4, 4),
    "c5": (1, 8, 2, 2),
    "up5": (1, 8, 4, 4),
    "p4": (1, 8, 4, 4),
    "up4": (1, 8, 8, 8),
    "p3": (1, 8, 8, 8),
    **{f"head{n}": (1, 7, s, s) for n, s in ((3, 8), (4, 4), (5, 2))},
    **{f"flat{n}": (1, 7, s * s) for n, s in ((3, 8), (4, 4), (5, 2))},
    "scores": (1, 7, 84),
}


def node(op: str, inputs: str, output: str) -> Node:
    return Node(output, op, tuple(inputs.split()), (output,))


def pyramid(upsample: str = "Resize") -> Graph:
    """Three levels, a top-down path, and a head for each."""
    nodes = [
        node("Conv", "image", "c3"),
        node("Conv", "c3", "c4"),
        node("Conv", "c4", "c5"),
        node(upsample, "c5", "up5"),
        node("Add", "c4 up5", "p4"),
        node(upsample, "p4", "up4"),
        node("Add", "c3 up4", "p3"),
        node("Conv", "p3", "head3"),
        node("Conv", "p4", "head4"),
        node("Conv", "c5", "head5"),
        *(node("Reshape", f"head{n}", f"flat{n}") for n in (3, 4, 5)),
        node("Concat", "flat3 flat4 flat5", "scores"),
    ]
    return Graph(
        tuple(nodes), "image", "scores", "none", "scores", SHAPES, task="detector", boxes=layout()
    )


def layout() -> BoxLayout:
    found = find_layout({"scores": (1, 7, 84)}, (64, 64))
    assert found is not None
    return found


@pytest.mark.parametrize("upsample", ["Resize", "ConvTranspose", "Interpolate"])
def test_the_backbones_maps_are_masked_together(upsample: str) -> None:
    first, coarse, fine, *neck = joint_points(pyramid(upsample))
    assert first.masked == ("c4", "c5", "c3")
    assert (first.grid, coarse.grid, fine.grid) == ((4, 4), (2, 2), (8, 8))
    assert all(set(each.masked) == {"c3", "c4", "c5"} for each in (first, coarse, fine))
    assert all(set(each.masked) == {"p3", "p4", "c5"} for each in neck)
    assert all(each.clean for each in (first, coarse, fine, *neck))


def test_the_default_is_the_second_coarsest() -> None:
    found = find_cut(pyramid())
    assert found.point.masked == ("c4", "c5", "c3")
    assert not found.moved


def test_named_with_commas_or_by_index() -> None:
    graph = pyramid()
    assert find_cut(graph, "c3,c4,c5").point.grid == (8, 8)
    assert find_cut(graph, "1").point.masked == ("c5", "c4", "c3")


def test_maps_that_do_not_cut_the_model_are_refused() -> None:
    with pytest.raises(OptionError, match=r"not a clean cut \(bypassed by c3\)"):
        find_cut(pyramid(), "c4,c5")
    point = find_cut(pyramid(), "c4,c5", exact=True).point
    assert point.boundary == ("c4", "c5", "c3")


def test_nested_maps_are_each_masked() -> None:
    """c4 is made from c3; with both masked, nothing of c3 reaches the tail through c4."""
    graph = pyramid()
    assert graph.bypass("c3", "c4", "c5") == ()
    assert graph.bypass("c3", "c5") == ()  # the tail makes c4 of the masked c3
    assert graph.bypass("c4") == ("c3",)


def test_without_enlarging_the_heads_maps_are_taken() -> None:
    nodes = [
        node("Conv", "image", "c3"),
        node("Conv", "c3", "c4"),
        node("Conv", "c3", "head3"),
        node("Conv", "c4", "head4"),
        node("Conv", "c4", "more"),
        node("Reshape", "head3", "flat3"),
        node("Reshape", "head4", "flat4"),
        node("Reshape", "more", "flat5"),
        node("Concat", "flat3 flat4 flat5", "scores"),
    ]
    shapes = {**SHAPES, "more": (1, 7, 4, 4)}
    graph = Graph(tuple(nodes), "image", "scores", "none", "scores", shapes, task="detector")
    assert {each.masked for each in joint_points(graph)} == {("c3", "c4"), ("c4", "c3")}


def test_other_models_have_no_joint_cut_by_themselves() -> None:
    graph = pyramid()
    classifier = Graph(graph.nodes, "image", "scores", "none", "scores", SHAPES)
    assert not any(point.joined for point in [find_cut(classifier).point])
