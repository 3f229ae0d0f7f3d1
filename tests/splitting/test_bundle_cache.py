"""The cache: bounded, shown and cleared, and never taken from under another process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command import fails, run
from graphs import residual
from ov_recipro import Explainer, ReciproError
from ov_recipro.output import user_cache
from ov_recipro.splitting import bundle_cache as cache


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache.bundles.cache_clear()
    yield user_cache()
    cache.bundles.cache_clear()


def aged(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def test_what_was_used_least_recently_goes_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [residual(tmp_path / f"{n}.onnx", seed=n) for n in range(4)]
    kept = [Explainer(model).bundle.folder for model in models[:3]]
    blob = root / "compiled" / "blob"
    blob.parent.mkdir()
    blob.write_bytes(bytes(1000))
    for hours, path in zip((5, 4, 3, 2), (*kept, blob), strict=True):
        aged(path, hours)
    Explainer(models[0])  # used again, so the second is now the oldest
    size = sum(entry.size for entry in cache.entries("bundles"))
    verdicts = len(cache.entries("plans"))
    monkeypatch.setenv("OV_RECIPRO_MAX_CACHE_BYTES", str(size + 1000))
    new = Explainer(models[3]).bundle.folder
    assert {entry.path for entry in cache.entries("bundles")} == {kept[0], kept[2], new}
    assert blob.exists()
    assert len(cache.entries("plans")) == verdicts + 1 > 1

    monkeypatch.setenv("OV_RECIPRO_MAX_CACHE_BYTES", "0")
    cache.prune()
    assert {entry.path for entry in cache.entries("bundles")} == {kept[0], new}  # in use
    assert not blob.exists()


def test_what_a_killed_process_left_is_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = root / "bundles" / ".model.recipro.abc" / "tail.onnx"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(500))
    aged(left.parent, 2)
    monkeypatch.setenv("OV_RECIPRO_MAX_CACHE_BYTES", "400")
    cache.prune()
    assert not list((root / "bundles").iterdir())


def test_the_commands(root: Path, tmp_path: Path) -> None:
    empty = run("cache", "show", cwd=tmp_path)
    assert empty.stdout.splitlines()[:2] == [f"folder    {root}", "bundles   0, 0.0 MB"]
    explainer = Explainer(residual(tmp_path / "m.onnx"))
    shown = json.loads(run("cache", "show", "--json", cwd=tmp_path).stdout)
    assert shown["bundles"]["entries"] == shown["plans"]["entries"] == 1
    assert shown["bundles"]["bytes"] > 1000
    assert shown["limit"] == 8 << 30
    done = run("cache", "clear", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" MB freed.\n")
    assert not [path for path in root.rglob("*") if not path.is_dir()]
    assert explainer(np.zeros((32, 32, 3), np.uint8)).maps.size  # what is open stays usable
    fails(
        run("cache", "show", cwd=tmp_path, OV_RECIPRO_MAX_CACHE_BYTES="1 GB"),
        "OV_RECIPRO_MAX_CACHE_BYTES must be a whole number, not '1 GB'",
    )


def test_what_another_process_removed_counts_as_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        blob = root / "compiled" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(bytes(100))
        aged(blob, 10 - number)
    gone = [root / "compiled" / str(number) for number in range(2)]

    def discard(path: Path) -> None:
        path.unlink()
        if path in gone:
            raise FileNotFoundError

    monkeypatch.setattr(cache, "discard", discard)
    monkeypatch.setenv("OV_RECIPRO_MAX_CACHE_BYTES", "400")
    cache.prune()
    assert len(cache.entries("compiled")) == 4


def test_a_limit_that_is_no_number_is_said(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not root.exists()
    monkeypatch.setenv("OV_RECIPRO_MAX_CACHE_BYTES", "8 GB")
    with pytest.raises(ReciproError, match="OV_RECIPRO_MAX_CACHE_BYTES"):
        Explainer(residual(tmp_path / "m.onnx"))
