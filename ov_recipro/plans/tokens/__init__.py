"""Plan `tokens`: a transformer's tail, exactly, on the few tokens of each mask that differ.

Behind masked tokens, all emptied ones are equal at every depth, so that a mask is its prefix
tokens, the cell's, and one token that stands for all others and counts as often in attention. The
image's own tokens and those of all masks go through the tail in one run, as rows of one table.
"""

from ov_recipro.plans.tokens.tokens_plan import (
    ROUNDING,
    TokensPlan,
    added_macs,
    applies,
    build,
    inapplicable,
    sample,
)

__all__ = ["ROUNDING", "TokensPlan", "added_macs", "applies", "build", "inapplicable", "sample"]
