"""What a terminal shows, and a pipe does not."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from command import COMMAND
from ov_recipro.cli.progress import progress
from ov_recipro.cli.terminal import heat
from ov_recipro.images.drawing import palette


def in_terminal(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run the command with a terminal as its stdout; return what that got."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=variables,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    _, error = process.communicate()
    os.close(ours)
    assert process.returncode == 0, error
    return said.decode()


def test_a_map_in_half_blocks() -> None:
    saliency = np.array([[0, 1], [0.5, 0], [1, 1]], np.float32)
    text = heat(saliency, "viridis")
    assert text.plain == "▀▀▀▀\n▀▀▀▀"
    blue, green, red = (int(part) for part in palette("viridis")[0, 255])
    styles = [str(span.style) for span in text.spans]
    assert styles[1].startswith(f"rgb({red},{green},{blue}) on rgb(")
    assert " on " not in styles[2]


def test_colour_in_a_terminal_alone(tmp_path: Path, cat: Path) -> None:
    shown = in_terminal("explain", cat, "-q", cwd=tmp_path)
    assert "\x1b[" in shown
    assert "▀▀" in shown
    assert "Egyptian cat" in shown
    assert "chelsea.png" in shown
    plain = in_terminal("explain", cat, "-q", cwd=tmp_path, NO_COLOR="1")
    assert "\x1b[" not in plain
    assert "▀" not in plain
    assert "Egyptian cat 0.376, tiger cat 0.336" in plain


def test_progress_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("Explaining", 10, quiet=False) as advance:
        advance(1, 0)
    assert capsys.readouterr() == ("", "")  # not at once
    monkeypatch.setattr("ov_recipro.cli.progress._LINE_SECONDS", 0.0)
    with progress("Explaining", 1000, quiet=False, kept=400) as advance:
        advance(300, 1)
        advance(299, 2)
    out, err = capsys.readouterr()
    assert out == ""
    pattern = r"Explaining: 999 of 1000, \d+\.\d/s, 3 failed, about 0 s left"
    assert re.fullmatch(pattern, err.splitlines()[1])
    with progress("Explaining", 1000, quiet=True) as advance:
        advance(1000, 0)
    assert capsys.readouterr() == ("", "")
