"""Samples of what the tools for reliability try at length (see docs/reliability.md)."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from places import ROOT


def tried(tool: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / tool, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_models_of_strangers() -> None:
    told = tried("try_backend_models.py", "--every", "24")
    assert "models: " in told
    assert "refused" in told


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="calls are intercepted on Linux alone")
def test_calls_that_fail() -> None:
    told = tried(*("inject_faults.py", "split", "--every", "60", "--reads", "1", "--kills", "1"))
    assert "0 problems" in told
