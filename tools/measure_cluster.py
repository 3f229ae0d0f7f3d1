"""Ray beside one process: images a second once warm, memory, the object store, and the files.

The photographs are linked under other names until there are enough. Both ways read, decode and
explain the same files on the same cores; overlays are left out of both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import pyarrow.dataset
import ray

from ov_recipro import Explainer
from ov_recipro.cluster.explaining import JobOptions, Run
from ov_recipro.cluster.pool import open_pool
from ov_recipro.images.drawing import Style
from ov_recipro.images.reading import find_images
from ov_recipro.options import Targets

_ACTOR = "ray::MapWorker(MapBatches(_Worker"
_WARM = 0.1  # of the images come before the clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", help="folder of photographs")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone is not None:
        print(alone(arguments.model, arguments.layer, arguments.alone, arguments.count))
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        for number, path in enumerate(
            islice(cycle(find_images([arguments.images])), arguments.count)
        ):
            os.link(path, folder / f"{number:06}{path.suffix}")
        own = [sys.executable, __file__, *sys.argv[1:], "--alone", name]
        single = float(subprocess.check_output(own, text=True))  # noqa: S603
        print(f"one process: {single:.1f} images/s")
        shared = on_ray(arguments.model, arguments.layer, folder, arguments.actors)
        print(
            f"Ray, {arguments.actors} actors: {shared:.1f} images/s, {shared / single:.2f} of that"
        )


def alone(model: Path, layer: str, folder: Path, count: int) -> float:
    """Return images a second of one process, in a process that has not loaded Ray."""
    explainer = Explainer(model, layer=layer, hint="throughput")
    count = min(count, 2000)
    images = explainer.stream(find_images([str(folder)])[:count])
    first = int(_WARM * count)
    for _ in islice(images, first):
        pass
    started = time.perf_counter()
    rest = sum(1 for _ in images)
    return rest / (time.perf_counter() - started)


def on_ray(model: Path, layer: str, folder: Path, actors: int) -> float:
    """Return images a second of actors; print what they take."""
    explainer = Explainer(model, layer=layer, hint="throughput")
    job = JobOptions(Targets(), "float32", False, None, Style())
    with (
        tempfile.TemporaryDirectory() as output,
        open_pool("local", actors, 1, 0) as pool,
    ):
        run = Run(explainer, [str(folder)], Path(output), job)
        done = 0
        started = since = None
        step = run.total // 10
        for progress in run.run(pool):
            before, done = done, done + progress.done
            if started is None and done >= _WARM * run.total:
                started, since = time.perf_counter(), done
            if before // step != done // step:
                print(
                    f"{done} images: driver {_resident('self'):.0f} MB, actors "
                    f"{_actors_resident()}, object store {_in_store():.0f} MB, on disk "
                    f"{_spilled():.0f} MB",
                    flush=True,
                )
        rate = (done - since) / (time.perf_counter() - started)
        rows = pyarrow.dataset.dataset(run.results.parts).to_table(columns=["path", "error"])
        files = list(run.results.parts.iterdir())
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        print(
            f"{len(rows)} rows, {len(set(rows['path'].to_pylist()))} images, "
            f"{len(rows) - rows['error'].null_count} errors, {len(files)} files, {megabytes:.1f} MB"
        )
        return rate


def _in_store() -> float:
    """Return how much of the object store is taken, in MB."""
    kind = "object_store_memory"
    return (ray.cluster_resources()[kind] - ray.available_resources().get(kind, 0)) / 1e6


def _spilled() -> float:
    """Return how much of the object store was put onto disk, in MB."""
    session = Path("/tmp/ray/session_latest")  # noqa: S108 (Ray's own place)
    spilled = session.glob("ray_spilled_objects_*/*")
    return sum(file.stat().st_size for file in spilled) / 1e6


def _actors_resident() -> str:
    found = [
        f"{_resident(process.name):.0f}"
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and _command(process).startswith(_ACTOR)
    ]
    return " and ".join(found) + " MB"


def _command(process: Path) -> str:
    try:
        return process.joinpath("cmdline").read_text()
    except OSError:
        return ""


def _resident(process: str) -> float:
    """Return a process's resident memory, less what it shares (the object store)."""
    pages = Path(f"/proc/{process}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
