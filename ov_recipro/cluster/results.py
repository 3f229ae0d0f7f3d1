"""Results of many images: Parquet files with a row for each, and the settings of all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ov_recipro.errors import OptionError
from ov_recipro.explanation import Explanation
from ov_recipro.faithfulness.verification import Verification
from ov_recipro.output import as_record, open_folder, write_whole
from ov_recipro.saliency import Score

SETTINGS = "_run.json"  # readers that open the folder as one dataset skip such names
_OLD_SETTINGS = "run.json"
PARTS = "results"
SCHEMA_VERSION = 3

MapType = Literal["float32", "float16"]

_ROWS = 4096  # in a file
_SECONDS = 60.0  # after which rows are written, however few


def schema(feature_shape: tuple[int, int, int], kind: MapType) -> pa.Schema:
    """Return the columns of the results.

    Args:
        feature_shape: (C, H, W) of the masked feature map.
        kind: number type of the maps.
    """
    _, height, width = feature_shape
    score = [("index", pa.int32()), ("label", pa.string()), ("score", pa.float32())]
    box = ("box", pa.list_(pa.float32(), 4))  # left, top, width and height; null of classes
    target = [
        *score,
        box,
        ("low", pa.float32()),
        ("high", pa.float32()),
        ("distinct_values", pa.int32()),
        ("flat", pa.bool_()),
        ("remarks", pa.list_(pa.string())),
        ("verdict", pa.string()),
        ("deviations", pa.float32()),
        ("overlay", pa.string()),
    ]
    number = pa.float16() if kind == "float16" else pa.float32()
    columns = [
        ("path", pa.string()),
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("error", pa.string()),
        ("prediction", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("predictions", pa.list_(pa.struct([*score, box]))),
        ("targets", pa.list_(pa.struct(target))),
        ("maps", pa.list_(pa.list_(number, height * width))),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("window", pa.list_(pa.float32(), 4)),
        ("milliseconds", pa.float32()),
    ]
    return pa.schema(columns, {"grid": f"{height},{width}"})


def row(
    explanation: Explanation,
    score: Score,
    verifications: Sequence[Verification] = (),
    overlays: Sequence[str] = (),
) -> dict[str, Any]:
    """Return an image's row; see `schema`.

    Args:
        explanation: of an image from a file.
        score: how logits became scores.
        verifications, overlays: those of its targets, if any.
    """
    _, height, width = explanation.feature_shape
    targets = []
    for each in explanation.targets:
        target = msgspec.to_builtins(each)
        target["low"], target["high"] = target.pop("range")
        targets.append(
            target
            | {"remarks": each.remarks(height * width, score, explanation.provenance["mask"])}
        )
    for target, verification in zip(targets, verifications, strict=False):
        target["verdict"] = verification.verdict
        target["deviations"] = verification.deviations
    for target, overlay in zip(targets, overlays, strict=False):
        target["overlay"] = overlay
    best = explanation.predictions[0]
    image = explanation.image
    return {
        "path": explanation.path,
        "id": explanation.id,
        "sha256": explanation.sha256,
        "prediction": best.index,
        "label": best.label,
        "score": best.score,
        "predictions": msgspec.to_builtins(explanation.predictions),
        "targets": targets,
        "maps": explanation.maps.reshape(len(targets), -1),
        "height": image.shape[0] if image is not None else None,
        "width": image.shape[1] if image is not None else None,
        "window": explanation.window,
        "milliseconds": explanation.milliseconds,
    }


def table(rows: Sequence[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    """Return rows, from `row` or with an error alone, as a table with the columns of `schema`."""
    field = columns.field("maps")
    kind = field.type.value_type
    counts = [len(each["maps"]) if "maps" in each else 0 for each in rows]
    cells = [each["maps"].ravel() for each in rows if "maps" in each]
    values = np.concatenate(cells) if cells else np.zeros(0, np.float32)
    numbers = pa.array(values.astype(kind.value_type.to_pandas_dtype()))
    maps = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        pa.FixedSizeListArray.from_arrays(numbers, type=kind),
        type=field.type,
        mask=pa.array([count == 0 for count in counts]),
    )
    rest = pa.schema([each for each in columns if each.name != "maps"])
    plain = [{name: each[name] for name in each if name != "maps"} for each in rows]
    position = columns.get_field_index("maps")
    made = pa.Table.from_pylist(plain, rest).add_column(position, field, maps)
    return made.replace_schema_metadata(columns.metadata)


class Results:
    """The results of one run, in a folder; a later run with the same settings resumes it.

    A file holds at most 4096 rows and is whole or absent; no row waits longer than a minute or so.

    Args:
        folder: created if it does not exist.
        settings: what the results depend on.

    Attributes:
        kept: paths of the images that earlier runs have done.

    Raises:
        OptionError: the folder holds results with other settings, or can't be read.
        ReciproError: it can't be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.parts = folder / PARTS
        self._rows: list[pa.Table] = []
        self._since = time.monotonic()
        open_folder(self.parts)
        old = folder / _OLD_SETTINGS
        path = old if old.exists() else folder / SETTINGS
        _agree(path, {"schema_version": SCHEMA_VERSION, **settings})
        self.kept: set[str] = set()
        files = sorted(self.parts.glob("part-*.parquet"))
        for file in files:
            try:
                self.kept.update(pq.read_table(file, columns=["path"])["path"].to_pylist())
            except (OSError, pa.ArrowException) as error:
                raise OptionError(f"{file} is damaged: {error}. Delete it.") from error
        self._next = int(files[-1].stem.partition("-")[2]) + 1 if files else 0

    def add(self, rows: pa.Table) -> None:
        """Take rows, and write them once they are many or old.

        Raises:
            ReciproError: they can't be written.
        """
        self._rows.append(rows)
        while sum(len(rows) for rows in self._rows) >= _ROWS:
            self._write()
        if time.monotonic() - self._since > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write all rows that were added.

        Raises:
            ReciproError: they can't be written.
        """
        if any(len(rows) for rows in self._rows):
            self._write()

    def _write(self) -> None:
        rows = pa.concat_tables(self._rows)
        buffer = BytesIO()
        pq.write_table(rows.slice(0, _ROWS), buffer, compression="zstd")
        write_whole(self.parts / f"part-{self._next:06}.parquet", buffer.getvalue())
        self._next += 1
        self._rows = [rows.slice(_ROWS)]
        self._since = time.monotonic()


def _agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or check that those already there are the same."""
    data = as_record(settings)
    if not path.exists():
        write_whole(path, data)
        return
    try:
        kept = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} can't be read: {error}.") from error
    now = msgspec.json.decode(data)
    if kept != now:
        names = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
        raise OptionError(
            f"{path.parent} holds results of another run; these settings differ: "
            f"{', '.join(names)}. Choose another folder with -o."
        )
