"""The documentation as a site: it builds strictly, is complete, and works from disk."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import click
import pytest
from playwright.sync_api import Browser

import ov_recipro
from chromium import opened_browser, wait_until  # noqa: F401 - the fixture `browser`
from ov_recipro.cli import cli
from places import ROOT

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Links(HTMLParser):
    """What a page loads, and what it links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, ""))
        if address and given.get("rel") not in ("next", "prev"):
            self.loaded.append(address)
        if tag == "a" and given.get("href"):
            self.linked.append(given["href"] or "")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Links]:
    return {page: _Links(page) for page in sorted(site.rglob("*.html"))}


def test_pages_load_nothing_from_the_network(site: Path, pages: dict[Path, _Links]) -> None:
    far = [each for links in pages.values() for each in links.loaded if is_far(each)]
    assert not far
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not [each for each in re.findall(r"url\(([^)]*)\)", styles) if is_far(each)]


def is_far(address: str) -> bool:
    return bool(re.match(r"""["']?(https?:)?//""", address))


def test_links_lead_to_files(pages: dict[Path, _Links]) -> None:
    assert {"security.html", "changelog.html", "Dockerfile.html"} <= {page.name for page in pages}
    broken = []
    for page, links in pages.items():
        for each in links.loaded + links.linked:
            path = unquote(urldefrag(each).url)
            if page.name == "404.html":  # which a server shows at any address
                continue
            if not re.match(r"\w+:", each) and not (page.parent / path).exists():
                broken.append(f"{page.name}: {each}")
    assert not broken


def test_all_commands_and_options(site: Path) -> None:
    page = (site / "reference" / "command-line.html").read_text()
    for name, command in commands():
        assert f'id="{name.replace(" ", "-")}"' in page
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(option in page for option in parameter.opts), (name, parameter.opts)


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())


def test_all_public_names(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text()
    missing = [name for name in ov_recipro.__all__ if f'id="ov_recipro.{name}"' not in page]
    assert not missing


def test_search_works_from_disk(site: Path, browser: Browser) -> None:
    tab = browser.new_page()
    far: list[str] = []
    tab.on("request", lambda asked: far.append(asked.url) if is_far(asked.url) else None)
    tab.goto((site / "index.html").as_uri())
    tab.click(".md-search__input")
    tab.keyboard.type("rows")
    wait_until(tab, "document.querySelectorAll('.md-search-result__item').length > 0")
    found = tab.locator(".md-search-result__link").evaluate_all("links => links.map(a => a.href)")
    assert any("performance.html" in each for each in found)
    assert not far
    tab.close()
