"""ONNX files: reading one as a `Graph`, and writing its head and tail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ov_recipro.errors import ReciproError
from ov_recipro.graph import Graph, Node
from ov_recipro.layers import CutPoint
from ov_recipro.saliency import Activation
from ov_recipro.sources import shaping
from ov_recipro.sources.base import Part, Parts
from ov_recipro.sources.float32 import Rewritten, to_float32
from ov_recipro.sources.quantised import to_qdq

_ACTIVATIONS: dict[str, Activation] = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
}
_RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"})
_SCOPES = "pkg.torch.onnx.name_scopes"
_INLINE_LIMIT = 1 << 30  # bytes of weights; protobuf ends at 2 GiB, external data has no limit


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX classifier, ready to be cut.

    Attributes:
        path: the file.
        graph: its neutral description, at batch 1.
        image_shape: the image input's shape at batch 1; `image_dtype`: its numpy name.
        metadata: the file's metadata_props.
        model: the model at batch 1, its shape arithmetic folded into constants, in float32.
        rewritten: what float32 changed in `model`.
    """

    path: Path
    graph: Graph
    image_shape: tuple[int, ...]
    image_dtype: str
    metadata: dict[str, str]
    model: ir.Model
    rewritten: Rewritten

    def write_parts(self, point: CutPoint, folder: Path) -> Parts:
        """Write `head.onnx` and `tail.onnx` into `folder` (see `Source.write_parts`)."""
        image, scores = self.graph.image, self.graph.scores
        boundary = (point.tensor, *point.bypass)
        differs = self.rewritten.anything
        deployed = load(self.path)
        given = [_as_float32(deployed, name, self.rewritten, self.model) for name in boundary]
        if differs:
            given.append(_as_float32(deployed, scores, self.rewritten, self.model))
        _save(_extract(deployed, [image], given), folder / "head.onnx")
        tail = _extract(self.model, boundary, [scores])
        shaping.free_batch(tail.graph, point.tensor, self.graph.shapes)
        _save(tail, folder / "tail.onnx")
        reference = None
        if differs:
            ends = (*boundary, scores, self.graph.output)
            reference = Part("reference.onnx", (image,), ends)
            _save(_extract(self.model, [image], dict.fromkeys(ends)), folder / reference.file)
        return Parts(
            head=Part("head.onnx", (image,), tuple(given)),
            tail=Part("tail.onnx", boundary, (scores,)),
            reference=reference,
        )


def open_onnx(
    path: Path, output: str | None = None, image_shape: Sequence[int] | None = None
) -> OnnxSource:
    """Read an ONNX classifier.

    Args:
        path: the file.
        output: name of the class-score output, where the model has several.
        image_shape: the image input's shape where the file leaves it open.

    Raises:
        ReciproError: the file is no readable ONNX classifier of one image.
    """
    model = load(path)
    image = _image_input(model, path)
    shape = _image_shape(image, path, image_shape)
    image.shape = ir.Shape(shape)
    shaping.fold(model)
    operations = {v.name: node.op_type for node in model.graph for v in node.outputs}
    dtype = image.dtype
    rewritten = to_float32(model)
    if rewritten.anything:
        shaping.fold(model)
    shapes = {v.name: s for v in _values(model) if v.name and (s := shaping.static_shape(v))}
    scores, activation, chosen = _find_scores(model, output, shapes)
    nodes = tuple(_neutral(node, operations) for node in model.graph)
    graph = Graph(
        nodes=nodes,
        image=str(image.name),
        scores=scores,
        activation=activation,
        output=chosen,
        shapes=shapes,
        channels_last=_channels_last(model, image, shape),
    )
    if not graph.path_nodes:
        raise ReciproError(f"{path}: output '{chosen}' does not depend on '{image.name}'.")
    if dtype is None:
        raise ReciproError(f"{path}: the type of input '{image.name}' is missing.")
    return OnnxSource(
        path=path,
        graph=graph,
        image_shape=shape,
        image_dtype=dtype.numpy().name,
        metadata=dict(model.metadata_props),
        model=model,
        rewritten=rewritten,
    )


