"""The page of error messages has each message of the source once, and no others."""

from __future__ import annotations

import ast
import builtins
import gc
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple, TypeAlias, TypeVar

import click
import pytest

from ov_recipro.cli import cli
from places import ROOT

PACKAGE = ROOT / "ov_recipro"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
VARIES = "..."

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Node = TypeVar("Node", bound=ast.AST)

TEXTS = {
    # What a run says of itself: the field's default, and the one for detectors.
    ("cli/evaluate_command.py", "run.nothing"): (
        "No image could be measured.",
        "No image has a box that ....",
    ),
    # `Process.lost` makes this sentence; `_fate` ends it.
    ("isolation/isolated.py", "str(death)"): ("The process that runs the model ....",),
    # An OptionError, once more as NotApplicable: its text has a row already.
    ("methods/box_methods.py", "str(error)"): (),
    ("methods/subject.py", "str(refusal)"): (),
    # `pooled_tail.why_not_pooled` returns these.
    ("methods/subject.py", "reason"): (
        "the tail is not linear",
        "the tail does not begin with a global average pool",
    ),
}
"""The messages at sites whose text is not in the same function or module, by their argument."""

PLACEHOLDERS = {
    # `_reported` and `_converted` get these from their callers.
    ("sources/openvino_source.py", "what"): (
        "can't be cut there",
        "can't be written",
        "is not a readable OpenVINO IR",
    ),
    ("serving/parameters.py", "subject"): ("An instance", "The parameters", "The request"),
}
"""What stands in a message's placeholder, where a page without it would be of no use."""

RAISED_OTHERWISE = {
    # Functions that return an error, which they make from a text of their own.
    ("cut/outputs.py", "self._refusal"),
    ("embedding/detector_branch.py", "_refused"),
    ("sources/hub.py", "self._unreachable"),
    ("sources/onnx_file.py", "_unreadable"),
    # The class is a limit's own: a site like any other.
    ("limits.py", "self.error"),
    # Errors of another process or machine, as they were raised there.
    ("cluster/pool.py", "next((each for each in CODES if each.__name__ == kind), ReciproError)"),
    ("isolation/process.py", "_error_from"),
}
"""What is raised in the package, apart from instances of classes that are named there."""


class Module:
    """A module's source: its nodes, and the innermost function that each is in."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.tree = name, ast.parse(source)
        self.inside: dict[ast.AST, Function | None] = {}
        self._place(self.tree, None)
        self.functions = {each.name: each for each in self.all(ast.FunctionDef)}

    def _place(self, node: ast.AST, function: Function | None) -> None:
        self.inside[node] = function
        inner = node if isinstance(node, Function) else function
        for child in ast.iter_child_nodes(node):
            self._place(child, inner)

    def all(self, kind: type[Node]) -> list[Node]:
        """Return the nodes of a kind."""
        return [node for node in self.inside if isinstance(node, kind)]

    def texts(self, value: ast.expr, where: Function | None) -> tuple[str, ...] | None:
        """Return the texts that an expression can be; None where it does not show them."""
        match value:
            case ast.Constant(value=str(text)):
                return (text,)
            case ast.JoinedStr(values=parts):
                return _joined(self.parts(part, where) for part in parts)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                both = [self.texts(each, where) for each in (left, right)]
                return _joined(each or (VARIES,) for each in both)
            case ast.IfExp(body=body, orelse=orelse):
                return self.all_texts([body, orelse], where)
            case ast.Name(id=name):
                found = _assigned(where or self.tree, name) or _assigned(self.tree, name)
                return self.all_texts(found, where)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if (
                name in self.functions
            ):
                function = self.functions[name]
                returns = [each for each in ast.walk(function) if isinstance(each, ast.Return)]
                return self.all_texts([each.value for each in returns if each.value], function)
        return None

    def all_texts(self, values: list[ast.expr], where: Function | None) -> tuple[str, ...] | None:
        found = [self.texts(each, where) for each in values]
        if not found or None in found:
            return None
        return tuple(itertools.chain.from_iterable(each or () for each in found))

    def parts(self, part: ast.expr, where: Function | None) -> tuple[str, ...]:
        """Return what a part of an f-string can be; a placeholder for all but a few words."""
        if isinstance(part, ast.Constant):
            return (str(part.value),)
        assert isinstance(part, ast.FormattedValue)
        by_hand = PLACEHOLDERS.get((self.name, ast.unparse(part.value)))
        if by_hand is not None:
            return by_hand
        choices = [part.value]
        if isinstance(part.value, ast.Name) and where is not None:
            choices = _assigned(where, part.value.id)
        words = [word for choice in choices for word in _words(choice)]
        return tuple(words) if words and all(words) else (VARIES,)


class Site(NamedTuple):
    """A place where an error is made."""

    where: str
    texts: tuple[str, ...] | None


def _words(choice: ast.expr) -> list[str]:
    """Return the literal texts of which an expression is one; an empty one where it is not."""
    match choice:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_words(body), *_words(orelse)]
    return [""]


def _joined(parts: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    """Return texts made of one of each part; what varies is marked once where it is in a row."""
    return tuple(
        "".join(VARIES if text == VARIES else "".join(run) for text, run in itertools.groupby(each))
        for each in itertools.product(*parts)
    )


def _assigned(scope: ast.AST, name: str) -> list[ast.expr]:
    """Return what is assigned to a name inside a function, or a module."""
    return [
        each.value
        for each in ast.walk(scope)
        if isinstance(each, ast.Assign)
        and any(isinstance(to, ast.Name) and to.id == name for to in each.targets)
    ]


@cache
def modules() -> tuple[Module, ...]:
    gc.disable()  # over so many nodes it takes twice as long as all else
    try:
        return tuple(
            Module(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
            for path in sorted(PACKAGE.rglob("*.py"))
        )
    finally:
        gc.enable()


def classes(*bases: str) -> set[str]:
    """Return the names of the package's classes with one of these bases, and the bases."""
    known, before = set(bases), 0
    while len(known) > before:
        before = len(known)
        known |= {
            each.name
            for module in modules()
            for each in module.all(ast.ClassDef)
            if known & {ast.unparse(base) for base in each.bases}
        }
    return known


