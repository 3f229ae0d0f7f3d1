"""An explanation: what the model predicts for an image, and a saliency map for each class."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ov_recipro.cut.layout import Layout
from ov_recipro.errors import OptionError, TargetError
from ov_recipro.images import drawing as draw
from ov_recipro.images.preprocess import Image, Window
from ov_recipro.output import SCHEMA_VERSION, as_json, as_record, open_folder, write_whole
from ov_recipro.saliency import (
    Floats,
    Score,
    begins_at_zero,
    saliency_maps,
    score_of_cells,
    signed_maps,
)
from ov_recipro.sources.labels import find_class

_FEW = 0.5  # share of different scores below which a map is coarse
_NOTEBOOK_SIDE = 640  # pixels of an overlay's longer side in a notebook
_COSTS = 0.01  # share of the score below which what a cell's loss costs is a weak signal
_RELIABLE = 0.9  # where methods with random masks stop
_CLOSE = 0.02  # spread of the scores, as a share of the highest, below which the signal is weak


@dataclass(frozen=True)
class Prediction:
    """A class that the model predicts for the whole image.

    Attributes:
        index: the class; label: its name, where names are known.
        score: the class's score, such as its softmax probability.
    """

    index: int
    label: str | None
    score: float

    @property
    def outline(self) -> tuple[float, float, float, float] | None:
        """Left, top, width and height of its part of the image, in pixels; None for no part."""
        return None


@dataclass(frozen=True)
class Target(Prediction):
    """An explained class.

    Attributes:
        range: lowest and highest raw score y_c over the cells, before min-max scaling.
        distinct_values: number of different raw scores; few among many cells mean a map of noise.
        flat: all cells score the same, so the map is all zeros and says nothing.
        next_layer: the layer to try where this one's map says little; None where none is known.
        runs: of methods that need no cut, the number of inferences on masked images that the map
            rests on.
        reliability: of a method with random masks, the estimated correlation, 0..1, of its map
            with that of as many others.
    """

    range: tuple[float, float]
    distinct_values: int
    flat: bool
    next_layer: str | None = None
    runs: int | None = None
    reliability: float | None = None

    @property
    def identity(self) -> Any:
        """What tells it from other targets, as JSON can hold it."""
        return self.index

    @property
    def name(self) -> str:
        """What tells it from the other targets of an image, in file names."""
        return str(self.index)

    def _remarks_without_cut(self) -> list[str]:
        """Return what speaks against a map that no masked feature map was needed for."""
        if self.flat:
            return ["Hiding parts of the image never changes the score: this map says nothing."]
        if self.reliability is not None and self.reliability < _RELIABLE:
            return [
                f"Unreliable: the map of {self.runs} other inferences would correlate with this "
                f"one by about {self.reliability:.2f}."
            ]
        return []

    def remarks(self, cells: int, score: Score, mask: str = "cell") -> list[str]:
        """Return, in words, what speaks against the class's map.

        Args:
            cells: number of cells.
            score: how logits became scores.
            mask: what was kept of the feature map.
        """
        if self.runs is not None:
            return self._remarks_without_cut()
        advice = "" if self.next_layer is None else f" Try --layer {self.next_layer}."
        low, high = self.range
        if self.flat and mask == "drop":
            return [f"Dropping a cell never lowers the score: this map says nothing.{advice}"]
        if self.flat:
            return [f"All cells score the same: this map says nothing.{advice}"]
        found = []
        if self.distinct_values < _FEW * cells:
            found.append(
                f"Only {self.distinct_values} different scores among {cells} cells: the map is "
                f"coarse, perhaps nothing but rounding.{advice}"
            )
        if mask == "drop" and score != "none" and high < _COSTS * self.score:
            found.append(
                f"Weak signal: the loss of a cell costs {100 * high / self.score:.2g} % of the "
                f"score at most.{advice}"
            )
        elif mask != "drop" and score != "none" and high - low < _CLOSE * high:
            found.append(
                f"Weak signal: the cells' scores differ by {100 * (high - low) / high:.2g} % at "
                f"most; scaling to the full range makes that look like a lot.{advice}"
            )
        return found


@dataclass(frozen=True)
class Explanation:
    """Why a model scored some classes as it did.

    Attributes:
        predictions: the five classes of highest score, best first.
        targets: the explained classes, in the order they were asked for.
        maps: saliency maps, float32 [T,H,W], 0..1 (Eq. 6 of the paper).
        raw: class scores y_c per cell before scaling, float32 [T,H,W].
        feature_shape: (C, H, W) of the feature map that was masked.
        provenance: what the maps depend on besides the image and the targets: the model and its
            weights (SHA-256), layer, plan, options and versions, as `explanations.json` holds it.
        milliseconds: time for inference and maps.
        image: the explained image, uint8 [h,w,3] BGR; None for a tensor.
        window: the part of the image that the model saw, in pixels.
        path: path or URL of the image's file; None where pixels or a tensor were explained.
        sha256: of that file's bytes, in hexadecimal; None likewise.
        layout: the order of the feature map's axes; "NTC" for tokens, whose maps are drawn softly.
        zeros: the targets' scores with no cell kept, float32 [T], or zeros where `raw` is what
            dropping each cell costs; None where they were not asked for.
        vector: an embedding's vector, float32 [D]; None of other models.
        scored: the targets as `ov_recipro.targets` score them, to measure their maps.
    """

    predictions: tuple[Prediction, ...]
    targets: tuple[Target, ...]
    maps: npt.NDArray[np.float32]
    raw: npt.NDArray[np.float32]
    feature_shape: tuple[int, int, int]
    provenance: Mapping[str, Any] = field(repr=False)
    milliseconds: float
    image: Image | None = field(default=None, repr=False)
    window: Window | None = None
    path: str | None = None
    sha256: str | None = None
    layout: Layout = "NCHW"
    zeros: npt.NDArray[np.float32] | None = None
    vector: npt.NDArray[np.float32] | None = None
    scored: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def signed_maps(self) -> npt.NDArray[np.float32]:
        """Maps float32 [T,H,W] in -1..1: what speaks for a target is above 0, what against, below.

        0 is the score with no cell kept; a map's scale is that of its largest deviation.

        Raises:
            OptionError: the explainer is not a signed one.
        """
        return signed_maps(self.raw, self._zeros())

    @cached_property
    def id(self) -> str:
        """What was explained, and how, as 32 hexadecimal digits.

        Equal for the same image, targets and provenance. An image without a file is identified by
        its pixels, a tensor by its raw scores.
        """
        content: str | tuple[tuple[int, ...], str]
        if self.sha256 is not None:
            content = self.sha256
        else:
            array = np.ascontiguousarray(self.raw if self.image is None else self.image)
            content = (array.shape, hashlib.sha256(array.data).hexdigest())
        asked = (self.provenance, content, [target.identity for target in self.targets])
        data = as_json(asked, order="deterministic")
        return hashlib.sha256(data).hexdigest()[:32]

    def overlay(self, target: str | int | None = None, style: draw.Style = draw.DEFAULT) -> Image:
        """Draw a target's map onto the image.

        Args:
            target: class name or index of an explained class; the first target by default.
            style: colours, opacity, cells or contours; with or without a legend.

        Returns:
            uint8 [h,w,3] BGR of the image's own size, to which a legend adds rows below.

        Raises:
            TargetError: that class was not explained, or the explanation has no image.
            OptionError: the style is signed, but the explainer is not.
        """
        return self.overlay_of(self._position(target), style)

    def overlay_of(self, position: int, style: draw.Style = draw.DEFAULT) -> Image:
        """Draw the map of the target at a position; see `overlay`."""
        if self.image is None or self.window is None:
            raise TargetError(
                "A tensor was explained, not an image: there is nothing to draw onto."
            )
        saliency, scores = self._drawn(position, style)
        drawn = draw.overlay(self.image, saliency, self.window, style)
        target = self.targets[position]
        if target.outline is not None:
            others = (each.outline for each in self.predictions if each.outline != target.outline)
            draw.outline(drawn, target.outline, [each for each in others if each is not None])
        if not style.legend:
            return drawn
        strip = draw.legend(drawn.shape[1], scores, style)
        return np.vstack([drawn, strip])

    def _drawn(self, position: int, style: draw.Style) -> tuple[Floats, tuple[float, float]]:
        """Return the map that is drawn, and the scores that its outermost colours stand for."""
        raw, scores = self.raw[position], self.targets[position].range
        soft = self.layout == "NTC" and not style.cells
        if soft:
            raw = draw.softened(raw)
            scores = float(raw.min()), float(raw.max())
        if style.signed:
            zeros = self._zeros()[[position]]
            largest = float(np.abs(raw - zeros).max())
            return signed_maps(raw[None], zeros)[0], (-largest, largest)
        saliency = saliency_maps(raw[None], self._from_zero)[0] if soft else self.maps[position]
        return saliency, (0.0, max(0.0, scores[1])) if self._from_zero else scores

    @property
    def _from_zero(self) -> bool:
        """Whether `raw` is what the loss of each cell costs, and maps begin at 0."""
        return begins_at_zero(self.provenance["method"], self.provenance["mask"])

    def _zeros(self) -> npt.NDArray[np.float32]:
        if self.zeros is None:
            raise OptionError("Signed maps need an explainer with signed=True.")
        return self.zeros

    def save(
        self, folder: str | Path, stem: str | None = None, style: draw.Style = draw.DEFAULT
    ) -> list[Path]:
        """Write overlays, maps and a record with the provenance into a folder.

        Writes what `save_overlays` (not for a tensor) and `save_maps` write, and `<stem>.json`, in
        the form of `explanations.json`. Each file is whole or absent; files of these names are
        replaced.

        Args:
            folder: created where it does not exist.
            stem: of the files' names; by default that of the image's file, else "explanation".
            style: how overlays are drawn.

        Returns:
            The files.

        Raises:
            ReciproError: a file can't be written.
        """
        folder = Path(folder)
        stem = stem or (Path(self.path).stem if self.path is not None else "explanation")
        open_folder(folder)
        maps = self.save_maps(folder, stem)
        overlays = [] if self.image is None else self.save_overlays(folder, stem, style)
        record = {
            "schema_version": SCHEMA_VERSION,
            **self.provenance,
            "images": [self.record(overlays, maps)],
        }
        written = [*overlays, maps, f"{stem}.json"]
        data = as_record(record)
        write_whole(folder / written[-1], data)
        return [folder / name for name in written]

    def save_overlays(self, folder: Path, stem: str, style: draw.Style) -> list[str]:
        """Write `<stem>.png` for the first target and `<stem>.<class index>.png` for further ones.

        Returns:
            The files' names, in the order of the targets.

        Raises:
            ReciproError: a file can't be written, or the explanation has no image.
        """
        names = []
        for position, target in enumerate(self.targets):
            names.append(f"{stem}.png" if position == 0 else f"{stem}.{target.name}.png")
            write_whole(folder / names[-1], draw.as_png(self.overlay_of(position, style)))
        return names

    def save_maps(self, folder: Path, stem: str) -> str:
        """Write `<stem>.npz` with `maps`, `raw`, `targets` (indices) and `feature_shape`.

        It also holds `zeros`, where there are any.

        Returns:
            The file's name.

        Raises:
            ReciproError: it can't be written.
        """
        buffer = BytesIO()
        zeros: dict[str, Any] = {} if self.zeros is None else {"zeros": self.zeros}
        np.savez_compressed(
            buffer,
            maps=self.maps,
            raw=self.raw,
            targets=np.array([target.index for target in self.targets], np.int64),
            feature_shape=np.array(self.feature_shape, np.int64),
            **zeros,
        )
        write_whole(folder / f"{stem}.npz", buffer.getvalue())
        return f"{stem}.npz"

    def record(self, overlays: Sequence[str] = (), maps: str | None = None) -> dict[str, Any]:
        """Return the image's entry of `explanations.json`.

        Args:
            overlays: the files that `save_overlays` wrote, if it did.
            maps: the file that `save_maps` wrote, if it did.
        """
        height, width = self.image.shape[:2] if self.image is not None else (None, None)
        files: Sequence[str | None] = overlays or [None] * len(self.targets)
        zeros: list[dict[str, float]] = [{} for _ in self.targets]
        if self.zeros is not None and not self._from_zero:
            zeros = [{"zero": zero} for zero in self.zeros.tolist()]
        return {
            "id": self.id,
            "path": self.path,
            "sha256": self.sha256,
            "size": [height, width],
            "window": self.window,
            "predictions": msgspec.to_builtins(self.predictions),
            "targets": [
                msgspec.to_builtins(target) | {"overlay": overlay, "maps": maps} | zero
                for target, overlay, zero in zip(self.targets, files, zeros, strict=True)
            ],
            "milliseconds": round(self.milliseconds, 3),
        }

    def _repr_png_(self) -> bytes | None:
        """Return the first target's overlay for a notebook, scaled down; None for a tensor."""
        return None if self.image is None else self._thumbnail(self.targets[0])

    def _repr_html_(self) -> str:
        """Return the targets for a notebook: overlays, scaled down, scores and remarks."""
        _, height, width = self.feature_shape
        score = self.provenance["score"]
        figures = []
        for target in self.targets:
            name = escape(target.label or f"class {target.index}")
            own = score_of_cells(self.provenance["method"], score)
            remarks = map(escape, target.remarks(height * width, own, self.provenance["mask"]))
            text = "<br>".join([f"<b>{name}</b> {target.score:.3g}", *remarks])
            if self.image is not None:
                data = base64.b64encode(self._thumbnail(target)).decode()
                text = f'<img alt="{name}" src="data:image/png;base64,{data}"><br>{text}'
            figures.append(f'<div style="display:inline-block;margin:4px">{text}</div>')
        return "".join(figures)

    def _thumbnail(self, target: Target) -> bytes:
        return draw.as_png(draw.shrink(self.overlay(target.index), _NOTEBOOK_SIDE))

    def _position(self, target: str | int | None) -> int:
        if target is None:
            return 0
        indices = [each.index for each in self.targets]
        if isinstance(target, str):
            target = indices[find_class(target, [each.label or "" for each in self.targets])]
        if target not in indices:
            raise TargetError(f"Class {target} was not explained; these were: {indices}.")
        return indices.index(target)
