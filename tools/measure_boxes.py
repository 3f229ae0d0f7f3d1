"""Measure maps of a detector's boxes on photographs, beside controls that know no model.

    python tools/measure_boxes.py fastestdet.onnx IMAGES -o boxes.json --labels coco.names

Each box is explained by Recipro-CAM at the default grid of cells and at the coarsest, by keeping
cells instead of dropping them, at the last level alone, by the black boxes and by the controls.
Boxes are those that the detector predicts. Each photograph's measurements are written at once to a
file beside the output, whose first line holds the settings; the same command resumes. At the end
the tables are printed as Markdown, with intervals from five photographs on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from ov_recipro import Explainer, Subject
from ov_recipro.black_boxes import MaskedImage, d_rise
from ov_recipro.cli.tables import markdown
from ov_recipro.errors import OF_ONE_IMAGE
from ov_recipro.faithfulness.box_measure import BoxCurves, BoxLimits, BoxMeasurement, chosen_boxes
from ov_recipro.faithfulness.box_tally import BoxDifference, above, summary
from ov_recipro.faithfulness.kept import settings_line
from ov_recipro.faithfulness.verification import deviations_above, judge_box, reference_maps
from ov_recipro.images.reading import find_images, read_image
from ov_recipro.methods import BOX_METHODS
from ov_recipro.methods.box_methods import CONTROLS, GAUSSIAN
from ov_recipro.metrics import FEWEST_IMAGES, VERDICTS, Mean, inside
from ov_recipro.sources.labels import read_labels
from ov_recipro.targets.boxes import BoxTarget

MASKS = 1000  # of D-RISE
Maps = Callable[[np.ndarray, Sequence[BoxTarget]], list[np.ndarray]]


@dataclass(frozen=True)
class Measured:
    """One box.

    Attributes:
        label: of its class; share: of the input, how much it covers.
        rows: what was measured, by the name of the map.
        random: inner deletion and insertion of several random maps.
    """

    label: str | None
    score: float
    share: float
    rows: dict[str, BoxMeasurement]
    random: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Photograph:
    """One photograph and its boxes."""

    image: str
    boxes: tuple[Measured, ...]


def definitions(subject: Subject, model: Path) -> dict[str, Maps]:
    """Return what is measured: its name, and what makes the maps of an image's boxes."""
    explainer = subject.explainer
    cut, layout = explainer.bundle.manifest.cut, explainer.bundle.manifest.boxes
    if layout is None:
        raise SystemExit(f"{model} is not a detector.")
    shapes = {cut.tensor: cut.shape, **{each.tensor: each.shape for each in cut.joined}}
    coarse = sorted(shapes, key=lambda name: shapes[name][1] * shapes[name][2])

    def at(**options: object) -> Maps:
        made = Explainer(model, **(explainer.options() | options))
        return lambda image, targets: list(made.explain_scored(subject.tensor(image), targets).maps)

    def of_method(name: str) -> Maps:
        return partial(BOX_METHODS[name], subject)

    def random_masks(image: np.ndarray, targets: Sequence[BoxTarget]) -> list[np.ndarray]:
        def run(images: np.ndarray) -> np.ndarray:
            outputs = subject.logits_of_all(subject.image(each[None]) for each in images)
            return np.stack([subject.scores_of(outputs, target) for target in targets], axis=1)

        masked = MaskedImage(subject.tensor(image), subject.fill)
        found = d_rise(run, masked, masks=MASKS)
        return [np.maximum(each.raw, 0) for each in found]

    stream = replace(explainer.running, plan="stream")
    finest = "x".join(map(str, cut.grid))
    coarsest = "x".join(map(str, shapes[coarse[0]][1:]))
    return {
        f"recipro, {finest}": of_method("recipro"),
        f"recipro, {coarsest}": at(layer=",".join(coarse), device=stream),
        f"keep, {finest}": at(layer=cut.name, device=stream, mask="cell"),
        f"last level alone, {coarsest}": at(layer=coarse[0], device=stream, exact=True),
        "occlusion": of_method("occlusion"),
        f"d-rise, {MASKS} masks": random_masks,
        "aise": of_method("aise"),
        **({"votes": of_method("votes")} if layout.grids else {}),
        **{name: of_method(name) for name in CONTROLS},
    }


def measure(
    subject: Subject, maps: Mapping[str, Maps], path: Path, limits: BoxLimits
) -> tuple[Measured, ...]:
    """Measure the boxes of a photograph."""
    image, window = subject.prepare(read_image(path))
    targets = chosen_boxes(subject, image, window, limits)
    if not targets:
        return ()
    curves = [BoxCurves(subject, image, target) for target in targets]
    rows: list[dict[str, BoxMeasurement]] = [{} for _ in targets]
    for name, made in maps.items():
        for row, curve, saliency in zip(rows, curves, made(image, targets), strict=True):
            row[name] = curve.measure(saliency)
    return tuple(
        Measured(
            target.label,
            curve.score,
            float(inside(image.shape[1:], target.edges).mean()),
            row,
            tuple(curve.inner(each) for each in reference_maps(image, target)),
        )
        for target, curve, row in zip(targets, curves, rows, strict=True)
    )


