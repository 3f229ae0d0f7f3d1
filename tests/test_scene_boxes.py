"""Where maps of the bundled detector's boxes point, on scenes whose evidence is known."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from boxes import SCENE_MODEL, make_scenes, tool
from ov_recipro import Explainer
from ov_recipro.methods import BOX_METHODS, Subject

measure_scene_boxes = tool("measure_scene_boxes")


@pytest.fixture(scope="module")
def hits() -> dict[str, list[Any]]:
    subject = Subject(Explainer(SCENE_MODEL))
    found: dict[str, list[Any]] = {}
    for names, scenes in ((("recipro", "gauss-in-box", "random"), 40), (("occlusion",), 6)):
        maps = {name: partial(BOX_METHODS[name], subject) for name in names}
        for scene in measure_scene_boxes.judged(subject, maps, make_scenes(scenes)):
            for name, each in scene.items():
                found.setdefault(name, []).extend(each)
    return found


def share(hits: list[Any], kind: str) -> float:
    return float(np.mean([value for each in hits if (value := getattr(each, kind)) is not None]))


def test_maps_point_at_the_right_object(hits: dict[str, list[Any]]) -> None:
    assert len(hits["recipro"]) > 60
    for name in ("recipro", "occlusion"):
        assert share(hits[name], "instance") >= 0.95
        assert share(hits[name], "other") <= 0.02
    assert share(hits["random"], "instance") < 0.5


def test_dropping_cells_shows_the_context(hits: dict[str, list[Any]]) -> None:
    """The cue outside the box decides the class: a map of the model finds it, a drawn one not."""
    assert sum(each.cue is not None for each in hits["recipro"]) >= 20
    assert share(hits["recipro"], "cue") > 0.8
    for control in ("gauss-in-box", "random"):
        assert share(hits[control], "cue") < 0.1


def test_dropping_cells_shows_the_part(hits: dict[str, list[Any]]) -> None:
    assert share(hits["recipro"], "part") > 0.4
    assert share(hits["gauss-in-box"], "part") == 0


def test_judging() -> None:
    scenes = tool("detector_scenes")
    thing = scenes.SceneObject(4, (40, 40, 80, 80), context=(100, 40, 110, 50))
    other = scenes.SceneObject(0, (0, 100, 40, 140))
    target = type("Target", (), {"edges": (40.0, 40.0, 80.0, 80.0)})()
    found = measure_scene_boxes.Found(thing, (other,), target)

    def judged(x: int, y: int, far: tuple[int, int]) -> Any:
        saliency = np.zeros((20, 20), np.float32)
        saliency[far[1], far[0]], saliency[y, x] = 0.5, 1
        return measure_scene_boxes.judge(saliency, found, (10, 10))

    chance = 4 / (400 - 7 * 7)  # cells that touch the cue, of those beside the box
    for (x, y, far), expected in {
        (7, 7, (13, 5)): (True, True, False, None, True),
        (13, 5, (7, 7)): (False, True, False, None, True),
        (2, 14, (7, 7)): (False, False, True, None, False),
        (10, 7, (13, 5)): (False, True, False, None, True),  # the brightest sees the box
        (11, 7, (13, 5)): (False, False, False, None, False),
    }.items():
        assert judged(x, y, far) == measure_scene_boxes.Hits(*expected, pytest.approx(chance))
    hidden = scenes.SceneObject(4, (40, 40, 80, 80), context=(82, 40, 88, 50))
    found = measure_scene_boxes.Found(hidden, (other,), target)
    assert judged(7, 7, (13, 5)).cue is None
    plate = scenes.SceneObject(2, (40, 40, 80, 80), part=(44, 44, 54, 54))
    found = measure_scene_boxes.Found(plate, (), target)
    assert judged(6, 6, (0, 0)).part
    assert not judged(8, 8, (0, 0)).part
    middle = scenes.SceneObject(2, (40, 40, 80, 80), part=(55, 55, 65, 65))
    found = measure_scene_boxes.Found(middle, (), target)
    assert judged(7, 7, (0, 0)).part is None
