"""Each error has its codes, and a run over many images ends where going on makes no sense."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from command import fails, run
from graphs import residual
from ov_recipro import Explainer, errors
from ov_recipro.batch import Batch, Input, Outcome, find_inputs
from ov_recipro.errors import CODES, DeviceError, ImageError, OptionError, codes_of
from ov_recipro.methods import NotApplicable
from ov_recipro.runtimes import infer_requests, openvino_runtime


def test_every_class_is_in_the_table() -> None:
    kinds = {each for each in vars(errors).values() if isinstance(each, type)}
    assert {each for each in kinds if issubclass(each, Exception)} == set(CODES)
    assert codes_of(ImageError("x")) == (1, 422)
    assert codes_of(NotApplicable("x")) == codes_of(OptionError("x"))  # by the nearest class
    assert all(0 < code < 126 and 400 <= status < 600 for code, status in CODES.values())


class Lost:
    """A request of a device that goes away after some images."""

    def __init__(self, request: Any, images: int) -> None:
        self._request, self._left = request, images

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def infer(self) -> None:
        if self._left == 0:
            raise RuntimeError("Exception from src/plugin.cpp:1:\nthe device was removed\n")
        self._left -= 1
        self._request.infer()


@pytest.fixture
def photographs(tmp_path: Path, cat: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        shutil.copy(cat, folder / f"{number}.jpg")
    (folder / "1.jpg").write_bytes(b"not an image")
    return folder


def test_a_lost_device_ends_a_run(
    lite0: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(lite0)
    plain = infer_requests.run_request
    lost: dict[int, Lost] = {}

    def run_until_lost(request: Any, inputs: Any) -> Any:
        return plain(lost.setdefault(id(request), Lost(request, 3)), inputs)

    monkeypatch.setattr(openvino_runtime, "run_request", run_until_lost)
    batch = Batch(explainer, find_inputs([str(photographs)]), tmp_path, ["top1"], False)
    outcomes: list[Outcome] = []
    with pytest.raises(DeviceError, match="the device was removed") as error:
        outcomes.extend(batch.run())
    assert "\n" not in str(error.value)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    record = msgspec.json.decode(batch.write())  # what was finished is kept
    assert [Path(each["path"]).name for each in record["images"]] == ["0.jpg", "2.jpg", "3.jpg"]
    assert [Path(each["path"]).name for each in record["errors"]] == ["1.jpg"]


def test_a_device_that_is_not_there(tmp_path: Path, photographs: Path) -> None:
    done = run("explain", photographs, "-d", "GPU.7", cwd=tmp_path)
    fails(done, "GPU.7")
    assert done.stderr.count("Error:") == 1


def test_a_lost_device_is_no_verdict_on_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = residual(tmp_path / "m.onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = infer_requests.run_request

    def lost(request: Any, inputs: Any) -> Any:
        return plain(Lost(request, 0), inputs)

    with monkeypatch.context() as patch:
        patch.setattr(openvino_runtime, "run_request", lost)
        with pytest.raises(DeviceError):
            Explainer(path, layer="stem")
    assert Explainer(path, layer="stem").plan.name == "rows"


def test_a_video_that_goes_away_is_one_bad_input(
    lite0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"")
    monkeypatch.setattr("ov_recipro.batch.video.open_video", lambda path: path)
    video.unlink()
    batch = Batch(Explainer(lite0), [Input(str(video), video)], tmp_path, ["top1"], False)
    (outcome,) = batch.run()
    assert outcome.error == f"{video}: No such file or directory."
