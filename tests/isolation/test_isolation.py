"""Models in a process of their own: the same maps, and faults that stay there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxes import SCENE_MODEL, make_scenes
from command import run
from graphs import Builder, residual
from ov_recipro import DeviceError, Explainer, ModelError, OptionError
from ov_recipro.errors import CrashError
from ov_recipro.explanation import Explanation
from ov_recipro.images.reading import read_image
from ov_recipro.isolation import process
from ov_recipro.isolation.channel import Arena, ConnectionLost, shared_file
from ov_recipro.isolation.messages import Placed
from ov_recipro.methods import NotApplicable, Subject
from ov_recipro.methods.attention import attention_model
from ov_recipro.ordered import in_order

RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)  # crash, hang, memory
GREY = (9, 9, 9)  # memory that a library lacks


def same(one: Explanation, other: Explanation) -> None:
    assert one.targets == other.targets
    assert one.predictions == other.predictions
    np.testing.assert_array_equal(one.raw, other.raw)
    assert one.provenance == other.provenance


@pytest.mark.parametrize(
    ("how", "asked"),
    [
        ({}, {}),
        ({"layer": "blocks.14", "plan": "stream", "batch_memory": 1 << 20}, {}),
        ({"signed": True}, {"against": "next"}),
        ({"mask": "drop", "precision": "native"}, {}),
        ({"method": "recipro-pair"}, {}),
        ({"method": "recipro-aumann", "plan": "stream"}, {}),
        ({"device": "ort-cpu"}, {}),
    ],
    ids=str,
)
def test_the_same_to_the_bit(
    how: dict[str, Any], asked: dict[str, Any], lite0: Path, cat: Path
) -> None:
    here, there = Explainer(lite0, **how), Explainer(lite0, isolate=True, **how)
    same(here(cat, "top2", **asked), there(cat, "top2", **asked))
    assert there.plan.name == here.plan.name
    assert there.plan_reason == here.plan_reason


def test_a_black_box(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    here, there = (Explainer(model, isolate=i, method="occlusion") for i in (False, True))
    x = np.random.default_rng(0).standard_normal(here.bundle.manifest.image.shape)
    same(here.explain_tensor(x), there.explain_tensor(x))


def test_boxes() -> None:
    here, there = (Explainer(SCENE_MODEL, isolate=isolate) for isolate in (False, True))
    image = np.asarray(make_scenes(1)[0].image)
    same(here(image), there(image))


def test_votes_of_many() -> None:
    """What is read after an image was run is not that of a later one."""
    images = [np.asarray(scene.image) for scene in make_scenes(2)] * 10
    here, there = (Explainer(SCENE_MODEL, isolate=i, method="votes") for i in (False, True))
    for one, other in zip(here.stream(images), there.stream(images), strict=True):
        np.testing.assert_array_equal(one.raw, other.raw)


def test_a_stream_that_is_left(lite0: Path, cat: Path) -> None:
    explainer = Explainer(lite0, isolate=True)
    before = explainer(cat)
    for found in explainer.stream([cat] * 9):
        same(found, before)
        break
    same(explainer(cat), before)


def test_many_at_once(lite0: Path, cat: Path, coffee: Path) -> None:
    pictures = [cat, coffee] * 6
    here = Explainer(lite0)
    there = Explainer(lite0, isolate=True, hint="throughput")
    assert there.workers >= 2
    for path, found in zip(pictures, there.stream(pictures), strict=True):
        expected = here(path)
        np.testing.assert_allclose(found.raw, expected.raw, atol=1e-5)
        assert found.path == str(path)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_CHILD", "planted_child")


def plain(colour: tuple[int, int, int]) -> Any:
    return np.full((32, 32, 3), colour, np.uint8)


@pytest.mark.usefixtures("planted")
def test_faults_stay_with_their_image(
    lite0: Path, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OV_RECIPRO_ISOLATED_SECONDS", "3")
    explainer, expected = Explainer(lite0, isolate=True), Explainer(lite0)(cat)
    for colour, kind, message in (
        (RED, CrashError, r"was ended by SIGSEGV\.$"),
        (GREEN, CrashError, r"did not answer for 3 seconds \(OV_RECIPRO_ISOLATED_SECONDS\)\.$"),
        (BLUE, CrashError, r"needs more than the 8,589,934,592 bytes .*ISOLATED_BYTES\)\.$"),
        (GREY, CrashError, r"needs more than the 8,589,934,592 bytes .*ISOLATED_BYTES\)\.$"),
    ):
        with pytest.raises(kind, match=message):
            explainer(plain(colour))
        same(explainer(cat), expected)


@pytest.mark.usefixtures("planted")
def test_faults_among_many(lite0: Path, cat: Path, coffee: Path) -> None:
    """Images beside one that crashes are explained all the same."""
    there = Explainer(lite0, isolate=True, hint="throughput")
    here = {path: Explainer(lite0)(path).raw for path in (cat, coffee)}
    pictures: list[Any] = [cat, coffee, plain(RED), cat, coffee, cat, plain(RED), coffee]

    def explained(picture: Any) -> Any:
        try:
            return there(picture).raw
        except CrashError:
            return None

    for picture, raw in zip(pictures, in_order(explained, pictures, 4), strict=True):
        if isinstance(picture, Path):
            np.testing.assert_allclose(raw, here[picture], atol=1e-5)
        else:
            assert raw is None


@pytest.mark.usefixtures("planted")
def test_a_hang_can_be_interrupted(lite0: Path, cat: Path) -> None:
    explainer = Explainer(lite0, isolate=True)
    started = time.monotonic()
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(explainer, plain(GREEN))
        time.sleep(0.5)
        explainer.interrupt()
        with pytest.raises(CrashError, match="SIGKILL"):
            hanging.result(60)
    assert time.monotonic() - started < 60  # far less than the limit, twice
    explainer(cat)


@pytest.mark.usefixtures("planted")
def test_one_of_a_hundred(lite0: Path, cat: Path, tmp_path: Path) -> None:
    picture = cv2.resize(read_image(cat), (64, 64))
    for number in range(100):
        shown = plain(RED) if number == 57 else picture
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), shown)
    program = (
        "from ov_recipro.isolation import process; process._CHILD = 'planted_child'; "
        "from ov_recipro.cli import main; main()"
    )
    words = ["explain", ".", "-m", str(lite0), "--isolate", "--json", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "1 of 100 images" not in line]
    assert errors == ["Error: 57.png: The process that runs the model was ended by SIGSEGV."]
    record = json.loads(done.stdout)
    assert len(record["images"]) == 99
    assert len({str(each["targets"][0]["score"]) for each in record["images"]}) == 1
    assert len(list((tmp_path / "explanations").glob("*.png"))) == 99


def test_a_process_that_is_killed_is_replaced(lite0: Path, cat: Path) -> None:
    explainer = Explainer(lite0, isolate=True)
    before = explainer(cat)
    older = explainer._model._process._process  # type: ignore[attr-defined]
    os.kill(older.pid, signal.SIGKILL)
    same(explainer(cat), before)
    newer = explainer._model._process._process  # type: ignore[attr-defined]
    del explainer
    newer.wait(10)  # it does not outlive the explainer


def test_what_cannot_be_opened(tmp_path: Path, lite0: Path, monkeypatch: Any) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        Explainer(tmp_path / "m.onnx", isolate=True)
    with pytest.raises(DeviceError, match="GPU"):
        Explainer(lite0, isolate=True, device="GPU.7")
    with monkeypatch.context() as small:
        for wrong in ("0", "1000000", "8G", "9" * 20):
            small.setenv("OV_RECIPRO_ISOLATED_BYTES", wrong)
            with pytest.raises(OptionError, match="OV_RECIPRO_ISOLATED_BYTES must be"):
                Explainer(lite0, isolate=True)
    monkeypatch.setattr(process, "_CHILD", "no_such_module")
    with pytest.raises(
        DeviceError, match=r"ended with status 1: .*No module named no_such_module\.$"
    ):
        Explainer(lite0, isolate=True)


def test_the_current_folder_is_not_imported(
    lite0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("open('run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    Explainer(lite0, isolate=True)
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_in_the_temporary_folder(lite0: Path, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    words = ("explain", cat, "-m", lite0, "--isolate")
    temporary = str(tmp_path / "temporary")
    done = run(*words, cwd=tmp_path, XDG_CACHE_HOME="/dev/null", TMPDIR=temporary)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("opening", [False, True])
def test_a_process_ends_with_its_parent(opening: bool, lite0: Path, tmp_path: Path) -> None:
    """Also where it hangs while it opens the model, which a pipe as a file makes it do."""
    path = lite0
    if opening:
        path = tmp_path / "m.xml"
        os.mkfifo(path)
    program = (
        "import os, subprocess, sys, threading, ov_recipro\n"
        "real = subprocess.Popen\n"
        "def popen(*words, **options):\n"
        "    made = real(*words, **options)\n"
        "    print(made.pid, flush=True)\n"
        "    threading.Timer(3, os.kill, (os.getpid(), 9)).start()\n"
        "    return made\n"
        "subprocess.Popen = popen\n"
        "ov_recipro.Explainer(sys.argv[1], isolate=True)\n"
        "threading.Event().wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False)
    pid = int(done.stdout.split()[0])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or " Z" in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child outlived its parent")


def test_verdicts_and_sharpness_are_the_same(tmp_path: Path, lite0: Path, cat: Path) -> None:
    """They need the model's outputs alone; what needs more of it is refused."""
    entries = []
    for options in ((), ("--isolate",)):
        words = ("explain", cat, "--verify", "--sharp", "--json", *options)
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (target,) = json.loads(done.stdout)["images"][0]["targets"]
        entries.append((target["sharpness"], target["verification"]))
    assert entries[0] == entries[1]
    subject = Subject(Explainer(lite0, isolate=True))
    image, _ = subject.prepare(read_image(cat))
    with pytest.raises(NotApplicable, match="only its outputs"):
        subject.forward(image)
    with pytest.raises(NotApplicable, match="only its outputs"):
        subject.outputs_of(attention_model, image)


