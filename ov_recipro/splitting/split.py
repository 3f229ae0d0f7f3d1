"""Splitting a classifier into head and tail, and proving that they equal the model."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ov_recipro.cut.automatic import automatic
from ov_recipro.cut.box_values import proven_layout
from ov_recipro.cut.bundle import (
    SCHEMA_VERSION,
    SUFFIX,
    Bundle,
    Companion,
    ImageInput,
    Manifest,
    SourceFile,
    new_folder,
    write_manifest,
)
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.points import FoundCut, cut_points, find_cut
from ov_recipro.cut.tokens import find_tokens
from ov_recipro.errors import ModelError, ReciproError
from ov_recipro.images.preprocess import Preprocessing, changed
from ov_recipro.options import AFFORDABLE, Cut, cut_from
from ov_recipro.output import file_sha256
from ov_recipro.sources import metadata
from ov_recipro.sources.companions import open_companion, stamp
from ov_recipro.sources.family_preprocessing import family_preprocessing
from ov_recipro.sources.labels import checked_labels
from ov_recipro.sources.references import located, origin_of
from ov_recipro.sources.source import Source
from ov_recipro.splitting.costs import costs
from ov_recipro.splitting.places import prove_places
from ov_recipro.splitting.proof import prove

_LIBRARIES = ("ov-recipro", "openvino", "onnx", "onnx-ir", "numpy")


def split(
    model: str | Path,
    output_folder: str | Path | None = None,
    *,
    layer: str | Cut = "auto",
    preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None = None,
    labels: Sequence[str] | None = None,
    force: bool = False,
    **options: Any,
) -> Bundle:
    """Cut a classifier into head and tail and write the two as a bundle.

    The bundle is written beside its final place and renamed, after head and tail were run against
    the whole model: a bundle that exists is complete and proven.

    Args:
        model: an .onnx or .xml file, or a reference to one (see `sources.references.located`).
        output_folder: the bundle to write; by default "<model's stem>.recipro" in the working
            directory.
        layer: where to cut, or a whole `Cut`.
        preprocessing: how images become inputs, or a function that changes what the model says
            about it (see `ov_recipro.sources.metadata.find_preprocessing`).
        labels: class names in order; by default what the model says.
        force: replace an existing bundle.
        options: single fields of `Cut`, such as ``exact=True``.

    Returns:
        The bundle.

    Raises:
        ModelError: the file is not a classifier that can be cut, or head and tail differ from the
            model by more than rounding.
        OptionError: an option does not fit the model, or the folder exists.
    """
    path = located(model)
    folder = Path(f"{path.stem}{SUFFIX}") if output_folder is None else Path(output_folder)
    asked = cut_from(layer, options)
    check_is_file(path)
    before = _stamp(path)
    source = open_source(path, asked)
    beside = [_stamp(each) for each in source.companions]
    cut = _find_cut(source, asked)
    with new_folder(folder, force) as work, _reported_as_model_error(path):
        files = source.write_split(cut.point, work)
        proof = prove(source, files, work)
        if cut.point.layout == "NTC":
            prove_places(source, work / files.head.file, cut.point)
        for piece in files.reference:
            for file in work.glob(f"{Path(piece.file).stem}.*"):
                file.unlink()
        graph = source.graph
        image = ImageInput(
            name=graph.image,
            shape=source.image_shape,
            dtype=source.image_dtype,
            channels_last=graph.image in graph.channels_last,
        )
        found = metadata.find_preprocessing(source.metadata, path, image.size)
        scores: tuple[int, ...] = (1, proof.values.size)
        axis, boxes = 1, graph.boxes
        if graph.task in ("segmentation", "sequence"):
            scores, axis = graph.shapes[graph.scores], graph.class_axis
        classes = scores[axis]
        if boxes is not None:
            boxes = proven_layout(boxes, proof.values)
            if "assumed" in found.source:
                found = family_preprocessing(boxes, image.size) or found
            classes = boxes.classes
        names = _labels(source, labels, classes)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            source=_describe(source),
            layer=asked.layer,
            named=cut.named,
            cut=cut.point,
            image=image,
            head=files.head,
            tail=files.tail,
            boundary_shapes=tuple(graph.shapes[name] for name in files.tail.inputs),
            output=graph.output,
            deployed_scores=files.low_precision,
            activation=graph.activation,
            classes=classes,
            any_batch=proof.any_batch,
            parity=proof.parity,
            deviation=proof.deviation,
            cost=costs(source, [cut.point], proof.any_batch)[0],
            preprocessing=changed(found, preprocessing),
            labels=names,
            versions={name: version(name) for name in _LIBRARIES},
            task=graph.task,
            why=graph.why,
            scores_shape=scores,
            class_axis=axis,
            boxes=boxes,
            origin=origin_of(path),
        )
        if before != _stamp(path) or beside != [_stamp(each) for each in source.companions]:
            raise ModelError(f"{path} or its weights changed while the model was split.")
        write_manifest(work, manifest)
    return Bundle(folder, manifest)


def _labels(source: Source, labels: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Return the classes' names: those given, else what the model says."""
    if source.graph.task == "embedding":
        return None
    if labels is not None:
        return checked_labels(tuple(labels), classes)
    if source.graph.task == "sequence":
        return metadata.find_characters(source.metadata, classes)
    found = metadata.find_labels(source.metadata, source.path)
    return checked_labels(found, classes)


