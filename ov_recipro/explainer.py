"""The explainer: an image in, predictions and saliency maps out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import openvino

from ov_recipro.black_boxes import attribution
from ov_recipro.black_boxes.masked_image import Progress
from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import ImageError, OptionError
from ov_recipro.explanation import Explanation, Prediction
from ov_recipro.images.preprocess import Image, Preprocessing, Window, changed, prepare
from ov_recipro.images.reading import ImageFile, pixels_of
from ov_recipro.isolation.isolated import open_isolated
from ov_recipro.isolation.messages import How
from ov_recipro.isolation.opened import Model, Result, open_model
from ov_recipro.options import Cut, Running, Targets, cut_and_running_from, targets_from
from ov_recipro.ordered import in_order
from ov_recipro.output import as_json
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes.runtime import Inference
from ov_recipro.saliency import Floats, Score, default_score, maps_of, softmax_terms
from ov_recipro.sources.default_model import default_model
from ov_recipro.sources.labels import checked_labels
from ov_recipro.sources.openvino_models import as_file
from ov_recipro.targets.base import ScoredTarget, measured, read_by, scores_of
from ov_recipro.targets.boxes import signed_losses
from ov_recipro.targets.finding import Finder
from ov_recipro.targets.similarity import Reference, make_reference
from ov_recipro.targets.vectors import only_image, read_vectors
from ov_recipro.variants import VARIANTS
from ov_recipro.variants.variant_maps import variant_maps


class Explainer:
    """Explains what a vision model in a file says about images.

    Args:
        model: an ONNX file, an OpenVINO .xml file, a bundle, such a file on a hub (see `located`)
            or an openvino.Model; by default the one that `default_model` finds. A model is split on
            first use and the bundle kept in the user's cache.
        layer: where to cut, or a whole `ov_recipro.options.Cut`; not for bundles.
        device: what to run on, such as "CPU", or a whole `ov_recipro.options.Running`.
        score: how logits become class scores; by default the model's own closing activation, else
            softmax.
        mask: "cell" (the paper's), "spread" or "weight", its Gaussian variants, or "drop", which
            empties one cell and keeps all others; by default "drop" for segmentations, else "cell".
        method: "recipro", which masks feature maps, or one of its `variants`; "occlusion", "rise",
            "d-rise" or "aise", which mask the image hundreds of times; or "votes", without masks.
        signed: also find the targets' scores with no cell kept, where `signed_maps` begin.
        preprocessing: how images become inputs, or a function that changes what the model says
            about it (see `ov_recipro.sources.metadata.find_preprocessing`).
        labels: class names in order; by default the model's own.
        progress: called after each inference on a masked image with their number, and the most.
        options: single fields of `Cut` and `Running`, such as ``exact=True`` or ``plan="stream"``.

    Attributes:
        bundle: the split model; running: how it is run.
        score, mask, preprocessing, labels: as used.
        plan: how the tail is run over all cells; plan_reason: why that is `stream`; None if
            it is another.
        workers: number of images to keep in flight.
        versions: of this tool and the libraries that run the model.

    Raises:
        ReciproError: the model can't be read, cut there or run on that device.

    Example:
        >>> explainer = Explainer("model.onnx")
        >>> explanation = explainer("cat.jpg", targets=["tabby", 282])
        >>> explanation.maps.shape
        (2, 7, 7)
    """

    def __init__(
        self,
        model: str | Path | Bundle | openvino.Model | None = None,
        *,
        layer: str | Cut = "auto",
        device: str | Running = "CPU",
        score: Score | None = None,
        mask: Mask | None = None,
        method: attribution.Method = "recipro",
        signed: bool = False,
        preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None = None,
        labels: Sequence[str] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        cut, self.running = cut_and_running_from(layer, device, options)
        self.method, self._progress = method, progress
        how = How(cut, self.running, mask, method, signed)
        open_source = open_isolated if self.running.isolate else open_model
        self._model: Model
        if isinstance(model, Bundle):
            self._model = open_source(model, how)
        else:
            with as_file(default_model() if model is None else model) as path:
                self._model = open_source(path, how)
        self.bundle, self.mask = self._model.bundle, self._model.mask
        manifest = self.bundle.manifest
        self.signed, self._task = signed, manifest.task
        scored = self._task in ("detector", "embedding")  # by a box's score, by a cosine
        if self._task == "detector" and score not in (None, "none"):
            raise OptionError("--score is for classes; a box is scored by its overlap and class.")
        default = "none" if scored else default_score(manifest.activation, manifest.classes)
        self.score: Score = score or default
        self.preprocessing = changed(manifest.preprocessing, preprocessing)
        self.labels = tuple(labels) if labels is not None else manifest.labels
        if manifest.classes:
            self.labels = checked_labels(self.labels, manifest.classes)
        self._finder = Finder(manifest, self.labels, self.score)
        runtime = self._runtime = self._model.runtime
        self.workers = runtime.parallel + 1  # one more reads and draws meanwhile
        self.plan, self.plan_reason = runtime.plan, runtime.reason
        self.versions = {"ov-recipro": version("ov-recipro"), **runtime.versions}
        self._provenance: dict[str, Any] = msgspec.json.decode(as_json(self.provenance()))

    def __call__(
        self,
        image: str | Path | ImageFile | Image,
        targets: str | int | Iterable[str | int] | Targets = "top1",
        **options: Any,
    ) -> Explanation:
        """Explain an image.

        Args:
            image: a path, a file already read (see `images.reading`), or uint8 [H,W,3] BGR.
            targets: what to explain: a class name or index, or "top1", "top5", ... for the
                classes of highest score; several of these; or a whole `ov_recipro.options.Targets`.
            options: single fields of `Targets`, such as ``against="next"`` or
                ``similar_to="reference.jpg"``.

        Raises:
            ReciproError: the image can't be read, there is no such target, or the model gives NaN.
        """
        pixels, path, sha256 = pixels_of(image)
        tensor, window = self._prepared(pixels)
        asked = self.find_targets(targets, **options)
        found = self._model.guarded(partial(self._explained, tensor, asked, window))
        return dataclasses.replace(found, image=pixels, window=window, path=path, sha256=sha256)

    def stream(
        self,
        images: Iterable[str | Path | ImageFile | Image],
        targets: str | int | Iterable[str | int] | Targets = "top1",
        **options: Any,
    ) -> Iterator[Explanation]:
        """Explain many images, reading, preparing and inferring several at once.

        Args:
            images: see `__call__`; drawn as they are needed, so there may be no end of them.
            targets, options: see `__call__`; the same for all.

        Yields:
            The explanations, in the order of the images.

        Raises:
            ReciproError: at the turn of an image that can't be explained; the stream ends there.
        """
        asked = self.find_targets(targets, **options)
        yield from in_order(lambda image: self(image, asked), images, self.workers, self.interrupt)

    def interrupt(self) -> None:
        """Give up the images that an isolated model is explaining; others are not affected."""
        self._model.interrupt()

    def explain_tensor(
        self,
        tensor: npt.NDArray[Any],
        targets: str | int | Iterable[str | int] | Targets = "top1",
        **options: Any,
    ) -> Explanation:
        """Explain an already preprocessed input.

        Args:
            tensor: the model's input at batch 1. Regions and boxes are in its pixels.
            targets, options: see `__call__`.
        """
        asked = self.find_targets(targets, **options)
        tensor, window = self._checked(tensor), self.bundle.manifest.image.window
        return self._model.guarded(partial(self._explained, tensor, asked, window))

    def explain_scored(
        self, tensor: npt.NDArray[Any], targets: Sequence[ScoredTarget]
    ) -> Explanation:
        """Explain a preprocessed input by targets such as `Explanation.scored` of another one."""
        return self._model.guarded(partial(self._explained, tensor, targets, None))

    def _checked(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        entry = self.bundle.manifest.image
        if tensor.shape != entry.shape:
            raise ImageError(
                f"The model takes an input of shape {list(entry.shape)}, not {list(tensor.shape)}."
            )
        return tensor.astype(entry.dtype, copy=False)

    def _prepared(self, pixels: Image) -> tuple[npt.NDArray[Any], Window]:
        entry = self.bundle.manifest.image
        return prepare(pixels, self.preprocessing, entry.channels_last, entry.dtype)

    def _explained(
        self,
        tensor: npt.NDArray[Any],
        asked: Targets | Sequence[ScoredTarget],
        window: Window | None,
    ) -> Explanation:
        manifest, finder = self.bundle.manifest, self._finder
        started = time.perf_counter()
        with self._runtime.infer(tensor) as inference:
            inference.check_finite()
            logits, terms = inference.logits, inference.softmax_terms
            if isinstance(asked, Targets):
                scored, predictions = finder.found(asked, logits, terms, window)
            else:
                scored, predictions = list(asked), finder.predictions(logits, terms, window)
            (full_scores,) = self._scores(scored, logits[None], terms)
            vector = np.array(logits) if manifest.task == "embedding" else None
            if self.method in VARIANTS:
                score = partial(self._scores, scored)
                cells = variant_maps(inference, scored, score, full_scores, self.score)
            else:
                columns = read_by(scored)
                runs = [self._scores(scored, *run, columns) for run in inference.masked(columns)]
        further: list[dict[str, Any]] = [{} for _ in scored]
        next_layer = manifest.cut.next_layer
        zeros: Floats | None = None
        if self.method in attribution.BLACK_BOXES:
            cells, further = attribution.losses(
                self.method,
                lambda image: self._scores(scored, self._model.outputs(image)[None], None),
                tensor,
                manifest.image.channels_last,
                scored,
                self._progress,
                logits,
            )
            zeros = np.zeros(len(scored))
        elif self.mask == "drop":
            whole = full_scores
            if manifest.deployed_scores or self.running.precision != "f32":  # not the tail's own
                whole = self._zeros(tensor, scored)
            found = signed_losses(scored, whole - np.concatenate(runs))  # the cost of each cell
            cells, zeros = manifest.cut.cells.as_maps(found), np.zeros(len(scored))
        elif self.method == "recipro":
            cells = manifest.cut.cells.as_maps(np.concatenate(runs))
            if self.signed:
                zeros = self._zeros(tensor, scored)
        if not np.isfinite(cells).all():
            raise ImageError("The model gives NaN or infinite numbers for a masked feature map.")
        raw = cells.astype(np.float32)
        maps = maps_of(cells, self.method, self.mask)
        return Explanation(
            predictions=predictions,
            targets=tuple(
                target.described(
                    measured(target, score, values, saliency, next_layer=next_layer, **more),
                    saliency,
                    values,
                )
                for target, score, values, saliency, more in zip(
                    scored, full_scores.tolist(), raw, maps, further, strict=True
                )
            ),
            maps=maps,
            raw=raw,
            feature_shape=(manifest.cut.shape[0], *raw.shape[1:]),
            layout=manifest.cut.layout,
            provenance=self._provenance,
            milliseconds=1e3 * (time.perf_counter() - started),
            zeros=None if zeros is None else np.asarray(zeros, np.float32),
            vector=vector,
            scored=tuple(scored),
        )

    def _scores(
        self,
        targets: Sequence[ScoredTarget],
        outputs: Floats,
        terms: Floats | None,
        columns: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Return the targets' scores in each run, [N,T]; what they share is computed once."""
        if terms is None and self.score == "softmax" and self._task == "classifier":
            terms = softmax_terms(outputs)
        return scores_of(targets, outputs, terms, columns)

    def _zeros(self, tensor: npt.NDArray[Any], targets: Sequence[ScoredTarget]) -> Any:
        """Return the targets' scores [T] where masks begin (see `runtimes.zero_runner`)."""
        outputs = self._finder.zero(self._model.zero(tensor))
        return self._scores(targets, outputs[None], None)[0]

    def find_targets(
        self, targets: str | int | Iterable[str | int] | Targets = "top1", **options: Any
    ) -> Targets:
        """Return targets with all that is the same for every image done: references made.

        Args:
            targets, options: see `__call__`.

        Raises:
            OptionError: an option is not for models of this kind, or one is missing.
            TargetError: there is no such class.
        """
        asked = targets_from(targets, options)
        self._finder.check(asked)
        if self.bundle.manifest.task != "embedding" or isinstance(asked.similar_to, Reference):
            return asked
        made = self.reference(asked.similar_to, unlike=asked.unlike, centre=asked.centre)
        return dataclasses.replace(asked, similar_to=made, unlike=(), centre=())

    def reference(self, similar_to: Any, *, unlike: Any = (), centre: Any = ()) -> Reference:
        """Return what an embedding's images are compared with, to use it for many images.

        Args:
            similar_to, unlike, centre: see `ov_recipro.options.Targets`.

        Raises:
            ReciproError: a file can't be read, or vectors do not fit the model.
        """
        sources = (similar_to, unlike, centre)
        like, against, middle = (list(read_vectors(each, self.vector)) for each in sources)
        length = self.bundle.manifest.values
        return make_reference(like, against, middle, length, only_image(similar_to))

    def vector(self, image: str | Path | ImageFile | Image) -> Floats:
        """Return `outputs` of an image (see `__call__`): an embedding's vector, float32 [D]."""
        pixels, _, _ = pixels_of(image)
        return self.outputs(self._prepared(pixels)[0])

    def outputs(self, tensor: npt.NDArray[Any]) -> Floats:
        """Return what targets are scored by for an input (see `explain_tensor`), float32 [V].

        Raises:
            ReciproError: the tensor does not fit the model, or the model gives NaN.
        """
        tensor = self._checked(tensor)
        return self._inferred(tensor, lambda inference: np.array(inference.logits, np.float32))

    def predict(self, image: str | Path | ImageFile | Image) -> tuple[Prediction, ...]:
        """Return an image's `Explanation.predictions`; in plan `rows` at the cost of maps."""
        pixels, _, _ = pixels_of(image)
        return self._predictions(*self._prepared(pixels))

    def predict_tensor(self, tensor: npt.NDArray[Any]) -> tuple[Prediction, ...]:
        """Return what the model predicts for a preprocessed input (see `explain_tensor`)."""
        return self._predictions(self._checked(tensor), self.bundle.manifest.image.window)

    def _predictions(self, tensor: npt.NDArray[Any], window: Window) -> tuple[Prediction, ...]:
        def predictions(found: Inference) -> tuple[Prediction, ...]:
            return self._finder.predictions(found.logits, found.softmax_terms, window)

        return self._inferred(tensor, predictions)

    def _inferred(self, tensor: npt.NDArray[Any], take: Callable[[Inference], Result]) -> Result:
        def infer() -> Result:
            with self._runtime.infer(tensor) as inference:
                inference.check_finite()
                return take(inference)

        return self._model.guarded(infer)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make another such explainer of its bundle."""
        return {
            "device": dataclasses.replace(self.running, plan="auto", max_cost=None),
            "score": self.score,
            "mask": self.mask,
            "method": self.method,
            "signed": self.signed,
            "preprocessing": self.preprocessing,
            "labels": self.labels,
        }

    def provenance(self) -> dict[str, Any]:
        """Return what its maps depend on, besides the image and the targets."""
        return {
            **self.bundle.manifest.provenance,
            "method": self.method,
            **self._model.details,
            "plan": self.plan.name,
            "score": self.score,
            "mask": self.mask,
            "precision": self.running.precision,
            "device": self.running.device,
            "preprocessing": self.preprocessing,
            "versions": self.versions,
        }
