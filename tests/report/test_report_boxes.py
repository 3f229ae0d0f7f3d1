"""Reports of detectors' boxes, in a real browser."""

from __future__ import annotations

import base64
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from chromium import opened_browser, wait_until  # noqa: F401 - the fixture `browser`
from ov_recipro import Explainer, Target
from ov_recipro.batch import Batch, find_inputs
from ov_recipro.images.drawing import Style
from ov_recipro.report import Packed, card, page
from ov_recipro.report.box_list import ListedBox, listed_boxes
from ov_recipro.report.saved import read_cards
from ov_recipro.report.wording import Terms, basis_of, colours_of
from ov_recipro.targets.boxes import Box
from places import ROOT

sys.path.append(str(ROOT / "tools"))
detector_scenes = importlib.import_module("detector_scenes")

DETECTOR = ROOT / "tests" / "assets" / "scene-detector" / "model.onnx"
WIDTH, HEIGHT = 320, 160  # of two scenes, which the model sees between bands above and below
DRAWN = (150, 60, 60, 50)  # where the model finds nothing
BOX = Box(0, "ring", 0.8, (0, 0.4), 49, False, box=(10, 20, 30, 40), number=1)


def written(folder: Path, explainer: Explainer, **options: Any) -> Path:
    """Explain the two scenes; return the folder with the files."""
    scenes = detector_scenes.make_scenes(2, seed=detector_scenes.HELD_OUT_SEED)
    cv2.imwrite(str(folder / "scenes.png"), np.hstack([each.image for each in scenes]))
    out = folder / "explanations"
    out.mkdir()
    inputs = find_inputs([str(folder / "scenes.png")])
    asked = explainer.find_targets(**options)
    batch = Batch(explainer, inputs, out, asked, save_maps=True, report=True)
    assert [outcome.error for outcome in batch.run()] == [None]
    batch.write()
    return out


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All boxes, by patches hidden in the image."""
    explainer = Explainer(DETECTOR, method="occlusion")
    return written(tmp_path_factory.mktemp("hidden"), explainer, box="all")


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda sent: None if ours(sent.url) else wrong.append(sent.url))
    yield opened
    assert not wrong
    context.close()


def ours(url: str) -> bool:
    return url.startswith(("file:", "data:"))


def show(tab: Page, folder: Path) -> Any:
    """Open the folder's page; return its image's record."""
    tab.goto((folder / "report.html").as_uri())
    wait_until(tab, "document.querySelector('canvas').width == 224")
    return json.loads((folder / "explanations.json").read_text())["images"][0]


def area_of(element: Locator) -> list[float]:
    """Return left, top, width and height on the page."""
    area = element.bounding_box()
    assert area is not None
    return [area["x"], area["y"], area["width"], area["height"]]


def heat(tab: Page) -> str:
    drawn: str = tab.locator("canvas").evaluate("c => c.toDataURL()")
    return drawn


def state(tab: Page) -> list[Any]:
    """Return what every control says is shown; they agree."""
    chosen = tab.locator("select.target").input_value()
    outlines = tab.locator(".outline.current").evaluate_all("all => all.map(e => e.dataset.choose)")
    pressed = tab.locator(".boxes button[aria-pressed=true]")
    buttons = pressed.evaluate_all("all => all.map(e => e.dataset.choose)")
    about = tab.locator(".about:not([hidden])").get_attribute("data-target")
    return [chosen, *outlines, *buttons, about]


def test_boxes_lie_on_what_they_enclose(hidden: Path, tab: Page) -> None:
    image = show(tab, hidden)
    assert image["size"] == [HEIGHT, WIDTH]
    assert image["window"][1] < 0  # the model sees a band above
    assert len(image["predictions"]) > 1
    left, top, width, height = area_of(tab.locator(".frame"))
    factors = np.array([width / WIDTH, height / HEIGHT] * 2)
    for number, each in enumerate(image["predictions"], 1):
        outline = tab.locator(".outline", has=tab.get_by_text(str(number), exact=True))
        expected = np.array([left, top, 0, 0]) + each["box"] * factors
        np.testing.assert_allclose(area_of(outline), expected, atol=1)
    scenes = detector_scenes.make_scenes(2, seed=detector_scenes.HELD_OUT_SEED)
    x, y, wide, tall = area_of(tab.locator(".outline[data-choose='0']"))
    middle = [x + wide / 2 - left, y + tall / 2 - top] / factors[:2]
    objects = [
        np.add(each.box[:2], each.box[2:]) / 2 + [160 * number, 0]
        for number, scene in enumerate(scenes)
        for each in scene.objects
    ]
    assert min(np.abs(each - middle).max() for each in objects) < 12


def test_a_box_that_is_chosen_shows_its_map(hidden: Path, tab: Page) -> None:
    image = show(tab, hidden)
    names = [f"box {each['number']} ({each['label']})" for each in image["targets"]]
    assert tab.locator("select.target option").all_inner_texts() == names
    assert state(tab) == ["0"] * 4
    before = heat(tab)
    tab.locator(".outline[data-choose='1']").click()
    assert state(tab) == ["1"] * 4
    assert heat(tab) != before
    with np.load(hidden / "scenes.npz") as saved:
        raw = saved["raw"][1]
    said = tab.locator(".reading").inner_text()
    row, column = (int(word.strip(",")) - 1 for word in np.array(said.split())[[1, 5]])
    score = float(f"{abs(raw[row, column]):.3g}")
    assert f"this place hidden, the score for {names[1]} " in said
    assert float(said.split(" by ")[1].split()[0]) == pytest.approx(score, abs=2e-5)
    first = image["targets"][0]
    name = f"Show the map of 1 {first['label']}, score {first['score']:.3g}"
    tab.get_by_role("button", name=name).focus()
    tab.keyboard.press("Enter")
    assert state(tab) == ["0"] * 4
    assert heat(tab) == before
    tab.locator("select.target").select_option("1")
    assert state(tab) == ["1"] * 4
    tab.keyboard.down("c")
    assert not tab.locator(".outline").first.is_visible()


def test_the_list_says_what_is_explained(tab: Page, tmp_path: Path) -> None:
    out = written(tmp_path, Explainer(DETECTOR, method="occlusion"), box=2)
    image = show(tab, out)
    rows = [" ".join(row.split()) for row in tab.locator(".boxes li").all_inner_texts()]
    assert len(rows) > 1
    assert rows == [
        f"{n} {each['label']} {'' if n == 2 else 'not '}explained {each['score']:.3g}"
        for n, each in enumerate(image["predictions"], 1)
    ]
    assert tab.locator(".boxes button").count() == 1
    assert tab.locator(".outline").count() == len(rows)
    assert tab.locator(".outline.current").inner_text() == "2"
    before = heat(tab)
    tab.mouse.click(*np.add(area_of(tab.locator(".outline:not([data-choose])").first)[:2], 4))
    assert heat(tab) == before  # that one has no map
    assert "Method occlusion: " in tab.inner_text(".basis")
    assert f"{image['targets'][0]['runs']} inferences" in tab.inner_text(".basis")
    assert "parts of the image whose hiding costs the target most (occlusion)" in (
        tab.inner_text("header")
    )
    assert "Plan" not in tab.inner_text("footer")
    tab.locator("#find").fill(
        image["predictions"][0]["label"]
    )  # it is among the boxes, though not explained
    assert tab.locator(".card:not([hidden])").count() == 1


def test_a_box_that_the_model_misses(tab: Page, tmp_path: Path) -> None:
    missed = Explainer(DETECTOR, method="occlusion")
    out = written(tmp_path, missed, box=DRAWN)
    image = show(tab, out)
    target = image["targets"][0]
    text = tab.inner_text(".about")
    assert f"why no {target['label']} in the box from 150,60 to 210,110; the best" in text
    assert "what suppresses it: parts of the image whose hiding raises that score" in text
    last = " ".join(tab.locator(".boxes li").last.inner_text().split())
    assert last == f"drawn: {target['label']} explained, missed {target['score']:.3g}"
    left, top, width, _ = area_of(tab.locator(".frame"))
    expected = np.array([left, top, 0, 0]) + np.array(DRAWN) * width / WIDTH
    np.testing.assert_allclose(area_of(tab.locator(".outline.current")), expected, atol=1)
    with np.load(out / "scenes.npz") as saved:
        raw = saved["raw"][0]
    row, column = np.unravel_index(raw.argmax(), raw.shape)
    x0, y0, x1, y1 = image["window"]
    x = x0 + (x1 - x0) * (column + 0.5) / raw.shape[1]
    y = y0 + (y1 - y0) * (row + 0.5) / raw.shape[0]
    tab.mouse.move(left + x * width / WIDTH, top + y * width / WIDTH)
    said = tab.inner_text(".reading")
    assert f"Row {row + 1} of" in said
    assert f"the score for {target['label']} in the drawn box rises by" in said
    assert "heat 1.00" in said


def test_the_page_is_the_same_from_saved_maps(hidden: Path) -> None:
    run, cards, missing = read_cards(hidden)
    assert missing == []
    assert page(run, cards, Style()) == (hidden / "report.html").read_bytes()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_accessibility(width: int, scheme: Any, browser: Browser, hidden: Path) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    tab = context.new_page()
    show(tab, hidden)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(tab).response
    assert len(found["passes"]) > 15
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical", "moderate")
    ]
    assert not serious
    context.close()


def test_large_maps_take_16_bits_a_number() -> None:
    raw = np.random.default_rng(0).normal(size=(1, 128, 128)).astype(np.float32)
    raw[0, :64] = 0
    image = np.zeros((8, 8, 3), np.uint8)
    (packed,) = card({}, image, raw).raw
    assert isinstance(packed, Packed)
    assert len(packed.numbers) < 44e3
    numbers = np.frombuffer(base64.b64decode(packed.numbers), "<i2")
    found = numbers.reshape(packed.shape) * packed.step
    np.testing.assert_allclose(found, raw[0], atol=1e-4)
    assert not found[:64].any()
    (flat,) = card({}, image, np.zeros((1, 128, 128), np.float32)).raw
    assert isinstance(flat, Packed)
    assert flat.step == 1


def test_boxes_are_drawn_inside_the_picture() -> None:
    predictions = [
        {"index": 0, "label": "ring", "score": 0.9, "box": [-10, 50, 30, 100]},
        {"index": 0, "label": None, "score": 0.5, "box": [120, 10, 30, 10]},
    ]
    record = {"size": [100, 100], "predictions": predictions}
    drawn = replace(BOX, number=None, missed=True)
    assert listed_boxes(record, [drawn, replace(BOX, number=2, score=0.5)]) == [
        ListedBox("ring", 0.9, (0, 50, 20, 50), 1, None),
        ListedBox("class 0", 0.5, None, 2, 1),
        ListedBox("ring", 0.8, (10, 20, 30, 40), None, 0, missed=True),
    ]
    assert listed_boxes(record, [Target(0, "ring", 0.9, (0, 0.4), 49, False)]) == []


@pytest.mark.parametrize(
    ("method", "misses", "bright", "signed"),
    [
        ("recipro", False, "cells of the feature map whose loss costs", "whose loss raises it"),
        ("recipro", True, "misses the box, raises it most", "the other way round"),
        ("d-rise", False, "parts of the image whose hiding costs", "whose hiding raises it"),
        ("aise", False, "seen alone through a window", None),
        ("votes", True, "where the model decides, not what it sees", None),
    ],
)
def test_what_colours_stand_for(method: str, misses: bool, bright: str, signed: str | None) -> None:
    found = colours_of({"method": method, "mask": "drop"}, Terms(), misses)
    assert bright in found.bright
    assert found.signed is None if signed is None else signed in (found.signed or "")


def test_what_a_map_rests_on() -> None:
    assert basis_of(BOX, "recipro") is None
    assert basis_of(replace(BOX, runs=0), "votes") == "Method votes: no further inferences."
    assert basis_of(replace(BOX, runs=121), "occlusion") == (
        "Method occlusion: 121 inferences on masked images."
    )
    assert basis_of(replace(BOX, runs=960, reliability=0.9123), "d-rise") == (
        "Method D-RISE: 960 inferences on masked images; reliability 0.91, the estimated "
        "correlation with the map of as many others."
    )


def test_cells_that_suppress_a_box(tab: Page, tmp_path: Path) -> None:
    out = written(tmp_path, Explainer(DETECTOR, max_cost=1000), box=DRAWN)
    target = show(tab, out)["targets"][0]
    assert "what suppresses it: cells whose loss raises that score" in tab.inner_text(".about")
    assert "or, where the model misses the box, raises it most" in tab.inner_text("header")
    assert tab.locator(".basis").count() == 0
    assert "Plan" in tab.inner_text("footer")
    with np.load(out / "scenes.npz") as saved:
        raw = saved["raw"][0]
    assert raw.max() > 0 > raw.min()
    frame = tab.locator(".frame")
    for verb, place in (("rises", raw.argmax()), ("falls", raw.argmin())):
        row, column = np.unravel_index(place, raw.shape)
        frame.blur()
        frame.focus()
        for key, presses in (("ArrowDown", row + 1), ("ArrowRight", column)):
            for _ in range(presses):
                tab.keyboard.press(key)
        change = f"the score for {target['label']} in the drawn box {verb} by"
        assert f"without this cell, {change}" in tab.inner_text(".reading")
