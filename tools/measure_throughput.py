"""Images a second of plain inference and of explaining, and memory over many images.

Both read, decode and prepare the same photographs, with the same number of threads and the
throughput hint; the share is what explaining reaches of plain throughput / cost ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import numpy as np
import openvino as ov

from ov_recipro import Explainer
from ov_recipro.images.preprocess import prepare
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.ordered import in_order
from ov_recipro.runtimes.model_graphs import plain_model
from ov_recipro.sources.openvino_models import compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", help="folder of photographs")
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--rounds", type=int, default=5, help="each of plain, then explain")
    arguments = parser.parse_args()
    paths = find_images([arguments.images])
    explainer = Explainer(arguments.model, layer=arguments.layer, hint="throughput")
    plain = plain_runner(explainer)

    rates: dict[str, list[float]] = {"plain": [], "explain": []}
    for _ in range(arguments.rounds):
        for name, run in (("plain", plain), ("explain", explainer.stream)):
            started = time.perf_counter()
            count = sum(1 for _ in run(paths))
            rates[name].append(count / (time.perf_counter() - started))
        print(f"{resident_mb():.0f} MB resident after {len(rates['plain']) * len(paths)} images")
    ratio = cost_ratio(explainer, paths)
    fastest = {name: median(values) for name, values in rates.items()}
    share = fastest["explain"] / (fastest["plain"] / ratio)
    print(
        f"plain {fastest['plain']:.0f} images/s, explain {fastest['explain']:.0f} images/s, "
        f"cost ratio {ratio:.2f}, share {share:.2f}"
    )


def plain_runner(explainer: Explainer) -> Callable[[Iterable[Path]], Iterable[np.ndarray]]:
    """Return what gives the logits of photographs, as `Explainer.stream` gives explanations."""
    bundle = explainer.bundle
    ready = compiled(plain_model(bundle), "CPU", hint="throughput")
    free: SimpleQueue[ov.InferRequest] = SimpleQueue()
    for _ in range(explainer.workers - 1):
        free.put(ready.create_infer_request())
    entry = bundle.manifest.image

    def one(path: Path) -> np.ndarray:
        image, _ = prepare(
            read_image(path), explainer.preprocessing, entry.channels_last, entry.dtype
        )
        request = free.get()
        try:
            return np.array(request.infer([image], share_inputs=True)[0])
        finally:
            free.put(request)

    return lambda paths: in_order(one, paths, explainer.workers)


def cost_ratio(explainer: Explainer, paths: list[Path]) -> float:
    """Return the time of one explanation over that of one inference, one at a time, in turns."""
    entry = explainer.bundle.manifest.image
    images = [
        prepare(read_image(path), explainer.preprocessing, entry.channels_last, entry.dtype)[0]
        for path in islice(paths, 50)
    ]
    ready = compiled(plain_model(explainer.bundle), "CPU", hint="throughput")
    request = ready.create_infer_request()
    times: tuple[list[float], list[float]] = ([], [])
    for image in images:
        calls = (lambda x: request.infer([x], share_inputs=True), explainer.explain_tensor)
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call(image)
            taken.append(time.perf_counter() - started)
    return median(times[1]) / median(times[0])


def resident_mb() -> float:
    line = next(
        s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
