"""What an answer holds of an explanation."""

from __future__ import annotations

import base64
from threading import Lock
from typing import Any

import msgspec

from ov_recipro.errors import OptionError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation, Prediction
from ov_recipro.faithfulness.verification import verify
from ov_recipro.images.drawing import as_png
from ov_recipro.images.reading import ImageFile
from ov_recipro.methods import Subject
from ov_recipro.options import Targets
from ov_recipro.saliency import Array
from ov_recipro.serving.parameters import Parameters

_MAX_NUMBERS = 1 << 20  # of all maps in an answer
_MAX_DRAWN = 32  # targets that an answer holds overlays of
_MAX_VERIFIED = 4  # targets that a request may have verified


class Answers:
    """Makes answers with one explainer, in several threads."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self._lock = Lock()
        self._subject: Subject | None = None

    def outputs(self, source: ImageFile | Array) -> Array:
        """Return what targets are scored by for an image, or a model's input."""
        if isinstance(source, ImageFile):
            return self.explainer.vector(source)
        return self.explainer.outputs(source)

    def predictions(self, source: ImageFile | Array) -> tuple[Prediction, ...]:
        """Return what the model predicts for an image, or a model's input."""
        if isinstance(source, ImageFile):
            return self.explainer.predict(source)
        return self.explainer.predict_tensor(source)

    def explanation(
        self, source: ImageFile | Array, targets: Targets, images: int = 1
    ) -> Explanation:
        """Explain an image, or a model's input.

        Args:
            source: the image or input.
            targets: what is asked; references are already made.
            images: how many images the answer is about.

        Raises:
            OptionError: the answer would be too large.
            ReciproError: see `Explainer.__call__`.
        """
        if isinstance(source, ImageFile):
            found = self.explainer(source, targets)
        else:
            found = self.explainer.explain_tensor(source, targets)
        if found.raw.size * images > _MAX_NUMBERS:
            raise OptionError(
                f"The maps of {len(found.targets)} targets and {images} images are too large for "
                "an answer: ask for fewer."
            )
        return found

    def entry(self, found: Explanation, asked: Parameters, images: int = 1) -> dict[str, Any]:
        """Return an explanation as an answer holds it: its record, and what is to be included.

        Args:
            found: the explanation.
            asked: what is to be included.
            images: how many images the answer is about.

        Raises:
            OptionError: an overlay or a verdict is wanted of a tensor, or of too many targets.
            ReciproError: targets can't be verified.
        """
        record, include = found.record(), asked.include
        count = images * len(record["targets"])
        for part, most in (("overlay", _MAX_DRAWN), ("verification", _MAX_VERIFIED)):
            if part in include and found.image is None:
                raise OptionError(f"'{part}' is for images; a tensor was sent.")
            if part in include and count > most:
                raise OptionError(
                    f"'{part}' is for at most {most} targets in a request, not {count}."
                )
        for name in ("path", "size", "window") if found.image is None else ("path",):
            del record[name]
        verified = self._verified(found) if "verification" in include else []
        for position, target in enumerate(record["targets"]):
            del target["overlay"], target["maps"]
            if "maps" in include:
                target["map"] = found.maps[position].tolist()
            if "raw" in include:
                target["raw"] = found.raw[position].tolist()
            if "overlay" in include:
                drawn = found.overlay_of(position)
                target["overlay"] = {"b64": base64.b64encode(as_png(drawn)).decode()}
            if verified:
                target["verification"] = verified[position]
        return record

    def _verified(self, found: Explanation) -> list[dict[str, Any]]:
        with self._lock:
            if self._subject is None:
                self._subject = Subject(self.explainer)
        return [dict(msgspec.to_builtins(each)) for each in verify(self._subject, found)]
