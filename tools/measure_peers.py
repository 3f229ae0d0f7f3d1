"""The tables of docs/alternatives.md: other explainers beside this one, on the same machine.

    python tools/measure_peers.py build/zoo --qdq qdq.onnx

Makes an environment for each group of peers in build/peers, once. Each row is measured twice, and a
third time where these differ by more than 15 %; the run in the middle is kept. Ratios are of
medians within a process; times of different rows may have seen different loads of the machine.
What is measured is kept in build/peers/rows.json, and not measured again: delete it to begin anew.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ov_recipro import Explainer
from ov_recipro.cli.tables import markdown
from ov_recipro.errors import ReciproError
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import read_image
from ov_recipro.metrics import rank_correlation
from ov_recipro.saliency import class_scores, saliency_maps
from ov_recipro.sources.default_model import bundled_model

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).parent / "peers.py"
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "xai": ("openvino_xai==1.1.0",),
    "torch": (
        "torch==2.13.0",
        "torchvision==0.28.0",
        "torchcam==0.5.0",
        "grad-cam==1.5.7",
        "captum==0.9.0",
    ),
    "dianna": ("dianna==1.8.1", "onnxruntime==1.32.0"),
}
HOMES = {"openvino-xai": "xai", "openvino-xai-inserted": "xai", "dianna": "dianna"}
AGREE = 1.15  # ratios of two runs
SLOW = 20e3  # milliseconds; explained once, and the same process tells the peak memory


@dataclass(frozen=True)
class Model:
    """A model: its file or torchvision's name, what its truth is read from, and its input."""

    title: str
    path: str
    image: Path
    target: int
    truth: Path | None = None


def environment(name: str) -> Path:
    """Return the Python of an environment, which is made where it is missing."""
    folder = ROOT / "build" / "peers" / name
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        venv.create(folder, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]]
        subprocess.run(command, check=True)  # noqa: S603
        (folder / "ready").touch()
    return python


def wait(file: Path | None) -> None:
    """Wait while a file exists by which others ask for a quiet machine."""
    while file is not None and file.exists():
        time.sleep(5)


def work(
    peer: str, model: Model, extra: str, do: str, busy: Path | None, kept: Path | None = None
) -> dict[str, Any]:
    """Run the worker in the peer's environment, once the machine is free."""
    wait(busy)
    ours = peer == "ov-recipro"
    python = sys.executable if ours else environment(HOMES.get(peer, "torch"))
    command = [python, WORKER, peer, model.path, model.image, "--target", str(model.target)]
    command += ["--extra", extra, "--do", do, *(["--map", kept] if kept else [])]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"refused": f"ended with status {done.returncode}"}
    return dict(json.loads(lines[-1]))


