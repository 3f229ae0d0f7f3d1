"""Models of the Hugging Face Hub, fetched from a stand-in that runs on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from huggingface_hub import constants

from command import fails, run
from graphs import residual
from hubs import Hub, hub
from ov_recipro import Explainer, ModelError, OptionError, ReciproError, embed, open_bundle, split
from ov_recipro.cli.serve_command import _named
from ov_recipro.cut.bundle import MANIFEST
from ov_recipro.embedding import embed_onnx
from ov_recipro.output import user_cache
from ov_recipro.sources import hub as fetching
from ov_recipro.sources.references import Reference, located, origin_of, parsed
from ov_recipro.splitting import bundle_cache

CONFIG = json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3, "size": 16}).encode()
LABELS = json.dumps({"id2label": {str(n): f"kind {n}" for n in range(5)}}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    cache = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch, hub() as started:
        patch.setenv("HF_ENDPOINT", started.url)
        patch.setenv("HF_HUB_CACHE", str(cache))
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield started


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return residual(tmp_path_factory.mktemp("small") / "m.onnx").read_bytes()


def with_weights_beside(folder: Path, location: str = "model.onnx_data") -> Path:
    """A model in a folder of the repository, as exports for browsers lie there."""
    path = folder / "onnx" / "model.onnx"
    (path.parent / location).parent.mkdir(parents=True)
    model = onnx.load(residual(path))
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_a_repositorys_only_model(server: Hub, lite0: Path, cat: Path, tmp_path: Path) -> None:
    commit = server.push("a/lite", {"lite0.onnx": lite0.read_bytes(), "README.md": b"# Lite"})
    done = run("explain", "-m", "hf://a/lite", cat, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["source"] == f"hf://a/lite/lite0.onnx@{commit}"
    assert record["model"] == "lite0.onnx"
    assert record["images"][0]["targets"][0]["label"] == "Egyptian cat"
    assert not [each for each in server.asked if "README" in each]

    asked = len(server.asked)
    offline = run(
        *("explain", cat, "--json"),
        cwd=tmp_path,
        OV_RECIPRO_MODEL="hf://a/lite",
        HF_HUB_OFFLINE="1",
    )
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["source"] == record["source"]
    assert len(server.asked) == asked


def test_offline_takes_only_what_was_fetched(server: Hub, small: bytes, tmp_path: Path) -> None:
    server.push("a/never", {"m.onnx": small})
    commit = server.push("a/two", {"m.onnx": small, "n.onnx": small})
    located("hf://a/two/m.onnx")
    for name, message in [
        ("hf://a/never", "is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"),
        ("hf://a/two/n.onnx", "The cache of hf://a/two has no model 'n.onnx'"),
    ]:
        fails(run("layers", name, cwd=tmp_path, HF_HUB_OFFLINE="1"), message)
    for name in ("hf://a/two", f"hf://a/two/m.onnx@{commit}"):
        done = run("layers", name, cwd=tmp_path, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr


def test_one_of_several(server: Hub, small: bytes, tmp_path: Path) -> None:
    names = ["a.onnx", "b/c.onnx", "b/d.onnx", "e/f.ONNX", "g.xml", "g.bin", "not-a-model.xml"]
    server.push("a/several", dict.fromkeys(names, small), "v1")
    fails(
        run("layers", "hf://a/several@v1", cwd=tmp_path),
        "hf://a/several@v1 has a.onnx, b/c.onnx, b/d.onnx, e/f.ONNX, g.xml. Name one, such as "
        "hf://a/several/a.onnx@v1.",
    )
    with pytest.raises(OptionError, match=r"has b/c.onnx, b/d.onnx. Name one"):
        located("hf://a/several/b@v1")
    assert located("hf://a/several/e@v1").name == "f.ONNX"
    assert located(Path("hf://a/several/b/d.onnx@v1")).name == "d.onnx"
    server.push("a/many", {f"{n:02}.onnx": small for n in range(20)})
    with pytest.raises(OptionError, match=r"10.onnx, 11.onnx and 8 more"):
        located("hf://a/many")


def test_a_revision(server: Hub, small: bytes, tmp_path: Path) -> None:
    newer = residual(tmp_path / "m.onnx", seed=1).read_bytes()
    first = server.push("a/moving", {"m.onnx": small})
    server.push("a/moving", {"m.onnx": small}, "refs/pr/1")
    before = located("hf://a/moving")
    second = server.push("a/moving", {"m.onnx": newer})
    after = located("hf://a/moving")
    assert (before.read_bytes(), after.read_bytes()) == (small, newer)
    assert origin_of(after) == f"hf://a/moving/m.onnx@{second}"
    assert located(f"hf://a/moving@{first}") == before
    assert located(origin_of(before) or "") == before
    assert located("hf://a/moving@refs/pr/1").read_bytes() == small
    with pytest.raises(ModelError, match=r"^hf://a/moving has no revision 'v9'.$"):
        located("hf://a/moving@v9")


def test_nothing_is_fetched_twice(server: Hub, small: bytes) -> None:
    server.push("a/once", {"m.onnx": small, "config.json": LABELS})
    located("hf://a/once")
    asked = len(server.asked)
    located("hf://a/once")
    assert [each for each in server.asked[asked:] if each.startswith("GET")] == [
        "GET /api/models/a/once"
    ]


def test_an_ir_with_its_weights(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "ir").mkdir()
    local = tmp_path / "ir" / "m.xml"
    ov.save_model(ov.Core().read_model(residual(tmp_path / "m.onnx")), local)
    server.push_folder("a/ir", tmp_path / "ir", ("preprocessor_config.json", CONFIG))
    explainer = Explainer("hf://a/ir")
    assert explainer.preprocessing.source == "preprocessor_config.json"
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    expected = Explainer(local).explain_tensor(x)
    np.testing.assert_array_equal(explainer.explain_tensor(x).raw, expected.raw)
    embedded = embed("hf://a/ir")
    assert "saliency_map" in {name for port in embedded.outputs for name in port.get_names()}


@pytest.mark.parametrize("location", ["model.onnx_data", "parts/weights"])
def test_an_onnx_model_with_weights_beside_it(location: str, server: Hub, tmp_path: Path) -> None:
    """Its files are links in the hub's cache, and contents shared by repositories links twice."""
    local = with_weights_beside(tmp_path / "m", location)
    repository = f"a/beside-{len(location)}"
    more = (("config.json", LABELS), ("preprocessor_config.json", CONFIG), ("other.bin", b"0"))
    commit = server.push_folder(repository, tmp_path / "m", *more)
    path = located(f"hf://{repository}")
    assert not [each for each in server.asked if "other.bin" in each]
    entry = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    cached = entry / "snapshots" / commit / "onnx" / location
    assert cached.is_symlink()
    for number, blob in enumerate((entry / "blobs").iterdir()):
        shared = tmp_path / str(number) / blob.name
        shared.parent.mkdir()
        shutil.move(blob, shared)
        blob.symlink_to(shared)
    shutil.rmtree(user_cache("hub") / entry.name)
    path = located(f"hf://{repository}")
    assert not path.is_symlink()
    assert (path.parent / location).samefile(cached)  # no second copy
    explainer = Explainer(f"hf://{repository}/onnx", isolate="/" in location)
    assert explainer.labels == tuple(f"kind {n}" for n in range(5))
    assert explainer.preprocessing.mean == (25.5, 51, 76.5)
    assert explainer.provenance()["source"] == f"hf://{repository}/onnx/model.onnx@{commit}"
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    found, expected = explainer.explain_tensor(x), Explainer(local).explain_tensor(x)
    np.testing.assert_array_equal(found.raw, expected.raw)
    assert found.id != expected.id