def test_an_error_of_the_model_is_its_own(tmp_path: Path) -> None:
    b = Builder(shape=(1, 3, 16, 16))
    broken = b.add("Log", b.conv("image", 4, output="feature"))
    b.head(broken)
    path = b.save(tmp_path / "m.onnx")
    x = np.zeros((1, 3, 16, 16), np.float32)
    texts = []
    for isolate in (False, True):
        with pytest.raises(Exception, match="NaN") as caught:
            Explainer(path, layer="feature", isolate=isolate).explain_tensor(x - 1)
        texts.append((type(caught.value), str(caught.value)))
    assert texts[0] == texts[1]


def test_arrays_that_make_no_sense() -> None:
    arena = Arena(shared_file())
    placed = arena.write({"x": np.arange(6.0).reshape(2, 3), "none": np.empty((0, 4))})
    found = arena.read(placed)
    np.testing.assert_array_equal(found["x"], np.arange(6.0).reshape(2, 3))
    assert found["none"].shape == (0, 4)
    for wrong in (
        Placed("<f8", (2, 3), 1 << 40),
        Placed("<f8", (2, 3), -8),
        Placed("<f8", (-1,), 0),
        Placed("|O", (1,), 0),
        Placed("i4,(", (1,), 0),
        Placed("<f8,<f8", (1,), 0),
        Placed("<f8", (1 << 62, 4), 0),
    ):
        with pytest.raises(ConnectionLost, match="sent invalid arrays"):
            arena.read({"x": wrong})
    arena.close()


def test_help_says_what_it_does() -> None:
    text = " ".join(run("explain", "--help", cwd=Path()).stdout.split())
    assert re.search(r"--isolate Open and run the model in a process of its own", text)