def load(path: Path) -> ir.Model:
    """Read the file with its weights left on disk, and refuse weights outside its folder."""
    try:
        model = ir.load(path)
    except OSError as error:
        raise ReciproError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf and onnx-ir raise many kinds for a malformed file
        raise ReciproError(f"{path} is not a readable ONNX file: {_one_line(error)}") from error
    if model.graph.num_nodes() == 0:
        raise ReciproError(f"{path} is not an ONNX model: it has no nodes.")
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, path)
    passes.RemoveInitializersFromInputsPass()(model)
    try:
        model.graph.sort()
        if model.functions:
            passes.InlinePass()(model)
        to_qdq(model)
    except ValueError as error:
        raise ReciproError(f"{path} is not a valid ONNX model: {_one_line(error)}") from error
    return model


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol | None]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse external data that is absolute, leaves the model's folder or is missing."""
    location = str(tensor.location)
    relative = Path(location)
    outside = (
        relative.is_absolute()
        or PureWindowsPath(location).is_absolute()
        or ".." in PureWindowsPath(location).parts
    )
    data = path.parent / relative
    folders = {path.parent.resolve(), path.resolve().parent}  # a linked model keeps linked data
    if outside or not any(data.resolve().is_relative_to(folder) for folder in folders):
        raise ReciproError(
            f"{path}: the external data '{location}' of tensor '{tensor.name}' lies outside the "
            "model's folder; refused."
        )
    try:
        size = data.stat().st_size
    except OSError as error:
        raise ReciproError(
            f"{path}: the external data file '{location}' can't be read: {error.strerror}."
        ) from error
    if (tensor.offset or 0) + (tensor.length or 0) > size:
        raise ReciproError(f"{path}: the external data file '{location}' is too short.")


def _image_input(model: ir.Model, path: Path) -> ir.Value:
    inputs = list(model.graph.inputs)
    images = [v for v in inputs if v.shape is None or len(v.shape) == 4]
    if len(images) != 1:
        shown = ", ".join(f"'{v.name}' {v.shape}" for v in inputs) or "none"
        raise ReciproError(f"{path}: expected one 4-D image input, found: {shown}.")
    if len(inputs) > 1:
        others = ", ".join(f"'{v.name}'" for v in inputs if v is not images[0])
        raise ReciproError(
            f"{path}: input '{images[0].name}' is the image; further inputs ({others}) are not "
            "supported."
        )
    return images[0]


def _image_shape(
    image: ir.Value, path: Path, asked: Sequence[int] | None
) -> tuple[int, int, int, int]:
    """Return the image's shape at batch 1: the file's, filled in with what the user asked."""
    known: list[int | None] = [None] * 4
    if image.shape is not None:
        known = [_dimension(size) for size in image.shape]
    wanted: list[int | None] = [None] * 4 if asked is None else list(asked)
    if len(wanted) != 4:
        raise ReciproError("The input shape must have four numbers, as in 1,3,224,224.")
    known[0] = wanted[0] = 1
    shape = [file if user is None else user for file, user in zip(known, wanted, strict=True)]
    if any(f is not None and f != s for f, s in zip(known, shape, strict=True)):
        raise ReciproError(f"{path}: input '{image.name}' is {known}; it can't be {list(wanted)}.")
    if any(size is None for size in shape):
        raise ReciproError(
            f"{path}: input '{image.name}' has the open shape {image.shape}; say which it shall "
            "be with --input-shape, as in --input-shape 1,3,224,224."
        )
    a, b, c, d = (int(size) for size in shape if size is not None)
    if 3 not in (b, d):
        raise ReciproError(
            f"{path}: input '{image.name}' of shape {[a, b, c, d]} has no axis of 3 colours."
        )
    return a, b, c, d


def _dimension(size: int | ir.SymbolicDim) -> int | None:
    return size if isinstance(size, int) and size > 0 else None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _find_scores(
    model: ir.Model, asked: str | None, shapes: dict[str, tuple[int, ...]]
) -> tuple[str, Activation, str]:
    """Return (scores before the closing activation, that activation, the output's name)."""
    outputs = [str(value.name) for value in model.graph.outputs]
    if asked is not None:
        if asked not in outputs:
            raise ReciproError(f"No output '{asked}'; the model has: {', '.join(outputs)}.")
        chosen = asked
    else:
        fitting = [name for name in outputs if _score_like(shapes.get(name))]
        if len(fitting) != 1 and len(outputs) == 1:
            shape = shapes.get(outputs[0])
            raise ReciproError(
                f"The output '{outputs[0]}' has shape {shape and list(shape)}: not class scores "
                "[1,classes]."
            )
        if len(fitting) != 1:
            shown = ", ".join(f"{n} {list(shapes[n]) if n in shapes else '?'}" for n in outputs)
            raise ReciproError(
                f"Which output holds the class scores? --output-name one of: {shown}."
            )
        chosen = fitting[0]
    value = next(v for v in model.graph.outputs if v.name == chosen)
    seen: ir.Value | None = value
    while seen is not None and (node := seen.producer()) is not None:
        seen = node.inputs[0] if node.inputs else None
        if seen is not None and node.op_type in _ACTIVATIONS and _over_classes(node, seen, shapes):
            return str(seen.name), _ACTIVATIONS[node.op_type], chosen
        if node.op_type not in _RESHAPING:
            break
    return chosen, "none", chosen


def _score_like(shape: tuple[int, ...] | None) -> bool:
    """[K], [1,K] or [1,K,1,1]."""
    if shape is None:
        return False
    return len(shape) in (1, 2) or (len(shape) == 4 and shape[2:] == (1, 1))


