"""Similarity: what makes an image's vector like that of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import OptionError, TargetError
from ov_recipro.explanation import Target
from ov_recipro.saliency import Floats, Score
from ov_recipro.targets.base import extended

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """Where vectors come from: a file's name, or "an array", and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Reference:
    """What images are compared with.

    Attributes:
        like: a unit vector [D]; unlike: another, that counts against; None where there is none.
        centre: a vector [D] that is subtracted from all others first, None where there is none.
        sources: of `like`; unlike_sources, centre_sources: of the others.
        image: path of the one image that `like` comes from; None where there are more, or none.
    """

    like: Vector
    unlike: Vector | None
    centre: Vector | None
    sources: tuple[Source, ...]
    unlike_sources: tuple[Source, ...] = ()
    centre_sources: tuple[Source, ...] = ()
    image: str | None = None


@dataclass(frozen=True)
class Similarity(Target):
    """The record of a comparison; `score` is the cosine of the image, less that of `unlike`.

    Attributes:
        references: what the image is compared with; unlike: what counts against.
        centre: what is subtracted from all vectors first.
        cosines: the scores of the cells, H rows of W each.
    """

    references: tuple[Source, ...] = ()
    unlike: tuple[Source, ...] = ()
    centre: tuple[Source, ...] = ()
    cosines: tuple[tuple[float, ...], ...] = ()

    @property
    def identity(self) -> Any:
        """What tells it from other comparisons of the same image."""
        sources = (self.references, self.unlike, self.centre)
        return [[each.sha256 for each in group] for group in sources]

    @property
    def name(self) -> str:
        """What tells it from the other targets of an image, in file names."""
        return "similarity"

    def remarks(self, cells: int, score: Score, mask: str = "cell") -> list[str]:  # noqa: ARG002
        """Return, in words, what speaks against the map; a cosine may be below 0."""
        return super().remarks(cells, "none", mask)


@dataclass(frozen=True)
class SimilarityTarget:
    """The likeness to a reference: cos(e - c, r), less cos(e - c, u) where there is a u.

    Attributes:
        reference: what is compared with; vectors [N,D] are e, its fields r, u and c.
    """

    reference: Reference

    index = 0
    reads = None

    @property
    def label(self) -> str:
        """The names of the references."""
        names = [source.name for source in self.reference.sources]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

    def scores(self, vectors: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """Return the cosine in each run, [N]; that of a vector of zeros is 0."""
        units = unit(np.asarray(vectors, np.float64), self.reference.centre)
        found = units @ self.reference.like
        if self.reference.unlike is not None:
            found = found - units @ self.reference.unlike
        return np.asarray(found)

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:  # noqa: ARG002
        """Return the record, with the references and the cells' cosines."""
        rows = tuple(tuple(float(f"{value:.6g}") for value in row) for row in raw.tolist())
        return extended(
            Similarity,
            measured,
            references=self.reference.sources,
            unlike=self.reference.unlike_sources,
            centre=self.reference.centre_sources,
            cosines=rows,
        )


def unit(vectors: Vector, centre: Vector | None) -> Vector:
    """Return vectors [...,D], less the centre, at length 1; those of length 0 stay."""
    moved = vectors if centre is None else vectors - centre
    lengths = np.linalg.norm(moved, axis=-1, keepdims=True)
    return np.asarray(moved / np.where(lengths > 0, lengths, 1))


def make_reference(
    like: Sequence[tuple[Source, Floats]],
    unlike: Sequence[tuple[Source, Floats]],
    centre: Sequence[tuple[Source, Floats]],
    length: int,
    image: str | None = None,
) -> Reference:
    """Return a reference made of vectors.

    Args:
        like: where vectors come from and the vectors [n,D], of which the mean of the unit vectors
            is taken; unlike: likewise, what counts against.
        centre: vectors whose mean is subtracted from all others.
        length: D, of the model's vectors.
        image: see `Reference`.

    Raises:
        OptionError: there is no vector, or one has another length.
        TargetError: a vector is not finite, or those of a reference cancel out.
    """
    if not like:
        raise OptionError("There is nothing to compare the image with.")
    for source, vectors in (*like, *unlike, *centre):
        _check(source, vectors, length)
    middle = _mean([vectors for _, vectors in centre]) if centre else None
    return Reference(
        like=_direction(like, middle),
        unlike=_direction(unlike, middle) if unlike else None,
        centre=middle,
        sources=tuple(source for source, _ in like),
        unlike_sources=tuple(source for source, _ in unlike),
        centre_sources=tuple(source for source, _ in centre),
        image=image,
    )


def _check(source: Source, vectors: Floats, length: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != length or not len(vectors):
        raise OptionError(
            f"{source.name} holds vectors of shape {list(vectors.shape)}; the model's have "
            f"{length} numbers."
        )
    if not np.isfinite(vectors).all():
        raise TargetError(f"{source.name} holds NaN or infinite numbers.")


def _mean(groups: Sequence[Floats]) -> Vector:
    return np.asarray(np.concatenate(groups).astype(np.float64).mean(axis=0))


def _direction(groups: Sequence[tuple[Source, Floats]], centre: Vector | None) -> Vector:
    units = [unit(vectors.astype(np.float64), centre) for _, vectors in groups]
    mean = unit(_mean(units), None)
    if not mean.any():
        names = ", ".join(source.name for source, _ in groups)
        raise TargetError(f"The vectors of {names} cancel out: they have no direction.")
    return mean
