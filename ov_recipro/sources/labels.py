"""Class names: reading them in the forms that they come in, and finding a class by name."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ov_recipro.errors import OptionError, TargetError

_SYNSET = re.compile(r"(n\d{8})\s+")


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names, in the order of the classes.

    Forms: one name a line; synset lines ("n02123045 tabby, tabby cat"); JSON, a list or an object
    from class index to name or to [synset, name]; a tab-separated table with the columns "index"
    and "name".

    Raises:
        OptionError: the file can't be read as any of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise OptionError(f"The label file {path} can't be read: {reason}.") from error
    try:
        if path.suffix == ".json":
            return _from_json(text)
        if path.suffix == ".tsv":
            return _from_table(text)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise OptionError(
            f"The label file {path} is malformed: {type(error).__name__}: {error}."
        ) from error
    lines = text.rstrip().splitlines()
    return tuple(_SYNSET.sub("", line, count=1).strip() for line in lines)


def read_synsets(path: Path) -> tuple[str, ...] | None:
    """Read the WordNet ids ("n02123045") of the classes from a label file, None if it has none.

    They begin the lines of text, are the first of JSON's pairs, or the column "wnid" of a table.

    Raises:
        OptionError: see `read_labels`.
    """
    if len(read_labels(path)) == 0:
        return None
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        data = json.loads(text)
        pairs = _ordered({int(i): p for i, p in data.items()}) if isinstance(data, dict) else data
        found = [str(pair[0]) if isinstance(pair, list) else "" for pair in pairs]
    elif path.suffix == ".tsv":
        rows = csv.DictReader(text.splitlines(), delimiter="\t")
        found = _ordered({int(row["index"]): row.get("wnid") or "" for row in rows})
    else:
        matches = [_SYNSET.match(line) for line in text.rstrip().splitlines()]
        found = [match[1] if match else "" for match in matches]
    return tuple(found) if all(found) else None


def _from_json(text: str) -> tuple[str, ...]:
    data = json.loads(text)
    if isinstance(data, dict):
        data = _ordered({int(index): name for index, name in data.items()})
    return tuple(str(name[-1] if isinstance(name, list) else name) for name in data)


def _from_table(text: str) -> tuple[str, ...]:
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return tuple(_ordered({int(row["index"]): row["name"] for row in rows}))


def _ordered(names: dict[int, str]) -> list[str]:
    if sorted(names) != list(range(len(names))):
        raise ValueError("the class indices are not 0, 1, 2, ... without gaps")
    return [names[index] for index in range(len(names))]


def checked_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Return the labels, if any, after counting them."""
    if labels is not None and len(labels) != classes:
        raise OptionError(f"There are {len(labels)} labels for the model's {classes} classes.")
    return None if labels is None else tuple(labels)


def class_index(target: str | int, labels: Sequence[str] | None, classes: int) -> int:
    """Return the index of a class given by its name (see `find_class`) or number.

    Raises:
        TargetError: there is no such class.
    """
    if not isinstance(target, int) and not re.fullmatch(r"[+-]?[0-9]{1,18}", target):
        return find_class(target, labels)
    index = int(target)
    if not 0 <= index < classes:
        raise TargetError(f"There is no class {index}: the model has 0 to {classes - 1}.")
    return index


def find_class(name: str, labels: Sequence[str] | None) -> int:
    """Return the index of the class called `name`.

    Case does not matter, underscores are spaces, and any of a label's comma-separated synonyms
    matches.

    Raises:
        TargetError: no class, or more than one, has this name.
    """
    if labels is None:
        raise TargetError(
            f"The class '{name}' can't be looked up: the model has no labels. Give the class's "
            "index, or the names with --labels FILE."
        )
    wanted = _plain(name)
    exact = [i for i, label in enumerate(labels) if _plain(label) == wanted]
    found = exact or [
        i for i, label in enumerate(labels) if wanted in [_plain(p) for p in label.split(",")]
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise TargetError(
            f"The class '{name}' is ambiguous: classes {', '.join(map(str, found))} have "
            "that name. Give the index."
        )
    known = {_plain(part): part.strip() for label in labels for part in label.split(",")}
    close = difflib.get_close_matches(wanted, known, n=3)
    hint = f" Did you mean {' or '.join(known[c] for c in close)}?" if close else ""
    raise TargetError(f"The model has no class '{name}'.{hint}")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
