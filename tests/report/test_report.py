"""The report, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from chromium import opened_browser, wait_until  # noqa: F401 - the fixture `browser`
from command import fails, run
from ov_recipro import Explainer, Target
from ov_recipro.images.drawing import Style
from ov_recipro.images.reading import read_image
from ov_recipro.metrics import VERDICTS
from ov_recipro.report import card, page

HOSTILE = '"><img src=x onerror=hacked=1><script>hacked=2</script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, explainer: Explainer, cat: Path) -> Path:
    """Two photographs explained and verified, one by a hostile name; two classes have such too."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(cat, folder / "cat.jpg")
    shutil.copy(cat.with_name("coffee.jpg"), folder / "<img src=x onerror=hacked=3>.jpg")
    assert explainer.labels is not None
    labels = list(explainer.labels)
    labels[285], labels[967] = f"cat {HOSTILE}", f"coffee {HOSTILE}"
    (folder / "labels.txt").write_text("\n".join(labels))
    (folder / "photos").mkdir()
    for image in folder.glob("*.jpg"):
        image.rename(folder / "photos" / image.name)
    options = ("-t", "top2", "--verify", "--report", "--save-maps", "--labels", "labels.txt")
    done = run("explain", "photos", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: None if ours(request.url) else wrong.append(request.url))
    tab.goto((folder / "explanations" / "report.html").as_uri())
    wait_until(
        tab,
        "[...document.querySelectorAll('canvas')].every(c => c.width == 224 || c.height == 224)",
    )
    yield tab
    assert tab.evaluate("typeof hacked") == "undefined"
    assert not wrong
    context.close()


def ours(url: str) -> bool:
    return url.startswith(("file:", "data:"))


def record(folder: Path) -> Any:
    return json.loads((folder / "explanations" / "explanations.json").read_text())


def painted(tab: Page, number: int) -> list[int]:
    """Return the middle pixel of a card's heat."""
    script = """(n) => {
        const c = document.querySelectorAll('canvas')[n];
        return [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data];
    }"""
    found: list[int] = tab.evaluate(script, number)
    return found


def test_all_is_told(opened: Page, folder: Path) -> None:
    run_record = record(folder)
    text = opened.inner_text("body")
    for part in (run_record["sha256"], run_record["layer"], "openvino", "rows", "f32"):
        assert part in text
    assert opened.locator(".card").count() == 2
    assert HOSTILE in text
    for image in run_record["images"]:
        assert Path(image["path"]).name in text
        assert f"{image['predictions'][0]['score']:.3g}" in text
        assert image["targets"][0]["verification"]["verdict"] in text


def test_the_slider_and_the_key(opened: Page) -> None:
    opacity = "getComputedStyle(document.querySelector('canvas')).opacity"
    visible = "getComputedStyle(document.querySelector('canvas')).visibility"
    assert opened.evaluate(opacity) == "0.5"
    opened.locator("#opacity").fill("80")
    assert opened.evaluate(opacity) == "0.8"
    opened.keyboard.down("c")
    assert opened.evaluate(visible) == "hidden"
    opened.keyboard.up("c")
    assert opened.evaluate(visible) == "visible"
    opened.locator("#find").focus()
    opened.keyboard.down("c")  # a letter of a word
    assert opened.evaluate(visible) == "visible"
    opened.keyboard.up("c")
    opened.locator("#compare").hover()
    opened.mouse.down()
    assert opened.evaluate(visible) == "hidden"
    opened.mouse.up()
    assert opened.evaluate(visible) == "visible"


def test_another_class_has_its_own_heat(opened: Page) -> None:
    first = opened.locator(".card").nth(0)
    before = painted(opened, 0)
    assert first.locator(".about[data-target='0']").is_visible()
    first.locator("select.target").select_option("1")
    assert painted(opened, 0) != before
    assert first.locator(".about[data-target='1']").is_visible()
    assert not first.locator(".about[data-target='0']").is_visible()


def test_a_cells_score_is_read_by_mouse_and_keys(opened: Page, folder: Path) -> None:
    number = next(
        n for n, i in enumerate(record(folder)["images"]) if i["path"].endswith("cat.jpg")
    )
    with np.load(folder / "explanations" / "cat.npz") as saved:
        raw = saved["raw"]
    frame = opened.locator(".frame").nth(number)
    reading = opened.locator(".reading").nth(number)
    area = frame.bounding_box()
    assert area is not None
    frame.hover(position={"x": area["width"] / 2, "y": area["height"] / 2})
    assert f"Row 4 of 7, column 4 of 7: this cell alone scores {raw[0, 3, 3]:.6g}" in (
        reading.inner_text()
    )
    frame.hover(position={"x": 3, "y": area["height"] / 2})
    assert "did not see" in reading.inner_text()
    frame.focus()
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    assert f"Row 2 of 7, column 2 of 7: this cell alone scores {raw[0, 1, 1]:.6g}" in (
        reading.inner_text()
    )


