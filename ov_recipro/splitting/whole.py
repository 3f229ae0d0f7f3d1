"""Models that can't be split, described for explainers that run them whole."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov

from ov_recipro.cut.box_layout import BoxLayout
from ov_recipro.cut.bundle import (
    SCHEMA_VERSION,
    Bundle,
    ImageInput,
    Manifest,
    ModelFile,
    SourceFile,
)
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.detectors import find_layout
from ov_recipro.cut.recognition import OWN_OUTPUTS
from ov_recipro.errors import ModelError
from ov_recipro.options import Cut
from ov_recipro.sources import inputs, metadata
from ov_recipro.sources.family_preprocessing import family_preprocessing
from ov_recipro.sources.labels import checked_labels
from ov_recipro.sources.onnx_file import load
from ov_recipro.sources.openvino_models import name_of, read, reason, sizes_of
from ov_recipro.sources.openvino_source import metadata_of
from ov_recipro.sources.references import origin_of
from ov_recipro.splitting.split import check_is_file, model_sha256


def whole_bundle(path: Path, cut: Cut) -> Bundle:
    """Describe a detector that can't be split, such as one in two stages, as a bundle of one piece.

    Nothing is written: the bundle is the file itself, and its cut is its image.

    Args:
        path: an .onnx or .xml file.
        cut: its input shape; where it is cut is ignored.

    Raises:
        ModelError: the file can't be read, or its outputs are not those of a detector.
    """
    check_is_file(path)
    onnx = load(path).model if path.suffix.lower() == ".onnx" else None  # checks the file, too
    model = read(path)
    entries = metadata_of(model) if onnx is None else dict(onnx.metadata_props)
    image = _image(model, path, cut, entries)
    labels = metadata.find_labels(entries, path)
    layout = _layout(model, image, labels, path)
    found = metadata.find_preprocessing(entries, path, image.size)
    if "assumed" in found.source:
        found = family_preprocessing(layout, image.size) or found
    height, width = image.size
    file = ModelFile(path.name, (image.name,), layout.outputs)
    classes = layout.classes or len(labels or ())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source=SourceFile(path.name, model_sha256(path), ()),
        layer=cut.layer,
        named=image.name,
        cut=CutPoint(image.name, "", "Parameter", (3, height, width), 1, ()),
        image=image,
        head=file,
        tail=file,
        boundary_shapes=(image.shape,),
        output=", ".join(layout.outputs),
        deployed_scores=True,
        activation="none",
        classes=classes,
        any_batch=False,
        parity=0.0,
        deviation=None,
        cost=None,
        preprocessing=found,
        labels=checked_labels(labels, classes),
        versions={name: version(name) for name in ("ov-recipro", "openvino")},
        task="detector",
        why=f"outputs {', '.join(layout.outputs)}",
        scores_shape=(1, layout.values),
        class_axis=1,
        boxes=layout,
        origin=origin_of(path),
    )
    return Bundle(path.parent, manifest, whole=True)


def _image(model: ov.Model, path: Path, cut: Cut, entries: Mapping[str, str]) -> ImageInput:
    """Fix the shape of the model's image; return its description."""
    found = [inputs.Input(name_of(port), sizes_of(port)) for port in model.inputs]
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ModelError(f"{path} has several inputs ({names}); only an image can be explained.")
    shape = inputs.image_shape(found[0], cut.input_shape, path, entries)
    try:
        model.reshape(ov.PartialShape(list(shape)))
    except RuntimeError as error:
        raise ModelError(
            f"{path} does not accept the input shape {list(shape)}: {reason(error)}"
        ) from error
    dtype = np.dtype(model.inputs[0].get_element_type().to_dtype()).name
    return ImageInput(found[0].name, tuple(shape), dtype, shape[1] != 3)


def _layout(
    model: ov.Model, image: ImageInput, labels: tuple[str, ...] | None, path: Path
) -> BoxLayout:
    shapes = {}
    for port in model.outputs:
        sizes = sizes_of(port)
        if sizes is not None and name_of(port) not in OWN_OUTPUTS:
            shapes[name_of(port)] = tuple(size or 0 for size in sizes)
    layout = find_layout(shapes, image.size, classes=len(labels) if labels else None)
    if layout is None:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ModelError(f"{path} has no outputs that hold boxes: {listed}.")
    return layout
