"""The slow oracle: one-hot masks through the whole model, one cell at a time.

Independent of the package: the mask is multiplied into the whole ONNX model, and ONNX Runtime runs
it in float32 at batch 1 once for each cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from ov_recipro.cut.bundle import Bundle
from ov_recipro.plans import sparse
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import Logits
from ov_recipro.runtimes.openvino_runtime import dense_runner
from ov_recipro.runtimes.runtime import Runtime
from ov_recipro.sources.openvino_models import read, runner


class Oracle:
    """Runs `model` with `tensor` multiplied by a mask.

    Tokens [1,T,C] are masked behind `prefix` ones, which are always kept. The mask keeps one cell,
    or, to `drop` it, all others.
    """

    def __init__(
        self,
        model: Path,
        tensor: str,
        output: str | None = None,
        prefix: int | None = None,
        drop: bool = False,
    ) -> None:
        proto = onnx.load(model)
        graph = proto.graph
        masked = f"{tensor}/masked"
        for node in graph.node:
            node.input[:] = [masked if name == tensor else name for name in node.input]
        made = next(i for i, node in enumerate(graph.node) if tensor in node.output)
        multiply = onnx.helper.make_node("Mul", [tensor, "mask"], [masked], name="masking")
        graph.node.insert(made + 1, multiply)
        shape: list[str | int | None] = [1, 1, "h", "w"]
        if prefix is not None:
            shape = [1, "t", 1]
        graph.input.append(
            onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, shape)
        )
        self._prefix, self._drop = prefix, drop
        self._session = ort.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._image = next(i.name for i in self._session.get_inputs() if i.name != "mask")
        self._output = output or self._session.get_outputs()[0].name

    def logits(
        self,
        image: npt.NDArray[np.float32],
        grid: tuple[int, int],
        cells: Iterable[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the logits [n, classes] of each cell's mask; of all H*W by default."""
        count = grid[0] * grid[1]
        rows = []
        for cell in range(count) if cells is None else cells:
            mask = np.eye(count, dtype=np.float32)[cell]
            mask = 1 - mask if self._drop else mask
            if self._prefix is None:
                mask = mask.reshape(1, 1, *grid)
            else:
                mask = np.append(np.ones(self._prefix, np.float32), mask)[None, :, None]
            feed = {self._image: image, "mask": mask}
            rows.append(self._session.run([self._output], feed)[0].reshape(-1))
        return np.stack(rows)

    def plain(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the logits [classes] of the whole image."""
        mask = np.ones((1,) * (4 if self._prefix is None else 3), np.float32)
        (logits,) = self._session.run([self._output], {self._image: image, "mask": mask})
        return np.asarray(logits).reshape(-1)

    def empty(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the logits [classes] with no cell kept of a feature map."""
        mask = np.zeros((1, 1, 1, 1), np.float32)
        (logits,) = self._session.run([self._output], {self._image: image, "mask": mask})
        return np.asarray(logits).reshape(-1)

    def maps(
        self, image: npt.NDArray[np.float32], grid: tuple[int, int], classes: list[int]
    ) -> npt.NDArray[np.float64]:
        """Return the saliency maps [T,H,W] by the paper's Eq. 6 and 7."""
        logits = self.logits(image, grid).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (powers / powers.sum(axis=1, keepdims=True))[:, classes].T
        low = scores.min(axis=1, keepdims=True)
        high = scores.max(axis=1, keepdims=True)
        scaled = (scores - low) / np.where(high > low, high - low, 1)
        return np.asarray(scaled.reshape(len(classes), *grid))


def run(runtime: Runtime, image: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the package's logits [classes] of an image and [N,classes] of its cells."""
    with runtime.infer(image) as inference:
        cells = [np.array(logits) for logits, _ in inference.masked(None)]
        return np.array(inference.logits), np.concatenate(cells)


def dense_logits(bundle: Bundle, device: str, memory: int, mask: Mask = "cell") -> Logits:
    """Return the package's own slow reference for all cells of a feature map."""
    (cells,) = sparse.checked_cells(bundle.manifest)
    return dense_runner(bundle, device, memory, mask)(cells)


def features_of(bundle: Bundle, image: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the feature map and the bypass tensors of an image."""
    return runner(read(bundle.head, [bundle.manifest.image.shape]))([image])
