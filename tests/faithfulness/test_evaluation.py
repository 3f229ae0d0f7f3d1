"""`ov-recipro evaluate`, as a user meets it."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from command import COMMAND, fails, run
from graphs import Builder
from ov_recipro import Explainer, ReciproError
from ov_recipro.faithfulness.datasets import Classes, classes_of, read_boxes, read_dataset, spread
from ov_recipro.faithfulness.evaluation import Evaluation, Measuring
from ov_recipro.faithfulness.measure import Profile
from ov_recipro.methods import METHODS, Subject
from ov_recipro.metrics import area

QUICK = ("--step", "12544", "--methods", "recipro,random")
CAT, COFFEE = 285, 967
WNIDS = {"n02124075": "chelsea.jpg", "n07920052": "coffee.jpg"}


@pytest.fixture
def folders(tmp_path: Path, cat: Path) -> Path:
    """A dataset of two photographs in folders of classes."""
    root = tmp_path / "data"
    for wnid, name in WNIDS.items():
        (root / wnid).mkdir(parents=True)
        shutil.copy(cat.with_name(name), root / wnid)
    return root


@pytest.fixture(scope="module")
def names(explainer: Explainer) -> Any:
    return classes_of(1000, explainer.labels, None)


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_tables_and_all_they_depend_on(tmp_path: Path, folders: Path) -> None:
    result = run("evaluate", folders, *QUICK, "-o", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "efficientnet-lite0.onnx" in result.stderr
    assert result.stdout.splitlines()[1].startswith("recipro ")
    for part in ("Profile poppi", "12544 pixels", "2 images", "sha256", "f32", "crop to 224x224"):
        assert part in result.stderr
    record = table(tmp_path / "out")
    assert (record["images"], record["profile"], record["step"]) == (2, "poppi", 12544)
    assert record["layer"] == "/swish_1/Clip_output_0"
    assert record["preprocessing"]["resize"] == "crop"
    ours, noise = record["methods"]
    assert (ours["method"], noise["method"]) == ("recipro", "random")
    assert ours["summary"]["adcc"]["value"] > noise["summary"]["adcc"]["value"]
    assert ours["summary"]["flat"] == 0
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["drop"]) == ours["summary"]["drop"]["value"]
    assert float(rows[1]["adcc_high"]) == noise["summary"]["adcc"]["high"]
    assert float(rows[1]["adcc_above_first"]) == noise["above_first"]["value"] < 0
    assert (rows[0]["adcc_above_first"], ours["above_first"]) == ("", None)
    assert "ADCC difference from recipro" in result.stdout.splitlines()[0]
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert text.startswith("| method | drop ↓ |")
    assert "Profile poppi" in text


def test_a_measurement_by_hand(subject: Subject, folders: Path, tmp_path: Path, names: Any) -> None:
    """One image's numbers from their definitions, with the model run one image at a time."""
    import cv2

    (sample, _) = read_dataset(folders, names)
    evaluation = Evaluation(
        Measuring(subject, ["recipro"], "poppi", step=12544), [sample], tmp_path
    )
    (outcome,) = evaluation.run(1)
    found = outcome.records["recipro"].measured
    explainer = subject.explainer
    explanation = explainer(sample.path, "top1")
    (target,) = explanation.targets
    assert outcome.records["recipro"].index == target.index == CAT
    assert found.score == pytest.approx(target.score, rel=1e-4)
    large = cv2.resize(explanation.maps[0], (224, 224), interpolation=cv2.INTER_LINEAR)
    assert found.complexity == pytest.approx(large.mean(), rel=1e-5)
    from ov_recipro.images.preprocess import prepare
    from ov_recipro.images.reading import read_image

    x, _ = prepare(read_image(Path(sample.path)), explainer.preprocessing)
    e = explainer.explain_tensor(x * large, CAT)
    assert found.explained == pytest.approx(e.targets[0].score, rel=1e-4)
    assert found.drop == pytest.approx(max(0, 1 - e.targets[0].score / target.score), rel=1e-3)
    again = cv2.resize(e.maps[0], (224, 224), interpolation=cv2.INTER_LINEAR)
    r = np.corrcoef(large.ravel(), again.ravel())[0, 1]
    assert found.coherency == pytest.approx((r + 1) / 2, abs=1e-5)
    order = np.argsort(-large.ravel(), kind="stable")
    scores = []
    for gone in range(0, 224 * 224 + 1, 12544):
        deleted = x.copy().reshape(3, -1)
        deleted[:, order[:gone]] = 0
        scores.append(explainer.explain_tensor(deleted.reshape(x.shape), CAT).targets[0].score)
    assert found.deletion == pytest.approx(area(scores, 4), rel=1e-4)


