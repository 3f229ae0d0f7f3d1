"""Many images and videos: in order, bounded, and the same as one by one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from command import run
from ov_recipro import Explainer, ReciproError
from ov_recipro.images.reading import read_image
from ov_recipro.images.video import open_video, read_frames, write_video
from ov_recipro.ordered import in_order


def test_results_keep_the_order_though_some_take_longer() -> None:
    def slow(number: int) -> int:
        time.sleep(0.02 if number % 5 == 0 else 0)
        return number

    assert list(in_order(slow, range(40), workers=4)) == list(range(40))


def test_no_more_are_drawn_than_are_in_hand() -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        for number in count():
            drawn += 1
            yield number

    assert list(islice(in_order(lambda n: n, endless(), workers=2), 10)) == list(range(10))
    assert drawn <= 10 + 4


def test_an_error_is_raised_at_its_turn() -> None:
    started = []

    def failing(number: int) -> int:
        started.append(number)
        if number == 3:
            raise ReciproError("the third")
        return number

    results = in_order(failing, range(1000), workers=2)
    assert list(islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ReciproError, match="the third"):
        next(results)
    assert len(started) < 20


@pytest.mark.parametrize("plan", ["rows", "stream"])
@pytest.mark.parametrize("device", ["CPU", "ort-cpu"])
def test_a_stream_is_as_one_by_one(
    plan: str, device: str, lite0: Path, explainer: Explainer, cat: Path, coffee: Path
) -> None:
    wanted = "stream" if plan == "stream" else "auto"
    several = Explainer(lite0, device=device, plan=wanted, hint="throughput")
    images: list[Path | np.ndarray] = [cat, read_image(coffee), cat, coffee] * 5
    names = {thread.name for thread in threading.enumerate()}
    for image, got in zip(images, several.stream(images, ["top1", 968]), strict=True):
        expected = explainer(image, ["top1", 968])
        assert [t.index for t in got.targets] == [t.index for t in expected.targets]
        np.testing.assert_allclose(got.maps, expected.maps, atol=1e-4)
        assert got.overlay().shape == expected.overlay().shape
    assert {thread.name for thread in threading.enumerate()} <= names


def test_targets_given_once_serve_every_image(explainer: Explainer, cat: Path) -> None:
    wanted = iter(["tabby", "lynx"])
    for explanation in explainer.stream([cat, cat], wanted):
        assert [target.index for target in explanation.targets] == [281, 287]


@pytest.fixture
def video(tmp_path: Path, cat: Path) -> Path:
    image = read_image(cat)[:299, :451]  # odd sizes
    frames = (np.roll(image, 8 * shift, axis=1) for shift in range(12))
    path = tmp_path / "walk.mp4"
    assert write_video(path, frames, 12.5) == 12
    return path


def test_a_video_gives_a_video(video: Path, cat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("explain", str(video), str(cat), "-o", str(out), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [image["path"] for image in record["images"]] == [str(cat)]
    (entry,) = record["videos"]
    assert entry["video"] == "walk.mp4"
    assert entry["frames"] == len(entry["targets"]) == 12
    written = open_video(out / "walk.mp4")
    assert written.frames == 12
    assert written.rate == pytest.approx(12.5)
    plain = np.stack(list(read_frames(open_video(video)))).astype(float)
    drawn = np.stack(list(read_frames(written))).astype(float)
    assert plain.shape == drawn.shape == (12, 298, 450, 3)  # the codec wants even sizes
    assert np.abs(plain - drawn).mean() > 10
    assert sorted(p.name for p in out.iterdir()) == ["chelsea.png", "explanations.json", "walk.mp4"]


def test_bad_videos(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(np.random.default_rng(0).bytes(5000))
    done = run("explain", str(broken), "missing.mp4", "-o", str(tmp_path / "o"), cwd=tmp_path)
    assert done.returncode == 1
    assert "broken.mp4: not a video" in done.stderr
    assert "missing.mp4: No such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["explanations.json"]


def test_a_video_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((64, 64, 3), np.uint8)
        raise ReciproError("no more")

    with pytest.raises(ReciproError, match="no more"):
        write_video(tmp_path / "v.mp4", frames(), 10)
    with pytest.raises(ReciproError, match="no frames"):
        write_video(tmp_path / "v.mp4", [], 10)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_a_broken_file_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    path.write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(ReciproError, match="not a video"):
        open_video(path)
