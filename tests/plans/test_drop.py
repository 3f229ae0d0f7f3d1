"""The mask "drop", one cell emptied and all others kept, against the oracle and the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from oracle import Oracle, dense_logits, features_of, run
from ov_recipro import Explainer, split
from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import OptionError
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.options import Cut, Running
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.stream.stream_onnx import CELLS, TOTAL, mask_model
from ov_recipro.runtimes.model_graphs import sparse_model, stream_model, tail_at
from ov_recipro.runtimes.openvino_runtime import OpenVINORuntime
from ov_recipro.sources.openvino_models import compiled
from ov_recipro.splitting.bundle_cache import cached_split
from transformers import Form, save

MEMORY = 64 << 20


def noise(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def image_of(bundle: Bundle, photo: Path) -> npt.NDArray[np.float32]:
    return prepare(read_image(photo), bundle.manifest.preprocessing)[0].astype(np.float32)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare logits [n,classes] by their spread over cells."""
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.ptp(expected, axis=0).max())


@pytest.mark.parametrize(
    ("layer", "exact", "plan"),
    [
        ("auto", False, "rows"),
        ("auto", False, "stream"),
        ("blocks.14/depthwise_conv/Conv", True, "stream"),
        ("blocks.12", False, "rows"),
    ],
)
def test_every_cell_equals_the_oracle(
    layer: str, exact: bool, plan: Any, lite0: Path, cat: Path
) -> None:
    bundle = cached_split(lite0, Cut(layer=layer, exact=exact))
    image = image_of(bundle, cat)
    whole, cells = run(OpenVINORuntime(bundle, Running(plan=plan), "drop"), image)
    oracle = Oracle(lite0, bundle.manifest.cut.tensor, drop=True)
    expected = oracle.logits(image, bundle.manifest.cut.grid)
    close(cells, expected)
    np.testing.assert_allclose(whole, oracle.plain(image), atol=1e-5)


def test_a_larger_map_equals_the_oracle(lite0: Path, coffee: Path) -> None:
    """14x14 cells, most of whose tail is computed densely."""
    bundle = cached_split(lite0, Cut(layer="blocks.8"))
    image = image_of(bundle, coffee)
    model, _ = sparse_model(bundle, "drop", MEMORY)
    logits = compiled(model, "CPU")(features_of(bundle, image)[0])[0]
    cells = np.random.default_rng(0).permutation(196)[:25].tolist()
    expected = Oracle(lite0, bundle.manifest.cut.tensor, drop=True).logits(image, (14, 14), cells)
    close(logits[cells], expected)


@pytest.fixture(params=["feature map", "tokens"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    from graphs import residual

    if request.param == "tokens":
        model = save(tmp_path / "m.onnx", Form(prefix=2))
        return split(model, tmp_path / "b.recipro", layer="blocks.0")
    return split(residual(tmp_path / "m.onnx"), tmp_path / "b.recipro", layer="block")


@pytest.mark.parametrize("mask", ["cell", "drop"])
def test_a_number_beyond_the_cells_marks_none(mask: Mask, small: Bundle) -> None:
    """Under "cell" no cell is kept, under "drop" all are, on both libraries."""
    manifest = small.manifest
    cut, shape = manifest.cut, manifest.boundary_shapes[0]
    features = noise(shape)
    expected = features.copy()
    if mask == "cell":
        expected[:, cut.prefix if cut.layout == "NTC" else 0 :] = 0

    model, plan = stream_model(small, MEMORY, mask)
    beyond = np.full(plan.batch, plan.cells, np.int32)
    logits = compiled(model, "CPU")([features, beyond])[0]
    tail = compiled(tail_at(small, batch=1), "CPU")(expected)[0]
    np.testing.assert_allclose(logits, np.repeat(tail, plan.batch, axis=0), rtol=1e-4, atol=1e-5)

    masking = mask_model(manifest, [onnx.TensorProto.FLOAT], mask)
    session = ort.InferenceSession(masking.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = manifest.tail.inputs
    outputs = [f"masked:{name}", TOTAL]
    feeds = {name: features, CELLS: np.array([0, plan.cells], np.int64)}
    masked, _ = session.run(outputs, feeds)
    np.testing.assert_array_equal(masked[1:], expected)
    first = features - masked[:1] if mask == "drop" else masked[:1]
    kept = first[:, cut.prefix :][:, :1] if cut.layout == "NTC" else first[:, :, :1, :1]
    assert kept.all()
    assert np.count_nonzero(first[:, cut.prefix :]) == kept.size


def test_tokens_stream(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", Form(prefix=2))
    bundle = split(model, tmp_path / "b.recipro", layer="blocks.0")
    runtime = OpenVINORuntime(bundle, Running(), "drop")
    assert runtime.plan.name == "stream"
    assert runtime.reason == "the mask 'drop' keeps all tokens but one"
    with pytest.raises(OptionError, match="'tokens' can't be used: the mask 'drop' keeps all"):
        OpenVINORuntime(bundle, Running(plan="tokens"), "drop")
    cut = bundle.manifest.cut
    image = noise(bundle.manifest.image.shape)
    _, cells = run(runtime, image)
    oracle = Oracle(model, cut.tensor, prefix=cut.prefix, drop=True)
    np.testing.assert_allclose(cells, oracle.logits(image, cut.grid), rtol=1e-4, atol=1e-5)


def test_the_reference_of_the_check_drops_cells_too(tmp_path: Path) -> None:
    """What is dropped adds up: a tail that is linear loses each cell's share."""
    from graphs import Builder

    b = Builder()
    b.head(b.add("Relu", b.conv("image", 4, strides=[2, 2]), output="feature"))
    bundle = split(b.save(tmp_path / "m.onnx"), tmp_path / "b.recipro", layer="feature")
    features = noise(bundle.manifest.boundary_shapes[0])
    kept, whole = dense_logits(bundle, "CPU", MEMORY, "cell")(features)
    dropped, _ = dense_logits(bundle, "CPU", MEMORY, "drop")(features)
    zero = (kept.sum(axis=0) - whole) / (len(kept) - 1)  # the bias, counted in each
    np.testing.assert_allclose(dropped, whole + zero - kept, atol=1e-5)


@pytest.mark.parametrize("plan", ["auto", "stream"])
def test_what_a_loss_costs_does_not_depend_on_the_heads_precision(
    plan: Any, lite0: Path, cat: Path
) -> None:
    """Both scores of a difference come from the float32 tail."""
    exact = Explainer(lite0, mask="drop", plan=plan)(cat).raw
    found = Explainer(lite0, mask="drop", plan=plan, precision="native")(cat).raw
    assert abs(float(np.median(found - exact))) < 0.02 * float(np.ptp(exact))
