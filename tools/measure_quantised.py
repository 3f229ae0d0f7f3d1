"""Measure what an 8-bit tail does to the maps, and what the float32 tail keeps.

For each quantised model: the rank correlation (Spearman) of its maps with the float model's, for
the float model's top-1 class at the last layer, with the tail in 8 bits as deployed (a mask in the
whole model, one cell at a time) and with ours.

    python tools/measure_quantised.py FLOAT.onnx QUANTISED... --images FOLDER --limit 50
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro import Explainer
from ov_recipro.images import find_images, read_image
from ov_recipro.preprocess import prepare


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse.reshape(-1)]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation; 0 where one of the maps is flat."""
    a, b = ranks(a), ranks(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def masked_model(path: Path, tensor: str, shape: tuple[int, ...]) -> ov.CompiledModel:
    """Compile the whole deployed model with a mask multiplied into `tensor`."""
    model = ov.Core().read_model(path)
    model.reshape(list(shape))
    port = next(
        port
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Result", "Constant")
        for port in node.outputs()
        if tensor in port.get_names() or tensor == node.get_friendly_name()
    )
    readers = list(port.get_target_inputs())
    mask = ops.parameter([1, 1, *list(port.shape)[2:]], np.float32)
    product = ops.multiply(port, mask)
    for reader in readers:
        reader.replace_source_output(product.output(0))
    masked = ov.Model(model.get_results(), [*model.get_parameters(), mask])
    return ov.Core().compile_model(masked, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("float_model", type=Path)
    parser.add_argument("quantised", type=Path, nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--limit", type=int, default=50)
    arguments = parser.parse_args()
    images = find_images([arguments.images])
    images = images[:: max(1, len(images) // arguments.limit)][: arguments.limit]
    expected = Explainer(arguments.float_model)
    print(
        "| model | Spearman, 8-bit tail | ours | distinct values, 8-bit tail | ours | same top-1 |"
    )
    print("|---|---|---|---|---|---|")
    for path in arguments.quantised:
        ours = Explainer(path, preprocessing=expected.preprocessing)
        manifest = ours.bundle.manifest
        height, width = manifest.cut.grid
        eight_bit = masked_model(path, manifest.cut.tensor, manifest.image.shape)
        rows = []
        for image in images:
            reference = expected(image)
            index = reference.predictions[0].index
            explanation = ours(image, index)
            tensor, _ = prepare(read_image(image), ours.preprocessing)
            logits = []
            for cell in range(height * width):
                mask = np.zeros((1, 1, height, width), np.float32)
                mask.flat[cell] = 1
                logits.append(eight_bit([tensor, mask])[0][0].astype(np.float64))
            lost = softmax(np.stack(logits))[:, index]
            rows.append(
                (
                    spearman(lost, reference.raw),
                    spearman(explanation.raw, reference.raw),
                    len(np.unique(np.stack(logits)[:, index])),
                    explanation.targets[0].distinct_values,
                    explanation.predictions[0].index == index,
                )
            )
        mean = np.mean(rows, axis=0)
        median = np.median(rows, axis=0)
        print(
            f"| {path.name} | {mean[0]:.3f} | {mean[1]:.3f} | {median[2]:.0f} | {median[3]:.0f} | "
            f"{sum(row[4] for row in rows)}/{len(rows)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
