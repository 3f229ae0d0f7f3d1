"""Reports of targets that are more than a class, and of signed maps, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from chromium import opened_browser, wait_until  # noqa: F401 - the fixture `browser`
from ov_recipro import Explainer, Target
from ov_recipro.batch import Batch, find_inputs
from ov_recipro.explanation import Prediction
from ov_recipro.images.drawing import Style, palette, signed_palette
from ov_recipro.report import card, page
from ov_recipro.report.saved import read_cards
from ov_recipro.report.wording import name_of, question_of, target_of
from ov_recipro.targets.boxes import Box
from ov_recipro.targets.contrast import Contrast
from ov_recipro.targets.regions import Region
from ov_recipro.targets.sequences import Position
from ov_recipro.targets.similarity import Similarity, Source

SIGNED = Style(signed=True)
CAT = Target(281, "tabby", 0.5, range=(0.1, 0.6), distinct_values=49, flat=False)


def written(explainer: Explainer, folder: Path, style: Style, **options: Any) -> Path:
    """Explain the folder's cat.jpg; return the folder with the files."""
    out = folder / "explanations"
    out.mkdir()
    inputs = find_inputs([str(folder / "cat.jpg")])
    asked = explainer.find_targets(**options)
    batch = Batch(explainer, inputs, out, asked, save_maps=True, style=style, report=True)
    assert [outcome.error for outcome in batch.run()] == [None]
    batch.write()
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, lite0: Path, cat: Path, coffee: Path) -> Path:
    """A photograph compared with another."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copy(cat, folder / "cat.jpg")
    shutil.copy(coffee, folder / "coffee.jpg")
    features = Explainer(lite0, task="features", signed=True)
    np.save(folder / "usual.npy", np.full(1280, 0.1, np.float32))
    options = {"similar_to": folder / "coffee.jpg", "centre": folder / "usual.npy"}
    return written(features, folder, SIGNED, **options)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, bypass_csp=True)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    yield opened
    assert not wrong
    context.close()


def show(tab: Page, path: Path) -> None:
    tab.goto(path.as_uri())
    wait_until(
        tab,
        "[...document.querySelectorAll('canvas')].every(c => c.width == 224 || c.height == 224)",
    )


def cell_colour(canvas: Locator, row: int, column: int) -> list[int]:
    """Return the colour in the middle of one of 7 x 7 cells."""
    script = """(c, [y, x]) => {
        const place = [c.width * (x + 0.5) / 7, c.height * (y + 0.5) / 7];
        return [...c.getContext('2d').getImageData(...place.map(Math.floor), 1, 1).data];
    }"""
    found: list[int] = canvas.evaluate(script, [row, column])
    return found


def test_two_pictures_each_with_its_own_heat(pair: Path, tab: Page) -> None:
    show(tab, pair / "report.html")
    (image,) = json.loads((pair / "explanations.json").read_text())["images"]
    target = image["targets"][0]
    text = tab.inner_text("body")
    assert "Asked: what is similar to coffee.jpg; the cosine is" in text
    assert "The mean vector of usual.npy is subtracted" in text
    assert "speak for the similarity" in text
    assert "Similarity at least" in text
    assert tab.locator(".bars").count() == 0
    frames = tab.locator(".frame")
    assert frames.count() == 2
    boxes = [frames.nth(number).bounding_box() for number in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"]
    readings = tab.locator(".reading")
    entries = (target, target["reverse"]["targets"][0])
    for number, (entry, name) in enumerate(zip(entries, ("coffee.jpg", "cat.jpg"), strict=True)):
        frames.nth(number).focus()
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowRight")
        said = readings.nth(number).inner_text()
        cosine = entry["cosines"][0][1]
        assert f"column 2 of 7: this cell alone scores {cosine} for similarity to {name}" in said
        assert "than no cell" in said
    assert "Point at a cell" in readings.nth(0).inner_text()


def test_the_page_is_the_same_from_saved_maps(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(pair, folder)
    run, cards, missing = read_cards(folder)
    assert missing == []
    assert page(run, cards, SIGNED) == (pair / "report.html").read_bytes()
    del run["method"]  # as in earlier records
    run["images"][0]["targets"][0]["reverse"]["path"] = str(tmp_path / "gone.jpg")
    (folder / "explanations.json").write_bytes(msgspec.json.encode(run))
    run, cards, missing = read_cards(folder)
    assert missing == [f"{tmp_path / 'gone.jpg'}: No such file or directory."]
    assert page(run, cards, SIGNED).count(b'class="frame"') == 1


def test_signed_heat_on_grey_at_will(lite0: Path, cat: Path, tab: Page, tmp_path: Path) -> None:
    shutil.copy(cat, tmp_path / "cat.jpg")
    out = written(Explainer(lite0, signed=True), tmp_path, Style(cells=True), against="next")
    show(tab, out / "report.html")
    with np.load(out / "cat.npz") as saved:
        differences = saved["raw"][0] - saved["zeros"][0]
    canvas, grey = tab.locator("canvas"), tab.locator(".grey")
    plain, about_signed = tab.locator("p[data-signed=false]"), tab.locator("p[data-signed=true]")
    row, column = (int(at) for at in np.unravel_index(differences.argmin(), (7, 7)))
    assert cell_colour(canvas, row, column)[2::-1] == palette("inferno")[0, 0].tolist()
    assert (grey.is_visible(), plain.is_visible(), about_signed.is_visible()) == (0, 1, 0)
    tab.locator("#signed").check()
    assert (grey.is_visible(), plain.is_visible(), about_signed.is_visible()) == (1, 0, 1)
    assert "one class rather than another, blue those that speak against" in (
        about_signed.inner_text()
    )
    lowest = differences.min() / np.abs(differences).max()
    colour = signed_palette()[0, round(127.5 * (lowest + 1))]
    *found, alpha = cell_colour(canvas, row, column)
    np.testing.assert_allclose(found[::-1], colour, atol=3)  # the canvas multiplies by alpha
    assert alpha == pytest.approx(255 * np.sqrt(-lowest), abs=1)
    frame = tab.locator(".frame")
    area = frame.bounding_box()
    assert area is not None
    left, _, right, _ = (451 / 2 - 150, 0, 451 / 2 + 150, 300)
    x = (left + (right - left) * (column + 0.5) / 7) / 451
    frame.hover(position={"x": x * area["width"], "y": (row + 0.5) / 7 * area["height"]})
    reading = tab.locator(".reading")
    assert f"less than no cell; heat {lowest:.2f}." in reading.inner_text()
    assert "Asked: why Egyptian cat rather than tiger cat; their logits differ by" in (
        tab.inner_text(".question")
    )
    tab.keyboard.down("c")
    assert grey.evaluate("e => getComputedStyle(e).visibility") == "hidden"


def test_costs_of_losses_begin_at_0(lite0: Path, cat: Path, tab: Page, tmp_path: Path) -> None:
    shutil.copy(cat, tmp_path / "cat.jpg")
    dropped = Explainer(lite0, mask="drop", plan="stream")
    out = written(dropped, tmp_path, Style(cells=True))
    show(tab, out / "report.html")
    with np.load(out / "cat.npz") as saved:
        raw, saliency = saved["raw"][0], saved["maps"][0]
    assert raw.min() < 0
    for row, column in ((0, 0), (3, 4), np.unravel_index(raw.argmin(), (7, 7))):
        colour = palette("inferno")[0, round(255 * float(saliency[row, column]))]
        found = cell_colour(tab.locator("canvas"), int(row), int(column))[2::-1]
        np.testing.assert_allclose(found, colour, atol=3)  # the next colour, by rounding
    assert "whose loss costs the target most" in tab.inner_text("header")
    assert tab.locator("[role=img]").first.inner_text().split() == ["0", "highest", "cost"]
    tab.locator(".frame").focus()
    tab.keyboard.press("ArrowDown")
    verb = "rises" if raw[0, 0] < 0 else "falls"
    assert f"without this cell, the score for Egyptian cat {verb} by" in (
        tab.inner_text(".reading")
    )


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_accessibility(width: int, scheme: Any, tab: Page, pair: Path) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    tab.goto((pair / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(tab).response
    assert len(found["passes"]) > 15
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical", "moderate")
    ]
    assert not serious


def as_kind(kind: type[Target], **more: Any) -> Any:
    """Return a target's record of some kind, as a file gives it back."""
    fields = {name: getattr(CAT, name) for name in CAT.__dataclass_fields__}
    entry = msgspec.json.decode(msgspec.json.encode(kind(**fields | more)))
    return entry | {"overlay": None, "maps": None}


