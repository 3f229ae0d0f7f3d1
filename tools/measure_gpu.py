"""Everything that docs/performance.md says about an NVIDIA GPU, measured in one go.

What Table 2 of the paper compares, on one GPU: plain inference and Recipro-CAM at two layers of
ResNet-50 through ONNX Runtime, and Grad-CAM, Grad-CAM++ and Score-CAM in PyTorch with its own
autograd; then images a second, memory, and the tests that need a GPU. It takes some minutes, in an
environment with this package, `onnxruntime-gpu`, pytest and the packages of
``tools/export-requirements.txt``:

    python tools/measure_gpu.py --output build/gpu

``--device ort-cpu`` tries the tool itself out where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
import torch
from export_zoo import import_torchvision, randomise

from ov_recipro import Explainer
from ov_recipro.bench import measure
from ov_recipro.cli.tables import markdown
from ov_recipro.options import Cut, Running
from ov_recipro.runtimes import describe_devices, plain_runner
from ov_recipro.splitting.bundle_cache import cached_split

LAYERS = {"auto": "layer4", "layer3": "layer3"}  # of the ONNX model: of the network
SIZE = 224
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=50, help="turns of each measurement")
    parser.add_argument("--images", type=int, default=200, help="images for the throughput")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network = resnet50()
    randomise(network)
    model = exported(network, arguments.output / "resnet50.onnx")
    place = "cuda" if arguments.device.startswith("cuda") else "cpu"
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "devices": [asdict(each) for each in describe_devices()],
        "gpu": asked_of_gpu("name,driver_version"),
        "through_onnx_runtime": [
            through_onnx_runtime(model, layer, arguments.device, arguments.runs) for layer in LAYERS
        ],
        "in_pytorch": in_pytorch(network.to(place), place, arguments.runs),
        "images_a_second": [
            images_a_second(model, layer, arguments.device, arguments.images) for layer in LAYERS
        ],
        "tests": tests(arguments.device),
    }
    (arguments.output / "gpu.json").write_text(json.dumps(found, indent=1))
    print(f"{found['date']}, {found['gpu'] or 'no GPU'}\n")
    print(table(found))
    print(f"\ntests: {found['tests']}")


def resnet50() -> torch.nn.Module:
    try:
        import torchvision
    except RuntimeError:  # a build of torch for the CPU alone
        torchvision = import_torchvision()
    return torchvision.models.resnet50(weights=None).eval()


def exported(network: torch.nn.Module, path: Path) -> Path:
    example = torch.zeros(1, 3, SIZE, SIZE)
    torch.onnx.export(network, (example,), path, dynamo=False, opset_version=17)
    return path


def through_onnx_runtime(model: Path, layer: str, device: str, runs: int) -> dict[str, Any]:
    bundle = cached_split(model, Cut(layer))
    with highest_memory() as memory:
        row = measure(bundle.folder, Running(device), runs)
    return {"layer": layer, "gpu_mb": memory[-1], **asdict(row)}


def in_pytorch(network: torch.nn.Module, place: str, runs: int) -> list[dict[str, Any]]:
    """Return the times of methods with autograd, each in turns with plain inference."""
    image = torch.from_numpy(smooth_image()).to(place)
    rows = []
    for layer in LAYERS.values():
        for name, method in METHODS.items():
            turns = runs if name != "score-cam" else 3
            call = partial(method, network, getattr(network, layer), image)
            with highest_memory() as memory:
                plain, taken = in_turns(partial(forward, network, image), call, turns, place)
            rows.append(
                {
                    "method": name, "layer": layer, "plain_ms": plain, "ms": taken,
                    "ratio": taken / plain, "gpu_mb": memory[-1],
                }
            )  # fmt: skip
    return rows


def images_a_second(model: Path, layer: str, device: str, count: int) -> dict[str, Any]:
    """Return the rates of plain inference, one at a time, and of explaining as a stream."""
    bundle = cached_split(model, Cut(layer))
    tensors = [smooth_image(seed) for seed in range(8)]
    explainer = Explainer(bundle, device=device, hint="throughput")
    plain = plain_runner(bundle, Running(device, hint="throughput"))
    plain(tensors[0])
    explainer.explain_tensor(tensors[0])
    started = time.perf_counter()
    for number in range(count):
        plain(tensors[number % len(tensors)])
    of_plain = count / (time.perf_counter() - started)
    photographs = [np.uint8(127 + 40 * np.clip(t[0].transpose(1, 2, 0), -3, 3)) for t in tensors]
    images = (photographs[number % len(photographs)] for number in range(count))
    started = time.perf_counter()
    explained = sum(1 for _ in explainer.stream(images))
    rate = explained / (time.perf_counter() - started)
    return {"layer": layer, "plain": of_plain, "explain": rate}


def tests(device: str) -> str:
    """Run the tests of a device; return pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/runtimes", "tests/plans", "-k", device]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]


