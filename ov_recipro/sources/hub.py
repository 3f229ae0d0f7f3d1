"""Models of the Hugging Face Hub: found in a repository and fetched with the files beside them.

The hub's library keeps what it has fetched in a cache of its own, where a file is a link into a
folder of contents. A model may only name weights inside its own folder, so the files of a model are
laid out once more in this tool's cache, as regular files: hard links where the file system allows.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ov_recipro.errors import ModelError, OptionError, ReciproError
from ov_recipro.output import writable_cache
from ov_recipro.sources import metadata
from ov_recipro.sources.companions import is_absolute_or_climbs
from ov_recipro.sources.onnx_file import external_names
from ov_recipro.sources.references import Reference

try:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
except ImportError as error:
    raise OptionError(
        f"Models on the hub need huggingface_hub ({error}): pip install 'ov-recipro[hub]'."
    ) from error

_SECONDS = 30.0  # to wait for the hub's list of files
_LISTED = 12  # models that an error names
_LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Snapshot:
    """A repository as it was at one commit.

    Attributes:
        commit: its hash.
        names: the paths of its files; where the hub is not asked, of those that were fetched.
        where: what has these files, in words.
    """

    commit: str
    names: frozenset[str]
    where: str


def fetched(reference: Reference) -> Path:
    """Fetch a model with its weights and the files that describe it; return where it lies.

    What the hub's cache has is not fetched again. With HF_HUB_OFFLINE=1 nothing else is used.

    Raises:
        ModelError: the hub does not have it, does not give it, or can't be reached; or the model
            names weights outside its folder.
        OptionError: the reference is malformed or leads to several models.
    """
    repository = _Repository(reference)
    snapshot = repository.snapshot()
    name = _chosen(reference, snapshot)
    entry = _models() / f"models--{reference.repository.replace('/', '--')}"
    folder = entry / "snapshots" / snapshot.commit  # see `references.origin_of`
    repository.fetch(name, reference.revision or "main")  # notes its commit, to be found offline
    _place(repository.fetch(name, snapshot.commit), folder / name)
    for place, found in _descriptions(name, snapshot).items():
        _place(repository.fetch(found, snapshot.commit), folder / place)
    for found in _weights(folder / name, name, snapshot):
        _place(repository.fetch(found, snapshot.commit), folder / found)
    with suppress(OSError):
        os.utime(entry)  # it was used just now
    return folder / name


@functools.cache
def _models() -> Path:
    return writable_cache("hub")


def _chosen(reference: Reference, snapshot: _Snapshot) -> str:
    """Return the path of the model that is meant."""
    path, names = reference.path, snapshot.names
    if path in names:
        if PurePosixPath(path).suffix.lower() not in (".onnx", ".xml"):
            raise ModelError(f"{reference}: a model's file name must end in .onnx or .xml.")
        return path
    folder = f"{path}/" if path else ""
    models = sorted(each for each in names if each.startswith(folder) and _is_model(each, names))
    if len(models) == 1:
        return models[0]
    if not models:
        what = f"no model '{path}'" if path else "no .onnx or .xml model"
        raise ModelError(f"{snapshot.where} has {what}.")
    more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
    one = Reference(reference.repository, models[0], reference.revision)
    raise OptionError(
        f"Which model? {snapshot.where} has {', '.join(models[:_LISTED])}{more}. Name one, such as "
        f"{one}."
    )


def _is_model(name: str, names: frozenset[str]) -> bool:
    """Whether a file is an ONNX model, or an .xml file that has weights beside it."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix == ".onnx" or (suffix == ".xml" and _bin_of(name) in names)


def _bin_of(name: str) -> str:
    return PurePosixPath(name).with_suffix(".bin").as_posix()


def _descriptions(name: str, snapshot: _Snapshot) -> dict[str, str]:
    """Return which files describe a model, by where they belong: beside it.

    Where a model lies in a folder such as "onnx", they often lie further up.
    """
    found = {}
    for sidecar in metadata.SIDECARS:
        folders = PurePosixPath(name).parents
        places = [(folder / sidecar).as_posix() for folder in folders]
        nearest = next((place for place in places if place in snapshot.names), None)
        if nearest is not None:
            found[places[0]] = nearest
    return found


