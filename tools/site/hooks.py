"""What the site needs besides the pages in docs/, which are written for GitHub as well.

Links from a page to files outside docs/ work on GitHub as they are. On the site, each of these
files becomes a page too, and the links lead there.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ov_recipro.cli import cli

ROOT = Path(__file__).parents[2]
DOCS = "docs"
PAGES = {"README.md": "index.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages of the site, by their paths in the repository."""
OTHERS = "repository"
"""The site's folder for all other files that are linked to."""
COMMAND_LINE = "reference/command-line.md"
MARKER = "<!-- commands -->"
_BAR = re.compile(r"`([^`]*\\\|[^`]*)`")
"""Code with an escaped bar, as GitHub wants it in tables."""
_LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to in turn."""
    waiting = [each.src_uri for each in files.documentation_pages()] + list(PAGES.values())
    while waiting:
        place = waiting.pop()
        page = files.get_file_from_path(place)
        if page is None:
            page = File.generated(config, place, content=_content(_in_repository(place)))
            files.append(page)
        for there in _linked(page.content_string, place):
            uri = _on_site(there)
            outside = not there.startswith(f"{DOCS}/") and (ROOT / there).is_file()
            if outside and files.get_file_from_path(uri) is None:
                waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead links to where their targets are on the site, and fill the page of commands."""
    place = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        there = _target(match[1], place)
        uri = _on_site(there)
        if files.get_file_from_path(uri) is None or not (ROOT / there).is_file():
            return match[0]
        return posixpath.relpath(uri, posixpath.dirname(place) or ".") + (match[2] or "")

    if _in_repository(place).endswith(".md"):
        markdown = _BAR.sub(_with_bar, _LINK.sub(led, markdown))
    if place == COMMAND_LINE:
        return markdown.replace(MARKER, "\n".join(_commands()))
    return markdown


def _with_bar(match: re.Match[str]) -> str:
    code = escape(match[1].replace("\\|", "|"), quote=False)
    return f"<code>{code.replace('|', '&#124;')}</code>"


def _linked(markdown: str, place: str) -> Iterator[str]:
    """Yield the paths in the repository that a page's links lead to."""
    if _in_repository(place).endswith(".md"):
        for target, _ in _LINK.findall(markdown):
            yield _target(target, place)


def _target(link: str, place: str) -> str:
    here = posixpath.dirname(_in_repository(place))
    return posixpath.normpath(posixpath.join(here, link))


def _on_site(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    name = PAGES.get(path, f"{OTHERS}/{path}")
    return name if name.endswith(".md") else f"{name}.md"


def _in_repository(place: str) -> str:
    """Return where a page of the site is in the repository."""
    for path, uri in PAGES.items():
        if uri == place and not (ROOT / DOCS / place).exists():
            return path
    if not place.startswith(f"{OTHERS}/"):
        return f"{DOCS}/{place}"
    path = place.removeprefix(f"{OTHERS}/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _content(path: str) -> str:
    """Return a file of the repository as a page: its Markdown, or its text as it is."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n```{_language(path)}\n{text.rstrip()}\n```\n"


def _language(path: str) -> str:
    name = Path(path)
    return (name.suffix.removeprefix(".") or name.name).lower()


def _commands() -> Iterator[str]:
    """Yield the lines that describe every command and option, in Markdown."""
    root = click.Context(cli, info_name="ov-recipro")
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is not None:
            yield from _described(command, click.Context(command, info_name=name, parent=root), 2)


def _described(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    title = context.command_path.removeprefix("ov-recipro ")
    pieces = command.collect_usage_pieces(context)
    yield f"{'#' * level} {title}\n"
    yield f"```text\n{' '.join([context.command_path, *pieces])}\n```\n"
    yield f"{_plain(inspect.cleandoc(command.help or ''))}\n"
    for parameter in command.get_params(context):
        names, text = parameter.get_help_record(context) or ("", "")
        if not text or parameter.name == "help":
            continue
        yield f"`{names}`"
        yield f":   {_with_default(text)}\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                below = click.Context(inner, info_name=name, parent=context)
                yield from _described(inner, below, level + 1)


def _with_default(text: str) -> str:
    """Return an option's help as Markdown, what click adds in brackets as sentences."""
    found = re.fullmatch(r"(.*?)\s*\[((?:default|required|env var|x[<>]|\d).*)\]", text, re.S)
    if found is None:
        return _plain(text)
    further = "; ".join(part.strip() for part in found[2].split(";"))
    return f"{_plain(found[1])} {_plain(further[0].upper() + further[1:])}."


def _plain(text: Any) -> str:
    """Return text in which nothing is taken for Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", escape(str(text), quote=False))
