"""An image's masked runs beside what the tail gives for no cell, of a tail that only adds up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ov_recipro.cut.bundle import Bundle
from ov_recipro.cut.cells import Cells
from ov_recipro.options import Running
from ov_recipro.runtimes import open_runtime
from ov_recipro.runtimes.pooled_tail import empty_logits
from ov_recipro.runtimes.runtime import Inference
from ov_recipro.saliency import Array, Floats


@dataclass(frozen=True)
class PooledInference(Inference):
    """An inference of a tail of global average pool and linear layer.

    Attributes:
        empty: the logits of no cell, [classes]; cells: those of the feature map.
    """

    empty: Floats
    cells: Cells


class PooledRuntime:
    """A model with such a tail, ready to run on one device; see `runtimes.runtime.Runtime`.

    Raises:
        OptionError: the tail has another form.
    """

    def __init__(self, bundle: Bundle, running: Running) -> None:
        self._empty, self._cells = empty_logits(bundle), bundle.manifest.cut.cells
        self._runtime = runtime = open_runtime(bundle, running, "cell")
        self.plan, self.reason, self.parallel = runtime.plan, runtime.reason, runtime.parallel
        self.versions = runtime.versions

    @contextmanager
    def infer(self, image: Array) -> Iterator[PooledInference]:
        """Run one image; the result is valid inside the context."""
        with self._runtime.infer(image) as found:
            yield PooledInference(
                found.logits,
                found.softmax_terms,
                found.finite,
                found.masked,
                self._empty,
                self._cells,
            )
