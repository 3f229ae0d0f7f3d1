"""ONNX files: reading one as a `Graph`, and writing its head and tail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino as ov

from ov_recipro.cut.bundle import ModelFile
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.graph import Graph, Node, descendants
from ov_recipro.cut.outputs import read_graph
from ov_recipro.errors import ModelError, ReciproError
from ov_recipro.limits import TENSOR_BYTES
from ov_recipro.options import Constants, Cut
from ov_recipro.sources import inputs
from ov_recipro.sources.metadata import count_labels, find_kind
from ov_recipro.sources.onnx_file import load, tensors
from ov_recipro.sources.openvino_models import core, reason
from ov_recipro.sources.rewriting import shaping
from ov_recipro.sources.rewriting.extracting import extracted
from ov_recipro.sources.rewriting.float32 import Rewritten, to_float32
from ov_recipro.sources.rewriting.joining import join_in_onnx
from ov_recipro.sources.source import SplitFiles

_SCOPES = "pkg.torch.onnx.name_scopes"
_IDENTITIES = frozenset({"Dropout", "Identity"})
_INLINE = 64 << 20  # most bytes of weights inside a written file; more go into one beside it
_OUTLINED = 4096  # bytes beyond which a weight is left out of the outline
_LARGEST_MASK = 16 << 20  # bytes of a constant that may be an attention mask
_LARGE = 1 << 30  # bytes of weights beyond which the proof runs a model in pieces
_PIECE = 96 << 20  # bytes of weights after which a piece ends, at the next clean tensor


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise our own error about a weights file, which onnx-ir wraps in errors of its own."""
    try:
        yield
    except ir.serde.SerdeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ReciproError):
            cause = cause.__cause__
        raise cause or error from None


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
        constants: values of the inputs that are not the image.
        companions: the files beside the model that hold its weights.
        plain: whether OpenVINO can be given the file itself.
    """

    path: Path
    graph: Graph
    image_shape: tuple[int, ...]
    image_dtype: str
    metadata: dict[str, str]
    model: ir.Model
    rewritten: Rewritten
    constants: Constants
    companions: tuple[Path, ...]
    plain: bool

    @_own_errors()
    def outline(self) -> tuple[ov.Model, dict[str, ov.Output]]:
        """Describe the model to OpenVINO (see `Source.outline`)."""
        model = extracted(self.model, [self.graph.image], [self.graph.scores])
        for name, value in list(model.graph.initializers.items()):
            if value.const_value is not None and value.const_value.nbytes > _OUTLINED:
                if _is_idle_mask(value):
                    sizes = [1] * len(value.const_value.shape)
                    value.const_value = ir.tensor(np.zeros(sizes, np.float32), name=name)
                    value.shape = ir.Shape(sizes)
                    continue
                del model.graph.initializers[name]
                value.const_value = None
                model.graph.inputs.append(value)
        ir.external_data.load_to_model(model)  # what is left is small
        data = ir.to_proto(model).SerializeToString()
        try:
            outline = core().read_model(data)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO can't read {self.path}: {reason(error)}") from error
        ports = [port for node in outline.get_ordered_ops() for port in node.outputs()]
        named = {name: port for port in ports for name in port.get_names()}
        for node in reversed(model.graph):  # OpenVINO names only one of two equal tensors
            if node.op_type in _IDENTITIES and (port := named.get(str(node.outputs[0].name))):
                named |= {str(v.name): port for v in node.inputs[:1] if v and v.name not in named}
        return outline, named

    @_own_errors()
    def write_split(self, point: CutPoint, folder: Path) -> SplitFiles:
        """Write `head.onnx` and `tail.onnx` into `folder` (see `Source.write_split`)."""
        image, scores = self.graph.image, self.graph.scores
        boundary = point.boundary
        differs = self.rewritten.anything
        deployed = load(self.path).model
        if self.constants:
            _fix_inputs(deployed, self.path, self.image_shape, self.constants)
        head_outputs = [
            _as_float32(deployed, name, self.rewritten, self.model) for name in boundary
        ]
        if differs and self.graph.joined:
            names = [
                _as_float32(deployed, name, self.rewritten, self.model)
                for name in self.graph.joined
            ]
            _join(deployed.graph, self.graph, names)
            head_outputs.append(scores)
        elif differs:
            head_outputs.append(_as_float32(deployed, scores, self.rewritten, self.model))
        _save(extracted(deployed, [image], head_outputs), folder / "head.onnx")
        tail = extracted(self.model, boundary, [scores])
        shaping.free_batch(tail.graph, point.tensor, self.graph.shapes)
        _save(tail, folder / "tail.onnx")
        reference: tuple[ModelFile, ...] = ()
        if _weights(self.model) > _LARGE:
            reference = self._pieces(point)
        elif differs or self.constants or not self.plain:
            ends = (*boundary, scores, self.graph.output)
            reference = (ModelFile("reference.onnx", (image,), ends),)
        for piece in reference:
            part = extracted(self.model, piece.inputs, dict.fromkeys(piece.outputs))
            _save(part, folder / piece.file)
        return SplitFiles(
            head=ModelFile("head.onnx", (image,), tuple(head_outputs)),
            tail=ModelFile("tail.onnx", boundary, (scores,)),
            reference=reference,
            low_precision=differs,
        )

    def _pieces(self, point: CutPoint) -> tuple[ModelFile, ...]:
        """Cut the model at clean tensors into pieces that fit into memory one by one."""
        weights = {
            str(value.name): value.const_value.nbytes
            for value in self.model.graph.initializers.values()
            if value.const_value is not None
        }
        clean = self.graph.clean_tensors
        before = set(clean[: clean.index(point.tensor)] if point.tensor in clean else clean)
        before -= descendants(self.graph.path_nodes, set(point.masked))
        boundary = point.boundary
        pieces: list[ModelFile] = []
        start, size = self.graph.image, 0
        for node in self.graph.path_nodes:
            size += sum(weights.get(name, 0) for name in node.inputs)
            end = next((name for name in node.outputs if name in before), None)
            if end is not None and size > _PIECE:
                pieces.append(ModelFile(f"reference{len(pieces)}.onnx", (start,), (end,)))
                start, size = end, 0
        inner = tuple(name for name in boundary if name != start)
        pieces.append(ModelFile(f"reference{len(pieces)}.onnx", (start,), inner))
        ends = (self.graph.scores, self.graph.output)
        pieces.append(ModelFile(f"reference{len(pieces)}.onnx", boundary, ends))
        return tuple(pieces)


def open_onnx(path: Path, cut: Cut) -> OnnxSource:
    """Read an ONNX classifier.

    Args:
        path: the file.
        cut: which output, input shape and constants it has; the layer is ignored.

    Raises:
        ModelError: the file is not a readable ONNX classifier of one image.
    """
    loaded = load(path)
    model = loaded.model
    image = _fix_inputs(model, path, cut.input_shape, cut.constants)
    shaping.fold(model)
    operations = {v.name: node.op_type for node in model.graph for v in node.outputs}
    dtype = image.dtype
    rewritten = to_float32(model)
    if rewritten.anything:
        shaping.fold(model)
    shapes = {
        str(value.name): shape
        for value in shaping.values_of(model)
        if (shape := shaping.static_shape(value)) and value.name in (image.name, *operations)
    }
    for value in shaping.values_of(model):
        if (size := shaping.bytes_of(value)) is not None:
            TENSOR_BYTES.check(size, f"{path}: tensor '{value.name}'")
    for value in shaping.of_unknown_size(model):
        raise ModelError(
            f"{path}: the size of tensor '{value.name}' is not known before it is computed; "
            "refused."
        )
    nodes = tuple(_neutral(node, operations) for node in model.graph)
    outputs = [str(value.name) for value in model.graph.outputs]
    graph = read_graph(
        nodes,
        str(image.name),
        outputs,
        shapes,
        declared=find_kind(dict(model.metadata_props), path),
        classes=count_labels(dict(model.metadata_props), path),
        asked=cut.output_name,
        task=cut.task,
        x_first=(model.producer_name or "").lower() == "pytorch",
    )
    if not graph.path_nodes:
        raise ModelError(f"{path}: output '{graph.output}' does not depend on '{image.name}'.")
    if graph.joined:
        _join(model.graph, graph, graph.joined)
    if dtype is None:
        raise ModelError(f"{path}: the type of input '{image.name}' is missing.")
    return OnnxSource(
        path=path,
        graph=graph,
        image_shape=shapes[str(image.name)],
        image_dtype=dtype.numpy().name,
        metadata=dict(model.metadata_props),
        model=model,
        rewritten=rewritten,
        constants=cut.constants,
        companions=loaded.companions,
        plain=loaded.plain,
    )


def _fix_inputs(
    model: ir.Model, path: Path, asked: Sequence[int] | None, constants: Constants
) -> ir.Value:
    """Give the inputs other than the image their values; return the image."""
    values = list(model.graph.inputs)
    found = [inputs.Input(str(value.name), _sizes(value)) for value in values]
    chosen = inputs.choose_image(found, constants, path)
    for index, value in enumerate(values):
        if index != chosen:
            array = inputs.constant_value(found[index], constants)
            dtype = ir.DataType.FLOAT if value.dtype is None else value.dtype
            value.const_value = ir.tensor(array.astype(dtype.numpy()), name=value.name)
            value.shape = ir.Shape(array.shape)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    image = values[chosen]
    metadata = dict(model.metadata_props)
    image.shape = ir.Shape(inputs.image_shape(found[chosen], asked, path, metadata))
    return image


def _sizes(value: ir.Value) -> list[int | None] | None:
    if value.shape is None:
        return None
    return [size if isinstance(size, int) and size > 0 else None for size in value.shape]


def _is_idle_mask(value: ir.Value) -> bool:
    """Whether a large constant is an attention mask [...,T,T] of zeros, which masks nothing."""
    tensor, shape = value.const_value, shaping.static_shape(value)
    if tensor is None or shape is None or len(shape) < 2 or shape[-1] != shape[-2]:
        return False
    if tensor.nbytes > _LARGEST_MASK or tensor.dtype != ir.DataType.FLOAT:
        return False
    return {node.op_type for node, _ in value.uses()} == {"Add"} and not tensor.numpy().any()


def _neutral(node: ir.Node, operations: Mapping[str | None, str]) -> Node:
    """Describe a node; `operations` are the deployed model's, by output: users know these."""
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
        axes=_axes(node),
        centred=node.attributes.get_int("center_point_box", 0) == 1,
    )


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Return the axes that a node runs over (see `Node.axes`)."""
    source = node.inputs[0] if node.inputs else None
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    if rank == 0:
        return ()
    if node.op_type == "Transpose":
        return tuple(node.attributes.get_ints("perm", list(range(rank))[::-1]))
    if node.op_type in ("Softmax", "LogSoftmax"):
        if (node.version or 0) >= 13 or _opset(node) >= 13:
            return (node.attributes.get_int("axis", -1) % rank,)
        return tuple(range(node.attributes.get_int("axis", 1) % rank, rank))
    if node.op_type == "LayerNormalization":
        return tuple(range(node.attributes.get_int("axis", -1) % rank, rank))
    if node.op_type == "ReduceMean":
        tensor = None
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            tensor = ir.convenience.get_const_tensor(node.inputs[1])
        axes = node.attributes.get_ints("axes", []) if tensor is None else tensor.numpy().tolist()
        return tuple(axis % rank for axis in axes)
    return ()


def _opset(node: ir.Node) -> int:
    return node.graph.opset_imports.get("", 1) if node.graph is not None else 1


def _subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return attribute.as_graphs()
    return []


def _captures(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values of outer graphs that `graph` or a graph inside it reads."""
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
    """Return the module path that PyTorch's dynamo exporter records for a node."""
    written = node.metadata_props.get(_SCOPES, "")
    names = [part.strip(" '\"") for part in written.strip("[]").split(",")]
    modules = [name for name in names[:-1] if name]
    return modules[-1] if modules else ""


def _join(model: ir.Graph, graph: Graph, names: Sequence[str]) -> None:
    """Append the scores to a model whose outputs they join; `names`: these outputs in it."""
    shapes = [graph.shapes[name] for name in graph.joined]
    join_in_onnx(model, names, shapes, graph.scores)


def _as_float32(model: ir.Model, name: str, rewritten: Rewritten, widened: ir.Model) -> str:
    """Add tensor `name` in float32 to the deployed `model`; return the name that it has there."""
    value = ir.convenience.create_value_mapping(model.graph)[name]
    if dtype := next(v.dtype for v in shaping.values_of(widened) if v.name == name):
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


def _save(model: ir.Model, path: Path) -> None:
    """Write the model with its weights inside the file, or beside it when they are large."""
    if _weights(model) > _INLINE:
        ir.save(model, path, external_data=f"{path.name}.data", max_in_flight_bytes=_INLINE)
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


def _weights(model: ir.Model) -> int:
    return sum(tensor.nbytes for tensor in tensors(model))
