"""Odd names of files, caches that can't be written, clocks that go backwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from command import run

LETTER = "\u00e9"
NAMES = (
    b"plain", b"with space", b"new\nline", b"quo\"te's", b"%s{}", b"-dash", b"..",
    f"{LETTER} \U0001f408".encode(), unicodedata.normalize("NFC", LETTER).encode(),
    unicodedata.normalize("NFD", LETTER).encode(), b"\xff\xfe", b"a" * 251, b"a" * 250 + b"b",
    b"[x]", b"*", b"\x1b[31mred", b"<b>&amp;",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, cat: Path) -> Path:
    """Photographs and a model with odd names."""
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        try:
            os.link(cat, os.fsencode(tmp_path / "photos") + b"/" + name + b".jpg")
        except OSError:  # another file system
            Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name + b".jpg")).write_bytes(
                cat.read_bytes()
            )
    return tmp_path


def test_any_name_of_an_image(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from ov_recipro.cli import main; main()", "explain", "photos",
         "--save-maps", "--report"],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict", "LANG": "C.UTF-8"},
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"\n" + rb"photos/new\nline.jpg: Egyptian cat" in done.stdout
    record = json.loads((folder / "explanations" / "explanations.json").read_text())
    assert len(record["images"]) == len(NAMES)
    assert len({each["targets"][0]["overlay"] for each in record["images"]}) == len(NAMES)
    assert any(r"\udcff\udcfe" in each["path"] for each in record["images"])
    words = ("evaluate", "photos", "--methods", "random", "--step", "50176")
    for _ in range(2):
        done_again = run(*words, cwd=folder)
        assert done_again.returncode == 0, done_again.stderr
    assert f"{len(NAMES) - 1} of {len(NAMES)} measurements are kept" in done_again.stderr


@pytest.mark.parametrize("name", [b"m" * 250, b"\xffodd\n"])
def test_any_name_of_a_model(name: bytes, lite0: Path, cat: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".onnx"))
    path.write_bytes(lite0.read_bytes())
    done = run("explain", cat, "-m", path, "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "chelsea.png").is_file()
    done = run("split", path, "-o", "b.recipro", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cache", ["/dev/null", "/dev/null/below", "/proc/nothing"])
def test_a_cache_that_cannot_be_written(cache: str, cat: Path, tmp_path: Path) -> None:
    done = run("explain", cat, cwd=tmp_path, XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stderr
    assert "Egyptian cat" in done.stdout


def test_a_clock_that_went_backwards(cat: Path, tmp_path: Path, lite0: Path) -> None:
    """What was cached or written in the future is used, and replaced where it must be."""
    model = tmp_path / "m.onnx"
    model.write_bytes(lite0.read_bytes())
    cache = str(tmp_path / "cache")
    for _ in range(2):
        done = run("explain", cat, "-m", model, cwd=tmp_path, XDG_CACHE_HOME=cache)
        assert done.returncode == 0, done.stderr
        for path in tmp_path.rglob("*"):
            os.utime(path, (4e9, 4e9))
    assert len(list((tmp_path / "cache").rglob("recipro.json"))) == 1