@pytest.fixture(scope="module")
def subject(explainer: Explainer) -> Subject:
    return Subject(explainer)


def test_the_other_profile(subject: Subject, folders: Path, tmp_path: Path, names: Any) -> None:
    """Of the true class, cell by cell: 50 points, the canvas's colour the image's mean."""
    samples = read_dataset(folders, names)
    assert [sample.label for sample in samples] == [CAT, COFFEE]
    evaluation = Evaluation(Measuring(subject, ["recipro"], "byun"), samples[1:], tmp_path)
    (outcome,) = evaluation.run(1)
    record = outcome.records["recipro"]
    assert record.index == COFFEE
    explanation = subject.explainer(samples[1].path, COFFEE)
    saliency = explanation.maps[0]
    assert record.measured.complexity == pytest.approx(saliency.mean(), rel=1e-5)
    from ov_recipro.images.preprocess import prepare
    from ov_recipro.images.reading import read_image

    tensor, _ = prepare(read_image(Path(samples[1].path)), subject.explainer.preprocessing)
    x = subject.image(tensor)
    p = record.measured.score
    now, canvas = x.copy(), np.empty_like(x)
    canvas[:] = x.mean(axis=(1, 2), keepdims=True)
    deletion, insertion = [p], []
    for cell in np.argsort(-saliency.ravel(), kind="stable"):
        u, v = divmod(int(cell), 7)
        box = np.s_[:, 32 * u : 32 * u + 33, 32 * v : 32 * v + 33]
        now[box], canvas[box] = 0, x[box]
        deletion.append(float(subject.scores(now)[COFFEE]))
        insertion.append(float(subject.scores(canvas)[COFFEE]))
    insertion.append(p)
    assert len(deletion) == len(insertion) == 50
    assert record.measured.deletion == pytest.approx(area(deletion, 50), rel=1e-4)
    assert record.measured.insertion == pytest.approx(area(insertion, 50), rel=1e-4)


