"""Split every model of a folder everywhere, compare with the slow oracle, and write the table.

For each file: the split at `auto`, at the clean layers (one exporter an architecture) and at five
convolutions that are no clean cuts (--exact). Each split is proven when it is made; besides, a
sample of cells is compared with a mask in the whole model, one cell at a time.

    python tools/export_zoo.py build/zoo              # environment of tools/export-requirements.txt
    python tools/export_keras.py build/zoo            # environment with tensorflow-cpu, tf2onnx
    python tools/check_zoo.py build/zoo docs/compatibility.md
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ov_recipro import Explainer, ReciproError
from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.points import cut_points
from ov_recipro.sources.source import Source
from ov_recipro.splitting.split import open_source, split

SAMPLED_CELLS = 6
ORDER = ("tf2onnx", "torchscript", "dynamo-dynamic", "torchscript-dynamic", "dynamo", "dynamo-23")
FIRST = ORDER[:2]  # the exporters whose clean layers are split


@dataclass
class Row:
    """One file's results: parity as it is; `oracle` and `map` as `compare` gives them."""

    architecture: str
    exporter: str
    auto: str = ""
    plan: str = ""
    grid: str = ""
    clean_all: int = 0
    clean: int = 0
    clean_done: int = 0
    leaky_done: int = 0
    leaky: int = 0
    parity: float = 0.0
    oracle: float = 0.0
    map: float = 0.0
    frozen: int = 0
    refused: str = ""


class WholeModel:
    """The model with a mask multiplied into one tensor, in ONNX Runtime: the slow oracle."""

    def __init__(self, source: Source, point: CutPoint) -> None:
        proto = onnx.load(source.path)
        masked = f"{point.tensor}/masked"
        for node in proto.graph.node:
            node.input[:] = [masked if n == point.tensor else n for n in node.input]
        made = next(i for i, n in enumerate(proto.graph.node) if point.tensor in n.output)
        node = onnx.helper.make_node("Mul", [point.tensor, "mask"], [masked])
        proto.graph.node.insert(made + 1, node)
        count = point.prefix + point.cells.count
        shapes = {
            "NCHW": [1, 1, *point.grid],
            "NHWC": [1, *point.grid, 1],
            "NTC": [1, count, 1],
        }
        self._shape = shapes[point.layout]
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, self._shape)
        )
        if source.graph.scores != source.graph.output:
            kind = onnx.TensorProto.FLOAT
            value = onnx.helper.make_tensor_value_info(source.graph.scores, kind, None)
            proto.graph.output.append(value)
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._prefix, self._image, self._output = (
            point.prefix,
            source.graph.image,
            source.graph.scores,
        )

    def logits(self, image: np.ndarray, cell: int) -> np.ndarray:
        """Return the logits [classes] with one cell, and the prefix tokens, kept."""
        mask = np.zeros(self._shape, np.float32)
        mask.reshape(-1)[: self._prefix] = 1
        mask.reshape(-1)[self._prefix + cell] = 1
        feeds = {self._image: image, "mask": mask}
        return np.array(self._session.run([self._output], feeds)[0]).reshape(-1)


def compare(source: Source, bundle: Bundle) -> tuple[float, float]:
    """Return max |ours - oracle| over sampled cells, of the largest score and of the spread.

    The second is 0 where the scores of the cells differ by less than a thousandth of their size:
    the map of such a layer of a network that never learnt shows float32's rounding.
    """
    explainer = Explainer(bundle, score="none")
    point = bundle.manifest.cut
    image = np.random.default_rng(1).standard_normal(source.image_shape).astype(np.float32)
    raw = explainer.explain_tensor(image, range(bundle.manifest.classes)).raw
    ours = raw.reshape(len(raw), -1).T
    oracle = WholeModel(source, point)
    cells = np.random.default_rng(2).choice(len(ours), min(SAMPLED_CELLS, len(ours)), False)
    theirs = np.stack([oracle.logits(image, int(cell)) for cell in cells])
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("scores that are not finite")
    spread = np.ptp(ours, axis=0).max()
    error, largest = float(np.abs(ours[cells] - theirs).max()), float(np.abs(ours).max())
    return error / largest, error / spread if spread > 1e-3 * largest else 0.0


