"""Where segmentations and sequences are cut by default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphs import Builder
from ov_recipro import split
from ov_recipro.splitting.split import open_source


def decoder(folder: Path, skip: bool) -> Path:
    """An encoder of strides 4 and 8 and a decoder, which may read the finer map too."""
    b = Builder(shape=(1, 3, 32, 32))
    fine = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="fine")
    coarse = b.add("Relu", b.conv(fine, 6, strides=[2, 2]), output="coarse")
    deep = b.add("Relu", b.conv(coarse, 6), output="deep")
    x = b.add("Resize", b.conv(deep, 4, output="last"), "", b.constant([1, 1, 2, 2]), mode="linear")
    if skip:
        x = b.add("Add", x, fine)
        b.channels[x] = 4
    b.conv(b.add("Relu", b.conv(x, 4)), 3, output="scores")
    return b.save(folder / "m.onnx")


@pytest.mark.parametrize("skip", [False, True])
def test_a_segmentation_is_cut_before_it_is_enlarged(skip: bool, tmp_path: Path) -> None:
    cut = split(decoder(tmp_path, skip), tmp_path / "b").manifest.cut
    assert (cut.tensor, cut.grid) == ("last", (4, 4))
    assert cut.bypass == (("fine",) if skip else ())


def test_without_enlarging_two_convolutions_stay_behind(tmp_path: Path) -> None:
    b = Builder(shape=(1, 3, 32, 32))
    x = b.add("Relu", b.conv("image", 4, strides=[4, 4]), output="stem")
    x = b.add("Relu", b.conv(x, 6), output="inner")
    b.conv(b.add("Relu", b.conv(x, 6), output="outer"), 3, kernel=1, output="scores")
    assert split(b.save(tmp_path / "m.onnx"), tmp_path / "b").manifest.cut.tensor == "inner"


def test_a_sequence_is_cut_where_there_is_a_height(tmp_path: Path) -> None:
    b = Builder(shape=(1, 3, 16, 32))
    x = b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="tall")
    x = b.conv(x, 6, kernel=3, strides=[2, 2], output="lower")
    x = b.add("AveragePool", x, kernel_shape=[4, 1], output="flat")
    x = b.add("Relu", b.conv(x, 6), output="one")
    x = b.conv(x, 7, kernel=1, output="two")
    x = b.add("Transpose", b.add("Reshape", x, b.constant([1, 7, 8], np.int64)), perm=[0, 2, 1])
    b.add("Softmax", x, axis=2, output="scores")
    path = b.save(tmp_path / "m.onnx")
    assert open_source(path).graph.task == "sequence"
    assert split(path, tmp_path / "b").manifest.cut.tensor == "lower"
