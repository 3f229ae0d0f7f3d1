"""The plan `tokens` against the oracle: the mask in the whole model, one cell at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from oracle import Oracle
from ov_recipro import Explainer
from ov_recipro.errors import OptionError
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.tokens import TokensPlan
from places import SCENE_VIT
from transformers import Form, save

FORMS = {
    "class token": Form(),
    "distilled": Form(prefix=2),
    "registers": Form(prefix=5, readout="both"),
    "mean": Form(prefix=0, readout="mean"),
    "split": Form(readout="split"),
    "pooled by attention": Form(prefix=0, readout="query"),
    "queries, keys and values apart": Form(attention="separate", norm_operator=False),
    "heads as the batch": Form(attention="heads first"),
    "attention as an operator": Form(attention="operator"),
    "clipped weights": Form(attention="separate", clipped=True),
    "guarded weights": Form(grid=(5, 7), attention="separate", guarded=True),
    "a mask of zeros": Form(attention="operator", guarded=True),
}


def close(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare logits [n,classes] as closely as float32 allows."""
    spread = float(np.ptp(expected, axis=0).max())
    error = float(np.abs(got - expected).max())
    assert error <= 1e-4 * spread + 6e-6 * float(np.abs(expected).max()), (error, spread)


def check(
    model: Path,
    layer: str,
    image: np.ndarray,
    plan: str = "tokens",
    cells: list[int] | None = None,
    device: str = "CPU",
) -> Explainer:
    explainer = Explainer(model, layer=layer, score="none", device=device)
    assert explainer.plan.name == plan, explainer.plan_reason
    manifest = explainer.bundle.manifest
    explanation = explainer.explain_tensor(image, range(manifest.classes))
    raw = explanation.raw.reshape(manifest.classes, -1).T
    oracle = Oracle(model, manifest.cut.tensor, prefix=manifest.cut.prefix)
    expected = oracle.logits(image, manifest.cut.grid, cells)
    close(raw if cells is None else raw[cells], expected)
    whole = {each.index: each.score for each in explanation.targets}
    plain = oracle.plain(image)
    np.testing.assert_allclose([whole[i] for i in range(len(plain))], plain, rtol=1e-4, atol=1e-5)
    return explainer


def image_for(model: Path) -> np.ndarray:
    (entry,) = onnx.load(model).graph.input
    shape = [size.dim_value for size in entry.type.tensor_type.shape.dim]
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_equals_the_oracle_at_every_block(form: Form, tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", form)
    image = image_for(model)
    for layer in ("blocks.0", "blocks.-1"):
        check(model, layer, image)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("textures", "blocks.0"),
        ("textures", "blocks.-1"),
        ("textures-mean", "blocks.3"),
        ("shapes", "blocks.0"),
    ],
)
def test_trained_models_equal_the_oracle(name: str, layer: str) -> None:
    model = SCENE_VIT / f"{name}.onnx"
    for device in ("CPU", "ort-cpu"):
        check(model, layer, image_for(model), device=device)


@pytest.mark.parametrize("mask", ["spread", "weight"])
@pytest.mark.parametrize("form", [Form(prefix=2), Form(grid=(3, 3), prefix=0, readout="mean")])
def test_wider_masks_equal_the_stream(mask: Mask, form: Form, tmp_path: Path) -> None:
    """3x3 cells on a grid of 3x3: in the centre, no token is left that others stand for."""
    model = save(tmp_path / "m.onnx", form)
    image = image_for(model)
    raw = []
    for plan in ("auto", "stream"):
        explainer = Explainer(model, layer="blocks.0", mask=mask, score="none", plan=plan)
        raw.append(explainer.explain_tensor(image, range(5)).raw.reshape(5, -1).T)
    assert explainer.plan.name == "stream"
    close(raw[0], raw[1])


@pytest.mark.parametrize(
    ("attention", "reason"),
    [("relative", "constant for each token"), ("rotary", "constant for each token"),
     ("mixer", "mixes tokens by constant weights")],
)  # fmt: skip
def test_a_tail_that_tells_tokens_apart_streams(
    attention: str, reason: str, tmp_path: Path
) -> None:
    form = Form(attention=attention, prefix=0, readout="mean")  # type: ignore[arg-type]
    model = save(tmp_path / "m.onnx", form)
    image = image_for(model)
    for layer in ("auto", "blocks.0"):
        explainer = check(model, layer, image, plan="stream")
        assert explainer.plan_reason is not None
        assert reason in explainer.plan_reason
    assert Explainer(model).bundle.manifest.cut.tensor == "stream_1"  # the last block's
    check(model, "blocks.-1", image)  # behind it, tokens are treated alike
    with pytest.raises(OptionError, match=f"'tokens' can't be used: .*{reason}"):
        Explainer(model, layer="blocks.0", plan="tokens")


def test_plans_of_the_other_kind_are_refused(tmp_path: Path, lite0: Path) -> None:
    model = save(tmp_path / "m.onnx")
    with pytest.raises(OptionError, match="'rows' can't be used: the cut is tokens"):
        Explainer(model, plan="rows")
    with pytest.raises(OptionError, match="'tokens' can't be used: the cut is a feature map"):
        Explainer(lite0, plan="tokens")


def test_wider_masks_in_onnx_runtime(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", Form(prefix=2))
    image = image_for(model)
    for mask in ("cell", "spread", "weight"):
        raw = []
        for device in ("CPU", "ort-cpu"):
            explainer = Explainer(model, mask=mask, score="none", device=device)
            raw.append(explainer.explain_tensor(image, range(5)).raw.reshape(5, -1).T)
        close(raw[0], raw[1])


def test_tokens_inside_a_block(tmp_path: Path) -> None:
    """Between attention and the rest of a block lies a clean tensor too; a norm does not."""
    model = save(tmp_path / "m.onnx", Form(readout="mean"))
    image = image_for(model)
    explainer = check(model, "middle_1", image)
    assert explainer.bundle.manifest.cut.block is None


def test_the_cost_is_that_of_the_compiled_plan(tmp_path: Path) -> None:
    for form in (Form(), Form(prefix=5, readout="both")):
        model = save(tmp_path / "m.onnx", form)
        for layer in ("blocks.0", "blocks.-1"):
            explainer = Explainer(model, layer=layer)
            cost, plan = explainer.bundle.manifest.cost, explainer.plan
            assert cost is not None
            assert isinstance(plan, TokensPlan)
            assert cost.plan == "tokens"
            assert cost.inferences == pytest.approx(1 + plan.macs / plan.plain_macs, rel=1e-3)
            assert cost.inferences <= cost.stream