def forward(network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(image)


def grad_cam(
    network: torch.nn.Module, layer: torch.nn.Module, image: torch.Tensor, plus: bool = False
) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al., 2017), or Grad-CAM++ (Chattopadhay et al., 2018)."""
    with kept(layer) as outputs:
        scores = network(image)
    (feature,) = outputs
    gradient = torch.autograd.grad(scores.max(), feature)[0]
    if plus:
        squares = gradient**2
        sums = (feature * gradient**3).sum(dim=(2, 3), keepdim=True)
        below = 2 * squares + sums
        alpha = squares / torch.where(below != 0, below, torch.ones_like(below))
        weights = (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    else:
        weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * feature).sum(dim=1).relu().detach().cpu()


def score_cam(
    network: torch.nn.Module, layer: torch.nn.Module, image: torch.Tensor, batch: int = 32
) -> torch.Tensor:
    """Score-CAM (Wang et al., 2020): one inference for each channel."""
    with torch.no_grad():
        with kept(layer) as outputs:
            scores = network(image)
        (feature,) = outputs
        best = int(scores.argmax())
        enlarged = torch.nn.functional.interpolate(feature, image.shape[2:], mode="bilinear")[0]
        low, high = enlarged.amin(dim=(1, 2)), enlarged.amax(dim=(1, 2))
        span = torch.where(high > low, high - low, torch.ones_like(high))
        masks = (enlarged - low[:, None, None]) / span[:, None, None]
        found = [
            torch.softmax(network(image * part[:, None]), dim=1)[:, best]
            for part in masks.split(batch)
        ]
        weights = torch.softmax(torch.cat(found), dim=0)
        return (weights[:, None, None] * feature[0]).sum(dim=0).relu().cpu()


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "grad-cam": grad_cam,
    "grad-cam++": partial(grad_cam, plus=True),
    "score-cam": score_cam,
}


@contextmanager
def kept(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Keep what a layer gives."""
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda *values: outputs.append(values[-1]))
    try:
        yield outputs
    finally:
        hook.remove()


def in_turns(
    plain: Callable[[], Any], method: Callable[[], Any], runs: int, place: str
) -> tuple[float, float]:
    """Return the medians of both, in milliseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 2):
        for call, taken in zip((plain, method), times, strict=True):
            if place == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if place == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # the first ones warm up
                taken.append(1000 * (time.perf_counter() - started))
    return median(times[0]), median(times[1])


def smooth_image(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(7, 7, 3)).astype(np.float32)
    image = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


@contextmanager
def highest_memory() -> Iterator[list[float | None]]:
    """Give the most memory in MB that was in use on the GPU, last; None without a GPU."""
    found: list[float | None] = [None]
    if asked_of_gpu("memory.used") is None:
        yield found
        return
    over, seen = Event(), []

    def watch() -> None:
        while not over.wait(0.1):
            seen.append(float((asked_of_gpu("memory.used") or "0").split()[0]))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found.append(max(seen, default=None))


def asked_of_gpu(what: str) -> str | None:
    """Return what nvidia-smi says of the first GPU; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0]


def table(found: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        ("method", "layer", "through", "plan", "plain ms", "ms", "ratio", "GPU MB", "images/s")
    ]
    rates = {each["layer"]: each for each in found["images_a_second"]}
    for row in found["through_onnx_runtime"]:
        rate = rates[row["layer"]]
        rows.append(
            (
                "recipro", LAYERS[row["layer"]], f"ONNX Runtime, {row['device']}", row["plan"],
                f"{row['plain_ms']:.2f}", f"{row['explain_ms']:.2f}", f"{row['ratio']:.2f}",
                shown(row["gpu_mb"]), f"{rate['explain']:.0f} (plain {rate['plain']:.0f})",
            )
        )  # fmt: skip
    for row in found["in_pytorch"]:
        rows.append(
            (
                row["method"], row["layer"], "PyTorch", "", f"{row['plain_ms']:.2f}",
                f"{row['ms']:.2f}", f"{row['ratio']:.2f}", shown(row["gpu_mb"]), "",
            )
        )  # fmt: skip
    return str(markdown(rows))


def shown(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


if __name__ == "__main__":
    main()
