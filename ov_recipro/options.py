"""The options that travel through the package: where a model is cut, and how it is run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

Hint = Literal["latency", "throughput"]
PlanName = Literal["auto", "rows", "tokens", "stream"]
Precision = Literal["f32", "native"]
TaskName = Literal[
    "auto",
    "classifier",
    "detector",
    "embedding",
    "features",
    "similarity",
    "segmentation",
    "sequence",
]
AFFORDABLE = 25.0
"""Plain inferences that an explanation may cost where nobody says what it may."""

Constants: TypeAlias = Mapping[str, float]

_OLD_SPELLINGS = {"output": "output_name", "image_shape": "input_shape"}


@dataclass(frozen=True)
class Cut:
    """Where a model is cut.

    The command line makes its options from these fields, and their help from the lines below.

    Attributes:
        layer: Where to cut: a tensor, node or module name (in full, its end, or a glob), an index
            from 'layers' (-1 is the last), conv1 to conv5, blocks.0 to blocks.-1 (the tokens that a
            transformer's block reads), several names with commas between them (masked together), or
            auto: the last feature map; in a transformer blocks.0 or, where plan tokens does not
            apply to it, the last block; in a detector the maps of all its levels.
        exact: Cut at the named tensor even if other tensors bypass it; these are carried along.
        output_name: The model output to explain, if there are several; for vectors, any tensor.
        input_shape: Shape of the image input, if the file leaves it open, such as 1,3,224,224.
        constants: Fill an input other than the image with this value.
        task: What the model is for, where its file does not show it: classifier, detector,
            segmentation, sequence, embedding, features (the vector that a classifier's last layer
            reads) or similarity (embedding or features).
    """

    layer: str = "auto"
    exact: bool = False
    output_name: str | None = None
    input_shape: tuple[int, ...] | None = None
    constants: Constants = field(default_factory=dict)
    task: TaskName = "auto"


@dataclass(frozen=True)
class Running:
    """How a model is run.

    Attributes:
        device: An OpenVINO device, such as CPU, GPU.1 or AUTO; or, in ONNX Runtime, ort-cpu, cuda
            or cuda:1.
        precision: Precision of the head: f32, or native, the device's own choice. The tail always
            runs in float32.
        hint: One image at a time (latency), or several at once (throughput).
        plan: How the tail runs over the cells: rows, on the pixels that a cell can change; tokens,
            for transformers, on the few tokens that differ; stream, the whole tail on batches of
            masked maps; or auto: rows or tokens where they apply, pass their check and, for rows,
            save time, else stream.
        batch_memory: Memory for the tail's activations, in bytes.
        max_cost: Refuse a layer where explaining an image is estimated to cost more than this many
            plain inferences, before anything is compiled.
        isolate: Open and run the model in a process of its own, with limits on its memory and on
            the time for an answer; if it crashes or hangs, that image fails and others go on.
    """

    device: str = "CPU"
    precision: Precision = "f32"
    hint: Hint = "latency"
    plan: PlanName = "auto"
    batch_memory: int = 256 << 20
    max_cost: float | None = None
    isolate: bool = False


@dataclass(frozen=True)
class Targets:
    """What is explained.

    Attributes:
        classes: What to explain: top1, top5, a class index or name.
        against: Contrast the class with another, given by index or name, or with next, the
            strongest other one: z_c - gamma z_d is explained, with z the logits.
        gamma: Weight of the other class.
        similar_to: Explain what makes the image similar to these: an image, a folder of images, or
            a .npy file of vectors.
        unlike: Subtract the similarity to these.
        centre: Subtract the mean vector of these from all vectors first.
        region: Explain these pixels of a segmentation: X,Y,WIDTH,HEIGHT in the image; by default
            all pixels that are predicted as the class.
        pixel: Explain one pixel of a segmentation: X,Y in the image.
        position: Explain one position of a sequence, counted from 0, or from the end if it is
            negative.
        box: Explain this box of a detector: its number in the printed list, all, or
            X,Y,WIDTH,HEIGHT in the image, whether the model predicts such a box or misses it; by
            default the three of highest score, or all of the class that is asked for.
        threshold: Lowest score at which a detector's box counts.
        nms: Leave out a box that overlaps a better one of its class by more than this IoU.
    """

    classes: tuple[str | int, ...] = ("top1",)
    against: str | int | None = None
    gamma: float = 1.0
    similar_to: Any = ()
    unlike: Any = ()
    centre: Any = ()
    region: tuple[float, float, float, float] | None = None
    pixel: tuple[float, float] | None = None
    position: int | None = None
    box: str | int | tuple[float, ...] | None = None
    threshold: float = 0.4
    nms: float = 0.5


Options = TypeVar("Options", Cut, Running)


def targets_from(
    targets: str | int | Iterable[str | int] | Targets, options: Mapping[str, Any]
) -> Targets:
    """Return targets from their short form, classes alone, and single options.

    Raises:
        TypeError: there is no option of that name.
    """
    if isinstance(targets, str | int):
        targets = (targets,)
    base = targets if isinstance(targets, Targets) else Targets(tuple(targets))
    unknown = options.keys() - {each.name for each in dataclasses.fields(Targets)}
    _check_no_more({name: options[name] for name in unknown})
    found = dataclasses.replace(base, **options) if options else base
    if isinstance(found.box, str | int | tuple) or found.box is None:
        return found
    box = tuple(found.box) if isinstance(found.box, Iterable) else int(found.box)
    return dataclasses.replace(found, box=box)


def cut_from(layer: str | Cut, options: Mapping[str, Any]) -> Cut:
    """Return a cut from its short form and single options, such as ``exact=True``.

    Raises:
        TypeError: there is no option of that name, or one is given by both of its names.
    """
    cut, rest = _gathered(Cut, layer, options)
    _check_no_more(rest)
    return cut


def cut_and_running_from(
    layer: str | Cut, device: str | Running, options: Mapping[str, Any]
) -> tuple[Cut, Running]:
    """Return both from their short forms and single options.

    Raises:
        TypeError: there is no option of that name, or one is given by both of its names.
    """
    cut, rest = _gathered(Cut, layer, options)
    running, rest = _gathered(Running, device, rest)
    _check_no_more(rest)
    return cut, running


def _gathered(
    kind: type[Options], short: str | Options, options: Mapping[str, Any]
) -> tuple[Options, dict[str, Any]]:
    """Return `kind` with its own options replaced, and the options that are not its own."""
    named = {_OLD_SPELLINGS.get(name, name): value for name, value in options.items()}
    if len(named) < len(options):
        twice = next(new for old, new in _OLD_SPELLINGS.items() if {old, new} <= options.keys())
        raise TypeError(f"got multiple values for keyword argument '{twice}'")
    if "constants" in named:
        named["constants"] = dict(named["constants"] or {})
    fields = {each.name for each in dataclasses.fields(kind)}
    base = kind(short) if isinstance(short, str) else short
    own = {name: value for name, value in named.items() if name in fields}
    return dataclasses.replace(base, **own), {n: v for n, v in named.items() if n not in fields}


def _check_no_more(options: Mapping[str, Any]) -> None:
    if options:
        raise TypeError(f"unexpected keyword argument '{next(iter(options))}'")


def thread_limit() -> int | None:
    """Return how many threads inference on the CPU may take, if the environment says so.

    Schedulers and other numerical libraries go by `OMP_NUM_THREADS`; OpenVINO by itself does not.
    """
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else None
