"""The explainer: an image in, predictions and saliency maps out."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import openvino

from ov_recipro.cut.bundle import MANIFEST, SUFFIX, Bundle, open_bundle
from ov_recipro.errors import ImageError, OptionError
from ov_recipro.explanation import Explanation, Prediction, Target
from ov_recipro.images.preprocess import Image, Preprocessing, changed, prepare
from ov_recipro.images.reading import ImageFile, read_file
from ov_recipro.options import Cut, Running, cut_and_running_from
from ov_recipro.ordered import in_order
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes import open_runtime, runs_on_openvino
from ov_recipro.saliency import (
    Floats,
    Score,
    best_classes,
    default_score,
    saliency_maps,
    softmax_terms,
    target_scores,
)
from ov_recipro.sources.labels import checked_labels
from ov_recipro.sources.openvino_models import as_file
from ov_recipro.targets.base import ScoredTarget
from ov_recipro.targets.classes import ClassTarget, find_classes

MODEL_VARIABLE = "OV_RECIPRO_MODEL"
_LISTED = 5  # predictions that an explanation lists


class Explainer:
    """Explains the predictions of an image classifier in a file.

    Args:
        model: an ONNX file, an OpenVINO .xml file, a bundle or an openvino.Model; by default the
            one that `default_model` finds. A model is split on first use and the bundle kept in the
            user's cache.
        layer: where to cut, or a whole `ov_recipro.options.Cut`; not for bundles.
        device: what to run on, such as "CPU", or a whole `ov_recipro.options.Running`.
        score: how logits become class scores; by default the model's own closing activation, else
            softmax.
        mask: "cell" (the paper's), "spread" or "weight", its Gaussian variants.
        preprocessing: how images become inputs, or a function that changes what the model says
            about it (see `ov_recipro.sources.metadata.find_preprocessing`).
        labels: class names in order; by default the model's own.
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
        mask: Mask = "cell",
        preprocessing: Preprocessing | Callable[[Preprocessing], Preprocessing] | None = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        cut, self.running = cut_and_running_from(layer, device, options)
        if isinstance(model, Bundle):
            self.bundle = model
            _check_cost(self.bundle, self.running, mask, None)
        else:
            with as_file(default_model() if model is None else model) as path:
                self.bundle = _open(path, cut)
                source = None if path.is_dir() else (path, cut)
                _check_cost(self.bundle, self.running, mask, source)
        manifest = self.bundle.manifest
        self.mask: Mask = mask
        self.score: Score = score or default_score(manifest.activation, manifest.classes)
        self.preprocessing = changed(manifest.preprocessing, preprocessing)
        self.labels = checked_labels(
            tuple(labels) if labels is not None else manifest.labels, manifest.classes
        )
        self._runtime = open_runtime(self.bundle, self.running, mask)
        self.workers = self._runtime.parallel + 1  # one more reads and draws meanwhile
        self.plan = self._runtime.plan
        self.plan_reason = self._runtime.reason
        self.versions = {"ov-recipro": version("ov-recipro"), **self._runtime.versions}
        self._provenance: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode(self.provenance())
        )

    def __call__(
        self,
        image: str | Path | ImageFile | Image,
        targets: str | int | Iterable[str | int] = "top1",
    ) -> Explanation:
        """Explain an image.

        Args:
            image: a path, a file already read (see `images.reading`), or uint8 [H,W,3] BGR.
            targets: what to explain: a class name or index, or "top1", "top5", ... for the
                classes of highest score; or several of these.

        Raises:
            ReciproError: the image can't be read, there is no such class, or the model gives NaN.
        """
        source = read_file(Path(image)) if isinstance(image, str | Path) else image
        pixels, path, sha256 = (
            (source.pixels, source.path, source.sha256)
            if isinstance(source, ImageFile)
            else (source, None, None)
        )
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ImageError(
                f"An image must be uint8 [H,W,3] in BGR, not {pixels.dtype} {list(pixels.shape)}."
            )
        entry = self.bundle.manifest.image
        tensor, window = prepare(pixels, self.preprocessing, entry.channels_last, entry.dtype)
        explanation = self.explain_tensor(tensor, targets)
        return dataclasses.replace(
            explanation, image=pixels, window=window, path=path, sha256=sha256
        )

    def stream(
        self,
        images: Iterable[str | Path | ImageFile | Image],
        targets: str | int | Iterable[str | int] = "top1",
    ) -> Iterator[Explanation]:
        """Explain many images, reading, preparing and inferring several at once.

        Args:
            images: see `__call__`; drawn as they are needed, so there may be no end of them.
            targets: see `__call__`; the same for all.

        Yields:
            The explanations, in the order of the images.

        Raises:
            ReciproError: at the turn of an image that can't be explained; the stream ends there.
        """
        wanted = targets if isinstance(targets, str | int) else list(targets)
        yield from in_order(lambda image: self(image, wanted), images, self.workers)

    def explain_tensor(
        self,
        tensor: npt.NDArray[Any],
        targets: str | int | Iterable[str | int] = "top1",
    ) -> Explanation:
        """Explain an already preprocessed input.

        Args:
            tensor: the model's input at batch 1, such as float32 [1,3,H,W].
            targets: see `__call__`.
        """
        entry = self.bundle.manifest.image
        if tensor.shape != entry.shape:
            raise ImageError(
                f"The model takes an input of shape {list(entry.shape)}, not {list(tensor.shape)}."
            )
        started = time.perf_counter()
        with self._runtime.infer(tensor.astype(entry.dtype, copy=False)) as inference:
            if not (inference.finite and np.isfinite(inference.logits).all()):
                raise ImageError("The model gives NaN or infinite numbers for this image.")
            best = best_classes(inference.logits, _LISTED)
            indices = self.find_targets(targets, inference.logits)
            scored: list[ScoredTarget] = [
                ClassTarget(index, self._label(index), self.score) for index in indices
            ]
            image = (inference.logits[None], inference.softmax_terms)
            listed = target_scores(image[0], self.score, best, image[1])[0].tolist()
            (full_scores,) = self._scores(scored, *image).tolist()
            runs = [self._scores(scored, *run) for run in inference.masked]
        cells = self.bundle.manifest.cut.cells.as_maps(np.concatenate(runs))
        if not np.isfinite(cells).all():
            raise ImageError("The model gives NaN or infinite scores for a masked feature map.")
        raw = cells.astype(np.float32)
        return Explanation(
            predictions=tuple(
                Prediction(index, self._label(index), score)
                for index, score in zip(best, listed, strict=True)
            ),
            targets=tuple(
                Target(
                    index=target.index,
                    label=target.label,
                    score=score,
                    range=(float(values.min()), float(values.max())),
                    distinct_values=len(set(values.ravel().tolist())),
                    flat=bool(values.min() == values.max()),
                    next_layer=self.bundle.manifest.cut.next_layer,
                )
                for target, score, values in zip(scored, full_scores, raw, strict=True)
            ),
            maps=saliency_maps(cells),
            raw=raw,
            feature_shape=self.bundle.manifest.cut.shape,
            layout=self.bundle.manifest.cut.layout,
            provenance=self._provenance,
            milliseconds=1e3 * (time.perf_counter() - started),
        )

    def _scores(
        self, targets: Sequence[ScoredTarget], logits: Floats, terms: Floats | None
    ) -> npt.NDArray[np.float64]:
        """Return the targets' scores in each run, [N,T]; what they share is computed once."""
        if terms is None and self.score == "softmax":
            terms = softmax_terms(logits)
        return np.stack([target.scores(logits, terms) for target in targets], axis=1)

    def find_targets(
        self,
        targets: str | int | Iterable[str | int],
        logits: npt.NDArray[np.float32] | None = None,
    ) -> list[int]:
        """Return the class indices that `targets` mean, each once.

        Args:
            targets: see `__call__`.
            logits: of the classes, [classes], which "top1" and the like refer to; without them
                these are accepted and left out.

        Raises:
            TargetError: there is no such class.
        """
        classes = self.bundle.manifest.classes
        return find_classes(targets, self.labels, classes, logits)

    def options(self) -> dict[str, Any]:
        """Return the arguments that make another such explainer of its bundle."""
        return {
            "device": dataclasses.replace(self.running, plan="auto", max_cost=None),
            "score": self.score,
            "mask": self.mask,
            "preprocessing": self.preprocessing,
            "labels": self.labels,
        }

    def provenance(self) -> dict[str, Any]:
        """Return what its maps depend on, besides the image and the targets."""
        manifest = self.bundle.manifest
        return {
            "model": manifest.source.name,
            "sha256": manifest.source.sha256,
            "companions": [
                {"name": each.name, "sha256": each.sha256} for each in manifest.source.companions
            ],
            "layer": manifest.cut.tensor,
            "feature_shape": manifest.cut.shape,
            "output": manifest.output,
            "plan": self.plan.name,
            "score": self.score,
            "mask": self.mask,
            "precision": self.running.precision,
            "device": self.running.device,
            "preprocessing": self.preprocessing,
            "versions": self.versions,
        }

    def _label(self, index: int) -> str | None:
        return self.labels[index] if self.labels is not None else None


