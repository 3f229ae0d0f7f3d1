"""Similarity: cosines of vectors, against their definition and against wrong input."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from command import fails, run
from graphs import Builder
from oracle import Oracle
from ov_recipro import Explainer, OptionError, TargetError
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.targets.similarity import Similarity, Source, make_reference

LAYERS = [("auto", "rows"), ("blocks.12", "rows"), ("blocks.14/depthwise_conv/Conv", "stream")]


@pytest.fixture(scope="module")
def embedder(lite0: Path) -> Explainer:
    return Explainer(lite0, task="features")


@pytest.mark.parametrize(("layer", "plan"), LAYERS)
def test_cosines_equal_the_oracles(
    layer: str, plan: str, lite0: Path, cat: Path, coffee: Path
) -> None:
    explainer = Explainer(lite0, task="features", layer=layer, exact=plan == "stream")
    assert explainer.plan.name == plan
    found = explainer(cat, similar_to=coffee)
    manifest = explainer.bundle.manifest
    oracle = Oracle(with_output(lite0, manifest.output), manifest.cut.tensor, manifest.output)
    tensor, _ = prepare(read_image(cat), explainer.preprocessing)
    vectors = oracle.logits(tensor.astype(np.float32), manifest.cut.grid).astype(np.float64)
    other, _ = prepare(read_image(coffee), explainer.preprocessing)
    reference = oracle.plain(other.astype(np.float32))
    expected = direction(vectors) @ direction(reference)
    np.testing.assert_allclose(found.raw[0].ravel(), expected, atol=1e-5)
    (target,) = found.targets
    assert isinstance(target, Similarity)
    whole = direction(oracle.plain(tensor.astype(np.float32))) @ direction(reference)
    assert target.score == pytest.approx(whole, abs=1e-5)
    assert [each.name for each in target.references] == [str(coffee)]
    assert np.array(target.cosines).shape == manifest.cut.grid


def direction(vector: Any, centre: Any = None) -> Any:
    """Return a vector, less the centre, at length 1."""
    moved = np.asarray(vector, np.float64) - (0 if centre is None else centre)
    return moved / np.linalg.norm(moved, axis=-1, keepdims=True)


def with_output(model: Path, name: str) -> Path:
    """Return a copy of a model that also gives one of its inner tensors."""
    proto = onnx.load(model)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    path = Path(tempfile.mkdtemp()) / "m.onnx"
    onnx.save(proto, path)
    return path


def test_unlike_and_centre(embedder: Explainer, cat: Path, coffee: Path) -> None:
    a, b = (np.asarray(embedder.vector(each), np.float64) for each in (coffee, cat))
    middle = (a + b) / 2 + 0.1
    mirrored = np.ascontiguousarray(read_image(cat)[:, ::-1])
    found = embedder(mirrored, similar_to=a, unlike=[b], centre=np.stack([middle]))
    vector = embedder.vector(mirrored)
    expected = direction(vector, middle) @ (direction(a, middle) - direction(b, middle))
    assert found.targets[0].score == pytest.approx(expected, abs=1e-6)
    assert found.vector is not None
    np.testing.assert_array_equal(found.vector, vector)


def test_a_folder_is_the_mean_of_unit_vectors(
    embedder: Explainer, cat: Path, coffee: Path, tmp_path: Path
) -> None:
    vectors = np.stack([embedder.vector(each) for each in sorted((cat, coffee))])
    np.save(tmp_path / "v.npy", vectors)
    by_folder = embedder(cat, similar_to=cat.parent).targets[0].score
    by_file = embedder(cat, similar_to=tmp_path / "v.npy").targets[0].score
    mean = direction(direction(vectors).mean(axis=0))
    expected = direction(embedder.vector(cat)) @ mean
    assert by_folder == pytest.approx(expected, abs=1e-6) == by_file


def test_a_mosaic_is_found(embedder: Explainer, cat: Path, coffee: Path) -> None:
    """The reference is one of two halves, mirrored and at full size."""
    left = cv2.resize(read_image(cat)[:, 75:375], (240, 480))
    right = cv2.resize(read_image(coffee)[:, 100:500], (240, 480))
    both = np.hstack([left, right]).astype(np.uint8)
    for reference, on_left in ((left, True), (right, False)):
        like = embedder.vector(np.ascontiguousarray(reference[:, ::-1]).astype(np.uint8))
        saliency = embedder(both, similar_to=like).maps[0]
        assert bool(saliency[:, :3].sum() > saliency[:, 4:].sum()) is on_left


def test_wrong_references(embedder: Explainer, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for wrong, message in [
        (np.zeros(3), r"shape \[1, 3\]; the model's have 1280"),
        (np.full(1280, np.nan), "NaN"),
        (np.zeros(1280), "cancel out"),
        (tmp_path / "text.npy", "not a .npy file of numbers"),
        (tmp_path / "objects.npy", "not a .npy file of numbers"),
        (tmp_path / "absent.npy", "No such file"),
    ]:
        with pytest.raises((OptionError, TargetError), match=message):
            embedder(cat, similar_to=wrong)
    with pytest.raises(OptionError, match="--similar-to"):
        embedder(cat)
    with pytest.raises(OptionError, match="nothing to compare"):
        make_reference([], [], [], 3)
    one = Source("a", ""), np.array([[1.0, 0]])
    with pytest.raises(TargetError, match="cancel out"):
        make_reference([one, (Source("b", ""), np.array([[-1.0, 0]]))], [], [], 2)


def test_on_the_command_line(tmp_path: Path, cat: Path, coffee: Path) -> None:
    done = run("explain", cat, "--similar-to", coffee, "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Taken for an embedding" in done.stderr
    assert f"similarity to {coffee}" in done.stdout
    fails(
        run("explain", cat, "--similar-to", "absent.jpg", cwd=tmp_path),
        "absent.jpg",
    )
    fails(
        run("explain", cat, "--similar-to", coffee, "--task", "classifier", cwd=tmp_path),
        "--similar-to is for an embedding; this model is a classifier",
    )


def test_a_model_that_divides_by_the_length(tmp_path: Path, cat: Path) -> None:
    """It is an embedding, and an empty map, which has no direction, is like nothing."""
    b = Builder()
    x = b.add("Flatten", b.add("GlobalAveragePool", b.conv("image", 4)))
    x = b.add("MatMul", x, b.constant(b.random.normal(size=(4, 6))))
    length = b.add("ReduceL2", x, axes=[1], keepdims=1)
    b.add("Div", x, length, output="scores")
    path = b.save(tmp_path / "m.onnx")
    explainer = Explainer(path, signed=True)
    assert explainer.bundle.manifest.task == "embedding"
    found = explainer(cat, similar_to=np.ones(6))
    assert np.isfinite(found.signed_maps).all()
    named = Explainer(path, task="similarity", output_name="scores").bundle.manifest
    assert named.scores_shape == (1, 6)
