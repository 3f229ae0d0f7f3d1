"""A model opened and run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

from ov_recipro.black_boxes.attribution import BLACK_BOXES, check_method
from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import OptionError
from ov_recipro.isolation.messages import How
from ov_recipro.options import Cut, Running
from ov_recipro.plans.stream import Mask
from ov_recipro.runtimes import open_runtime, zero_runner
from ov_recipro.runtimes.cost_limit import check_cost
from ov_recipro.runtimes.runtime import Floats, Runtime
from ov_recipro.runtimes.whole_runtime import WholeRuntime
from ov_recipro.saliency import Array
from ov_recipro.splitting.opening import opened
from ov_recipro.targets.finding import default_mask
from ov_recipro.variants import VARIANTS
from ov_recipro.variants.variant_maps import details, open_variant

Result = TypeVar("Result")


class Model(Protocol):
    """A model ready to be explained, wherever it runs."""

    @property
    def bundle(self) -> Bundle:
        """The split model."""

    @property
    def mask(self) -> Mask:
        """What is kept of the feature map."""

    @property
    def runtime(self) -> Runtime:
        """What runs it."""

    @property
    def details(self) -> dict[str, str]:
        """What else a record says of its maps."""

    def zero(self, tensor: Array) -> Floats:
        """Return the tail's outputs [values] where masks begin (see `runtimes.zero_runner`)."""

    def outputs(self, tensor: Array) -> Floats:
        """Return the outputs [V] of a model that is run whole."""

    def guarded(self, explain: Callable[[], Result]) -> Result:
        """Call what explains one image; see `isolated.IsolatedModel`."""

    def interrupt(self) -> None:
        """Give up what is at work in a process of its own."""


class OpenedModel:
    """A model in this process; see `Model`.

    Args:
        bundle: the split model.
        running, mask: how it is run.
        runtime: what runs it.
    """

    def __init__(self, bundle: Bundle, running: Running, mask: Mask, runtime: Runtime) -> None:
        self.bundle, self.mask, self.runtime = bundle, mask, runtime
        self.details = details(runtime)
        self._running = running
        self._lock = Lock()
        self._zero: Callable[[Array], Floats] | None = None

    def zero(self, tensor: Array) -> Floats:
        """See `Model.zero`."""
        with self._lock:
            if self._zero is None:
                self._zero = zero_runner(self.bundle, self._running, self.mask)
        return self._zero(tensor)

    def outputs(self, tensor: Array) -> Floats:
        """See `Model.outputs`."""
        if not isinstance(self.runtime, WholeRuntime):
            raise TypeError("this model is run in two parts")
        return self.runtime.run(tensor)

    def guarded(self, explain: Callable[[], Result]) -> Result:
        """See `Model.guarded`."""
        return explain()

    def interrupt(self) -> None:
        """See `Model.interrupt`: what is at work here can't be given up."""


def open_model(source: Path | Bundle, how: How) -> OpenedModel:
    """Split a model if need be, and make it ready.

    Args:
        source: a model file or a bundle.
        how: how it is opened and run; only a model file is cut.

    Raises:
        ReciproError: the model can't be read, cut there or run on that device.
    """
    cut, running, method = how.cut, how.running, how.method
    file: tuple[Path, Cut] | None = None
    if isinstance(source, Bundle):
        bundle = source
    else:
        bundle = opened(source, cut, is_cut=method not in BLACK_BOXES)
        file = None if source.is_dir() else (source, cut)
    manifest = bundle.manifest
    mask = how.mask or default_mask(manifest)
    check_method(method, manifest.task)
    check_cost(bundle, running, mask, method, file)
    if manifest.cut.joined and mask in ("spread", "weight"):
        raise OptionError(f"--mask {mask} can't mask several feature maps at once.")
    runtime: Runtime
    if method in BLACK_BOXES:
        runtime = WholeRuntime(bundle, running)
    elif method in VARIANTS:
        runtime = open_variant(method, bundle, running, mask, how.signed)
    else:
        runtime = open_runtime(bundle, running, mask)
    return OpenedModel(bundle, running, mask, runtime)
