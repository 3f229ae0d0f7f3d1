"""A stand-in for the Hugging Face Hub: the routes that its library calls, on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


@dataclass
class Hub:
    """A running stand-in.

    Attributes:
        url: its address.
        commits: of each repository the files of each commit.
        revisions: of each repository the commit of each revision.
        refusals: of each repository that is refused, the status and the code of the error; the
            code of one that only its files are refused with begins with "files ".
        asked: the method and the path of each request.
    """

    url: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def push(self, repository: str, files: Files, revision: str = "main") -> str:
        """Add a commit, to which a revision then leads; return its hash."""
        about = repr((repository, revision, sorted(files.items())))
        commit = hashlib.sha1(about.encode()).hexdigest()  # noqa: S324 - as git does
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.revisions.setdefault(repository, {})[revision] = commit
        return commit

    def push_folder(self, repository: str, folder: Path, *more: tuple[str, bytes]) -> str:
        """Add a folder's files, and more, as a commit."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.push(repository, files | dict(more))

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return the status, headers and body for a path."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        is_list = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_list else parts
        repository = f"{owner}/{name}"
        status, code = self.refusals.get(repository, (0, ""))
        if status and not (is_list and code.startswith("files ")):
            return status, {"X-Error-Code": code.removeprefix("files ")}, b""
        if repository not in self.commits:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.revisions[repository].get(revision, revision)
        files = self.commits[repository].get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if is_list:
            siblings = [{"rfilename": each} for each in files]
            about = {"id": repository, "sha": commit, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        headers = {"X-Repo-Commit": commit}
        content = files.get("/".join(rest[2:]))
        if content is None:
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        digest = hashlib.sha256(content).hexdigest()
        return 200, headers | {"ETag": f'"{digest}"'}, content


@contextmanager
def hub() -> Iterator[Hub]:
    """Start one, and stop it at the end."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            path = urlsplit(self.path).path
            state.asked.append(f"{self.command} {path}")
            status, headers, body = state.answer(path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