def check(path: Path, most: int, folder: Path) -> Row:
    architecture, exporter = path.stem.split(".", 1)
    row = Row(architecture, exporter)
    try:
        source = open_source(path)
        points = cut_points(source.graph)
        bundle = split(path, folder / "b.recipro", force=True)
    except ReciproError as error:
        row.refused = str(error).removeprefix(f"{path}: ")
        return row
    point = bundle.manifest.cut
    row.auto, row.grid = point.tensor, f"{point.grid[0]}x{point.grid[1]}"
    row.plan = Explainer(bundle).plan.name
    clean = [p for p in points if p.clean]
    row.clean_all = len(clean)
    leaky = [p for p in points if not p.clean]
    leaky = (
        [leaky[i] for i in sorted({round(j * (len(leaky) - 1) / 4) for j in range(5)})]
        if leaky
        else []
    )
    row.leaky = len(leaky)
    chosen = clean if exporter in FIRST else []
    if most and len(chosen) > most:
        chosen = [chosen[round(i * (len(chosen) - 1) / (most - 1))] for i in range(most)]
    compared = {
        point.tensor,
        *(p.tensor for p in clean[:: max(1, len(clean) // 3)]),
        *(p.tensor for p in leaky),
    }
    for p in {p.tensor: p for p in [*chosen, *leaky, point]}.values():
        try:
            bundle = split(path, folder / "b.recipro", layer=p.tensor, exact=True, force=True)
        except ReciproError as error:
            print(f"  {path.name} {p.tensor}: {error}", file=sys.stderr, flush=True)
            continue
        row.clean_done += p.clean
        row.leaky_done += not p.clean
        row.frozen += not bundle.manifest.any_batch
        row.parity = max(row.parity, bundle.manifest.parity)
        small = p.grid[0] * p.grid[1] <= 800
        if path.suffix == ".onnx" and p.tensor in compared and small:
            score, spread = compare(source, bundle)
            row.oracle = max(row.oracle, float(score))
            row.map = max(row.map, float(spread))
    row.clean = len({p.tensor for p in chosen} | ({point.tensor} if chosen else set()))
    if not chosen:
        row.clean_done = 0
    return row


def complete(path: Path, row: Row, folder: Path) -> None:
    """Split at the clean layers that an earlier run with --most left out."""
    source = open_source(path)
    clean = [point.tensor for point in cut_points(source.graph) if point.clean]
    tried = {clean[round(i * (len(clean) - 1) / (row.clean - 1))] for i in range(row.clean)}
    for tensor in clean:
        if tensor in tried:
            continue
        row.clean += 1
        try:
            bundle = split(path, folder / "b.recipro", layer=tensor, force=True)
        except ReciproError as error:
            print(f"  {path.name} {tensor}: {error}", file=sys.stderr, flush=True)
            continue
        row.clean_done += 1
        row.frozen += not bundle.manifest.any_batch
        row.parity = max(row.parity, bundle.manifest.parity)


def table(rows: list[Row]) -> str:
    lines = [
        "| architecture | exporter | `auto` cuts at | plan | clean layers | leaky convs "
        "(`--exact`) | parity | oracle, scores | oracle, maps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.refused:
            lines.append(
                f"| {row.architecture} | {row.exporter} | refused: {row.refused} | | | | | | |"
            )
            continue
        clean = f"{row.clean_done}/{row.clean} of {row.clean_all}" if row.clean else "not tried"
        frozen = f" ({row.frozen} cell by cell)" if row.frozen else ""
        lines.append(
            f"| {row.architecture} | {row.exporter} | `{row.auto}` {row.grid} | {row.plan} | "
            f"{clean} | {row.leaky_done}/{row.leaky}{frozen} | {row.parity:.1e} | "
            f"{row.oracle:.1e} | {row.map:.1e} |"
        )
    return "\n".join(lines)


def _turn(path: Path) -> tuple[int, str]:
    return ORDER.index(path.stem.split(".", 1)[1]), path.name.lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--most", type=int, default=0, help="clean layers a file, evenly spread; all by default"
    )
    parser.add_argument("--only", nargs="*", help="architectures to check")
    parser.add_argument("--complete", nargs="*", help="exporters whose other clean layers to split")
    parser.add_argument("--records", type=Path, help="JSON lines, to go on from")
    arguments = parser.parse_args()
    records = arguments.records or arguments.zoo / "rows.jsonl"
    done: dict[str, Row] = {}
    if records.is_file():
        for line in records.read_text().splitlines():
            row = Row(**json.loads(line))
            done[f"{row.architecture}.{row.exporter}"] = row
    for path in sorted(arguments.zoo.glob("*.onnx"), key=_turn):
        if path.stem in done or (arguments.only and path.stem.split(".")[0] not in arguments.only):
            continue
        started = time.time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = check(path, arguments.most, Path(folder))
            except Exception as error:  # a defect of ours, and a row that says so
                row = Row(
                    *path.stem.split(".", 1), refused=f"DEFECT {type(error).__name__}: {error}"
                )
        done[path.stem] = row
        with records.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(f"{path.stem}: {time.time() - started:.0f} s {row}", flush=True)
    if arguments.complete:
        for path in sorted(arguments.zoo.glob("*.onnx"), key=_turn):
            row = done.get(path.stem)
            if row is None or row.clean < 2 or row.clean >= row.clean_all:
                continue
            if row.exporter not in arguments.complete:
                continue
            started = time.time()
            with tempfile.TemporaryDirectory() as folder:
                complete(path, row, Path(folder))
            with records.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            print(f"{path.stem}: {time.time() - started:.0f} s {row}", flush=True)
    head = (
        Path(arguments.output).read_text().split("<!-- table -->")[0]
        if arguments.output.is_file()
        else ""
    )
    made = (
        f"Made by `tools/check_zoo.py` on {date.today()}, {platform.machine()} CPU, OpenVINO "
        f"{version('openvino')}, onnx {version('onnx')}, onnx-ir {version('onnx-ir')}."
    )
    rows = [done[key] for key in sorted(done, key=str.lower)]
    arguments.output.write_text(f"{head}<!-- table -->\n{made}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
