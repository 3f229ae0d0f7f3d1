"""A point at which a model can be cut."""

from __future__ import annotations

from dataclasses import dataclass

from ov_recipro.cut.cells import Cells
from ov_recipro.cut.layout import Layout


@dataclass(frozen=True)
class JoinedMap:
    """A feature map that is masked together with others.

    Attributes:
        tensor: its name in the file; shape: (C, H, W).
    """

    tensor: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class CutPoint:
    """A tensor at which the model can be cut into head and tail: a feature map, or tokens.

    Or several at once: a joint cut masks the same part of the image in all of its feature maps.

    Attributes:
        tensor: the tensor's name in the file.
        node: name of the node that makes it; `op`: that node's operation.
        shape: (C, H, W).
        stride: input height over feature height, to the nearest whole number.
        bypass: tensors that carry the image around this one; empty for a clean cut.
        layout: the order of the tensor's axes in the model.
        prefix: number of tokens in front of the cells', which are always kept.
        block: number of the transformer's block that reads these tokens; None for feature maps, and
            for tokens inside a block.
        blocks: number of the model's blocks; 0 for feature maps. Tokens behind the last one have
            this `block`.
        joined: of a joint cut, the feature maps that are masked along with `tensor`, whose cells
            are those of the cut; [1,C,H,W] each.
    """

    tensor: str
    node: str
    op: str
    shape: tuple[int, int, int]
    stride: int
    bypass: tuple[str, ...]
    layout: Layout = "NCHW"
    prefix: int = 0
    block: int | None = None
    blocks: int = 0
    joined: tuple[JoinedMap, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether every path from the image to the scores passes through this cut."""
        return not self.bypass

    @property
    def masked(self) -> tuple[str, ...]:
        """The tensors that are masked."""
        return (self.tensor, *(each.tensor for each in self.joined))

    @property
    def boundary(self) -> tuple[str, ...]:
        """The tensors that lead from head to tail: the masked ones, then the bypass."""
        return (*self.masked, *self.bypass)

    @property
    def name(self) -> str:
        """What `--layer` calls it."""
        return ",".join(self.masked)

    @property
    def cells(self) -> Cells:
        """The cells that are kept one at a time."""
        return Cells(self.shape[1:])

    @property
    def next_layer(self) -> str | None:
        """The layer to try where this one's maps say little: halfway to the last block's tokens."""
        if self.block is None or self.block + 1 >= self.blocks:
            return None
        return f"blocks.{(self.block + self.blocks) // 2}"

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the cells, and so of a saliency map."""
        return self.cells.grid