def _find_cut(source: Source, asked: Cut) -> FoundCut:
    """Return where a model is cut.

    By default a transformer is cut at the tokens of its first block, which stand for places as no
    later ones do; but where every cell there would take a run of the whole tail, at its last
    block. A detector is explained by the cells of its second coarsest map, or of the coarsest where
    these would cost too much.
    """
    graph = source.graph
    if asked.layer == "auto" and graph.task in ("segmentation", "sequence"):
        point = automatic(graph, cut_points(graph))
        if point is not None:
            return FoundCut(asked.layer, point.tensor, point)
    found = find_cut(graph, asked.layer, asked.exact)
    if asked.layer == "auto" and graph.task == "detector":
        point = _affordable(source, found.point)
        return FoundCut(asked.layer, point.tensor, point)
    tokens = find_tokens(graph)
    if asked.layer != "auto" or tokens is None:
        return found
    (cost,) = costs(source, [found.point])
    if cost is None or cost.plan == "tokens":
        return found
    return dataclasses.replace(find_cut(source.graph, tokens.blocks[-1]), asked=asked.layer)


def _affordable(source: Source, point: CutPoint) -> CutPoint:
    """Return a detector's joint cut if it is affordable, else the next one that is.

    That is the one at the same maps with the fewest cells, then those at the maps that the heads
    read. Where none is, it is the cheapest.
    """
    if not point.joined:
        return point
    (own,) = costs(source, [point])
    if own is not None and own.inferences <= AFFORDABLE:
        return point
    points = [each for each in cut_points(source.graph) if each.joined]
    same = [each for each in points if set(each.masked) == set(point.masked)]
    coarse = min(same, key=lambda each: each.cells.count)
    order = [point, coarse, *(each for each in points if each not in same)]
    found = [
        (each, cost.inferences)
        for each, cost in zip(order, costs(source, order), strict=True)
        if cost is not None
    ]
    affordable = (each for each, cost in found if cost <= AFFORDABLE)
    cheapest = min(found, key=lambda pair: pair[1], default=(point, 0.0))[0]
    return next(affordable, cheapest)


def open_source(path: Path, cut: Cut = Cut()) -> Source:
    """Read a model file in whichever format it is.

    Raises:
        ModelError: no format fits, or the file is not a classifier of one image.
        OptionError: an option does not fit the model.
    """
    check_is_file(path)
    if path.suffix.lower() == ".onnx":
        from ov_recipro.sources.onnx_source import open_onnx

        with _reported_as_model_error(path):
            return open_onnx(path, cut)
    if path.suffix.lower() == ".xml":
        from ov_recipro.sources.openvino_source import open_openvino

        with _reported_as_model_error(path):
            return open_openvino(path, cut)
    raise ModelError(f"{path}: a model's file name must end in .onnx or .xml.")


@contextmanager
def _reported_as_model_error(path: Path) -> Iterator[None]:
    """Turn what a library raises for a model that makes no sense into a ModelError."""
    try:
        yield
    except (ReciproError, OSError):
        raise
    except Exception as error:  # onnx, onnx-ir and OpenVINO raise many kinds
        text = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} can't be used: {type(error).__name__}: {text}") from error


def _describe(source: Source) -> SourceFile:
    names = (os.path.relpath(path, source.path.parent) for path in source.companions)
    companions = tuple(_describe_companion(source.path, name) for name in names)
    return SourceFile(source.path.name, model_sha256(source.path), companions)


def _describe_companion(model: Path, name: str) -> Companion:
    with open_companion(model, name) as file:
        stat = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Companion(name, stat.st_size, stat.st_mtime_ns, digest)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        with path.open("rb") as file:
            return stamp(file)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error


def check_is_file(path: Path) -> None:
    """Raise ModelError where there is no such file."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ModelError(f"{path} {what}.")


def model_sha256(path: Path) -> str:
    """Return a model file's SHA-256 in hexadecimal.

    Raises:
        ModelError: it can't be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error
