"""What reads files from strangers, as functions of bytes: each ends, or raises a ReciproError."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import openvino as ov

from graphs import Builder, residual
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.batch import Batch, find_inputs
from ov_recipro.cut.bundle import ImageInput, open_bundle
from ov_recipro.cut.points import cut_points
from ov_recipro.faithfulness.datasets import Classes, Sample, read_boxes, read_dataset
from ov_recipro.faithfulness.evaluation import Record
from ov_recipro.faithfulness.kept import Ledgers, settings_line
from ov_recipro.images.drawing import DEFAULT
from ov_recipro.images.reading import decode_image
from ov_recipro.report.saved import saved_page
from ov_recipro.serving.parameters import read_body, read_instance, read_parameters
from ov_recipro.sources import metadata
from ov_recipro.sources.labels import checked_labels, read_labels, read_synsets
from ov_recipro.splitting.split import open_source

Target = Callable[[bytes, Path], object]
CLASSES = Classes(3, ("cat", "dog", "cup"), ("n00000001", "n00000002", "n00000003"))


def model(suffix: str, data: bytes, folder: Path) -> None:
    path = folder / f"m{suffix}"
    path.write_bytes(data)
    (folder / "m.bin").write_bytes(bytes(4096))
    cut_points(open_source(path).graph)


def bundle(data: bytes, folder: Path) -> None:
    for name in ("head.onnx", "tail.onnx"):
        (folder / name).touch()
    (folder / "recipro.json").write_bytes(data)
    open_bundle(folder)


def described(data: bytes, folder: Path) -> None:
    """Metadata of a model: lines of a key, a tab and a value."""
    lines = (line.partition("\t") for line in data.decode(errors="replace").splitlines())
    entries = {key: value for key, _, value in lines}
    path = folder / "m.onnx"
    metadata.find_preprocessing(entries, path, (224, 224))
    metadata.find_kind(entries, path)
    checked_labels(metadata.find_labels(entries, path), 3)
    metadata.find_characters(entries, 3)


def beside(data: bytes, folder: Path) -> None:
    """The configuration that a model's folder holds, of Hugging Face's or timm's."""
    for name in ("preprocessor_config.json", "config.json"):
        (folder / name).write_bytes(data)
    described(b"", folder)


def image(data: bytes, _: Path) -> None:
    decode_image(data, "image")


def labels(suffix: str, data: bytes, folder: Path) -> None:
    path = folder / f"labels{suffix}"
    path.write_bytes(data)
    checked_labels(read_labels(path), 3)
    read_synsets(path)


def dataset(data: bytes, folder: Path) -> None:
    path = folder / "val.csv"
    path.write_bytes(data)
    read_dataset(path, CLASSES)


def boxes(suffix: str, data: bytes, folder: Path) -> None:
    path = folder / f"boxes{suffix}"
    path.write_bytes(data)
    read_boxes(path if suffix == ".json" else folder, CLASSES)


def records(data: bytes, folder: Path) -> None:
    """A measurement's ledger that a run finds when it goes on."""
    settings = {"recipro": {"profile": "poppi"}}
    path = Ledgers(folder, Record, settings, [])._ledgers["recipro"].path
    path.parent.mkdir()
    path.write_bytes(settings_line(settings["recipro"]) + b"\n" + data)
    Ledgers(folder, Record, settings, [Sample("a.jpg", "a.jpg", None)]).records("recipro")