def test_a_killed_run_goes_on_to_the_same_table(tmp_path: Path, folders: Path) -> None:
    for number in range(4):
        shutil.copy(
            folders / "n02124075" / "chelsea.jpg", folders / "n02124075" / f"again{number}.jpg"
        )
    whole = run("evaluate", folders, *QUICK, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    arguments = ["evaluate", str(folders), *QUICK, "-o", "killed", "--workers", "1"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE)
    records = tmp_path / "killed" / "records"
    deadline = time.monotonic() + 60
    while not any(len(f.read_bytes().splitlines()) > 2 for f in records.glob("recipro-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    (file,) = records.glob("recipro-*")
    kept = file.read_bytes()
    assert 3 <= len(kept.splitlines()) < 7
    file.write_bytes(kept + b'{"image":"half a li')
    resumed = run(*arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "measurements are kept" in resumed.stderr
    assert file.read_bytes().startswith(kept)
    for name in ("evaluation.json", "evaluation.md", "evaluation.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_interrupted_by_the_user(tmp_path: Path, folders: Path) -> None:
    arguments = ["evaluate", str(folders), "--methods", "rise", "-o", "out"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.readline()  # which model
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert b"Traceback" not in error


def test_other_settings_begin_afresh(tmp_path: Path, folders: Path) -> None:
    for step in ("12544", "25088"):
        result = run(
            "evaluate", folders, "--methods", "random", "--step", step, "-o", "out", cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        assert "kept" not in result.stderr
    assert len(list((tmp_path / "out" / "records").iterdir())) == 2
    again = run(
        "evaluate", folders, "--step", "25088", "--methods", "random", "-o", "out", cwd=tmp_path
    )
    assert "2 of 2 measurements are kept" in again.stderr


def test_changed_weights_begin_afresh(tmp_path: Path, cat: Path) -> None:
    """With and without mosaics, whose hash once took the place of the weights'."""
    b = Builder(shape=(1, 3, 16, 16))
    b.head(b.conv("image", 4))
    ov.save_model(ov.convert_model(b.save(tmp_path / "m.onnx")), tmp_path / "m.xml")
    samples = read_dataset(cat.parent, Classes(5, None, None))
    found = []
    for change in (0, 1):
        data = bytearray((tmp_path / "m.bin").read_bytes())
        data[-1] ^= change
        (tmp_path / "m.bin").write_bytes(data)
        subject = Subject(Explainer(tmp_path / "m.xml"))
        for companions in (None, {"a": ["b"]}):
            measuring = Measuring(subject, ["random"], "poppi", 256, companions=companions)
            found.append(Evaluation(measuring, samples, tmp_path / "o").settings())
    assert len({json.dumps(each) for each in found}) == 4


def test_a_changed_image_is_measured_anew(
    subject: Subject, folders: Path, tmp_path: Path, names: Any, cat: Path
) -> None:
    def measured() -> tuple[int, Any]:
        measuring = Measuring(subject, ["gaussian"], "poppi", 12544)
        evaluation = Evaluation(measuring, read_dataset(folders, names), tmp_path / "o")
        return sum(len(outcome.records) for outcome in evaluation.run(1)), evaluation.rows()

    first, second = measured(), measured()
    assert (first[0], second[0]) == (2, 0)
    assert first[1] == second[1]
    shutil.copy(cat.with_name("coffee.jpg"), folders / "n02124075" / "chelsea.jpg")
    third = measured()
    assert third[0] == 1
    assert third[1] != first[1]
    assert measured() == (0, third[1])


def test_the_same_with_any_number_of_workers(
    subject: Subject, folders: Path, tmp_path: Path, names: Any
) -> None:
    tables = []
    for workers in (1, 3):
        measuring = Measuring(subject, ["recipro"], "poppi", 12544)
        evaluation = Evaluation(measuring, read_dataset(folders, names), tmp_path / str(workers))
        assert [o.image for o in evaluation.run(workers)] == [
            "n02124075/chelsea.jpg",
            "n07920052/coffee.jpg",
        ]
        tables.append(evaluation.rows())
    assert tables[0] == tables[1]


def test_one_bad_image(tmp_path: Path, folders: Path) -> None:
    (folders / "n07920052" / "broken.jpg").write_bytes(b"no image")
    result = run("evaluate", folders, *QUICK, "-o", "out", cwd=tmp_path)
    assert result.returncode == 1
    assert "broken.jpg: not an image" in result.stderr
    assert "1 of 3 images could not be measured" in result.stderr
    record = table(tmp_path / "out")
    assert record["methods"][0]["summary"]["images"] == 2
    assert record["errors"][0]["path"] == "n07920052/broken.jpg"


def test_a_method_that_does_not_apply(tmp_path: Path, cat: Path) -> None:
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="feature")
    b.linear(b.add("Flatten", feature), 4 * 64)
    b.save(tmp_path / "m.onnx")
    (tmp_path / "photos").mkdir()
    shutil.copy(cat, tmp_path / "photos")
    arguments = ["-m", "m.onnx", "--methods", "recipro,grad-cam", "-o", "out"]
    result = run("evaluate", "photos", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "not applicable: the tail does not begin with" in result.stdout
    ours, theirs = table(tmp_path / "out")["methods"]
    assert ours["summary"]["images"] == 1
    assert theirs["summary"] is None
    assert "pool" in theirs["not_applicable"]


def test_what_a_user_can_get_wrong(tmp_path: Path, folders: Path, cat: Path) -> None:
    (tmp_path / "flat").mkdir()
    shutil.copy(cat, tmp_path / "flat")
    (tmp_path / "empty.csv").write_text("path,label\n")
    fails(run("evaluate", "flat", "--profile", "byun", cwd=tmp_path), "true class")
    fails(run("evaluate", "none", cwd=tmp_path), "none", "is neither a folder of images nor")
    fails(run("evaluate", folders, "--methods", "lime", cwd=tmp_path), "no method 'lime'")
    fails(run("evaluate", folders, "-d", "ort-cpu", cwd=tmp_path), "ort-cpu")
    fails(run("evaluate", "empty.csv", cwd=tmp_path), "lists no images")


def test_datasets(tmp_path: Path, folders: Path, names: Any, cat: Path) -> None:
    samples = read_dataset(folders, names)
    assert [(s.name, s.label) for s in samples] == [
        ("n02124075/chelsea.jpg", CAT),
        ("n07920052/coffee.jpg", COFFEE),
    ]
    (folders / "n02124075").rename(folders / "Egyptian_cat")
    (folders / "n07920052").rename(folders / "967")
    assert sorted(s.label or 0 for s in read_dataset(folders, names)) == [CAT, COFFEE]
    flat = read_dataset(folders / "967", names)
    assert [(s.name, s.label) for s in flat] == [("coffee.jpg", None)]
    rows = "data/967/coffee.jpg\tespresso\ndata/Egyptian_cat/chelsea.jpg\tn02124075\n"
    (tmp_path / "t.tsv").write_text(rows)
    (tmp_path / "t.csv").write_text("label,path\n" + "967,data/967/coffee.jpg\n")
    assert [s.label for s in read_dataset(tmp_path / "t.tsv", names)] == [COFFEE, CAT]
    (only,) = read_dataset(tmp_path / "t.csv", names)
    assert (only.label, Path(only.path).is_file()) == (COFFEE, True)
    (tmp_path / "bad.csv").write_text("a.jpg,no such thing\n")
    with pytest.raises(ReciproError, match="row 1"):
        read_dataset(tmp_path / "bad.csv", names)
    (tmp_path / "short.csv").write_text("a.jpg\n")
    with pytest.raises(ReciproError, match="lacks a path or a label"):
        read_dataset(tmp_path / "short.csv", names)
    shutil.copy(cat, folders)
    with pytest.raises(ReciproError, match="outside"):
        read_dataset(folders, names)
    (folders / "chelsea.jpg").unlink()
    (folders / "967").rename(folders / "no such class")
    with pytest.raises(ReciproError, match="not a class"):
        read_dataset(folders, names)


def test_a_limit_is_spread_evenly(names: Any, folders: Path) -> None:
    samples = read_dataset(folders, names) * 5
    assert spread(samples, 100) == samples
    assert spread(samples, 5) == samples[::2]


def test_boxes(tmp_path: Path, names: Any, folders: Path, subject: Subject) -> None:
    voc = tmp_path / "voc"
    voc.mkdir()
    (voc / "a.xml").write_text(
        "<annotation><filename>chelsea.jpg</filename>"
        "<object><name>Egyptian cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>451</xmax><ymax>300</ymax></bndbox></object>"
        "<object><name>sofa thing</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    boxes = read_boxes(voc, names)
    assert boxes == {"chelsea": {CAT: [(0, 0, 451, 300)]}}
    coco = tmp_path / "coco.json"
    coco.write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "x/coffee.jpg"}],
                "categories": [{"id": 1, "name": "espresso"}],
                "annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 400]}],
            }
        )
    )
    assert read_boxes(coco, names) == {"coffee": {COFFEE: [(0, 0, 10, 400)]}}
    both = {**boxes, **read_boxes(coco, names)}
    measuring = Measuring(subject, ["recipro"], "poppi", 12544, both)
    evaluation = Evaluation(measuring, read_dataset(folders, names), tmp_path / "o")
    list(evaluation.run(1))
    (row,) = evaluation.rows()
    assert row.summary is not None
    assert row.summary.boxed == 2
    assert row.summary.pointing is not None
    assert row.summary.pointing.value == 0.5  # all of the cat's image; a strip of the coffee's
    assert row.summary.energy is not None
    assert 0.5 <= row.summary.energy.value < 0.6
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ReciproError, match="malformed"):
        read_boxes(tmp_path / "bad.json", names)
    (voc / "b.xml").write_text("<annotation>")
    with pytest.raises(ReciproError, match="malformed"):
        read_boxes(voc, names)
    coco.write_text('{"images": [], "categories": [], "annotations": []}')
    with pytest.raises(ReciproError, match="no box"):
        read_boxes(coco, names)


def test_every_method_is_measured(
    subject: Subject, folders: Path, tmp_path: Path, names: Any
) -> None:
    """All but the slow ones, on a photograph; one of each kind by the other profile too."""
    every = [name for name in METHODS if name not in ("rise", "score-cam")]
    (sample, _) = read_dataset(folders, names)
    profiles: list[tuple[Profile, list[str]]] = [
        ("poppi", every),
        ("byun", ["recipro", "cam", "fake-cam"]),
    ]
    for profile, methods in profiles:
        evaluation = Evaluation(
            Measuring(subject, methods, profile, step=25088), [sample], tmp_path
        )
        (outcome,) = evaluation.run(1)
        assert outcome.error is None
        rows = {row.method: row.summary for row in evaluation.rows()}
        assert list(rows) == methods
        ours, fake = rows["recipro"], rows["fake-cam"]
        assert ours is not None
        assert fake is not None
        assert ours.adcc.value > 0.5 > 0.1 > fake.adcc.value