def _weights(model: Path, name: str, snapshot: _Snapshot) -> list[str]:
    """Return the paths of a model's weights.

    Raises:
        ModelError: they are not there, or outside the model's folder.
    """
    if model.suffix.lower() == ".xml":
        return [_bin_of(name)] if _bin_of(name) in snapshot.names else []
    found = []
    for each in external_names(model):
        if is_absolute_or_climbs(each):
            raise ModelError(
                f"{model}: its weights '{each}' lie outside the model's folder; refused."
            )
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), each))
        if path not in snapshot.names:
            raise ModelError(f"{snapshot.where} lacks '{path}', the weights of '{name}'.")
        found.append(path)
    return found


def _place(found: Path, place: Path) -> None:
    """Make a file of the hub's cache a regular file elsewhere, unless it is there already."""
    if place.is_file():
        return
    try:
        content = found.resolve(strict=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(content, place)
        except FileExistsError:
            pass  # another process was first
        except OSError:  # another file system, or one without links
            work = place.with_name(f".{os.getpid()}.{place.name}")
            try:
                shutil.copyfile(content, work)
                work.replace(place)
            finally:
                work.unlink(missing_ok=True)
    except OSError as error:
        raise ReciproError(f"{place} can't be written: {error.strerror or error}.") from error


class _Repository:
    """What the hub, or its cache, has of a repository; see `fetched` for errors."""

    def __init__(self, reference: Reference) -> None:
        self._reference, self._id = reference, reference.repository
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        self._api = HfApi(endpoint=endpoint or None)

    def snapshot(self) -> _Snapshot:
        """Return the commit that the revision is now, and its files."""
        revision = self._reference.revision
        where = str(Reference(self._id, revision=revision))
        with self._reported():
            try:
                info = self._api.model_info(self._id, revision=revision, timeout=_SECONDS)
                commit = str(info.sha)
                names = [each.rfilename for each in info.siblings or ()]
            except OfflineModeIsEnabled:
                folder = Path(
                    self._api.snapshot_download(
                        self._id, revision=revision, allow_patterns=[], local_files_only=True
                    )
                )
                commit, where = folder.name, f"The cache of {where}"
                files = (path for path in folder.rglob("*") if path.is_file())
                names = [path.relative_to(folder).as_posix() for path in files]
        if not _COMMIT.fullmatch(commit):
            raise ModelError(f"{where}: the hub answers with '{commit}', which is no commit.")
        inside = frozenset(name for name in names if not is_absolute_or_climbs(name))
        return _Snapshot(commit, inside, where)

    def fetch(self, name: str, revision: str) -> Path:
        """Return where a file lies in the hub's cache, fetched if it is not there."""
        with self._reported():
            return Path(self._api.hf_hub_download(self._id, name, revision=revision))

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn the library's errors into ones of a line."""
        asked, repository = self._reference, Reference(self._id)
        try:
            yield
        except HFValidationError as error:
            raise OptionError(f"{asked} names no repository: {_line(error)}") from error
        except GatedRepoError as error:
            raise ModelError(
                f"{repository} is gated: ask for access on its page, and {_LOG_IN}."
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"There is no repository {repository}, or it is private: {_LOG_IN}."
            ) from error
        except RevisionNotFoundError as error:
            raise ModelError(f"{repository} has no revision '{asked.revision}'.") from error
        except (LocalEntryNotFoundError, HfHubHTTPError) as error:
            is_local = isinstance(error, LocalEntryNotFoundError)
            cause = error.__cause__ if is_local else error
            if cause is None or isinstance(cause, OfflineModeIsEnabled):
                raise ModelError(
                    f"{asked} or a file that belongs to it is not in the hub's cache, and "
                    "HF_HUB_OFFLINE forbids fetching it."
                ) from error
            if isinstance(cause, HfHubHTTPError):
                status = cause.response.status_code
                hint = f": {_LOG_IN}" if status in (401, 403) else ""
                raise ModelError(f"The hub answers {status} for {asked}{hint}.") from error
            raise self._unreachable(cause) from error
        except Exception as error:  # of requests, httpx or httpx2, by the library's version
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> ModelError:
        return ModelError(
            f"{self._reference} can't be fetched: {_line(error)} Where it was fetched before, "
            "HF_HUB_OFFLINE=1 takes it from the cache."
        )


def _line(error: BaseException) -> str:
    """Return what the system says is behind an error, else its first line, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = (lines or [type(error).__name__])[0][:200]
    behind: BaseException | None = error
    while behind is not None:
        found = getattr(behind, "strerror", None) or found
        behind = behind.__cause__ or behind.__context__
    return f"{found.rstrip('.')}."
