"""Datasets on Ray: the same results as without it, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from command import fails, run
from ov_recipro import DeviceError, Explainer, ModelError, ReciproError
from ov_recipro.cluster import results
from ov_recipro.cluster.explaining import JobOptions, Run, _Actor
from ov_recipro.cluster.files import fetch, find_files, list_url
from ov_recipro.cluster.measuring import read_dataset
from ov_recipro.cluster.pool import open_pool
from ov_recipro.cluster.recipe import recipe_of
from ov_recipro.cluster.results import Results
from ov_recipro.faithfulness.datasets import classes_of
from ov_recipro.images.drawing import Style
from ov_recipro.options import Targets

TARGETS = ("-t", "top1", "-t", "espresso")


def photographs(folder: Path, cat: Path, count: int) -> list[Path]:
    """Write `count` different crops of the two bundled photographs."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        image = cv2.imread(str(cat.with_name(("chelsea.jpg", "coffee.jpg")[number % 2])))
        assert image is not None
        path = folder / f"{number:03}.jpg"
        cv2.imwrite(str(path), image[4 * number :, 3 * number :])
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cat: Path) -> Path:
    root = tmp_path_factory.mktemp("ray")
    photographs(root / "photos", cat, 4)
    (root / "photos" / "broken.jpg").write_bytes(cat.read_bytes()[:3000])
    return root


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    """A run over the folder, in which one image is broken."""
    return run(
        *("explain", "photos", "--engine", "ray", "--actors", "1", *TARGETS),
        *("--overlays", "-o", "out"),
        cwd=folder,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "results").to_pylist()
    return found


