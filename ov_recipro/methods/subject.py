"""A model under study: what methods and metrics may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_recipro.black_boxes.attribution import Method, fill_of
from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import ImageError, OptionError, ReciproError
from ov_recipro.explainer import Explainer
from ov_recipro.images.preprocess import Image, Window, prepare
from ov_recipro.ordered import in_order
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes import runs_on_openvino
from ov_recipro.runtimes.openvino_pieces import CompiledPieces, shared_runner
from ov_recipro.runtimes.pooled_tail import why_not_pooled
from ov_recipro.runtimes.whole_runtime import WholeRuntime
from ov_recipro.saliency import Array, Floats, Score, class_scores, default_score
from ov_recipro.sources.openvino_models import Runner, compiled
from ov_recipro.targets.base import ScoredTarget, scores_of
from ov_recipro.targets.classes import ClassTarget
from ov_recipro.targets.contrast import NEXT

_ISOLATED = "an isolated model shows only its outputs"

AnyTarget: TypeAlias = int | ScoredTarget
"""A class, or any other target."""


class NotApplicable(OptionError):
    """A model does not allow a method; the message says why."""


def class_of(target: AnyTarget) -> int:
    """Return the class that a target is.

    Raises:
        NotApplicable: it is something else.
    """
    if isinstance(target, int):
        return target
    if not isinstance(target, ClassTarget):
        raise NotApplicable("it explains only classes")
    return target.index


@dataclass(frozen=True)
class Forward:
    """What a model computes from an image.

    Attributes:
        features: the feature map [K,H,W] at the cut, float32; of tokens, those of the cells.
        boundary: the tensors that the tail reads: the feature map as it is in the model, and what
            bypasses the cut.
        logits: float32 [classes].
    """

    features: Floats
    boundary: list[Array]
    logits: Floats


class Subject:
    """A model under study, for images as float32 [C,H,W] in the units of its input.

    Its methods may be called from several threads. Those that need its feature map or its tail
    raise NotApplicable for a detector, and where the explainer is isolated.

    Args:
        explainer: names the model, layer, device, precision, hint and preprocessing.

    Attributes:
        probability: how its logits become the scores that metrics compare: its own closing
            sigmoid, else softmax.
        parallel: images that the device infers at once.
        stopped: while set, calls at work in other threads end with an error.

    Raises:
        OptionError: the explainer's device is not one of OpenVINO's.
    """

    def __init__(self, explainer: Explainer) -> None:
        device = explainer.running.device
        if not runs_on_openvino(device):
            raise OptionError(
                f"Maps are measured on OpenVINO's devices only; '{device}' is not one of them."
            )
        self.explainer = explainer
        manifest = explainer.bundle.manifest
        self.probability: Score = default_score(manifest.activation, manifest.classes)
        self._cut = manifest.cut
        self._entry = manifest.image
        runs: CompiledPieces | WholeRuntime | None = None
        if not explainer.running.isolate:
            kind = WholeRuntime if manifest.task == "detector" else CompiledPieces
            runs = kind(explainer.bundle, explainer.running)
        self._runs = runs
        self.parallel = explainer.workers - 1 if runs is None else runs.parallel
        self.stopped = Event()
        self._lock = Lock()
        key = (explainer.method, explainer.mask, explainer.score)
        self._explainers: dict[tuple[Method, Mask, Score], Explainer | OptionError]
        self._explainers = {key: explainer}
        self._linear: Floats | NotApplicable | None = None
        self._models: dict[Callable[[Bundle], ov.Model], Runner] = {}

    def prepare(self, pixels: Image) -> tuple[Floats, Window]:
        """Return pixels [h,w,3] BGR as an image [C,H,W], and the part of them that it covers."""
        entry, how = self._entry, self.explainer.preprocessing
        tensor, window = prepare(pixels, how, entry.channels_last, entry.dtype)
        return self.image(tensor), window

    def image(self, tensor: Array) -> Floats:
        """Return the model's input, such as [1,3,H,W], as an image [C,H,W]."""
        planes = tensor[0].transpose(2, 0, 1) if self._entry.channels_last else tensor[0]
        return np.ascontiguousarray(planes, np.float32)

    def tensor(self, image: Floats) -> Array:
        """Return an image [C,H,W] as the model's input; integers are rounded."""
        kind = np.dtype(self._entry.dtype)
        planes = image.transpose(1, 2, 0) if self._entry.channels_last else image
        if np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            planes = np.clip(np.rint(planes), limits.min, limits.max)
        return np.ascontiguousarray(planes[None], kind)

    @property
    def fill(self) -> Floats:
        """What stands for a hidden pixel, float32 [C] (see `black_boxes.attribution.fill_of`)."""
        return fill_of(self.explainer.preprocessing)

    @property
    def _pieces(self) -> CompiledPieces:
        if self._runs is None:
            raise NotApplicable(_ISOLATED)
        if isinstance(self._runs, WholeRuntime):
            raise NotApplicable("the model is a detector")
        return self._runs

    def forward(self, image: Floats) -> Forward:
        """Run the model on an image."""
        self._check_running()
        boundary, logits = self._pieces.infer(self.tensor(image))
        _check_finite(logits)
        features = boundary[0][0]
        if self._cut.layout == "NTC":
            features = features[self._cut.prefix :].T.reshape(self._cut.shape)
        elif self._cut.layout == "NHWC":
            features = features.transpose(2, 0, 1)
        return Forward(np.asarray(features, np.float32), boundary, logits)

    def outputs(self, image: Floats) -> Floats:
        """Return what targets are scored by for an image, [values]: a classifier's logits."""
        if isinstance(self._runs, CompiledPieces):
            return self.forward(image).logits
        self._check_running()
        if self._runs is None:
            return self.explainer.outputs(self.tensor(image))
        outputs = self._runs.run(self.tensor(image))
        _check_finite(outputs)
        return outputs

    def _check_running(self) -> None:
        if self.stopped.is_set():
            raise ReciproError("Measuring was stopped before this image was finished.")

    def scores(self, image: Floats) -> npt.NDArray[np.float64]:
        """Return the classes' scores [classes] for an image."""
        return class_scores(self.forward(image).logits, self.probability)

    def logits_of_all(self, images: Iterable[Floats]) -> Floats:
        """Return the outputs [n,values] of images, several at once; each is copied when drawn.

        For models whose outputs are as long for every image.
        """
        copies = (np.array(image) for image in images)
        return np.stack(list(in_order(self.outputs, copies, self.parallel)))

    def scores_of(self, logits: Floats, target: AnyTarget) -> npt.NDArray[np.float64]:
        """Return a target's scores [n] for logits [n,values]."""
        if isinstance(target, int):
            return class_scores(logits, self.probability)[:, target]
        return scores_of([target], logits, None)[:, 0]

    def score(self, image: Floats, target: AnyTarget) -> float:
        """Return a target's score for an image."""
        return float(self.scores_of(self.outputs(image)[None], target)[0])

    def curve(self, images: Iterable[Floats], target: AnyTarget) -> list[float]:
        """Return a target's scores along a series of images; each is copied when drawn."""
        copies = (np.array(image) for image in images)
        return list(in_order(lambda image: self.score(image, target), copies, self.parallel))

    def tail(self, features: Floats, run: Forward | None = None) -> Floats:
        """Return the logits [n,classes] of feature maps [n,K,H,W], in float32.

        Args:
            features: the maps.
            run: where prefix tokens and what bypasses the cut come from, if the model has any.
        """
        maps = features
        if self._cut.layout == "NTC":
            maps = features.reshape(*features.shape[:2], -1).transpose(0, 2, 1)
            if self._cut.prefix:
                if run is None:
                    raise ValueError("tokens need the run that their prefix comes from")
                prefix = run.boundary[0][:, : self._cut.prefix]
                maps = np.concatenate([np.repeat(prefix, len(maps), axis=0), maps], axis=1)
        elif self._cut.layout == "NHWC":
            maps = features.transpose(0, 2, 3, 1)
        return self._pieces.tail(maps, [] if run is None else run.boundary[1:])

    def outputs_of(self, make: Callable[[Bundle], ov.Model], image: Floats) -> list[Floats]:
        """Return what another model of the same image gives.

        Args:
            make: makes that model from the bundle; it is compiled once.
            image: the image.
        """
        if self._runs is None:
            raise NotApplicable(_ISOLATED)
        with self._lock:
            if make not in self._models:
                running = self.explainer.running
                model = compiled(make(self.explainer.bundle), running.device)
                self._models[make] = shared_runner(model)
        values = self._models[make]([self.tensor(image)])
        return [np.asarray(value, np.float32) for value in values]

    def reciprocal(
        self, image: Floats, target: AnyTarget, mask: Mask, score: Score | None
    ) -> Floats:
        """Return the explainer's map [H,W] of a target; a class's by the explainer's score."""
        explainer = self._explainer("recipro", mask, score or self.explainer.score)
        return self._map(explainer, image, target)

    def own(self, image: Floats, target: AnyTarget, method: Method | None = None) -> Floats:
        """Return a target's map [H,W] by a method of the explainer's, by default its own one.

        Raises:
            NotApplicable: the model does not allow it.
        """
        base = self.explainer
        try:
            explainer = self._explainer(method or base.method, base.mask, base.score)
        except OptionError as refusal:
            raise NotApplicable(str(refusal)) from refusal
        return self._map(explainer, image, target)

    def _map(self, explainer: Explainer, image: Floats, target: AnyTarget) -> Floats:
        if isinstance(target, int):
            return np.asarray(explainer.explain_tensor(self.tensor(image), target).maps[0])
        return np.asarray(explainer.explain_scored(self.tensor(image), [target]).maps[0])

    def maps(self, method: Method, image: Floats, targets: Sequence[ScoredTarget]) -> list[Floats]:
        """Return the maps [h,w] that a method of the explainer makes of targets, all at once."""
        explainer = self._explainer(method, self.explainer.mask, self.explainer.score)
        return list(explainer.explain_scored(self.tensor(image), targets).maps)

    def contrast(self, image: Floats, target: AnyTarget) -> Floats:
        """Return the map [H,W] of a class against the strongest other one."""
        index = class_of(target)
        tensor = self.tensor(image)
        return np.asarray(self.explainer.explain_tensor(tensor, index, against=NEXT).maps[0])

    def pooled_weights(self) -> Floats:
        """Return W [classes,K] of a tail whose logits are W times the channels' means plus a bias.

        W is found by running the tail, so any graph of this form will do: an affine tail for which
        the place of a value in its channel makes no difference must have it.

        Raises:
            NotApplicable: the tail has another form.
        """
        with self._lock:
            if self._linear is None:
                try:
                    self._linear = self._find_weights()
                except NotApplicable as failure:
                    self._linear = failure
        if isinstance(self._linear, NotApplicable):
            raise self._linear
        return self._linear

    def _find_weights(self) -> Floats:
        if len(self.explainer.bundle.manifest.boundary_shapes) > 1:
            raise NotApplicable("tensors bypass the cut")
        if self._cut.layout == "NTC":
            raise NotApplicable("the cut is tokens, not a feature map")
        channels, height, width = self._cut.shape
        reason = why_not_pooled(self.tail, self._cut.shape)
        if reason is not None:
            raise NotApplicable(reason)
        zero = self.tail(np.zeros((1, channels, height, width), np.float32))[0].astype(np.float64)
        found = []
        for start in range(0, channels, 64):
            chosen = range(start, min(start + 64, channels))
            planes = np.zeros((len(chosen), channels, height, width), np.float32)
            for row, channel in enumerate(chosen):
                planes[row, channel] = 1
            found.append(self.tail(planes))
        return np.asarray((np.concatenate(found) - zero).T, np.float32)

    def _explainer(self, method: Method, mask: Mask, score: Score) -> Explainer:
        key = (method, mask, score)
        with self._lock:
            if key not in self._explainers:
                base = self.explainer
                options = base.options() | {"method": method, "mask": mask, "score": score}
                try:
                    self._explainers[key] = Explainer(base.bundle, **options)
                except OptionError as refusal:  # found out once
                    self._explainers[key] = refusal
            found = self._explainers[key]
        if isinstance(found, OptionError):
            raise found
        return found


def _check_finite(outputs: Floats) -> None:
    if not np.isfinite(outputs).all():
        raise ImageError("The model gives NaN or infinite numbers for this image.")
