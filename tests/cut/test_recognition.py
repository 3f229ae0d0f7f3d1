"""What a model is for, by the shapes and names of its outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import fails, run
from graphs import Builder, residual
from ov_recipro import Cut, ModelError, OptionError
from ov_recipro.cut.recognition import Output, of_model_type, recognise
from ov_recipro.splitting.split import open_source

SHAPES: list[tuple[str, dict[str, Output]]] = [
    ("classifier", {"logits": Output((1, 1000), "Gemm")}),
    ("classifier", {"y": Output((1, 7, 1, 1), "Conv"), "map": Output((1, 64, 8, 8), "Relu")}),
    ("embedding", {"image_embeds": Output((1, 512), "MatMul")}),
    ("embedding", {"y": Output((1, 512), "LpNormalization")}),
    ("segmentation", {"y": Output((1, 21, 160, 160), "Resize")}),
    ("segmentation", {"y": Output((1, 160, 160, 21), "Conv", channels_last=True)}),
    ("segmentation", {"y": Output((1, 320, 320), "ArgMax")}),
    ("segmentation", {"y": Output((1, 1, 320, 320), "Sigmoid")}),
    ("sequence", {"y": Output((1, 40, 6625), "Softmax")}),
    ("detector", {"y": Output((1, 1, 200, 7), "DetectionOutput")}),
    ("detector", {"num_dets": Output((1, 1), ""), "det_boxes": Output((1, 100, 4), "")}),
    ("detector", {"boxes": Output((1, 100, 5), ""), "labels": Output((1, 100), "")}),
    ("detector", {n: Output((), "") for n in ("boxes", "labels", "scores")}),
    ("detector", {"logits": Output((1, 100, 92), ""), "pred_boxes": Output((1, 100, 4), "")}),
    ("detector", {"a": Output((1, 4420, 2), ""), "b": Output((1, 4420, 4), "")}),
    ("detector", {"y": Output((1, 84, 2100), "Concat")}),
    ("detector", {"y": Output((1, 2100, 85), "Concat")}),
    ("detector", {"y": Output((1, 6300, 85), "Concat")}),
    ("detector", {"y": Output((1, 300, 6), "Concat")}),
    (
        "detector",
        {
            "a": Output((1, 80, 40, 40), ""),
            "b": Output((1, 80, 20, 20), ""),
            "c": Output((1, 80, 10, 10), ""),
        },
    ),
    ("unknown", {"y": Output((1, 85, 10, 10), "Concat")}),
    ("unknown", {"y": Output((1, 197, 768), "LayerNormalization")}),
]


@pytest.mark.parametrize(("kind", "outputs"), SHAPES)
def test_by_outputs(kind: str, outputs: dict[str, Output]) -> None:
    found = recognise(outputs, (320, 320))
    assert found.kind == kind
    assert found.why
    own = {"saliency_map": Output((1, 7, 10, 10), "")}
    assert recognise(outputs | own, (320, 320)) == found


def test_a_detector_has_a_layout() -> None:
    image = (320, 320)
    found = recognise({"y": Output((1, 84, 2100), "Concat")}, image)
    assert found.boxes is not None
    assert (found.boxes.family, found.boxes.classes) == ("yolov8", 80)
    maps = {name: Output((1, 9, n, n), "Conv") for name, n in (("a", 40), ("b", 20), ("c", 10))}
    assert recognise(maps, image).kind == "detector"
    assert recognise(maps, image).boxes is None
    joined, map_ = (
        recognise({"y": Output((1, 85, 20, 20), op)}, image) for op in ("Concat", "Conv")
    )
    assert joined.boxes is not None
    assert (joined.kind, joined.boxes.family) == ("detector", "fastestdet")
    assert (map_.kind, map_.boxes) == ("unknown", None)


def test_by_what_the_file_says() -> None:
    found = of_model_type("SSD")
    assert found is not None
    assert found.kind == "detector"
    assert of_model_type("something else") is None


def segmentation(folder: Path) -> Path:
    b = Builder(shape=(1, 3, 32, 32))
    x = b.add("Relu", b.conv("image", 4, strides=[4, 4]))
    x = b.conv(b.add("Relu", b.conv(x, 6)), 3, kernel=1, output="low")
    scales = b.constant([1, 1, 2, 2])
    x = b.add("Resize", x, "", scales, output="high", mode="linear")
    b.add("ArgMax", b.add("Softmax", x, axis=1), output="scores", axis=1, keepdims=0)
    return b.save(folder / "m.onnx", dtype=7)


def test_choices_enlarging_and_activations_are_left_out(tmp_path: Path) -> None:
    graph = open_source(segmentation(tmp_path)).graph
    assert (graph.task, graph.scores, graph.activation) == ("segmentation", "low", "softmax")
    assert graph.output == "scores"


def test_what_the_user_says_comes_first(tmp_path: Path, lite0: Path) -> None:
    features = open_source(lite0, Cut(task="features")).graph
    assert (features.task, features.shapes[features.scores]) == ("embedding", (1, 1280))
    output = open_source(lite0, Cut(task="embedding")).graph
    assert output.scores == "logits"
    named = open_source(lite0, Cut(task="embedding", output_name=features.scores)).graph
    assert named.scores == features.scores
    with pytest.raises(OptionError, match="not a vector"):
        open_source(lite0, Cut(task="embedding", output_name="/conv_head/Conv_output_0"))
    with pytest.raises(ModelError, match=r"no output of a segmentation: logits \[1, 1000\]"):
        open_source(lite0, Cut(task="segmentation"))
    b = Builder()
    pooled = b.add("GlobalAveragePool", b.conv("image", 4))
    b.add("Flatten", pooled, output="scores")
    path = b.save(tmp_path / "pool.onnx")
    with pytest.raises(OptionError, match="no linear layer"):
        open_source(path, Cut(task="features"))
    assert open_source(path, Cut(task="embedding")).graph.scores == "scores"


def test_what_can_not_be_explained_is_refused_by_name(tmp_path: Path) -> None:
    path = residual(tmp_path / "good.onnx")
    assert (
        "Taken for a classifier: output 'scores' [1, 5]."
        in run("layers", path, cwd=tmp_path).stderr
    )
    b = Builder(shape=(1, 3, 32, 32))
    maps = [b.conv(b.conv("image", 4, strides=[s, s]), 9, output=f"s{s}") for s in (8, 16, 32)]
    detector = b.save(tmp_path / "detector.onnx", *maps)
    fails(run("layers", detector, cwd=tmp_path), "The model is a detector", "--task")
