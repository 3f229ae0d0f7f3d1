"""From what users ask about an image to targets, and what a model predicts for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.recognition import with_article
from ov_recipro.errors import ImageError, OptionError, TargetError
from ov_recipro.explanation import Prediction
from ov_recipro.images.preprocess import Window
from ov_recipro.options import Targets
from ov_recipro.plans.stream import Mask
from ov_recipro.saliency import Floats, Score, best_classes, class_scores, target_scores
from ov_recipro.sources.labels import class_index
from ov_recipro.targets.base import ScoredTarget
from ov_recipro.targets.classes import ClassTarget, find_classes
from ov_recipro.targets.contrast import NEXT, ContrastTarget, other_class
from ov_recipro.targets.detecting import check_box, detected
from ov_recipro.targets.regions import RegionTarget, area_of, best_by_pixel, by_pixel
from ov_recipro.targets.sequences import PositionTarget, check_position
from ov_recipro.targets.similarity import Reference, SimilarityTarget

_LISTED = 5  # predictions that an explanation lists
_OF_TASK = {
    "similar_to": "embedding",
    "unlike": "embedding",
    "centre": "embedding",
    "region": "segmentation",
    "pixel": "segmentation",
    "position": "sequence",
    "against": "classifier",
    "box": "detector",
}


@dataclass(frozen=True)
class Finder:
    """Finds targets and predictions in a model's outputs.

    Attributes:
        manifest: of the model; labels: its class names; score: how logits become scores.
    """

    manifest: Manifest
    labels: tuple[str, ...] | None
    score: Score

    def check(self, asked: Targets) -> None:
        """Raise where an option is not one for this model, or there is no such class.

        Raises:
            OptionError: the option is for models of another kind, or one is missing.
            TargetError: there is no such class.
        """
        task, why = self.manifest.task, self.manifest.why
        for name, wanted in _OF_TASK.items():
            if _is_given(getattr(asked, name)) and task != wanted:
                option = f"--{name.replace('_', '-')}"
                hint = ""
                if wanted == "embedding":
                    hint = " --task similarity takes a model's file for one."
                raise OptionError(
                    f"{option} is for {with_article(wanted)}; this model is {with_article(task)} "
                    f"({why}).{hint}"
                )
        if task == "embedding":
            if not _is_given(asked.similar_to):
                raise OptionError(
                    f"This model is an embedding ({why}): say with --similar-to what images are "
                    "compared with."
                )
            if asked.classes not in ((), Targets().classes):
                raise OptionError("An embedding has no classes that --target could name.")
            return
        if task == "detector":
            check_box(asked)
        if asked.region is not None and asked.pixel is not None:
            raise OptionError("Either --region or --pixel can be given, not both.")
        if asked.region is not None and not min(asked.region[2:]) > 0:
            raise OptionError("A region's width and height must be above 0.")
        for name, numbers in (
            ("gamma", [asked.gamma]),
            ("threshold", [asked.threshold]),
            ("nms", [asked.nms]),
            ("region", asked.region or ()),
            ("pixel", asked.pixel or ()),
        ):
            if not np.isfinite(numbers).all():
                raise OptionError(f"--{name} must be finite.")
        if task != "detector" or self.manifest.classes:  # whose number files may not say
            self._classes(asked, None)
        if asked.against is None:
            if asked.gamma != 1:
                raise OptionError("--gamma is the weight of the class that --against names.")
        elif asked.against != NEXT:
            self._index(asked.against)
        if task == "segmentation" and self.manifest.classes == 1 and self.score == "softmax":
            raise OptionError("The softmax of a single class is always 1: use --score sigmoid.")

    def found(
        self, asked: Targets, outputs: Floats, terms: Floats | None, window: Window | None
    ) -> tuple[list[ScoredTarget], tuple[Prediction, ...]]:
        """Return the targets for an image, and what the model predicts for it.

        Args:
            asked: what was asked, checked, with references already made.
            outputs: of the image, in a row; terms: see `saliency.softmax_terms`.
            window: the part of the image that the model saw.

        Raises:
            OptionError, TargetError: there are no such targets.
        """
        if self.manifest.task == "detector":
            seen = detected(self.manifest, self.labels, asked, outputs, window)
            return list(seen.targets(asked)), seen.predictions
        targets = self._targets(asked, outputs, window)
        return targets, self.predictions(outputs, terms, window)

    def _targets(
        self, asked: Targets, outputs: Floats, window: Window | None
    ) -> list[ScoredTarget]:
        task = self.manifest.task
        if task == "embedding":
            if not isinstance(asked.similar_to, Reference):
                raise TypeError("references must be made first")
            return [SimilarityTarget(asked.similar_to)]
        if task == "segmentation":
            return self._regions(asked, outputs, window)
        if task == "sequence":
            logits = outputs.reshape(-1, self.manifest.classes)
            position = check_position(asked.position, logits, self.labels)
            return [
                PositionTarget(index, self.label(index), self.score, position, len(logits))
                for index in self._classes(asked, logits[position])
            ]
        indices = self._classes(asked, outputs)
        if asked.against is None:
            return [ClassTarget(index, self.label(index), self.score) for index in indices]
        other = None if asked.against == NEXT else self._index(asked.against)
        found: list[ScoredTarget] = []
        for index in indices:
            if index == other and len(indices) > 1 and not self._is_named(asked, index):
                continue
            against = other_class(index, other, outputs)
            rival = Prediction(against, self.label(against), float(outputs[against]))
            found.append(ContrastTarget(index, self.label(index), rival, asked.gamma))
        return found

    def predictions(
        self,
        outputs: Floats,
        terms: Floats | None,
        window: Window | None,
    ) -> tuple[Prediction, ...]:
        """Return what the model predicts for an image.

        These are a classifier's best classes, or a detector's boxes, best first; the classes that a
        segmentation gives most pixels to, with their share of all pixels as score; the best class
        of each position of a sequence, in order. An embedding predicts nothing.

        Args:
            outputs: of the image, in a row; terms: see `saliency.softmax_terms`.
            window: the part of the image that the model saw.
        """
        task = self.manifest.task
        if task == "embedding":
            return ()
        if task == "detector":
            return detected(self.manifest, self.labels, Targets(), outputs, window).predictions
        if task == "segmentation":
            predicted = self._best(outputs)
            counts = self._counts(predicted)
            shares = (counts / predicted.size).tolist()
            best = best_classes(counts, _LISTED)
            chosen = [each for each in best if counts[each]]
            return tuple(Prediction(each, self.label(each), shares[each]) for each in chosen)
        if task == "sequence":
            scores = class_scores(outputs.reshape(-1, self.manifest.classes), self.score)
            return tuple(
                Prediction(int(row.argmax()), self.label(int(row.argmax())), float(row.max()))
                for row in scores
            )
        chosen = best_classes(outputs, _LISTED)
        listed = target_scores(outputs[None], self.score, chosen, terms)[0].tolist()
        return tuple(
            Prediction(index, self.label(index), score)
            for index, score in zip(chosen, listed, strict=True)
        )

    def zero(self, outputs: Floats) -> Floats:
        """Return the outputs [values] for an empty feature map, checked.

        An embedding's vector of zeros is NaN where the model divides it by its length.

        Raises:
            ImageError: they are not finite.
        """
        if np.isfinite(outputs).all():
            return outputs
        if self.manifest.task == "embedding":
            return np.zeros_like(outputs)
        raise ImageError("The model gives NaN or infinite numbers for an empty feature map.")

    def label(self, index: int) -> str | None:
        """Return a class's name, where names are known."""
        return self.labels[index] if self.labels is not None else None

    def _classes(self, asked: Targets, scores: Floats | None) -> list[int]:
        return find_classes(asked.classes, self.labels, self.manifest.classes, scores)

    def _index(self, name: str | int) -> int:
        return class_index(name, self.labels, self.manifest.classes)

    def _is_named(self, asked: Targets, index: int) -> bool:
        """Whether a class was asked for by itself, not as one of the best."""
        return index in self._classes(asked, None)

    def _best(self, outputs: Floats) -> np.ndarray:
        pixels = by_pixel(outputs, self.manifest.scores_shape, self.manifest.class_axis)[0]
        return best_by_pixel(pixels)

    def _counts(self, predicted: np.ndarray) -> Floats:
        """Return how many pixels are predicted as each class, [classes]."""
        counts = np.bincount(predicted[predicted >= 0], minlength=self.manifest.classes)
        return counts.astype(np.float32)

    def _regions(
        self, asked: Targets, outputs: Floats, window: Window | None
    ) -> list[ScoredTarget]:
        best, box = self._best(outputs), None
        counts, mask = self._counts(best), None
        if asked.region is not None or asked.pixel is not None:
            x, y, width, height = asked.region or (*(asked.pixel or (0, 0)), 1, 1)
            box = (x, y, x + width, y + height)
            mask = area_of(box, window, best.shape)
            counts = self._counts(best[mask])
        found: list[ScoredTarget] = []
        for index in self._classes(asked, counts):
            pixels = best == index if mask is None else mask
            if not pixels.any() and not self._is_named(asked, index):
                continue
            if not pixels.any():
                name = self.label(index) or f"class {index}"
                raise TargetError(
                    f"The model predicts no pixel of this image as '{name}'; --region explains the "
                    "pixels that it names anyway."
                )
            target = RegionTarget(
                index=index,
                label=self.label(index),
                score=self.score,
                mask=pixels,
                region=box,
                shape=self.manifest.scores_shape,
                class_axis=self.manifest.class_axis,
            )
            found.append(target)
        if not found:
            raise TargetError(
                "The model predicts no pixel of this image as any class; --region explains the "
                "pixels that it names anyway."
            )
        return found


def default_mask(manifest: Manifest) -> Mask:
    """Return the mask that is used where none is asked for.

    Keeping one cell of a segmentation would only repeat where its pixels are; of a detector's
    feature maps it recovers little of a box's score.
    """
    return "drop" if manifest.task in ("detector", "segmentation") else "cell"


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, tuple) and not value)
