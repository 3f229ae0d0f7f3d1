"""`ov-recipro embed`: one model that outputs saliency maps beside its own outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ov_recipro.cli.option_groups import (
    FILE,
    comparing,
    cut_options,
    note,
    options_of,
    overridden,
    preprocessing_options,
    score_option,
)
from ov_recipro.errors import OptionError
from ov_recipro.options import Cut, Targets
from ov_recipro.variants import VARIANTS


@click.command("embed")
@click.argument("model", type=FILE)
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="OUT", help="The new model, .xml or .onnx."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    default=("all",),
    show_default=True,
    metavar="CLASS",
    help="What to explain: all, the model's own top1, top5, ..., or classes by index or name; "
    "repeatable.",
)
@options_of(Targets, "asked", "against", "gamma", "similar_to", "unlike", "centre")
@click.option(
    "--scaling",
    type=click.Choice(["uint8", "float", "raw"]),
    default="uint8",
    show_default=True,
    help="Maps in 0..255, maps in 0..1, or the raw scores.",
)
@score_option
@click.option(
    "--method",
    type=click.Choice(["recipro", *VARIANTS]),
    default="recipro",
    show_default=True,
    help="Method that makes the maps.",
)
@click.option("--feature-vector", is_flag=True, help="Also output the feature map's spatial mean.")
@click.option("--compress-to-fp16", is_flag=True, help="Store weights in 16 bits.")
@cut_options
@preprocessing_options
def command(
    model: Path,
    output: Path,
    force: bool,
    targets: tuple[str, ...],
    asked: Targets,
    scaling: Any,
    score: Any,
    method: Any,
    feature_vector: bool,
    compress_to_fp16: bool,
    cut: Cut,
    labels: Path | None,
    **preprocessing: Any,
) -> None:
    """Write MODEL with an extra output, saliency_map, for OpenVINO (.xml) or as ONNX (.onnx).

    The model's own outputs stay as they are. OpenVINO Model API, or any pipeline, then gets maps
    without this tool. Known labels and preprocessing are written into the file as Model API reads
    them.
    """
    from ov_recipro.sources.labels import read_labels

    if output.suffix not in (".xml", ".onnx"):
        raise OptionError(f"{output}: the new model's file name must end in .xml or .onnx.")
    arguments: dict[str, Any] = {
        "layer": comparing(cut, asked),
        "targets": asked,
        "classes": _classes(targets),
        "scaling": scaling,
        "score": score,
        "method": method,
        "feature_vector": feature_vector,
        "preprocessing": lambda found: overridden(found, **preprocessing),
        "labels": read_labels(labels) if labels is not None else None,
    }
    if output.suffix == ".onnx":
        from ov_recipro.embedding import embed_onnx, save_onnx

        if compress_to_fp16:
            raise click.UsageError("--compress-to-fp16 is for .xml files.")
        proto = embed_onnx(model, **arguments)
        save_onnx(proto, output, force)
        names = [value.name for value in proto.graph.output]
    else:
        from ov_recipro.embedding import embed, save
        from ov_recipro.sources.openvino_models import name_of

        embedded = embed(model, **arguments)
        save(embedded, output, force, compress_to_fp16)
        names = [f"{name_of(port)} {port.get_element_type().get_type_name()} "
                 f"{port.get_partial_shape()}" for port in embedded.outputs]  # fmt: skip
    note(f"Outputs: {', '.join(names)}")
    click.echo(output)


def _classes(targets: tuple[str, ...]) -> Any:
    if targets == ("all",):
        return "all"
    if len(targets) == 1 and (top := re.fullmatch(r"top([1-9]\d*)", targets[0])):
        return int(top[1])
    if any(each == "all" or re.fullmatch(r"top\d+", each) for each in targets):
        raise click.UsageError("'all' and 'top...' can't be combined with other targets.")
    return list(targets)