def report(data: bytes, folder: Path) -> None:
    """A record of explanations, in a folder with an image and a map."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((8, 8, 3), np.uint8))
    np.savez(folder / "a.npz", raw=np.zeros((1, 4, 4), np.float32))
    (folder / "explanations.json").write_bytes(data.replace(b"FOLDER", str(folder).encode()))
    saved_page(folder, DEFAULT)


def request_v1(data: bytes, _: Path) -> None:
    """The body of a request to `:explain`."""
    body = read_body(data)
    asked = body.parameters.as_targets()
    for each in body.instances:
        read_instance(each, ImageInput("image", (1, 3, 2, 2), "float32", False))
    list(asked.similar_to)


def request_v2(data: bytes, _: Path) -> None:
    """A request of the Open Inference Protocol; the first line is the length of its JSON."""
    from ov_recipro.serving.inference_request import read_inference_request
    from ov_recipro.serving.served_model import _plain, _values

    length, _newline, body = data.partition(b"\n")
    request = read_inference_request(body, length.decode(errors="replace") or None, "m")
    read_parameters(_plain(request.parameters)).as_targets()
    for each in request.inputs:
        _values(each)


TARGETS: dict[str, Target] = {
    "onnx": partial(model, ".onnx"),
    "ir": partial(model, ".xml"),
    "bundle": bundle,
    "metadata": described,
    "beside": beside,
    "image": image,
    "labels": partial(labels, ".txt"),
    "labels-json": partial(labels, ".json"),
    "labels-tsv": partial(labels, ".tsv"),
    "dataset": dataset,
    "coco": partial(boxes, ".json"),
    "voc": partial(boxes, ".xml"),
    "records": records,
    "report": report,
    "request-v1": request_v1,
    "request-v2": request_v2,
}


def check(name: str, data: bytes) -> None:
    """Run a target on bytes; it may raise ReciproErrors alone."""
    with TemporaryDirectory() as folder, suppress(ReciproError):
        TARGETS[name](data, Path(folder))


def seeds(name: str, folder: Path) -> list[bytes]:
    """Return a few whole files of the kind that a target reads."""
    if name in ("onnx", "ir", "bundle"):
        path = residual(folder / "seed.onnx")
        if name == "onnx":
            b = Builder(shape=(1, 3, 8, 8))
            b.head(b.add("Softmax", b.conv("image", 3)))
            return [path.read_bytes(), b.save(folder / "other.onnx").read_bytes()]
        if name == "ir":
            ov.save_model(ov.convert_model(path), folder / "seed.xml", compress_to_fp16=False)
            return [(folder / "seed.xml").read_bytes()]
        made = split(path, folder / "seed.recipro")
        return [(made.folder / "recipro.json").read_bytes()]
    if name == "image":
        picture = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
        found = [cv2.imencode(s, picture)[1].tobytes() for s in (".jpg", ".png", ".webp", ".tiff")]
        turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
        jpeg = found[0]
        size = (len(turned) + 2).to_bytes(2, "big")
        return [*found, cv2.imencode(".bmp", picture)[1].tobytes(),
                jpeg[:2] + b"\xff\xe1" + size + turned + jpeg[2:]]  # fmt: skip
    if name == "report":
        cv2.imwrite(str(folder / "a.png"), np.zeros((8, 8, 3), np.uint8))
        inputs = find_inputs([str(folder / "a.png")])
        batch = Batch(Explainer(residual(folder / "seed.onnx")), inputs, folder, ["top1"], True)
        list(batch.run())
        (entry,) = (record := json.loads(batch.write()))["images"]
        entry["sha256"] = None
        return [json.dumps(record).replace(str(folder), "FOLDER").encode()]
    return [text.encode() for text in _TEXTS[name]]


_MEASURED = {
    "score": 0.5, "explained": 0.4, "drop": 0.1, "increase": False, "coherency": 0.9,
    "complexity": 0.2, "deletion": 0.1, "insertion": 0.6, "flat": False,
}  # fmt: skip
_PIXEL = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
_TEXTS: dict[str, list[str]] = {
    "metadata": [
        "model_info labels\tcat dog cup\nmodel_info mean_values\t1 2 3\n"
        "model_info scale_values\t1 1 1\nmodel_info resize_type\tfit_to_window_letterbox",
        "names\t{0: 'cat', 1: 'dog', 2: 'cup'}\ntask\tclassify\nimgsz\t[64, 64]\nstride\t32",
        "character\ta\\nb\\nc",
    ],
    "beside": [
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224},
                    "rescale_factor": 0.0039, "id2label": {"0": "cat", "1": "dog", "2": "cup"}}),
        json.dumps({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
                                       "interpolation": "bicubic"}, "label_names": ["a"]}),
    ],
    "labels": ["cat\ndog\ncup\n", "n00000001 cat, tabby\nn00000002 dog\nn00000003 cup"],
    "labels-json": ['["cat", "dog", "cup"]', '{"0": ["n00000001", "cat"], "1": "dog", "2": "cup"}'],
    "labels-tsv": ["index\tname\n0\tcat\n1\tdog\n2\tcup\n"],
    "dataset": ["path,label\na.jpg,cat\nb.jpg,1\n", "path\ta\nc.png\tn00000001\n"],
    "coco": [
        json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}],
                    "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}],
                    "categories": [{"id": 7, "name": "cat"}]}),
    ],
    "voc": [
        "<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>",
    ],
    "request-v1": [
        json.dumps({"instances": [{"b64": base64.b64encode(_PIXEL).decode()}],
                    "parameters": {"targets": ["top1", 3], "include": ["maps", "overlay"]}}),
        json.dumps({"instances": [[[[0.5, 1], [2, 3]]] * 3],
                    "parameters": {"top_k": 2, "against": "next", "gamma": 0.5}}),
        json.dumps({"instances": [1], "parameters": {"similar_to": [{"b64": "AAAA"}],
                    "region": [1, 2, 3, 4], "pixel": [1, 2], "box": "all", "nms": 0.5}}),
    ],
    "request-v2": [
        "\n" + json.dumps({"inputs": [{"name": "image", "shape": [1, 2], "datatype": "FP32",
                           "data": [1, 2.5]}], "id": "7", "outputs": [{"name": "targets"}],
                           "parameters": {"targets": "[1, 2]", "gamma": 0.5}}),
        (binary := json.dumps({"inputs": [{"name": "encoded_image", "shape": [1],
                               "datatype": "BYTES", "parameters": {"binary_data_size": 8}}]}))
        and f"{len(binary)}\n{binary}\4\0\0\0abcd",
    ],
    "records": [
        json.dumps({"image": "a.jpg", "sha256": "0" * 64, "label": None, "index": 3,
                      "measured": _MEASURED}) + "\n",
    ],
}  # fmt: skip
