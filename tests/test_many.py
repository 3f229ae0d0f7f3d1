"""Many images and videos: in order, bounded, and the same as one by one."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from command import run
from ov_recipro import Explainer, ReciproError
from ov_recipro.batch import Batch, find_inputs
from ov_recipro.images.drawing import Style
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


def test_a_reference_is_explained_the_other_way_round(
    lite0: Path, cat: Path, coffee: Path, tmp_path: Path
) -> None:
    features = Explainer(lite0, task="features", signed=True)
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    out.mkdir()
    for name, image in (("a.jpg", coffee), ("b.jpg", coffee), ("b.reference.jpg", cat)):
        shutil.copy(image, photos / name)
    inputs = find_inputs([str(photos / name) for name in ("b.jpg", "b.reference.jpg")])
    centre = [str(photos), str(photos / "a.jpg")]
    asked = features.find_targets(similar_to=cat, centre=centre)
    style = Style(signed=True)
    batch = Batch(features, inputs, out, asked, False, style)
    outcomes = list(batch.run())
    assert [outcome.error for outcome in outcomes] == [None, None]
    images = json.loads(batch.write())["images"]
    target = images[0]["targets"][0]
    names = ["b.reference_2.png", "b.reference.reference.png"]
    assert [each["targets"][0]["reference_overlay"] for each in images] == names
    written = ["b.png", "b.reference.png", *names, "explanations.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted(written)
    reverse = target["reverse"]
    assert reverse["path"] == str(cat)
    expected = features(cat, similar_to=photos / "b.jpg", centre=centre)
    assert reverse["targets"][0]["score"] == pytest.approx(target["score"], abs=1e-6)
    assert len(reverse["targets"][0]["centre"]) == 4
    np.testing.assert_allclose(reverse["targets"][0]["cosines"], expected.raw[0], atol=1e-6)
    drawn = read_image(out / names[0]).astype(int)
    assert np.abs(drawn - expected.overlay(style=style)).max() <= 1
    assert "reverse" in images[1]["targets"][0]  # the cat, compared with itself


def test_one_picture_where_there_is_no_one_reference(
    lite0: Path, cat: Path, coffee: Path, tmp_path: Path
) -> None:
    features = Explainer(lite0, task="features")
    inputs = find_inputs([str(coffee)])
    for similar_to, centre in (([cat, coffee], ()), (cat, coffee)):
        asked = features.find_targets(similar_to=similar_to, centre=centre)
        batch = Batch(features, inputs, tmp_path, asked, False)
        assert [outcome.error for outcome in batch.run()] == [None]
        (image,) = json.loads(batch.write())["images"]
        assert "reverse" not in image["targets"][0]
    gone = tmp_path / "gone.jpg"
    shutil.copy(cat, gone)
    asked = features.find_targets(similar_to=gone)
    gone.unlink()
    (outcome,) = Batch(features, inputs, tmp_path, asked, False).run()
    assert outcome.error == f"{gone}: No such file or directory."


def test_an_unsigned_explainer_draws_nothing_signed(explainer: Explainer, tmp_path: Path) -> None:
    with pytest.raises(ReciproError, match="signed=True"):
        Batch(explainer, [], tmp_path, ["top1"], False, Style(signed=True))
