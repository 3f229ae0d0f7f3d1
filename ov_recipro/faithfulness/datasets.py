"""Datasets: images with the class that each shows, and boxes around it if there are any."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import msgspec

from ov_recipro.errors import OptionError, TargetError
from ov_recipro.images.reading import find_images
from ov_recipro.metrics import Box
from ov_recipro.sources.default_model import bundled_model
from ov_recipro.sources.labels import class_index, read_synsets

Item = TypeVar("Item")
_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Sample:
    """An image of a dataset.

    Attributes:
        name: the image's path below the dataset's folder, with slashes.
        path: the file; in the dataset's filesystem, which need not be this machine's.
        label: the class that it shows; None where the dataset does not say.
    """

    name: str
    path: str
    label: int | None


@dataclass(frozen=True)
class Classes:
    """How a dataset may name a model's classes: by number, by label, or by WordNet id.

    Attributes:
        count: number of classes.
        labels: their names, where known; synsets: their WordNet ids, where known.
    """

    count: int
    labels: tuple[str, ...] | None
    synsets: tuple[str, ...] | None

    def find(self, name: str) -> int:
        """Return the class of this name.

        Raises:
            TargetError: there is none.
        """
        name = name.strip()
        if self.synsets is not None and name in self.synsets:
            return self.synsets.index(name)
        return class_index(name, self.labels, self.count)


def classes_of(count: int, labels: tuple[str, ...] | None, file: Path | None) -> Classes:
    """Return the names of a model's classes.

    Args:
        count: number of classes.
        labels: their names.
        file: a label file, whose lines may begin with WordNet ids; without it a model of 1000
            classes is taken to have ImageNet's, in the usual order.
    """
    synsets = read_synsets(file) if file is not None else None
    if synsets is None and count == 1000:
        synsets = read_synsets(bundled_model().with_name("labels.txt"))
    return Classes(count, labels, synsets if synsets and len(synsets) == count else None)


def read_dataset(path: Path, classes: Classes) -> list[Sample]:
    """Find a dataset's images, in the order of their names.

    Forms: a folder with a folder of images for each class, named by label, number or WordNet id; a
    CSV or TSV table with the columns "path" and "label" (or of just these two, without a header),
    paths relative to the table; a flat folder of images, which have no label.

    Raises:
        OptionError: there is no such dataset, it has no images, or names an unknown class.
    """
    if path.suffix.lower() in _TABLES and path.is_file():
        samples = _from_table(path, classes)
    elif path.is_dir():
        names = [image.relative_to(path).as_posix() for image in find_images([str(path)])]
        samples = in_folders(str(path), names, classes)
    else:
        raise OptionError(f"{path} is neither a folder of images nor a .csv or .tsv table.")
    return sorted(samples, key=lambda sample: sample.name)


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return at most `limit` of the items, evenly spread."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


def in_folders(root: str, names: Sequence[str], classes: Classes) -> list[Sample]:
    """Return the images of a folder that has a folder for each class, or images alone.

    Args:
        root: the folder.
        names: the images' paths below it, with slashes.
        classes: how folders may be named.

    Raises:
        OptionError: a folder names no class, or there are images both in folders and outside.
    """
    flat = [name for name in names if "/" not in name]
    if len(flat) == len(names):
        return [Sample(name, f"{root}/{name}", None) for name in names]
    if flat:
        raise OptionError(
            f"{root} has images both inside and outside class folders, such as {flat[0]}."
        )
    labels: dict[str, int] = {}
    samples = []
    for name in names:
        folder = name.split("/", 1)[0]
        if folder not in labels:
            try:
                labels[folder] = classes.find(folder)
            except TargetError as error:
                raise OptionError(f"{root}/{folder} is not a class: {error}") from error
        samples.append(Sample(name, f"{root}/{name}", labels[folder]))
    return samples


def _from_table(path: Path, classes: Classes) -> list[Sample]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise OptionError(f"{path} can't be read: {reason}.") from error
    rows = list(csv.reader(text.splitlines(), delimiter=_TABLES[path.suffix.lower()]))
    rows = [row for row in rows if any(map(str.strip, row))]
    places = (0, 1)
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "path" in header and "label" in header:
        places = (header.index("path"), header.index("label"))
        rows = rows[1:]
    if not rows:
        raise OptionError(f"{path} lists no images.")
    samples = {}
    for number, row in enumerate(rows, start=1):
        if len(row) <= max(places):
            raise OptionError(f"{path}: row {number} lacks a path or a label.")
        name, label = (row[place].strip() for place in places)
        try:
            index = classes.find(label)
        except TargetError as error:
            raise OptionError(f"{path}: row {number}: {error}") from error
        samples[name] = Sample(name, str(path.parent / name), index)
    return list(samples.values())


Boxes = Mapping[str, Mapping[int, Sequence[Box]]]
"""For an image's file name, without its suffix, the boxes of each class in pixels of the image."""


def read_boxes(path: Path, classes: Classes) -> Boxes:
    """Read boxes around objects.

    Forms: a folder of Pascal VOC XML files, one per image, or a COCO JSON file. Objects whose class
    the model does not have are left out.

    Raises:
        OptionError: the files can't be read as such, or hold no box of the model's classes.
    """
    found: dict[str, dict[int, list[Box]]] = {}
    try:
        for stem, name, box in _voc(path) if path.is_dir() else _coco(path):
            try:
                index = classes.find(name)
            except TargetError:  # one of the many objects that the model does not know
                continue
            found.setdefault(stem, {}).setdefault(index, []).append(box)
    except OSError as error:
        raise OptionError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ElementTree.ParseError, msgspec.MsgspecError, ValueError) as error:
        raise OptionError(f"{path} is malformed: {error}.") from error
    if not found:
        raise OptionError(f"{path} has no box of any of the model's classes.")
    return found


def _voc(folder: Path) -> list[tuple[str, str, Box]]:
    boxes = []
    for file in sorted(folder.rglob("*.xml")):
        root = ElementTree.fromstring(file.read_bytes())  # noqa: S314 - expat limits expansion
        named = root.findtext("filename")
        stem = Path(named).stem if named else file.stem
        for thing in root.iter("object"):
            ends = [thing.findtext(f"bndbox/{e}") for e in ("xmin", "ymin", "xmax", "ymax")]
            if None in ends or (name := thing.findtext("name")) is None:
                raise ValueError(f"{file.name} has an object without a name or bndbox")
            left, top, right, bottom = (float(end) for end in ends if end is not None)
            # VOC counts pixels from 1 and includes both ends
            boxes.append((stem, name, (left - 1, top - 1, right, bottom)))
    return boxes


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]


class _Coco(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


def _coco(file: Path) -> list[tuple[str, str, Box]]:
    data = msgspec.json.decode(file.read_bytes(), type=_Coco)
    stems = {image.id: Path(image.file_name).stem for image in data.images}
    names = {category.id: category.name for category in data.categories}
    boxes = []
    for each in data.annotations:
        if each.image_id not in stems or each.category_id not in names:
            raise ValueError("an annotation has no known image or category")
        left, top, width, height = each.bbox
        box = (left, top, left + width, top + height)
        boxes.append((stems[each.image_id], names[each.category_id], box))
    return boxes