def _over_classes(node: ir.Node, logits: ir.Value, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a Softmax runs over all classes; a Sigmoid has no axis."""
    shape = shapes.get(str(logits.name))
    if shape is None or node.op_type == "Sigmoid":
        return shape is not None
    flattens = (node.version or 1) < 13  # up to opset 12 Softmax flattens from its axis on
    axis = node.attributes.get_int("axis", 1 if flattens else -1) % len(shape)
    over = shape[axis:] if flattens else shape[axis : axis + 1]
    return int(np.prod(over)) == int(np.prod(shape))


def _channels_last(
    model: ir.Model, image: ir.Value, shape: tuple[int, int, int, int]
) -> frozenset[str]:
    """Return the 4-D tensors laid out [N,H,W,C]: the image of such models, and what follows.

    The layout is handed on by every operation that keeps the shape; a Transpose turns it, and
    anything else starts [N,C,H,W] again.
    """
    last = {str(image.name)} if shape[1] != 3 else set()
    for node in model.graph:
        first = node.inputs[0] if node.inputs else None
        if first is None or first.shape is None or len(first.shape) != 4:
            continue
        turned = str(first.name) in last
        if node.op_type == "Transpose":
            permutation = list(node.attributes.get_ints("perm", [3, 2, 1, 0]))
            turned = permutation == [0, 2, 3, 1] and not turned
        elif node.op_type in ("Conv", "Reshape", "MaxPool", "AveragePool", "GlobalAveragePool"):
            turned = False
        if turned:
            last.update(str(value.name) for value in node.outputs)
    return frozenset(last)


def _neutral(node: ir.Node, operations: Mapping[str | None, str]) -> Node:
    """Describe a node; `operations` are the deployed model's by output, which users know."""
    names = [value.name for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        for graph in _subgraphs(attribute):
            names += [value.name for value in _captures(graph)]
    return Node(
        name=node.name or "",
        op=operations.get(node.outputs[0].name if node.outputs else "", node.op_type),
        inputs=tuple(dict.fromkeys(name for name in names if name)),
        outputs=tuple(value.name for value in node.outputs if value.name),
        scope=_scope(node),
    )


def _subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return attribute.as_graphs()
    return []


def _captures(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values of outer graphs that `graph` or a graph inside of it reads."""
    inside = {id(value) for value in graph.inputs} | {id(v) for v in graph.initializers.values()}
    for node in graph:
        inside.update(id(value) for value in node.outputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and id(value) not in inside:
                yield value
        for attribute in node.attributes.values():
            for inner in _subgraphs(attribute):
                yield from (value for value in _captures(inner) if id(value) not in inside)
    for value in graph.outputs:
        if id(value) not in inside:
            yield value


def _scope(node: ir.Node) -> str:
    """Return the module path that the dynamo exporter of PyTorch notes at a node."""
    written = node.metadata_props.get(_SCOPES, "")
    names = [part.strip(" '\"") for part in written.strip("[]").split(",")]
    modules = [name for name in names[:-1] if name]
    return modules[-1] if modules else ""


def _as_float32(model: ir.Model, name: str, rewritten: Rewritten, wide: ir.Model) -> str:
    """Let the deployed `model` give tensor `name` in float32; return the name to ask it for."""
    value = ir.convenience.create_value_mapping(model.graph)[name]
    if dtype := next(v.dtype for v in _values(wide) if v.name == name):
        value.dtype = dtype
    inputs: list[ir.Value] = [value]
    if name in rewritten.scales:
        scale, zero = rewritten.scales[name]
        value.dtype = ir.DataType.UINT8 if zero is None else zero.dtype
        for part, tensor in (("scale", scale), ("zero_point", zero)):
            if tensor is not None:
                inputs.append(shaping.constant(model.graph, f"{name}/{part}", tensor.numpy()))
        node = ir.node("DequantizeLinear", inputs, name=f"{name}/float32")
    elif name in rewritten.halves:
        value.dtype = ir.DataType.FLOAT16
        node = ir.node("Cast", inputs, {"to": int(ir.DataType.FLOAT)}, name=f"{name}/float32")
    else:
        return name
    node.outputs[0].name = f"{name}/float32"
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.append(node)
    return f"{name}/float32"


def _extract(model: ir.Model, inputs: Iterable[str], outputs: Iterable[str]) -> ir.Model:
    """Return the part of `model` between `inputs` and `outputs` as a model of its own."""
    try:
        graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    except ValueError as error:
        raise ReciproError(f"The model can't be cut there: {_one_line(error)}") from error
    return ir.Model(graph, ir_version=model.ir_version, producer_name="ov-recipro")


def _save(model: ir.Model, path: Path) -> None:
    """Write the model with its weights inside the file, or beside it when they are large."""
    weights = sum(tensor.nbytes for tensor in _tensors(model) if tensor is not None)
    if weights > _INLINE_LIMIT:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


def _one_line(error: BaseException) -> str:
    lines = str(error).split("\n")
    return lines[0][:200] or type(error).__name__