FILES = tuple(Source(f"photos/{name}.jpg", name) for name in "abcde")
RIVAL = Prediction(282, "tiger cat", 3.5)


@pytest.mark.parametrize(
    ("kind", "more", "name", "question"),
    [
        (Target, {}, "tabby", []),
        (Target, {"label": None}, "class 281", []),
        (
            Contrast,
            {"against": RIVAL},
            "tabby rather than tiger cat",
            ["Asked: why tabby rather than tiger cat; their logits differ by 0.5."],
        ),
        (
            Contrast,
            {"against": replace(RIVAL, label=None), "gamma": 0.6},
            "tabby rather than class 282",
            [
                "Asked: why tabby rather than class 282; the logit of tabby minus 0.6 times that "
                "of class 282 is 0.5."
            ],
        ),
        (
            Similarity,
            {"references": FILES, "unlike": FILES[:2], "centre": FILES[:3]},
            "similarity to a.jpg, b.jpg and 3 more",
            [
                "Asked: what is similar to the mean of a.jpg, b.jpg and 3 more and unlike a.jpg "
                "and b.jpg; the cosine with the former minus that with the latter is 0.5.",
                "The mean vector of a.jpg, b.jpg and c.jpg is subtracted from all vectors first.",
            ],
        ),
        (
            Region,
            {"region": (10, 20, 30, 40.5), "pixels": 1, "context": 0.25},
            "tabby",
            [
                "Asked: why tabby in the region from 10,20 to 30,40.5 (1 pixel of the model's "
                "output); its mean score there is 0.5."
            ],
        ),
        (
            Region,
            {"pixels": 12, "context": None},
            "tabby",
            [
                "Asked: why tabby in the 12 pixels of the model's output that it predicts as "
                "tabby; its mean score there is 0.5."
            ],
        ),
        (
            Position,
            {"position": 3},
            "tabby at position 3",
            ["Asked: why tabby at position 3; its score there is 0.5."],
        ),
        (Box, {"number": 2}, "box 2 (tabby)", []),
        (
            Box,
            {"box": (10, 20, 30, 40.5)},
            "tabby in the drawn box",
            [
                "Asked: why tabby in the box from 10,20 to 40,60.5; it scores 0.5 there, the score "
                "of the class times the overlap."
            ],
        ),
        (
            Box,
            {"box": (10, 20, 30, 40), "missed": True},
            "tabby in the drawn box",
            [
                "Asked: why no tabby in the box from 10,20 to 40,60; the best candidate there "
                "scores 0.5, the score of the class times the overlap.",
                "The map shows what suppresses it: cells whose loss raises that score.",
            ],
        ),
        (
            Box,
            {"box": (10, 20, 30, 40), "missed": True, "runs": 0},
            "tabby in the drawn box",
            [
                "Asked: why no tabby in the box from 10,20 to 40,60; the best candidate there "
                "scores 0.5, the score of the class times the overlap."
            ],
        ),
    ],
)
def test_what_was_asked_in_words(
    kind: type[Target], more: Any, name: str, question: list[str]
) -> None:
    target = target_of(as_kind(kind, **more))
    assert type(target) is kind
    assert (name_of(target), question_of(target)) == (name, question)