def test_weights_outside_the_folder(server: Hub, tmp_path: Path) -> None:
    local = with_weights_beside(tmp_path / "m")
    model = onnx.load(local, load_external_data=False)
    for name, message in [
        ("../secret", "its weights '../secret' lie outside the model's folder; refused"),
        ("/etc/passwd", "'/etc/passwd' lie outside"),
        ("absent", "hf://a/outside lacks 'onnx/absent', the weights of 'onnx/model.onnx'"),
    ]:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = name
        files = {"onnx/model.onnx": model.SerializeToString(), "secret": b"s", "../secret": b"s"}
        server.push("a/outside", files)
        with pytest.raises(ModelError, match=message):
            located("hf://a/outside")
    assert not [each for each in server.asked if "secret" in each or "passwd" in each]


def test_names_that_climb_are_no_files_of_a_repository(server: Hub, small: bytes) -> None:
    server.push("a/climbs", {"../m.onnx": small, "/m.onnx": small, "..\\m.onnx": small})
    with pytest.raises(ModelError, match=r"hf://a/climbs has no .onnx or .xml model"):
        located("hf://a/climbs")
    server.commits["a/climbs"]["../../m"] = {"m.onnx": small}
    server.revisions["a/climbs"]["main"] = "../../m"
    with pytest.raises(ModelError, match=r"the hub answers with '../../m', which is no commit"):
        located("hf://a/climbs")