def test_the_same_as_without_ray(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 1
    assert first.stdout == "5 images: out/results\n"
    assert "1 of 5 images could not be explained; the others are done" in first.stderr
    assert "broken.jpg: not an image, or a truncated one." in first.stderr
    local = run("explain", "photos", "-q", *TARGETS, "--save-maps", "-o", "local", cwd=folder)
    assert local.returncode == 1
    record = json.loads((folder / "local" / "explanations.json").read_text())
    found = {Path(row["path"]).name: row for row in rows(folder / "out")}
    assert len(found) == len(rows(folder / "out")) == 5
    assert found["broken.jpg"]["maps"] is None
    assert "truncated" in found["broken.jpg"]["error"]
    for image in record["images"]:
        row = found[Path(image["path"]).name]
        saved = np.load(folder / "local" / image["targets"][0]["maps"])["maps"]
        maps = np.array(row["maps"], np.float32).reshape(saved.shape)
        np.testing.assert_allclose(maps, saved, atol=1e-6)
        assert row["error"] is None
        assert row["prediction"] == image["predictions"][0]["index"]
        assert row["window"] == pytest.approx(image["window"])
        for ours, theirs in zip(row["targets"], image["targets"], strict=True):
            assert (ours["index"], ours["label"]) == (theirs["index"], theirs["label"])
            assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
            assert [ours["low"], ours["high"]] == pytest.approx(theirs["range"], rel=1e-5)
            overlay = cv2.imread(str(folder / "out" / "_overlays" / ours["overlay"]))
            drawn = cv2.imread(str(folder / "local" / theirs["overlay"]))
            assert overlay is not None
            assert drawn is not None
            np.testing.assert_array_equal(overlay, drawn)


def test_other_tools_read_the_results(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 1
    assert pyarrow.dataset.dataset(folder / "out").count_rows() == 5
    frame = pd.read_parquet(folder / "out").set_index("path")
    frame = frame[frame.error.isna()]
    maps = np.stack(frame.maps.iloc[0]).reshape(-1, 7, 7)
    assert maps.dtype == np.float32
    assert (maps.min(), maps.max()) == (0, 1)
    every = duckdb.read_parquet(f"{folder}/out/results/*.parquet")
    pairs = every.project("unnest(targets) AS t, unnest(maps) AS m").filter("t.index = 967")
    found = pairs.project("t.label, t.flat, len(m)").fetchall()
    assert found == [("espresso", False, 49)] * 4


def test_a_later_run_goes_on(folder: Path, first: subprocess.CompletedProcess[str]) -> None:
    """With what is missing, here in an archive behind a URL, and with the same settings alone."""
    assert first.returncode == 1
    again = ("explain", "photos", "--engine", "ray", *TARGETS, "--overlays")
    done = run(*again, "-o", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 images are already done." in done.stderr
    assert "cores for each" not in done.stderr  # nothing was started
    fails(
        run("explain", "photos", "--engine", "ray", "-o", "out", cwd=folder),
        "results of another run; these settings differ: overlays, targets",
    )
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "photos" / "003.jpg", "inside/new.jpg")
    url = f"zip://inside::{folder}/more.zip"
    more = run(*again, url, "--actors", "1", "-o", "out", cwd=folder)
    assert more.returncode == 0, more.stderr
    assert "5 of 6 images are already done." in more.stderr
    found = {row["path"]: row for row in rows(folder / "out")}
    assert len(found) == len(rows(folder / "out")) == 6
    (new,) = [row for path, row in found.items() if path.startswith("zip://inside/new.jpg::/")]
    assert new["maps"] == found[str(folder / "photos" / "003.jpg")]["maps"]


def test_evaluate_is_identical(tmp_path: Path, cat: Path) -> None:
    for wnid, name in {"n02124075": "chelsea.jpg", "n07920052": "coffee.jpg"}.items():
        (tmp_path / "data" / wnid).mkdir(parents=True)
        shutil.copy(cat.with_name(name), tmp_path / "data" / wnid)
    (tmp_path / "data" / "n02124075" / "broken.png").write_bytes(b"no image")
    asked = ("--step", "12544", "--methods", "recipro,grad-cam,random")
    ray = ("--engine", "ray", "--actors", "1")
    by_url = run("evaluate", f"file://{tmp_path}/data", *asked, *ray, "-o", "ray", cwd=tmp_path)
    alone = run("evaluate", "data", *asked, "-o", "local", cwd=tmp_path)
    for result in (by_url, alone):
        assert result.returncode == 1
        assert result.stderr.endswith("\nError: 1 of 3 images could not be measured.\n")
    assert by_url.stdout == alone.stdout
    tables = [json.loads((tmp_path / k / "evaluation.json").read_text()) for k in ("ray", "local")]
    for each in tables:
        (error,) = each.pop("errors")
        assert error["path"] == "n02124075/broken.png"
    assert tables[0] == tables[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_a_lost_machine_loses_no_image(tmp_path: Path, cat: Path, explainer: Explainer) -> None:
    """A head and two workers, of which one is killed while it has images in hand."""
    paths = photographs(tmp_path / "photos", cat, 2)
    for number in range(600):
        os.link(paths[number % 2], tmp_path / "photos" / f"again-{number}.jpg")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        job = JobOptions(Targets(), "float16", False, None, Style())
        seen = 0
        with open_pool(cluster.address, None, 1, 0) as pool:
            assert pool.actors == 2
            assert len(ray.nodes()) == 3
            work = Run(explainer, [str(tmp_path / "photos")], tmp_path / "out", job)
            for step in work.run(pool):
                if not seen:
                    cluster.remove_node(nodes[0], allow_graceful=False)
                seen += step.done
                assert step.errors == []
            assert seen == work.total == 602
    finally:
        cluster.shutdown()
    found = rows(tmp_path / "out")
    assert len(found) == len({row["path"] for row in found}) == 602
    expected = explainer(paths[0]).maps.astype(np.float16).ravel()
    (row,) = [row for row in found if row["path"] == str(paths[0])]
    np.testing.assert_array_equal(np.array(row["maps"][0], np.float16), expected)


def test_an_actor(explainer: Explainer, cat: Path, tmp_path: Path) -> None:
    """Called as Ray calls it: maps are verified where that is asked for, and no image is lost."""

    class Made:
        def explainer(self) -> Explainer:
            return explainer

    (tmp_path / "bad").write_bytes(b"?")
    places = {"cat": str(cat), "gone": str(tmp_path / "gone"), "bad": str(tmp_path / "bad")}
    given = [{"name": name, "root": "", "path": places[name], "stem": name} for name in places]
    actor = _Actor(Made(), JobOptions(Targets(), "float32", True, None, Style()))  # type: ignore[arg-type]
    done, gone, bad = actor(given).to_pylist()
    (target,) = done["targets"]
    assert (target["label"], target["verdict"]) == ("Egyptian cat", "no better than random")
    assert target["deviations"] < 1
    assert (gone["path"], gone["targets"]) == ("gone", None)
    assert "No such file" in gone["error"]
    assert bad["error"] == f"{tmp_path / 'bad'}: not an image, or a truncated one."
    unseen = JobOptions(Targets(), "float32", False, tmp_path / "unseen", Style())
    with pytest.raises(ReciproError, match="Not all machines see"):
        _Actor(Made(), unseen)  # type: ignore[arg-type]


@pytest.fixture
def explained(explainer: Explainer, cat: Path) -> dict[str, Any]:
    return results.row(explainer(cat, "top2"), "softmax")


def test_a_bundle_that_can_not_be_read(explainer: Explainer, tmp_path: Path) -> None:
    folder = tmp_path / "model.recipro"
    shutil.copytree(explainer.bundle.folder, folder)
    own = Explainer(folder)
    (folder / "tail.onnx").unlink()
    (folder / "tail.onnx").mkdir()
    with pytest.raises(ModelError, match=r"model\.recipro: Is a directory\.$"):
        recipe_of(own, 1)


def test_files_are_bounded_and_whole(
    tmp_path: Path, explained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = results.schema((1280, 7, 7), "float16")
    monkeypatch.setattr(results, "_ROWS", 10)
    kept = Results(tmp_path, {"layer": "x"})
    for number in range(7):
        some = [explained | {"path": f"{number}-{k}.jpg"} for k in range(3)]
        kept.add(results.table([*some, {"path": f"{number}-bad.jpg", "error": "why"}], columns))
    assert len(list(kept.parts.iterdir())) == 2
    kept.write()
    files = sorted(kept.parts.iterdir())
    assert [file.name for file in files] == [f"part-{n:06}.parquet" for n in range(3)]
    assert [pq.read_metadata(file).num_rows for file in files] == [10, 10, 8]
    whole = pq.read_table(kept.parts)
    assert whole.schema.metadata[b"grid"] == b"7,7"
    assert whole["maps"].type.value_type.value_type == pa.float16()
    assert whole["maps"].null_count == whole["error"].null_count // 3 == 7
    later = Results(tmp_path, {"layer": "x"})
    assert len(later.kept) == 28
    later.add(results.table([explained], columns))
    later.write()
    assert (later.parts / "part-000003.parquet").is_file()
    with pytest.raises(ReciproError, match="these settings differ: layer"):
        Results(tmp_path, {"layer": "y"})
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(ReciproError, match="damaged"):
        Results(tmp_path, {"layer": "x"})


def test_old_rows_are_written_though_few(
    tmp_path: Path, explained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_SECONDS", 0.0)
    kept = Results(tmp_path, {})
    kept.add(results.table([explained], results.schema((1280, 7, 7), "float32")))
    assert len(list(kept.parts.iterdir())) == 1


def test_files_behind_urls(tmp_path: Path, cat: Path) -> None:
    photographs(tmp_path / "b", cat, 3)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    url = f"file://{tmp_path}"
    assert [file.name for file in find_files([url])] == [f"{url}/b/{n:03}.jpg" for n in range(3)]
    (one,) = find_files([f"{url}/b/*1.jpg"])
    assert fetch(one.root, one.path) == (tmp_path / "b" / "001.jpg").read_bytes()
    local = find_files([str(tmp_path / "b"), str(tmp_path / "b" / "000.jpg")])
    assert [file.path for file in local] == [str(tmp_path / "b" / f"{n:03}.jpg") for n in range(3)]
    assert list_url(f"{url}/b/002.jpg") == (f"{tmp_path}/b/002.jpg", [f"{tmp_path}/b/002.jpg"])
    for bad in (f"{url}/nothing", f"{url}/*.png", "zip://x::/no/such.zip"):
        with pytest.raises(ReciproError, match=re.escape(bad)):
            find_files([bad])
    with pytest.raises(ReciproError, match="nonsense"):
        find_files(["nonsense://x"])
    with pytest.raises(ReciproError, match=r"gone\.jpg"):
        fetch(url, f"{tmp_path}/gone.jpg")


def test_datasets_behind_urls(tmp_path: Path, cat: Path) -> None:
    names = classes_of(1000, None, None)
    photographs(tmp_path / "data" / "n02124075", cat, 2)
    found = read_dataset(f"file://{tmp_path}/data/", names)
    assert [(sample.name, sample.label) for sample in found] == [
        ("n02124075/000.jpg", 285),
        ("n02124075/001.jpg", 285),
    ]
    for bad in ("data/*/000.jpg", "data/n02124075/000.jpg"):
        with pytest.raises(ReciproError, match="not a folder of images"):
            read_dataset(f"file://{tmp_path}/{bad}", names)
    photographs(tmp_path / "data" / "no class", cat, 1)
    with pytest.raises(ReciproError, match="no class is not a class"):
        read_dataset(f"file://{tmp_path}/data", names)


def test_options_that_need_ray(tmp_path: Path, cat: Path) -> None:
    for options in (("--actors", "2"), ("--address", "auto"), ("--cpus-per-actor", "1")):
        result = run("explain", cat, *options, cwd=tmp_path)
        assert result.returncode == 2
        assert "need --engine ray" in result.stderr
    result = run("explain", cat, "--engine", "ray", "--report", cwd=tmp_path)
    assert result.returncode == 2
    assert "Parquet" in result.stderr


def test_a_cluster_that_is_not_there(tmp_path: Path, cat: Path) -> None:
    told = run("explain", cat, "--engine", "ray", "--address", "127.0.0.1:1", cwd=tmp_path)
    fails(told, "No Ray cluster at '127.0.0.1:1': ")
    assert "token" not in told.stderr


def test_a_cluster_that_requires_a_token(
    tmp_path: Path, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        words = ("explain", cat, "--engine", "ray", "--address", address)
        told = run(*words, cwd=tmp_path, HOME=str(tmp_path), RAY_AUTH_MODE="token")
        fails(told, f"No Ray cluster at '{address}': ", "token")
        monkeypatch.setattr(ray, "init", refuse)
        hint = " If the cluster requires a token, set RAY_AUTH_MODE=token."
        for mode, expected in (("disabled", hint), ("token", "")):
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            with pytest.raises(DeviceError) as failure, open_pool(address, 1, 1, 0):
                pass
            assert str(failure.value).partition(" at 127.0.0.1")[2].lstrip(".") == expected


def test_without_the_extra(tmp_path: Path, cat: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None; sys.argv[0] = 'ov-recipro';"
        "from ov_recipro.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "explain", cat, "--engine", "ray"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "pip install 'ov-recipro[ray]'" in result.stderr


def test_threads_by_the_environment() -> None:
    """As schedulers set it: OpenVINO does not go by it of itself."""
    code = (
        "from ov_recipro.sources.openvino_models import core;"
        "print(core().get_property('CPU', 'INFERENCE_NUM_THREADS'))"
    )
    for threads in ("1", "3"):
        printed = subprocess.check_output(
            [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": threads}, text=True
        )
        assert printed.strip() == threads
