"""Reading an ONNX file from an untrusted source: checked first, large weights left on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx.inliner import inline_local_functions
from onnx_ir.passes import common as passes

from ov_recipro.errors import ModelError, ReciproError
from ov_recipro.limits import FUNCTION_DEPTH, NODES, TENSOR_BYTES
from ov_recipro.sources.companions import WeightsFile
from ov_recipro.sources.rewriting.quantised import to_qdq

_LARGEST_FILE = (1 << 31) - 1  # bytes; protobuf's own limit
_NO_TENSORS = frozenset({"TypeProto", "ValueInfoProto", "StringStringEntryProto"})
_Message: TypeAlias = Any  # of protobuf, which ships no type information
_Function: TypeAlias = tuple[str, str, str]  # domain, name, overload


@dataclass(frozen=True)
class Loaded:
    """An ONNX file's model.

    Attributes:
        model: functions inlined, QOperator written as QDQ, external weights read when needed.
        companions: the files beside it that hold its weights.
        plain: whether OpenVINO can be given the file itself: it needs no other file, and has no
            functions or sparse tensors.
    """

    model: ir.Model
    companions: tuple[Path, ...]
    plain: bool


def load(path: Path) -> Loaded:
    """Read an ONNX file, and refuse one that is too large or leads out of its folder.

    Raises:
        ModelError: the file can't be read, is not valid, or is refused.
    """
    proto = _parsed(path)
    _check_size(proto, path)
    plain = not (proto.functions or proto.graph.sparse_initializer)
    try:
        if proto.functions:
            _write_defaults(proto)
            proto = inline_local_functions(proto)
        for sparse in proto.graph.sparse_initializer:
            proto.graph.initializer.append(_dense(sparse))
        del proto.graph.sparse_initializer[:]
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx and onnx-ir raise many kinds for a malformed file
        raise _unreadable(path, error) from error
    if model.functions:
        name = next(iter(model.functions))[1]
        raise ModelError(f"{path} can't be read: its function '{name}' has an opset of its own.")
    if model.graph.num_nodes() == 0:
        raise ModelError(f"{path} is not an ONNX model: it has no nodes.")
    companions = _open_external(model, path)
    passes.RemoveInitializersFromInputsPass()(model)
    try:
        model.graph.sort()
        to_qdq(model)
    except ValueError as error:
        raise ModelError(f"{path} is not a valid ONNX model: {one_line(error)}") from error
    return Loaded(model, companions, plain and not companions)


def load_again(path: Path, weights: bool = True) -> onnx.ModelProto:
    """Read a file that is known to be valid, such as a part of a bundle.

    Args:
        path: the file.
        weights: read those that lie beside it, too.

    Raises:
        ModelError: it can't be read now.
    """
    try:
        return onnx.load(path, load_external_data=weights)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error


def external_names(path: Path) -> tuple[str, ...]:
    """Return the weights files that an ONNX file names, each once, as it names them.

    Raises:
        ModelError: the file can't be read.
    """
    found: dict[str, None] = {}
    for message in _messages(_parsed(path)):
        if isinstance(message, onnx.TensorProto):
            for entry in message.external_data:
                if entry.key == "location":
                    found[entry.value] = None
    return tuple(found)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = str(error).split("\n")
    return lines[0][:200] or type(error).__name__


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is not a readable ONNX file: {one_line(error)}")


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(
                f"{path} is not a readable ONNX file: it is larger than 2 GiB, which only "
                "external data may be."
            )
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ReciproError:
        raise
    except Exception as error:  # protobuf raises many kinds for a malformed file
        raise _unreadable(path, error) from error


def _check_size(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that would grow beyond the limits, before any of it is expanded.

    Functions that nothing calls are removed.
    """
    dense = 0  # bytes of all sparse tensors in dense form
    for message in _messages(proto):
        if isinstance(message, onnx.TensorProto):
            _check_tensor(message.dims, message.data_type, f"{path}: tensor '{message.name}'")
        elif isinstance(message, onnx.SparseTensorProto):
            name = message.values.name
            if any(each.external_data for each in (message.values, message.indices)):
                raise ModelError(
                    f"{path}: the sparse tensor '{name}' keeps its values in external data, which "
                    "is not supported; refused."
                )
            subject = f"{path}: tensor '{name}'"
            dense += _check_tensor(message.dims, message.values.data_type, subject)
            TENSOR_BYTES.check(dense, f"{path}: the sum of its sparse tensors")
    NODES.check(len(proto.functions), f"{path}")
    calls = _Calls({_called(f.domain, f.name, f.overload): f for f in proto.functions}, path)
    NODES.check(calls.expanded(proto.graph, 0)[0], f"{path}")
    used = [f for f in proto.functions if _called(f.domain, f.name, f.overload) in calls.known]
    del proto.functions[:]
    proto.functions.extend(used)


