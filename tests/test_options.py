"""Options are spelled once: short forms, whole objects and the command line mean the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from graphs import residual
from ov_recipro import Cut, Explainer, Running, split
from ov_recipro.cli.option_groups import helps
from ov_recipro.options import cut_and_running_from, cut_from


def test_short_and_long_forms_are_the_same() -> None:
    long = Cut("conv5", exact=True, output_name="scores", input_shape=(1, 3, 8, 8))
    assert cut_from(long, {}) == long
    shape = (1, 3, 8, 8)
    new = {"exact": True, "output_name": "scores", "input_shape": shape}
    assert cut_from("conv5", new) == long
    old = {"exact": True, "output": "scores", "image_shape": shape}  # spelled as before
    assert cut_from("conv5", old) == long
    assert cut_from(long, {"exact": False}) == dataclasses.replace(long, exact=False)
    cut, running = cut_and_running_from("auto", "GPU", {"plan": "stream", "exact": True})
    assert (cut, running) == (Cut(exact=True), Running("GPU", plan="stream"))


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'plan'"):
        cut_from("auto", {"plan": "rows"})
    with pytest.raises(TypeError, match="multiple values for keyword argument 'output_name'"):
        cut_from("auto", {"output": "a", "output_name": "b"})
    assert cut_from("auto", {"constants": None}) == Cut()
    with pytest.raises(TypeError, match="unexpected keyword argument 'devise'"):
        Explainer(devise="CPU")


def test_an_explainer_takes_both_forms(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    image = np.full((16, 16, 3), 90, np.uint8)
    short = Explainer(path, layer="block", device="CPU", plan="stream")
    long = Explainer(path, layer=Cut("block"), device=Running(plan="stream"))
    assert short.running == long.running
    assert short(image).id == long(image).id
    exact = split(path, tmp_path / "a.recipro", layer="b", exact=True).manifest
    assert exact == split(path, tmp_path / "b.recipro", layer=Cut("b", exact=True)).manifest


@pytest.mark.parametrize("kind", [Cut, Running])
def test_every_option_says_what_it_does(kind: type[Cut] | type[Running]) -> None:
    texts = helps(kind)
    assert texts.keys() == {field.name for field in dataclasses.fields(kind)}
    assert all(text[0].isupper() and text.endswith(".") for text in texts.values())