def of_row(photographs: Sequence[Photograph], name: str) -> dict[str, list[BoxMeasurement]]:
    return {each.image: [box.rows[name] for box in each.boxes] for each in photographs}


def shown(mean: Mean, images: int, sign: str = "") -> str:
    value, low, high = (f"{100 * each:{sign}.1f}" for each in (mean.value, mean.low, mean.high))
    return f"{value} ({low} to {high})" if images >= FEWEST_IMAGES else value


def table(photographs: Sequence[Photograph], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the figures of each map, with their distances from the controls'."""
    whole, inner = "insertion - deletion", "the same inside the box"
    rows = [
        ("map", "energy", "pointing", "deletion", "insertion", whole,
         *(f"difference from {name}" for name in CONTROLS), inner,
         *(f"difference from {name}" for name in CONTROLS), "flat")
    ]  # fmt: skip
    controls = [of_row(photographs, name) for name in CONTROLS]
    for name in names:
        measured = of_row(photographs, name)
        found = summary(measured)
        if found is None:
            raise SystemExit("No photograph has a box.")
        differences = [above(measured, control) for control in controls]
        means, images = found.means, found.images
        rows.append(
            (
                name,
                *(shown(getattr(means, each), images) for each in ("energy", "pointing")),
                *(f"{100 * getattr(means, each).value:.1f}" for each in ("deletion", "insertion")),
                shown(means.margin, images),
                *(shown_difference(each, "margin") for each in differences),
                shown(means.inner_margin, images),
                *(shown_difference(each, "inner_margin") for each in differences),
                str(found.flat),
            )
        )
    return rows


def shown_difference(difference: BoxDifference | None, name: str) -> str:
    if difference is None:
        return ""
    return shown(getattr(difference.means, name), difference.images, "+")


def verdicts(photographs: Sequence[Photograph], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return how often `explain --verify` would give each verdict on each map."""
    boxes = [box for each in photographs for box in each.boxes]
    rows: list[tuple[str, ...]] = [("map", *VERDICTS)]
    for name in names:
        given = []
        for box in boxes:
            own = box.rows[name]
            pair = (own.inner_deletion, own.inner_insertion)
            given.append(judge_box(own, box.rows[GAUSSIAN], deviations_above(pair, box.random)))
        rows.append((name, *(f"{100 * given.count(v) / len(given):.0f} %" for v in VERDICTS)))
    return rows


def resumed(path: Path, settings: bytes) -> list[Photograph]:
    """Return what an earlier run with these settings measured; begin the file if there is none.

    A last line that a killed run did not complete is cut off.
    """
    data = path.read_bytes() if path.is_file() else b""
    complete = data[: data.rfind(b"\n") + 1]
    if not complete:
        path.write_bytes(settings + b"\n")
        return []
    first, *lines = complete.splitlines()
    if first != settings:
        raise SystemExit(f"{path} was measured with other settings. Delete it, or name another -o.")
    if complete != data:
        path.write_bytes(complete)
    return [msgspec.json.decode(line, type=Photograph) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images")
    parser.add_argument("-o", "--output", type=Path, default=Path("boxes.json"))
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--boxes", type=int, default=100, help="stop at so many (%(default)s)")
    parser.add_argument("--max-boxes", type=int, default=2, help="of a photograph (%(default)s)")
    arguments = parser.parse_args()
    labels = read_labels(arguments.labels) if arguments.labels else None
    explainer = Explainer(arguments.model, plan="stream", labels=labels)
    subject = Subject(explainer)
    maps = definitions(subject, arguments.model)
    limits = BoxLimits(threshold=arguments.threshold, max_boxes=arguments.max_boxes)
    log = arguments.output.with_suffix(".jsonl")
    settings = {**explainer.provenance(), "limits": limits, "maps": list(maps)}
    done = resumed(log, settings_line(settings))
    kept = {each.image for each in done}
    paths = find_images([arguments.images])
    for number in np.random.default_rng(0).permutation(len(paths)).tolist():
        if sum(len(each.boxes) for each in done) >= arguments.boxes:
            break
        name = f"{paths[number].parent.name}/{paths[number].name}"
        if name in kept:
            continue
        try:
            found = Photograph(name, measure(subject, maps, paths[number], limits))
        except OF_ONE_IMAGE as error:
            print(f"{name}: {error}")
            continue
        done.append(found)
        with log.open("ab") as file:
            file.write(msgspec.json.encode(found) + b"\n")
    seen = [each for each in done if each.boxes]
    tables = table(seen, list(maps)), verdicts(seen, list(maps))
    boxes = [box for each in seen for box in each.boxes]
    record = {
        **explainer.provenance(),
        "limits": limits,
        "photographs": len(seen),
        "boxes": len(boxes),
        "share": np.quantile([box.share for box in boxes], [0, 0.5, 1]).tolist(),
        "figures": tables[0],
        "verdicts": tables[1],
    }
    arguments.output.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    print(f"{len(boxes)} boxes on {len(seen)} photographs\n")
    print("\n\n".join(map(markdown, tables)))


if __name__ == "__main__":
    main()
