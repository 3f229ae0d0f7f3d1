"""Tokens that do not stand for the places that they are taken for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from ov_recipro.errors import ModelError
from ov_recipro.splitting.split import split
from transformers import Form, save


def test_tokens_in_another_order_are_refused(tmp_path: Path) -> None:
    """Column by column instead of row by row, on a grid whose sizes don't show it."""
    path = save(tmp_path / "m.onnx", Form(grid=(3, 3)))
    model = onnx.load(path)
    place = next(i for i, node in enumerate(model.graph.node) if "patches" in node.input)
    model.graph.node[place].input[0] = "turned"
    turning = onnx.helper.make_node("Transpose", ["patches"], ["turned"], perm=[0, 1, 3, 2])
    model.graph.node.insert(place, turning)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="not in the order of its patches: what changes in row 0"):
        split(path, tmp_path / "b.recipro", layer="blocks.1")
    assert not (tmp_path / "b.recipro").exists()


def test_a_prefix_that_depends_on_the_image_is_refused(tmp_path: Path) -> None:
    """A mean of the image in front of the cells' tokens stands for no place, but changes."""
    path = save(tmp_path / "m.onnx", Form(prefix=2))
    model = onnx.load(path)
    (joining,) = [n for n in model.graph.node if n.op_type == "Concat"]
    patches = joining.input[1]
    mean = onnx.helper.make_node("ReduceMean", [patches], ["mean"], axes=[1])
    added = onnx.helper.make_node("Add", [joining.input[0], "mean"], ["front"])
    place = list(model.graph.node).index(joining)
    joining.input[0] = "front"
    model.graph.node.insert(place, added)
    model.graph.node.insert(place, mean)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="of its 14 tokens, the first ones"):
        split(path, tmp_path / "b.recipro")
