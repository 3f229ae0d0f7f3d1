"""Class names."""

from __future__ import annotations

from pathlib import Path

import pytest

from ov_recipro import ReciproError
from ov_recipro.sources.labels import find_class, read_labels

NAMES = ("tench, Tinca tinca", "crane", "crane", "coffee mug")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("l.txt", "tench\ncoffee mug\n"),
        ("l.txt", "\ufefftench\ncoffee mug"),
        ("l.txt", "n01440764 tench\nn03063599 coffee mug\n"),
        ("l.json", '["tench", "coffee mug"]'),
        ("l.json", '{"1": "coffee mug", "0": "tench"}'),
        ("l.json", '{"0": ["n01440764", "tench"], "1": ["n03063599", "coffee mug"]}'),
        ("l.tsv", "index\twnid\tname\n1\tn03063599\tcoffee mug\n0\tn01440764\ttench\n"),
    ],
)
def test_forms(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / file) == ("tench", "coffee mug")


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("l.json", b'{"0": "a", "2": "b"}'),
        ("l.json", b"{"),
        ("l.tsv", b"number\tname\n0\ta\n"),
        ("l.txt", b"\xff\xfe\x00"),
    ],
)
def test_malformed(file: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ReciproError, match=r"label file .*l\."):
        read_labels(tmp_path / file)


@pytest.mark.parametrize("name", ["tench", "Tinca tinca", "tench, tinca Tinca", "TENCH"])
def test_find(name: str) -> None:
    assert find_class(name, NAMES) == 0
    assert find_class("coffee_mug", NAMES) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crane", "classes 1, 2"),
        ("cofee mug", "Did you mean coffee mug"),
        ("xyz", "no class 'xyz'"),
    ],
)
def test_find_nothing(name: str, message: str) -> None:
    with pytest.raises(ReciproError, match=message):
        find_class(name, NAMES)
    with pytest.raises(ReciproError, match="--labels"):
        find_class(name, None)