def test_regions_and_sequences(
    explainer: Explainer, browser: Browser, tmp_path: Path, cat: Path
) -> None:
    found = explainer(cat)
    assert found.image is not None
    run = explainer.provenance() | {"layer_asked": "auto", "plan_reason": None, "errors": []}
    run = msgspec.to_builtins(run)
    letters = [Prediction(n, letter, 0.9) for n, letter in enumerate(["blank", "c", "", "<t>"])]
    shares = [Prediction(281, "tabby", 0.625), Prediction(3, "wall", 0.25)]
    region = as_kind(Region, pixels=12, context=0.25)
    position = as_kind(Position, position=1, label="c")
    tab = browser.new_page()
    for target, predictions, parts in (
        (region, shares, ("62.5 %", "25 % of the map lies outside", "in the 12 pixels")),
        (region, [], ("12 pixels",)),
        (position, letters, ("<t>", "c at position 1", "its score there")),
    ):
        entry = found.record() | {
            "path": str(cat),
            "targets": [target],
            "predictions": msgspec.to_builtins(predictions),
        }
        html = page(run, [card(entry, found.image, found.raw)], Style())
        (tmp_path / "report.html").write_bytes(html)
        show(tab, tmp_path / "report.html")
        text = tab.inner_text("body")
        assert all(part in text for part in parts)
        assert tab.locator("#signed").count() == 0
        read = tab.locator(".sequence li").all_inner_texts()
        assert read == (["·", "c", "2", "<t>"] if predictions is letters else [])
    assert tab.locator(".sequence [aria-current]").inner_text() == "c"
    tab.close()


def test_logits_below_0_are_found(
    explainer: Explainer, browser: Browser, tmp_path: Path, cat: Path
) -> None:
    found = explainer(cat)
    assert found.image is not None
    run = msgspec.to_builtins(explainer.provenance())
    run |= {"layer_asked": "auto", "plan_reason": None, "errors": [], "score": "none"}
    entry = found.record() | {"path": str(cat)}
    entry["predictions"] = [{"index": 0, "label": None, "score": -0.5}]
    (tmp_path / "report.html").write_bytes(
        page(run, [card(entry, found.image, found.raw)], Style())
    )
    tab = browser.new_page()
    show(tab, tmp_path / "report.html")
    tab.locator("#find").fill("cat")
    assert tab.locator(".card:not([hidden])").count() == 1
    tab.close()
