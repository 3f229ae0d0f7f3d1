"""ONNX Runtime: a bundle's head, its masks and its tail, each run by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ov_recipro.cut.bundle import Bundle
from ov_recipro.options import Running
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.stream.stream_onnx import CELLS, TOTAL, mask_model
from ov_recipro.plans.verdict import Logits
from ov_recipro.runtimes.model_graphs import stream_plan
from ov_recipro.runtimes.ort_device import ORTDevice
from ov_recipro.runtimes.runtime import Floats, MaskedRuns, selected
from ov_recipro.saliency import Array
from ov_recipro.sources.onnx_file import load_again


class ORTPieces:
    """A bundle's head, its masks and its tail, each opened when it is first needed.

    The tensors that the tail reads stay on the device between them.

    Args:
        bundle: what `split` made from an ONNX file.
        running: how it is run.
        device: what runs it.
        mask: what is kept of the feature map.

    Attributes:
        stream: how many cells run at once.
    """

    def __init__(self, bundle: Bundle, running: Running, device: ORTDevice, mask: Mask) -> None:
        self._bundle, self._running, self._device, self._mask = bundle, running, device, mask
        self.stream = stream_plan(bundle, running.batch_memory)

    def open(self, tail: bool) -> None:
        """Open the head, the masks and, if `tail`, the tail, where they are not open yet.

        Raises:
            DeviceError: the device can't run the model.
        """
        for session in (self._head, self._masking, *([self._tail] if tail else [])):
            session.get_inputs()

    @cached_property
    def _head(self) -> Any:
        return self._device.session(self._bundle.head, tf32=self._running.precision == "native")

    @cached_property
    def _tail(self) -> Any:
        return self._device.session(self._bundle.tail)

    @cached_property
    def _masking(self) -> Any:
        tail = load_again(self._bundle.tail, weights=False)
        types = [value.type.tensor_type.elem_type for value in tail.graph.input]
        return self._device.session(
            mask_model(self._bundle.manifest, types, self._mask).SerializeToString()
        )

    def head(self, image: Array) -> tuple[dict[str, Any], Floats | None]:
        """Return by name what the tail reads, and the logits if the deployed model gives them."""
        manifest = self._bundle.manifest
        deployed = manifest.head.outputs[-1:] if manifest.deployed_scores else ()
        feeds = {manifest.image.name: image}
        values = self._device.run(self._head, feeds, manifest.head.outputs, deployed)
        features = dict(zip(manifest.tail.inputs, values, strict=False))
        return features, values[-1].numpy() if deployed else None

    def logits(self, features: dict[str, Any]) -> Floats:
        """Return what the tail gives, as float32."""
        names = self._bundle.manifest.tail.outputs
        (value,) = self._device.run(self._tail, features, names, names)
        return np.asarray(value.numpy(), np.float32)

    def masked_logits(self, features: dict[str, Any], cells: Sequence[int] | Array) -> Floats:
        """Return the logits [n,values] under the masks of some cells, [n]."""
        names = self._bundle.manifest.tail.inputs
        feeds = features | {CELLS: np.asarray(cells, np.int64)}
        masked = self._device.run(self._masking, feeds, tuple(f"masked:{n}" for n in names), ())
        return self.logits(dict(zip(names, masked, strict=True))).reshape(len(cells), -1)

    def is_finite(self, features: dict[str, Any]) -> bool:
        """Whether the feature maps hold finite numbers only."""
        feeds = features | {CELLS: np.zeros(1, np.int64)}
        (total,) = self._device.run(self._masking, feeds, (TOTAL,), (TOTAL,))
        return bool(np.isfinite(total.numpy()))

    def streamed(self, features: dict[str, Any]) -> MaskedRuns:
        """Return `Inference.masked` of an image by plan `stream`."""

        def runs() -> Iterator[tuple[Floats, None]]:
            left = self.stream.cells
            for cells in self.stream.batches():
                yield self.masked_logits(features, cells)[:left], None
                left -= len(cells)

        return selected(runs())

    def dense(self, cells: Sequence[int]) -> Logits:
        """Return a slow reference for some cells: the whole tail for each of them."""
        names, batch = self._bundle.manifest.tail.inputs, self.stream.batch

        def logits(*features: Floats) -> tuple[Floats, Floats]:
            feeds = dict(zip(names, features, strict=True))
            found = []
            for start in range(0, len(cells), batch):
                chunk = np.array(cells[start : start + batch])
                found.append(self.masked_logits(feeds, np.resize(chunk, batch))[: len(chunk)])
            return np.concatenate(found), self.logits(feeds).reshape(-1)

        return logits