def default_model() -> Path:
    """Return the model to use where none is named.

    That is `$OV_RECIPRO_MODEL`; else the one bundle in the working directory; else the
    EfficientNet-Lite0 that comes with the package.

    Raises:
        OptionError: there are several bundles in the working directory.
    """
    if named := os.environ.get(MODEL_VARIABLE):
        return Path(named)
    bundles = sorted(p for p in Path().glob(f"*{SUFFIX}") if (p / MANIFEST).is_file())
    if len(bundles) > 1:
        names = ", ".join(map(str, bundles))
        raise OptionError(f"Which model? There are several bundles here: {names}. Choose with -m.")
    return bundles[0] if bundles else bundled_model()


def bundled_model() -> Path:
    """Return the EfficientNet-Lite0 that comes with the package."""
    name = Path("models", "efficientnet-lite0", "efficientnet-lite0.onnx")
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.is_file() else package.parent / name


def _open(path: Path, cut: Cut) -> Bundle:
    if path.is_dir():
        if cut != Cut():
            raise OptionError(
                f"{path} is already split: its layer, output and input shape are fixed."
            )
        return open_bundle(path)
    from ov_recipro.splitting.bundle_cache import cached_split

    return cached_split(path, cut)


def _check_cost(
    bundle: Bundle, running: Running, mask: Mask, source: tuple[Path, Cut] | None
) -> None:
    """Raise ReciproError where an explanation costs more than `max_cost` inferences.

    Args:
        bundle: what to explain.
        running: how it is run, and the limit, if there is one.
        mask: what is kept of the feature map.
        source: the model's file and how it is cut, to name a cheaper layer; None for a bundle.
    """
    cost, max_cost = bundle.manifest.cost, running.max_cost
    if max_cost is None or cost is None:
        return
    cut = bundle.manifest.cut
    on_tokens = cut.layout == "NTC"
    sparse_applies = runs_on_openvino(running.device) if on_tokens else mask == "cell"
    expected = cost.stream
    if sparse_applies and running.plan != "stream":
        expected = cost.inferences
        if mask != "cell":  # nine cells instead of one, beside the prefix and the rest
            expected = 1 + (expected - 1) * (cut.prefix + 10) / (cut.prefix + 2)
    if expected <= max_cost:
        return
    hint = "'ov-recipro layers' lists what other layers cost"
    tensor = bundle.manifest.cut.tensor
    if source is not None:
        from ov_recipro.splitting.costs import cheaper_layer
        from ov_recipro.splitting.split import open_source

        found = cheaper_layer(open_source(*source), tensor, max_cost)
        if found is not None:
            hint = f"'{found[0]}', further on, would cost about {found[1].inferences:.3g}"
    raise OptionError(
        f"Explaining at '{tensor}' would cost about {expected:.3g} inferences per image; the limit "
        f"is {max_cost:g} (--max-cost). {hint[0].upper()}{hint[1:]}."
    )
