"""A limit on what an explanation may cost, checked before anything is compiled."""

from __future__ import annotations

from pathlib import Path

from ov_recipro.cut.bundle import Bundle
from ov_recipro.errors import OptionError
from ov_recipro.options import Cut, Running
from ov_recipro.plans.stream import Mask


def check_cost(
    bundle: Bundle,
    running: Running,
    mask: Mask,
    method: str = "recipro",
    source: tuple[Path, Cut] | None = None,
) -> None:
    """Raise ReciproError where an explanation costs more than `max_cost` inferences.

    Args:
        bundle: what to explain.
        running: how it is run, and the limit, if there is one.
        mask: what is kept of the feature map.
        method: black boxes are not limited, and "recipro-pair" limits itself.
        source: the model's file and how it is cut, to name a cheaper layer; None for a bundle.
    """
    cost, max_cost = bundle.manifest.cost, running.max_cost
    if max_cost is None or cost is None or method not in ("recipro", "recipro-aumann"):
        return
    cut = bundle.manifest.cut
    sparse_applies = mask != "drop" if cut.layout == "NTC" else mask in ("cell", "drop")
    expected = cost.stream
    if sparse_applies and running.plan != "stream":
        expected = cost.inferences
        if mask in ("spread", "weight"):  # nine cells instead of one, beside prefix and rest
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
        f"Explaining at '{cut.name}' would cost about {expected:.3g} inferences per image; the "
        f"limit is {max_cost:g} (--max-cost). {hint[0].upper()}{hint[1:]}."
    )
