"""Shared models and images. Every test has a user cache of its own run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from at_length import is_at_length
from forms import float_lite0, models  # noqa: F401 - fixtures
from ov_recipro.explainer import Explainer
from ov_recipro.sources.default_model import bundled_model
from places import LITE1, ROOT, SHARED

# Ray's workers give way to all others by default, and so would starve beside other tests
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--oracle-images",
        type=int,
        default=2,
        help="images on which maps are compared with the slow oracle",
    )
    parser.addoption("--thorough", action="store_true", help="leave out none (see at_length.py)")
    parser.addoption("--large", action="store_true", help="run tests that write gigabytes")


LONGEST = ("test_docs.py", "test_cluster.py", "test_embedding.py", "test_cli.py", "test_formats.py")
"""Files of tests that take long, which must not be the last to begin."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; leave out what `at_length` lists, unless it is asked for."""
    if not config.getoption("--thorough"):
        left_out = [item for item in items if is_at_length(item.nodeid)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not is_at_length(item.nodeid)]
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("OV_RECIPRO_MODEL", raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def lite0() -> Path:
    return bundled_model()


@pytest.fixture(scope="session")
def lite1() -> Path:
    coming = os.environ.get("OV_RECIPRO_LITE1")  # a file that is made when the export has ended
    if coming is not None:
        deadline = time.monotonic() + 600
        while not Path(coming).exists() and time.monotonic() < deadline:
            time.sleep(1)
        assert Path(coming).read_text().strip() == "0", "its export has failed"
    if not LITE1.is_file():
        pytest.skip(f"{LITE1.relative_to(ROOT)} is not there; 'make lite1' exports it")
    return LITE1


@pytest.fixture(scope="session")
def explainer(lite0: Path) -> Explainer:
    return Explainer(lite0)


@pytest.fixture(scope="session")
def cat() -> Path:
    return ROOT / "examples" / "chelsea.jpg"


@pytest.fixture(scope="session")
def coffee() -> Path:
    return ROOT / "examples" / "coffee.jpg"


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """Real ImageNet photographs, every twelfth of the sample."""
    images = sorted(SHARED.glob("*/*.jpg"))
    if not images:
        pytest.skip("the ImageNet sample is not there; OV_RECIPRO_SAMPLES names its folder")
    return images[::12]