def measure(peer: str, model: Model, extra: str, kept: Path, busy: Path | None) -> dict[str, Any]:
    """Return what a peer does with a model: how, times, memory."""
    found = [work(peer, model, extra, "time", busy, kept)]
    if "times" not in found[0]:
        return found[0]
    slow = max(found[0]["times"]["explain"]) > SLOW
    if not slow:
        found.append(work(peer, model, extra, "time", busy))
    ratios = [median(f["times"]["explain"]) / median(f["times"]["plain"]) for f in found]
    if max(ratios) > AGREE * min(ratios):
        found.append(work(peer, model, extra, "time", busy))
        last = found[-1]["times"]
        ratios.append(median(last["explain"]) / median(last["plain"]))
    chosen = found[ratios.index(sorted(ratios)[(len(ratios) - 1) // 2])]
    row = {name: chosen[name] for name in ("version", "how", "node")}
    row["ms"] = {name: median(times) for name, times in chosen["times"].items()}
    row["turns"], row["ratios"] = len(chosen["times"]["explain"]), ratios
    for do in ("plain", "explain"):
        alone = found[0] if slow and do == "explain" else work(peer, model, extra, do, busy)
        row[f"{do}_mb"] = alone.get("peak_mb")
    return row


def distances(saliency: np.ndarray, model: Model, node: str) -> dict[str, Any]:
    """Return how far a map is from Recipro-CAM's definition, and from that of logits.

    The definition is made by the slow oracle of the tests, a mask in the whole float model, at the
    tool's own node, else at our default; the map is averaged over the cells.
    """
    sys.path.append(str(ROOT / "tests" / "support"))
    from oracle import Oracle

    try:
        manifest = Explainer(model.truth, layer=node or "auto").bundle.manifest
    except ReciproError:
        manifest = Explainer(model.truth).bundle.manifest
    prefix = manifest.cut.prefix if manifest.cut.layout == "NTC" else None
    oracle = Oracle(model.truth, manifest.cut.tensor, prefix=prefix)
    image = np.load(model.image)
    grid = manifest.cut.grid
    logits = oracle.logits(image, grid)
    height, width = grid
    found: dict[str, Any] = {"at": manifest.cut.tensor, "distinct": len(np.unique(saliency))}
    if saliency.shape != grid:
        rows = np.array_split(saliency.astype(np.float64), height)
        blocks = [np.array_split(row, width, axis=1) for row in rows]
        saliency = np.array([[block.mean() for block in row] for row in blocks])
    own = saliency_maps(saliency[None])[0]
    for score in ("softmax", "none"):
        raw = class_scores(logits, score)[:, model.target].reshape(1, *grid)
        truth = saliency_maps(raw)[0]
        found[score] = [rank_correlation(own, truth), float(np.abs(own - truth).max())]
    return found


def models_of(zoo: Path, qdq: Path | None, folder: Path) -> tuple[list[Model], list[Model]]:
    """Return the models as files and, for tools that need a module, as torchvision's names."""
    sys.path.append(str(ROOT / "tools"))
    import detector_scenes
    import scenes

    lite = bundled_model()
    photograph = read_image(ROOT / "examples" / "chelsea.jpg")

    def inputs(name: str, image: np.ndarray) -> Path:
        np.save(folder / f"{name}.npy", image.astype(np.float32))
        return folder / f"{name}.npy"

    def top(path: Path, image: Path) -> int:
        found = Explainer(path).explain_tensor(np.load(image)).predictions[0].index
        return int(found or 0)

    lite_explainer = Explainer(lite)
    chelsea = inputs("lite0", prepare(photograph, lite_explainer.preprocessing)[0])
    best = top(lite, chelsea)
    files = [Model("EfficientNet-Lite0, ONNX, batch open", str(lite), chelsea, best, lite)]
    for title, batch in (("batch 1", 1), ("batch open", -1)):
        path = folder / f"lite0-{batch}.xml"
        if not path.is_file():
            make = (
                "import sys, openvino as ov; m = ov.convert_model(sys.argv[1]);"
                "m.reshape([int(sys.argv[3]), 3, 224, 224]);"
                "ov.save_model(m, sys.argv[2], compress_to_fp16=False)"
            )
            command = [environment("xai"), "-c", make, lite, path, str(batch)]
            subprocess.run(command, check=True)  # noqa: S603
        files.append(Model(f"EfficientNet-Lite0, IR, {title}", str(path), chelsea, best, lite))
    if qdq:
        files.append(Model("EfficientNet-Lite0, 8 bits (QDQ)", str(qdq), chelsea, best, lite))
    for name in ("resnet18", "resnet50"):
        for form in ("torchscript", "torchscript-dynamic", "dynamo", "dynamo-dynamic"):
            path = zoo / f"{name}.{form}.onnx"
            if path.is_file():
                words = form.replace("-dynamic", ", batch open")
                files.append(Model(f"{name}, {words}", str(path), chelsea, 0, path))
    vit = ROOT / "tests" / "assets" / "scene-vit" / "textures.onnx"
    made = scenes.make_scenes("textures", 1, scenes.HELD_OUT_SEED, objects=1)
    image = inputs("vit", made.images[:1])
    files.append(Model("scene ViT", str(vit), image, top(vit, image), vit))
    detector = ROOT / "tests" / "assets" / "scene-detector" / "model.onnx"
    scene = detector_scenes.make_scenes(1, detector_scenes.HELD_OUT_SEED)[0]
    tensor, _ = prepare(scene.image[..., ::-1].copy(), Explainer(detector).preprocessing)
    image = inputs("detector", tensor)
    files.append(Model("scene detector", str(detector), image, top(detector, image)))
    modules = [Model(f"torchvision {n}", n, chelsea, 0) for n in ("resnet18", "resnet50")]
    return files, modules


HEADS = "heads:" + ",".join(f"/classes.{level}/Conv" for level in range(3))


def jobs(files: list[Model], modules: list[Model]) -> list[tuple[str, str, str, Model]]:
    """Return label, peer, extra and model of each row."""
    rows = []
    for model in files:
        rows.append(("ov-recipro", "ov-recipro", "", model))
        if re.search("Lite0, ONNX|resnet50, torchscript$", model.title):
            rows.append(("ov-recipro, precision native", "ov-recipro", "native", model))
        rows.append(("OpenVINO XAI", "openvino-xai", "", model))
        if model.path.endswith(".onnx") and "Lite0" in model.title:
            for title, extra in (("in float32", ""), ("in float32, not scaled", "raw")):
                rows.append(
                    (f"OpenVINO XAI, inserted, {title}", "openvino-xai-inserted", extra, model)
                )
        if model.title == "scene ViT":
            given = "OpenVINO XAI, with a postprocess_fn"
            rows.append((given, "openvino-xai", "postprocess", model))
        if model.title == "scene detector":
            rows.append(("OpenVINO XAI, Task.DETECTION", "openvino-xai", "detection", model))
            rows.append(("OpenVINO XAI, class heads named", "openvino-xai", HEADS, model))
    for model in modules:
        rows.append(("torchcam", "torchcam", "", model))
        rows.append(("pytorch-grad-cam", "grad-cam", "", model))
        rows.append(("Captum, IntegratedGradients", "captum", "", model))
        rows.append(("Captum, LayerGradCam", "captum", "LayerGradCam", model))
    for model in files:
        if not model.path.endswith(".xml") and not re.search(
            "resnet50|dynamo|torchscript,", model.title
        ):
            rows.append(("DIANNA, RISE", "dianna", "", model))
    return rows


HEADER = (
    "model", "tool", "what it does", "ratio", "runs", "map alone", "plain MB", "explain MB",
    "rank", "difference", "of logits: rank", "difference",
)  # fmt: skip


def as_row(title: str, label: str, found: dict[str, Any]) -> tuple[str, ...]:
    if "refused" in found:
        return (title, label, found["refused"], *[""] * 9)
    ms = found["ms"]
    alone = f"{ms['map alone'] / ms['plain']:.2f}" if "map alone" in ms else ""
    far = found.get("distances", {})
    numbers = []
    for score in ("softmax", "none"):
        rank, most = far.get(score, (None, None))
        numbers += [
            "" if rank is None else f"{rank:.3f}",
            "" if most is None else f"{most:.1e}" if most < 0.001 else f"{most:.3f}",
        ]
    memory = [f"{found[k]:.0f}" if found.get(k) else "" for k in ("plain_mb", "explain_mb")]
    ratio = ms["explain"] / ms["plain"]
    return (
        title,
        label,
        found["how"],
        f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}",
        f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}",
        alone,
        *memory,
        *numbers,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path, help="folder of the exported ResNets")
    parser.add_argument(
        "--qdq", type=Path, help="the bundled model in 8 bits, by tools/quantise.py"
    )
    parser.add_argument(
        "--wait-while", type=Path, metavar="FILE", help="start nothing while this file exists"
    )
    parser.add_argument("--only", default="", help="regular expression of 'tool: model'")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is kept")
    arguments = parser.parse_args()
    wait(arguments.wait_while)
    folder = ROOT / "build" / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "rows.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for label, peer, extra, model in jobs(*models_of(arguments.zoo, arguments.qdq, folder)):
        key = f"{label}: {model.title}"
        wanted = re.search(arguments.only, key) and not arguments.table
        if key in rows or not wanted:
            continue
        saved = folder / "map.npy"
        saved.unlink(missing_ok=True)
        found = measure(peer, model, extra, saved, arguments.wait_while)
        if saved.is_file() and model.truth:
            found["distances"] = distances(np.load(saved), model, found["node"])
        rows[key] = {"title": model.title, "label": label, **found}
        print(key, json.dumps(found), flush=True)
        kept.write_text(json.dumps(rows, indent=1))
    print(markdown([HEADER, *(as_row(r["title"], r["label"], r) for r in rows.values())]))


if __name__ == "__main__":
    main()