def _messages(message: _Message) -> Iterator[_Message]:
    """Yield a message and every message inside it, at any depth, that may hold a tensor."""
    yield message
    for part in message.DESCRIPTOR.fields:
        if part.message_type is None or part.message_type.name in _NO_TENSORS:
            continue
        if part.is_repeated:
            for each in getattr(message, part.name):
                yield from _messages(each)
        elif message.HasField(part.name):
            yield from _messages(getattr(message, part.name))


def _check_tensor(dims: Any, data_type: int, subject: str) -> int:
    """Check a tensor's size; return it in bytes, 0 where its type is not known."""
    if any(size < 0 for size in dims):
        raise ModelError(f"{subject} has a negative size in its shape {list(dims)}.")
    try:
        bits = ir.DataType(data_type).bitwidth
    except (ValueError, TypeError):
        return 0  # no valid type, which reading it reports, or strings
    size: int = -(-math.prod(dims) * bits // 8)
    TENSOR_BYTES.check(size, subject)
    return size


def _called(domain: str, name: str, overload: str) -> _Function:
    return ("" if domain == "ai.onnx" else domain, name, overload)


@dataclass
class _Calls:
    """What a model's functions amount to once all are inlined.

    Attributes:
        bodies: the functions, by the name that calls them.
        path: the file.
        known: for each that is called, the number of nodes and of levels below it.
    """

    bodies: Mapping[_Function, onnx.FunctionProto]
    path: Path
    known: dict[_Function, tuple[int, int]] = field(default_factory=dict)

    def expanded(self, body: _Message, depth: int) -> tuple[int, int]:
        """Return how many nodes a graph or function then has, and how deep its calls go.

        Args:
            body: the graph or function.
            depth: the number of nested calls that led here.
        """
        FUNCTION_DEPTH.check(depth, f"{self.path}")
        count = levels = 0
        for message in _messages(body):
            if not isinstance(message, onnx.NodeProto):
                continue
            count += 1
            called = _called(message.domain, message.op_type, message.overload)
            if called in self.bodies:
                if called not in self.known:
                    self.known[called] = self.expanded(self.bodies[called], depth + 1)
                nodes, below = self.known[called]
                count, levels = count + nodes, max(levels, 1 + below)
        FUNCTION_DEPTH.check(depth + levels, f"{self.path}")
        return count, levels


def _write_defaults(proto: onnx.ModelProto) -> None:
    """Add the default attributes of functions to the calls that omit them."""
    bodies = {_called(f.domain, f.name, f.overload): f for f in proto.functions}
    for message in _messages(proto):
        if isinstance(message, onnx.NodeProto):
            function = bodies.get(_called(message.domain, message.op_type, message.overload))
            present = {attribute.name for attribute in message.attribute}
            for default in function.attribute_proto if function is not None else ():
                if default.name not in present:
                    message.attribute.append(default)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return a sparse initialiser as a dense one: few tools accept the sparse form."""
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(dense, sparse.values.name)


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the constants of a model whose functions are inlined."""
    found: list[ir.TensorProtocol] = []

    def keep(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        found.append(tensor)
        return tensor

    _for_each_tensor(model, keep)
    yield from found


def _for_each_tensor(
    model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]
) -> None:
    """Replace each constant by what `change` returns for it."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes.add(ir.AttrTensor(name, change(attribute.as_tensor())))
                elif attribute.type == ir.AttributeType.TENSORS:
                    held = [change(each) for each in attribute.as_tensors()]
                    node.attributes.add(ir.AttrTensors(name, held))


def _open_external(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Open the weights files beside the model and make its tensors read from them.

    Returns:
        The files.
    """
    files: dict[str, WeightsFile] = {}

    def change(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        name = str(tensor.location)
        if name not in files:
            files[name] = WeightsFile(path, name)
        return _lazy(tensor, files[name], path)

    _for_each_tensor(model, change)
    return tuple(path.parent / name for name in files)


def _lazy(tensor: ir.ExternalTensor, file: WeightsFile, path: Path) -> ir.LazyTensor:
    """Return a tensor that is read from `file` each time it is needed."""
    offset, length = tensor.offset or 0, tensor.nbytes
    if offset < 0 or tensor.length not in (None, length) or offset + length > file.size:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' of {length:,} bytes does not fit into its place in "
            f"the weights '{tensor.location}'."
        )

    def read() -> ir.TensorProtocol:
        data = file.read(offset, length)
        proto = onnx.TensorProto(
            name=tensor.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy(), raw_data=data
        )
        return ir.serde.deserialize_tensor(proto)

    return ir.LazyTensor(read, tensor.dtype, tensor.shape, name=tensor.name)
