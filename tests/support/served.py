"""A server in a process of its own, as users start it."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from command import COMMAND

NAME = "efficientnet-lite0"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: it ends with a slash; process: its process; grpc: its address for gRPC.
    """

    url: str
    process: subprocess.Popen[str]
    grpc: str = ""

    @property
    def address(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://").rstrip("/")

    @property
    def children(self) -> list[int]:
        """The processes that run its models."""
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def post(self, verb: str, body: Any, name: str = NAME) -> requests.Response:
        """Post a request of protocol V1."""
        return requests.post(f"{self.url}v1/models/{name}:{verb}", json=body, timeout=60)

    def stop(self) -> tuple[int, str]:
        """Ask it to stop; return its exit code and what it said."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def serving(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> Iterator[Server]:
    """Start a server at a free port."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, process.stderr.read()
        yield Server(found[0], process)
    finally:
        process.kill()
        process.communicate()


def encoded(image: Path) -> dict[str, str]:
    return {"b64": base64.b64encode(image.read_bytes()).decode()}