def test_without_links_files_are_copied(
    server: Hub, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    server.push("a/copied", {"m.onnx": small})
    path = located("hf://a/copied")
    assert path.read_bytes() == small
    assert path.stat().st_nlink == 1
    assert list(path.parent.iterdir()) == [path]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    server.push("a/full", {"m.onnx": small})
    with pytest.raises(ReciproError, match=r"m.onnx can't be written: No space left on device"):
        located("hf://a/full")


def test_the_cache_is_bounded(
    server: Hub, small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OV_RECIPRO_MAX_CACHE_BYTES", "0")
    monkeypatch.setattr(fetching, "_models", lambda: user_cache("hub"))
    server.push("a/bounded", {"m.onnx": small})
    path = located("hf://a/bounded")
    (entry,) = bundle_cache.entries("hub")
    assert entry.size >= len(small)
    bundle_cache.prune()
    assert path.exists()  # in use
    os.utime(entry.path, (0, 0))
    bundle_cache.prune()
    assert not entry.path.exists()
    assert located("hf://a/bounded") == path
    assert bundle_cache.clear() >= len(small)
    assert not path.exists()


def test_a_bundle_says_where_its_model_is_from(
    server: Hub, small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commit = server.push("a/split", {"m.onnx": small})
    split("hf://a/split")
    folder = tmp_path / "m.recipro"
    source = f"hf://a/split/m.onnx@{commit}"
    assert Explainer(folder).provenance()["source"] == source
    manifest = json.loads((folder / MANIFEST).read_bytes())
    assert manifest.pop("origin") == source  # as in a bundle from before it was recorded
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert open_bundle(folder).manifest.origin is None
    assert "source" not in Explainer(folder).provenance()
    assert embed_onnx("hf://a/split").graph.output[-1].name == "saliency_map"


def test_the_server_names_models_by_their_files(server: Hub, small: bytes) -> None:
    server.push("a/served", {"m=1.onnx": small})
    path = located("hf://a/served")
    assert _named("hf://a/served/m=1.onnx") == ("m_1", path)
    assert _named("classifier=hf://a/served") == ("classifier", path)


def test_compare_records_both_commits(server: Hub, small: bytes, tmp_path: Path, cat: Path) -> None:
    commit = server.push("a/compared", {"m.onnx": small})
    done = run("compare", "hf://a/compared", "hf://a/compared", cat, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["first"] == record["second"] == f"hf://a/compared/m.onnx@{commit}"


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("hf://a/nothing-here", ModelError, "There is no repository hf://a/nothing-here, or it is"),
        ("hf://a/private", ModelError, "hf://a/private, or it is private: log in with 'hf auth"),
        ("hf://a/token", ModelError, "The hub answers 401 for hf://a/token: log in with"),
        ("hf://a/gated", ModelError, "hf://a/gated is gated: ask for access on its page, and log"),
        ("hf://a/forbidden", ModelError, "The hub answers 403 for hf://a/forbidden: log in with"),
        ("hf://a/files", ModelError, "The hub answers 403 for hf://a/files: log in with"),
        ("hf://a/broken", ModelError, "The hub answers 500 for hf://a/broken."),
        ("hf://a/prose", ModelError, "hf://a/prose has no .onnx or .xml model."),
        ("hf://a/prose/docs", ModelError, "hf://a/prose has no model 'docs'."),
        ("hf://a/prose/README.md", ModelError, "must end in .onnx or .xml"),
        ("hf://a", OptionError, "'hf://a' is not of the form hf://ORGANISATION/NAME"),
        ("hf://a/b--c", OptionError, "hf://a/b--c names no repository: "),
    ],
)
def test_errors(
    reference: str, kind: type[ReciproError], message: str, server: Hub, small: bytes
) -> None:
    server.push("a/prose", {"README.md": b"#"})
    server.push("a/gated", {"m.onnx": small})
    server.push("a/files", {"m.onnx": small})
    server.refusals |= {
        "a/private": (401, "RepoNotFound"),
        "a/token": (401, ""),
        "a/gated": (403, "files GatedRepo"),
        "a/forbidden": (403, ""),
        "a/files": (403, "files "),
        "a/broken": (500, ""),
    }
    with pytest.raises(kind) as error:
        located(reference)
    assert message in str(error.value)
    assert "\\n" not in str(error.value)


@pytest.mark.usefixtures("server")
def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"hf://a/lite can't be fetched: .*refused") as error:
            located("hf://a/lite")
    assert "HF_HUB_OFFLINE=1 takes it from the cache" in str(error.value)
    assert "\\n" not in str(error.value)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, fetching.__name__)
    with pytest.raises(OptionError, match=r"pip install 'ov-recipro\[hub\]'"):
        located("hf://a/lite")


def test_references() -> None:
    for text, expected in [
        ("a/b", Reference("a/b")),
        ("a/b/", Reference("a/b")),
        ("a/b.c@v1", Reference("a/b.c", "", "v1")),
        ("a/b/c/d.onnx@refs/pr/1", Reference("a/b", "c/d.onnx", "refs/pr/1")),
        ("a/b/c@2.onnx@main", Reference("a/b", "c@2.onnx", "main")),
    ]:
        assert parsed(text) == expected
        assert parsed(str(expected).removeprefix("hf://")) == expected
    for text in ("", "a", "a/b@", "a//b", "@main", "a/b@c@"):
        with pytest.raises(OptionError):
            parsed(text)
    assert origin_of(Path("/home/m.onnx")) is None
    assert origin_of(Path("models--a--b/snapshots/main/m.onnx")) is None
