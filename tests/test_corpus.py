"""Every file that once broke a reader, and whole ones, against these readers."""

from __future__ import annotations

from pathlib import Path

import pytest

import fuzzed
from ov_recipro import ReciproError

CORPUS = Path(__file__).with_name("corpus")
KEPT = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", KEPT)
def test_what_once_broke(name: str) -> None:
    fuzzed.check(name.partition("/")[0], (CORPUS / name).read_bytes())


@pytest.mark.parametrize("target", fuzzed.TARGETS)
def test_whole_files_and_their_beginnings(target: str, tmp_path: Path) -> None:
    seeds = fuzzed.seeds(target, tmp_path)
    for number, seed in enumerate(seeds):
        folder = tmp_path / f"whole-{number}"
        folder.mkdir()
        if number == 0:  # without an error
            fuzzed.TARGETS[target](seed, folder)
        for length in range(0, len(seed), max(1, len(seed) // 20)):
            fuzzed.check(target, seed[:length])


def test_a_target_that_breaks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes, _: Path) -> None:
        raise KeyError(data)

    monkeypatch.setitem(fuzzed.TARGETS, "broken", broken)
    with pytest.raises(KeyError):
        fuzzed.check("broken", b"")


def test_an_error_is_one_line() -> None:
    error = ReciproError("m\n\x1b[31m.onnx, \udcff and \u00e9")
    assert str(error) == r"m\n\x1b[31m.onnx, \udcff and " + "\u00e9"