@cache
def sites() -> tuple[Site, ...]:
    """Return all places where a ReciproError is made."""
    kinds, found = classes("ReciproError"), []
    for module in modules():
        for call in module.all(ast.Call):
            match call.func:
                case ast.Name(id=name) if name in kinds:
                    pass
                case ast.Attribute(attr="error") if module.name == "limits.py":
                    pass
                case _:
                    continue
            (message,) = call.args
            texts = module.texts(message, module.inside[call])
            if texts is None:
                texts = TEXTS.get((module.name, ast.unparse(message)))
            found.append(Site(f"{module.name}:{call.lineno}: {ast.unparse(message)}", texts))
    return tuple(found)


@cache
def rows() -> tuple[tuple[str, ...], ...]:
    """Return the page's rows: a message, why, what to do."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    return tuple(
        tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines
    )


def test_all_texts_are_known() -> None:
    assert [each.where for each in sites() if each.texts is None] == []
    assert len(sites()) > 300  # else they are made in another way now, and nothing is checked


def test_the_page_has_every_message_once() -> None:
    wanted = {text for each in sites() for text in each.texts or ()}
    found = Counter(row[0].removeprefix("`").removesuffix("`") for row in rows())
    assert sorted(wanted - found.keys()) == []  # the page lacks these
    assert sorted(found.keys() - wanted) == []  # these are no longer in the source
    assert [message for message, count in found.items() if count > 1] == []


def test_every_row_says_why_and_what_to_do() -> None:
    wrong = [row for row in rows() if len(row) != 3 or not all(row) or row[0].count("`") != 2]
    assert wrong == []
    tables = [line for line in PAGE.splitlines() if line.startswith("|")]
    heads = [line for line in tables if line == "| message | why | what to do |"]
    assert len(tables) == len(rows()) + 2 * len(heads)


def test_nothing_else_is_raised() -> None:
    """A class in a variable, or a function that returns an error, would not be seen otherwise."""
    known = classes("ReciproError", "Exception") | set(vars(builtins))
    found = {
        (module.name, ast.unparse(each.exc.func))
        for module in modules()
        for each in module.all(ast.Raise)
        if isinstance(each.exc, ast.Call)
    }
    raised = {each for each in found if each[1] not in known and not each[1].startswith("click.")}
    assert raised == RAISED_OTHERWISE


def test_what_is_written_by_hand_is_in_the_source() -> None:
    named = TEXTS.keys() | PLACEHOLDERS.keys()
    used = {
        (module.name, ast.unparse(each))
        for module in modules()
        if module.name in {name for name, _ in named}
        for each in (*module.all(ast.Name), *module.all(ast.Attribute), *module.all(ast.Call))
    }
    assert named <= used
    literals = {
        each.value
        for module in modules()
        for each in module.all(ast.Constant)
        if isinstance(each.value, str)
    }
    for text in itertools.chain(*TEXTS.values(), *PLACEHOLDERS.values()):
        for piece in text.split(VARIES):
            assert any(piece in each for each in literals), text


def test_what_to_do_can_be_done() -> None:
    """Options, environment variables and pages that rows name exist."""
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in cli.list_commands(context)]
    options = {"--help"}
    for command in commands:
        assert command is not None
        options |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    literals = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    for row in rows():
        for cell in row[1:]:
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", cell)) <= options, row
            for variable in re.findall(r"OV_RECIPRO_[A-Z_]*[A-Z]", cell):
                assert f'"{variable}"' in literals, row
    for page, heading in re.findall(r"\]\(([\w./-]*)#?([\w-]*)\)", PAGE):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8") if page else PAGE
        headings = re.findall(r"^#+ (.+)$", text, re.M)
        assert heading in {"", *(_anchor(each) for each in headings)}, heading


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("E('It is.')", ["It is."]),
        ("E(f'{a}: {b}{c}.')", ["...: ...."]),
        ("E('No.' if a else f'{b} is.')", ["... is.", "No."]),
        ('E(f\'{a} is {"red" if a else "blue"}.\')', ["... is blue.", "... is red."]),
        ("t = 'It ' + f'is {a}.'\n    E(t)", ["It is ...."]),
        ("E(g(a))", ["One.", "Two ...."]),
        ("E(h(a))", None),
    ],
)
def test_how_texts_are_read(source: str, wanted: list[str] | None) -> None:
    helper = "def g(a):\n    if a:\n        return 'One.'\n    return f'Two {a}.'\n"
    module = Module("m", f"{helper}def f(a, b, c):\n    {source}\n")
    call = next(each for each in module.all(ast.Call) if ast.unparse(each.func) == "E")
    found = module.texts(call.args[0], module.inside[call])
    assert (found if found is None else sorted(found)) == wanted
