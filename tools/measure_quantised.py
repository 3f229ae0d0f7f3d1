"""Measure what an 8-bit tail does to the maps, and what the float32 tail keeps.

For each quantised model, with the tail in 8 bits as deployed (a mask in the whole model, one cell
at a time) and with ours: the rank correlation (Spearman) of its maps with the float model's, for
the float model's top-1 class at the last layer, and the metrics of faithfulness, by profile
"poppi", 8 rows of pixels a step.

    python tools/measure_quantised.py FLOAT.onnx QUANTISED... --images FOLDER --limit 50
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from statistics import median

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro import Explainer
from ov_recipro.cli.tables import markdown
from ov_recipro.faithfulness.datasets import spread
from ov_recipro.faithfulness.measure import measure
from ov_recipro.faithfulness.tally import Tally
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.methods import METHODS, Method, Subject
from ov_recipro.metrics import rank_correlation
from ov_recipro.saliency import Score, class_scores


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


def eight_bit_tail(path: Path, explainer: Explainer, score: Score) -> Method:
    """Return Recipro-CAM as it is with the deployed model's own tail."""
    manifest = explainer.bundle.manifest
    height, width = manifest.cut.grid
    model = masked_model(path, manifest.cut.tensor, manifest.image.shape)
    local = threading.local()

    def method(subject: Subject, image: np.ndarray, index: int) -> np.ndarray:
        if not hasattr(local, "request"):
            local.request = model.create_infer_request()
        rows = []
        for cell in range(height * width):
            mask = np.zeros((1, 1, height, width), np.float32)
            mask.flat[cell] = 1
            found = local.request.infer([subject.tensor(image), mask])[0]
            rows.append(class_scores(found[0], score)[index])
        return np.array(rows).reshape(height, width)

    return method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("float_model", type=Path)
    parser.add_argument("quantised", type=Path, nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--limit", type=int, default=50)
    arguments = parser.parse_args()
    paths = spread(find_images([arguments.images]), arguments.limit)
    expected = Explainer(arguments.float_model, hint="throughput")
    like_float, faithful = [_LIKE], [_FAITHFUL]
    for path in arguments.quantised:
        ours = Explainer(path, preprocessing=expected.preprocessing, hint="throughput")
        subject = Subject(ours)
        methods = {
            "8-bit tail": eight_bit_tail(path, ours, "softmax"),
            "float32 tail": METHODS["recipro"],
        }
        of_logits = {
            "8-bit tail": eight_bit_tail(path, ours, "none"),
            "float32 tail": METHODS["recipro-logit"],
        }
        tallies = {name: Tally() for name in methods}
        ranks: dict[str, list[float]] = {name: [] for name in methods}
        distinct: dict[str, list[int]] = {name: [] for name in methods}
        same = 0
        for file in paths:
            reference = expected(file)
            index = reference.predictions[0].index
            image, _ = subject.prepare(read_image(file))
            top = int(subject.scores(image).argmax())
            same += top == index
            for name, method in methods.items():
                raw = method(subject, image, index)
                ranks[name].append(rank_correlation(raw, reference.maps[0]) or 0)
                logits = of_logits[name](subject, image, index)
                distinct[name].append(len(np.unique(logits.astype(np.float32))))
                step = 8 * image.shape[2]
                measured = measure(subject, method, image, top, "poppi", step)
                tallies[name].update(str(file), measured)
        for name, tally in tallies.items():
            row = [path.name, name, f"{np.mean(ranks[name]):.3f}", f"{median(distinct[name]):.0f}"]
            like_float.append((*row, f"{same}/{len(paths)}"))
            found = tally.summary()
            means = [getattr(found, each) for each in _MEANS]
            faithful.append(
                (
                    path.name,
                    name,
                    *(f"{100 * m.value:.2f} ({100 * m.low:.1f}-{100 * m.high:.1f})" for m in means),
                    str(found.flat),
                )
            )
        print(markdown(like_float), "", markdown(faithful), "", sep="\n", flush=True)


_LIKE = ("model", "maps by", "Spearman with the float model's", "distinct logits", "same top-1")
_MEANS = ("drop", "increase", "deletion", "insertion", "coherency", "complexity", "adcc")
_FAITHFUL = ("model", "maps by", *_MEANS, "flat")


if __name__ == "__main__":
    main()
