"""Opening what a user names: a model that is split on first use, or a bundle."""

from __future__ import annotations

from pathlib import Path

from ov_recipro.cut.bundle import Bundle, open_bundle
from ov_recipro.errors import ModelError, OptionError
from ov_recipro.options import Cut
from ov_recipro.splitting.bundle_cache import cached_split


def opened(path: Path, cut: Cut, is_cut: bool = True) -> Bundle:
    """Return a bundle, or the bundle of a model.

    Args:
        path: either.
        cut: where a model is cut.
        is_cut: whether it must be; otherwise a detector that can't be is taken whole.

    Raises:
        ModelError: it can't be read or cut.
        OptionError: a bundle is already cut.
    """
    if path.is_dir():
        if cut != Cut():
            raise OptionError(
                f"{path} is already split: its layer, output and input shape are fixed."
            )
        return open_bundle(path)
    try:
        return cached_split(path, cut)
    except ModelError as error:
        if cut.task not in ("auto", "detector"):
            raise
        from ov_recipro.splitting.whole import whole_bundle

        try:
            found = whole_bundle(path, cut)
        except ModelError:
            raise error from None
        if is_cut:
            raise ModelError(
                f"{error} --method occlusion (in evaluate, --methods) can still explain it, "
                "from its image alone."
            ) from error
        return found
