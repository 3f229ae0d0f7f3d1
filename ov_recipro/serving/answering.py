"""What an answer holds of an explanation."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any

import cv2
import msgspec

from ov_recipro.errors import OptionError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation
from ov_recipro.faithfulness.verification import verify
from ov_recipro.images.reading import ImageFile
from ov_recipro.methods import Subject
from ov_recipro.options import Targets
from ov_recipro.saliency import Array
from ov_recipro.serving.asking import Part

_NUMBERS = 1 << 22  # of the maps in an answer
_COSTLY = 20  # targets that an overlay is drawn of, or that are verified


class Answerer:
    """Explains images of requests, with one explainer, from several threads."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self._lock = Lock()
        self._subject: Subject | None = None

    def explanation(self, source: ImageFile | Array, targets: Targets) -> Explanation:
        """Explain an image, or a model's input.

        Raises:
            OptionError: the answer would be too large.
            ReciproError: see `Explainer.__call__`.
        """
        if isinstance(source, ImageFile):
            found = self.explainer(source, targets)
        else:
            found = self.explainer.explain_tensor(source, targets)
        if found.raw.size > _NUMBERS:
            count = len(found.targets)
            raise OptionError(f"The maps of {count} targets are too large: ask for fewer.")
        return found

    def entry(self, found: Explanation, include: Collection[Part]) -> dict[str, Any]:
        """Return an explanation as an answer holds it: its record, and what is to be included.

        Raises:
            ReciproError: an overlay can't be drawn, or its targets can't be verified.
        """
        record = found.record()
        for name in ("path", "size", "window") if found.image is None else ("path",):
            del record[name]
        costly = {"overlay", "verification"} & set(include)
        if costly and len(record["targets"]) > _COSTLY:
            raise OptionError(f"At most {_COSTLY} targets are drawn or verified at once.")
        verified = self._verified(found) if "verification" in include else ()
        for position, target in enumerate(record["targets"]):
            del target["overlay"], target["maps"]
            if "maps" in include:
                target["map"] = found.maps[position].tolist()
            if "raw" in include:
                target["raw"] = found.raw[position].tolist()
            if "overlay" in include:
                target["overlay"] = {"b64": _png(found, position)}
            if position < len(verified):
                target["verification"] = verified[position]
        return record

    def _verified(self, found: Explanation) -> Sequence[dict[str, Any]]:
        if any(getattr(each, "missed", False) for each in found.targets):
            return ()
        with self._lock:
            if self._subject is None:
                self._subject = Subject(self.explainer)
        return [dict(msgspec.to_builtins(each)) for each in verify(self._subject, found)]


def _png(found: Explanation, position: int) -> str:
    _, data = cv2.imencode(".png", found.overlay_of(position))
    return base64.b64encode(data.tobytes()).decode()
