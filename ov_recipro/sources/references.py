"""What names a model: a path, or a reference to a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ov_recipro.errors import OptionError

_SCHEME = re.compile(r"hf:/{1,2}")  # a Path has one slash of the two
_REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.*?))?/?(?:@([^@]+))?", re.ASCII)
_SNAPSHOT = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/(.+)", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A model in a repository of the hub.

    Attributes:
        repository: "organisation/name".
        path: of the model or of a folder that has only one; empty where the repository has only
            one.
        revision: a branch, a tag or a commit; None for the repository's main branch.
    """

    repository: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repository}{path}{revision}"


def is_on_hub(model: str | Path) -> bool:
    """Whether a model is named by a reference, not by a path."""
    return _SCHEME.match(str(model)) is not None


def located(model: str | Path) -> Path:
    """Return where a model lies; one that is on the hub is fetched unless it was before.

    Args:
        model: a path or "hf://organisation/name[/path][@revision]".

    Raises:
        ModelError: the hub does not have it, does not give it, or can't be reached.
        OptionError: a reference is malformed or leads to several models, or the extra that fetches
            models is not installed.
    """
    text = model.as_posix() if isinstance(model, Path) else model
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(model)
    from ov_recipro.sources.hub import fetched

    return fetched(parsed(text[scheme.end() :]))


def parsed(text: str) -> Reference:
    """Return the reference that a text is, without its scheme.

    Raises:
        OptionError: it is malformed.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise OptionError(
            f"'hf://{text}' is not of the form hf://ORGANISATION/NAME[/PATH][@REVISION]."
        )
    return Reference(match[1], match[2] or "", match[3])


def origin_of(model: Path) -> str | None:
    """Return the reference, with its commit, to a file in a cache of the hub; None for others.

    It shows in the path: both caches, the hub's own and this tool's, are laid out like that.
    """
    match = _SNAPSHOT.fullmatch(os.path.normpath(model.absolute()).replace(os.sep, "/"))
    if match is None:
        return None
    organisation, name, commit, path = match.groups()
    return str(Reference(f"{organisation}/{name}", path, commit))
