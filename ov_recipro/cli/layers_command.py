"""`ov-recipro layers`: where a model can be cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ov_recipro.cli.option_groups import FILE, note, options_of
from ov_recipro.cli.tables import aligned
from ov_recipro.options import Cut
from ov_recipro.output import as_record

if TYPE_CHECKING:
    from ov_recipro.cut.cut_point import CutPoint


_DRIFT = (
    "The deeper the block, the farther a token's evidence may lie from its place. auto is blocks.0 "
    "where plan 'tokens' applies to it, else the last block."
)


@click.command("layers")
@click.argument("model", type=FILE)
@options_of(Cut, "cut", "output_name", "input_shape", "constants", "task")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path,
    cut: Cut,
    as_json: bool,
) -> None:
    """List the feature maps and tokens at which MODEL can be explained.

    A clean feature map lies on every path from the image to the scores. The others need --exact,
    which carries along the tensors that bypass them; without it the cut moves to the end of the
    block. The cost of an explanation is estimated for the plan that will run it, as a multiple of
    one inference. The tokens that a transformer's block reads also go by the block's name; prefix
    tokens, such as the class token, are kept in every mask.
    """
    from ov_recipro.cut.points import cut_points
    from ov_recipro.cut.recognition import with_article
    from ov_recipro.sources.references import located
    from ov_recipro.splitting.costs import costs
    from ov_recipro.splitting.split import open_source

    source = open_source(located(model), cut)
    note(f"Taken for {with_article(source.graph.task)}: {source.graph.why}.")
    points = cut_points(source.graph)
    estimates = costs(source, points)
    if as_json:
        rows = [
            {
                "index": index,
                "tensor": point.tensor,
                "joined": [each.tensor for each in point.joined],
                "node": point.node,
                "op": point.op,
                "shape": point.shape,
                "stride": point.stride,
                "layout": point.layout,
                "prefix": point.prefix,
                "block": point.block,
                "clean": point.clean,
                "bypass": point.bypass,
                "plan": None if cost is None else cost.plan,
                "plan_reason": None if cost is None else cost.reason,
                "cost": None if cost is None else round(cost.inferences, 3),
            }
            for index, (point, cost) in enumerate(zip(points, estimates, strict=True))
        ]
        click.echo(as_record(rows), nl=False)
        return
    on_tokens = any(point.layout == "NTC" for point in points)
    names = ("block", "prefix") if on_tokens else ()
    header = ("index", *names, "tensor", "op", "C x H x W", "stride", "plan", "cost", "clean")
    table = [header] + [
        (
            str(index),
            *(_tokens(point) if on_tokens else ()),
            point.tensor + (f" + {len(point.joined)} more" if point.joined else ""),
            "joint" if point.joined else point.op,
            " x ".join(map(str, point.shape)),
            str(point.stride),
            "?" if cost is None else cost.plan,
            "?" if cost is None else _rounded(cost.inferences),
            "yes" if point.clean else f"no: {_some(point.bypass)}",
        )
        for index, (point, cost) in enumerate(zip(points, estimates, strict=True))
    ]
    click.echo(aligned(table))
    if on_tokens:
        click.echo(_DRIFT)


def _tokens(point: CutPoint) -> tuple[str, str]:
    if point.block is None:
        return "", ""
    return f"blocks.{point.block}", str(point.prefix)


def _rounded(cost: float) -> str:
    return f"{cost:.0f}" if cost >= 100 else f"{cost:.3g}"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more} go{'es' if len(names) == 1 else ''} round it"
