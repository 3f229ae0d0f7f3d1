"""The tail runs in float32, whatever the device likes best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import pytest

from ov_recipro import Explainer
from ov_recipro.runtimes import openvino_runtime as runtime
from ov_recipro.sources.openvino_models import compiled, core

HINT = "INFERENCE_PRECISION_HINT"


@pytest.fixture(scope="module", autouse=True)
def _needs_bfloat16() -> None:
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16 for a tail to fall into")


@pytest.mark.parametrize("plan", ["rows", "stream"])
@pytest.mark.parametrize("precision", ["f32", "native"])
def test_a_tail_never_runs_in_bfloat16(
    plan: Literal["rows", "stream"],
    precision: Literal["f32", "native"],
    lite0: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is compiled with the tail's masked part has no bfloat16 in it."""
    made: dict[str, ov.CompiledModel] = {}

    def keeping(model: ov.Model, *arguments: Any) -> ov.CompiledModel:
        return made.setdefault(model.get_friendly_name(), compiled(model, *arguments))

    monkeypatch.setattr(runtime, "compiled", keeping)
    Explainer(lite0, layer="blocks.14", plan=plan, precision=precision)
    tails = [made[name] for name in ("fused", "rows", "masked tail") if name in made]
    assert tails
    for tail in tails:
        assert tail.get_property(HINT) == ov.Type.f32
        kinds = {
            str(node.get_rt_info()["runtimePrecision"].astype(str))
            for node in tail.get_runtime_model().get_ordered_ops()
        }
        assert "bf16" not in kinds
    if precision == "native":
        assert made["model"].get_property(HINT) == ov.Type.bf16


@pytest.mark.parametrize("plan", ["rows", "stream"])
def test_maps_survive_a_head_in_bfloat16(
    plan: Literal["rows", "stream"], lite0: Path, cat: Path, explainer: Explainer
) -> None:
    expected = explainer(cat, 285)
    native = Explainer(lite0, precision="native", plan=plan)(cat, 285)
    assert not np.array_equal(native.raw, expected.raw)
    correlation = np.corrcoef(native.maps.ravel(), expected.maps.ravel())[0, 1]
    assert correlation > 0.995
    assert native.targets[0].distinct_values == 49
