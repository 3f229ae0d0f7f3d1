"""The server's page, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from chromium import opened_browser, wait_until  # noqa: F401 - the fixture `browser`
from served import serving


@pytest.fixture(scope="module")
def url(lite0: Path) -> Iterator[str]:
    with serving("-m", lite0, "-m", f"other={lite0}", "--no-isolate") as server:
        yield server.url


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda each: wrong.append(each.url))
    tab.goto(url)
    yield tab
    assert not [each for each in wrong if not each.startswith((url, "data:"))]
    context.close()


def is_narrow(tab: Page) -> bool:
    return bool(tab.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def check_axe(tab: Page) -> None:
    found = Axe().run(tab).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")], found


def test_an_image_is_explained_by_keyboard(opened: Page, cat: Path) -> None:
    check_axe(opened)
    assert is_narrow(opened)
    opened.set_input_files("input[type=file]", str(cat))
    opened.select_option("select[name=model]", "other")
    opened.focus("input[name=targets]")
    opened.keyboard.press("Control+a")
    opened.keyboard.type("top2")
    opened.keyboard.press("Enter")
    opened.wait_for_selector(".card")
    wait_until(opened, "document.querySelector('canvas').width > 200")
    assert opened.inner_text("h2").startswith("Egyptian cat")
    assert opened.locator(".bars li").count() == 5
    assert opened.locator(".switch option").count() == 2
    assert opened.input_value("select[name=model]") == "other"
    assert opened.input_value("input[name=targets]") == "top2"
    opened.focus(".frame")
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text(".reading").startswith("Row 1 of 7")
    check_axe(opened)
    assert is_narrow(opened)


def test_with_a_verdict(opened: Page, coffee: Path) -> None:
    opened.set_input_files("input[type=file]", str(coffee))
    opened.check("input[name=verify]")
    opened.fill("input[name=targets]", "967")
    opened.get_by_role("button", name="Explain").click()
    opened.wait_for_selector(".card")
    assert "supported" in opened.inner_text(".card")


def test_what_can_go_wrong_there(opened: Page, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "<b>.jpg").write_bytes(cat.read_bytes()[:1000])
    for file, targets, said in (
        (tmp_path / "<b>.jpg", "top1", "truncated"),
        (cat, "<script>alert(1)</script>", "no class"),
    ):
        opened.set_input_files("input[type=file]", str(file))
        opened.fill("input[name=targets]", targets)
        opened.keyboard.press("Enter")
        opened.wait_for_selector("[role=alert]")
        assert said in opened.inner_text("[role=alert]")
        assert opened.input_value("input[name=targets]") == targets
        check_axe(opened)