def test_true_cells(opened: Page) -> None:
    colours = """() => {
        const c = document.querySelector('canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const all = new Set();
        for (let i = 0; i < d.length; i += 4) all.add(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]);
        return all.size;
    }"""
    assert opened.evaluate(colours) > 60
    opened.locator("#cells").check()
    assert opened.evaluate(colours) <= 49


def test_filter_and_order(opened: Page, folder: Path) -> None:
    images = record(folder)["images"]
    shown = opened.locator(".card:not([hidden])")
    opened.locator("#find").fill("coffee onerror")
    assert shown.count() == 1
    assert opened.locator("#count").inner_text() == "1 of 2 images"
    opened.locator("#find").fill("")
    opened.locator("#least").fill("90")
    assert shown.count() == 1
    opened.locator("#least").fill("0")
    opened.locator("#order").select_option("unsure")
    scores = [float(s) for s in shown.evaluate_all("all => all.map(c => c.dataset.confidence)")]
    assert scores == sorted(i["predictions"][0]["score"] for i in images)
    opened.locator("#order").select_option("confident")
    scores = [float(s) for s in shown.evaluate_all("all => all.map(c => c.dataset.confidence)")]
    assert scores == sorted(scores, reverse=True)
    offered = opened.locator("#verdict option").all_inner_texts()[1:]
    assert offered == sorted(offered, key=VERDICTS.index)
    opened.locator("#order").select_option("verdict")
    given = shown.evaluate_all("all => all.map(c => c.dataset.verdicts)")
    ranks = [max(VERDICTS.index(each) for each in verdicts.split("|")) for verdicts in given]
    assert ranks == sorted(ranks, reverse=True)
    opened.locator("#verdict").select_option("supported")
    expected = sum(
        any(t["verification"]["verdict"] == "supported" for t in image["targets"])
        for image in images
    )
    assert shown.count() == expected
    opened.locator("#verdict").select_option("")
    assert shown.count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_accessibility(scheme: Any, width: int, browser: Browser, folder: Path) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    tab = context.new_page()
    tab.goto((folder / "explanations" / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(tab).response
    serious = [
        (each["id"], each["impact"], [node["html"][:200] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical", "moderate")
    ]
    assert len(found["passes"]) > 15
    assert not serious
    context.close()


def test_from_saved_explanations(folder: Path) -> None:
    written = (folder / "explanations" / "report.html").read_bytes()
    done = run("report", "explanations", "-o", "again.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "again.html\n"
    assert (folder / "again.html").read_bytes() == written


def test_what_can_be_missing(folder: Path, tmp_path: Path, cat: Path) -> None:
    fails(run("report", cwd=tmp_path), "explanations.json")
    shutil.copy(cat, tmp_path / "cat.jpg")
    assert run("explain", "cat.jpg", cwd=tmp_path).returncode == 0
    fails(run("report", cwd=tmp_path), "--save-maps")
    shutil.copytree(folder / "explanations", tmp_path / "moved")
    moved = run("report", "moved", cwd=tmp_path)
    assert moved.returncode == 1
    assert "photos/cat.jpg: No such file" in moved.stderr
    assert "no image to show" in moved.stderr
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "explanations.json").write_text("{")
    fails(run("report", "bad", cwd=tmp_path), "malformed")


def test_remarks() -> None:
    good = Target(0, "cat", 0.9, range=(0.001, 0.002), distinct_values=49, flat=False)
    assert good.remarks(49, "softmax") == []
    assert "says nothing" in replace(good, flat=True).remarks(49, "softmax")[0]
    assert "Only 11" in replace(good, distinct_values=11).remarks(49, "softmax")[0]
    weak = replace(good, range=(0.00100, 0.00101))
    assert "differ by 0.99 %" in weak.remarks(49, "softmax")[0]
    assert weak.remarks(49, "none") == []
    deeper = replace(weak, next_layer="blocks.6")
    assert deeper.remarks(49, "softmax")[0].endswith("Try --layer blocks.6.")
    assert replace(deeper, flat=True).remarks(49, "softmax")[0].endswith("Try --layer blocks.6.")


def test_250_images_stay_below_40_mb(folder: Path, cat: Path) -> None:
    saved = record(folder)
    noise = np.random.default_rng(0).integers(0, 60, (1000, 1000, 3), dtype=np.uint8)
    image = read_image(cat)
    image = np.asarray(np.resize(image, noise.shape) // 2 + noise, np.uint8)  # hard to compress
    raw = np.random.default_rng(1).random((5, 14, 14)).astype(np.float32)
    entry = saved["images"][0]
    cards = [card(entry | {"targets": [*entry["targets"]] * 2}, image, raw)] * 250
    size = len(page(saved, cards, Style()))
    assert size < 40e6
