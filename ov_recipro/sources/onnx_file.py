"""Reading an ONNX file that may come from anyone: checked first, its large weights left on disk."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ov_recipro.errors import ReciproError
from ov_recipro.limits import FUNCTION_DEPTH, NODES, TENSOR_BYTES
from ov_recipro.sources.companions import open_companion
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
        plain: whether OpenVINO can be given the file itself: all is inside, in ordinary form.
    """

    model: ir.Model
    companions: tuple[Path, ...]
    plain: bool


def load(path: Path) -> Loaded:
    """Read an ONNX file, and refuse what is too large or leads out of its folder.

    Raises:
        ReciproError: the file can't be read, is not valid, or is refused.
    """
    proto = _parsed(path)
    _check_size(proto, path)
    plain = not (proto.functions or proto.graph.sparse_initializer)
    try:
        for sparse in proto.graph.sparse_initializer:
            proto.graph.initializer.append(_dense(sparse))
        del proto.graph.sparse_initializer[:]
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx and onnx-ir raise many kinds for a malformed file
        raise _unreadable(path, error) from error
    if model.graph.num_nodes() == 0:
        raise ReciproError(f"{path} is not an ONNX model: it has no nodes.")
    companions = _open_external(model, path)
    passes.RemoveInitializersFromInputsPass()(model)
    try:
        model.graph.sort()
        if model.functions:
            passes.InlinePass()(model)
        to_qdq(model)
    except ValueError as error:
        raise ReciproError(f"{path} is not a valid ONNX model: {one_line(error)}") from error
    return Loaded(model, companions, plain and not companions)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = str(error).split("\n")
    return lines[0][:200] or type(error).__name__


def _unreadable(path: Path, error: Exception) -> ReciproError:
    return ReciproError(f"{path} is not a readable ONNX file: {one_line(error)}")


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ReciproError(
                f"{path} is not a readable ONNX file: it has more than 2 GiB, which only external "
                "data can hold."
            )
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ReciproError(f"{path}: {error.strerror or error}") from error
    except ReciproError:
        raise
    except Exception as error:  # protobuf raises many kinds for a malformed file
        raise _unreadable(path, error) from error


def _check_size(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that would grow beyond the limits, before any of it is expanded."""
    for message in _messages(proto):
        if isinstance(message, onnx.TensorProto):
            _check_tensor(message.dims, message.data_type, f"{path}: tensor '{message.name}'")
        elif isinstance(message, onnx.SparseTensorProto):
            name = message.values.name
            _check_tensor(message.dims, message.values.data_type, f"{path}: tensor '{name}'")
            if any(each.external_data for each in (message.values, message.indices)):
                raise ReciproError(
                    f"{path}: the sparse tensor '{name}' keeps its values in external data, which "
                    "is not supported; refused."
                )
    bodies = {(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[_Function, int] = {}
    NODES.check(len(bodies), f"{path}")
    NODES.check(_expanded(proto.graph, bodies, sizes, path, 0), f"{path}")


def _messages(message: _Message) -> Iterator[_Message]:
    """Yield a message and all inside of it that may hold a tensor, wherever it may hold one."""
    yield message
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None or field.message_type.name in _NO_TENSORS:
            continue
        if field.is_repeated:
            for each in getattr(message, field.name):
                yield from _messages(each)
        elif message.HasField(field.name):
            yield from _messages(getattr(message, field.name))


def _check_tensor(dims: Any, data_type: int, subject: str) -> None:
    if any(size < 0 for size in dims):
        raise ReciproError(f"{subject} has a negative size in its shape {list(dims)}.")
    try:
        bits = ir.DataType(data_type).bitwidth
    except (ValueError, TypeError):
        return  # of no type, or of strings: reading it reports the former
    TENSOR_BYTES.check(math.ceil(math.prod(dims) * bits / 8), subject)


def _expanded(
    body: _Message,
    functions: Mapping[_Function, onnx.FunctionProto],
    sizes: dict[_Function, int],
    path: Path,
    depth: int,
) -> int:
    """Return how many nodes a graph or function has once all functions are inlined.

    Args:
        body: the graph or function.
        functions: the model's, by what calls them.
        sizes: the sizes of functions that are known already.
        path: the file.
        depth: of nested calls that led here.
    """
    FUNCTION_DEPTH.check(depth, f"{path}")
    count = 0
    for message in _messages(body):
        if not isinstance(message, onnx.NodeProto):
            continue
        count += 1
        called = (message.domain, message.op_type, message.overload)
        if called in functions:
            if called not in sizes:
                sizes[called] = _expanded(functions[called], functions, sizes, path, depth + 1)
            count += sizes[called]
    return count


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return a sparse initialiser as a dense one: few tools take the sparse form."""
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
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _for_each_tensor(
    model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]
) -> None:
    """Put in each constant's place what `change` returns for it."""
    graphs = list(model.graphs())
    for function in model.functions.values():
        graphs += [function.graph, *function.graph.subgraphs()]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes.add(ir.AttrTensor(name, change(attribute.as_tensor())))
                elif attribute.type == ir.AttributeType.TENSORS:
                    held = [change(each) for each in attribute.as_tensors()]
                    node.attributes.add(ir.AttrTensors(name, held))


def _open_external(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Open the files of weights beside the model and let its tensors read from these.

    Returns:
        The files.
    """
    files: dict[str, _File] = {}

    def change(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        name = str(tensor.location)
        if name not in files:
            files[name] = _File(open_companion(path, name))
        return _lazy(tensor, files[name], path)

    _for_each_tensor(model, change)
    return tuple(path.parent / name for name in files)


class _File:
    """An open file that several threads may read; closed when nothing refers to it any more."""

    def __init__(self, file: BinaryIO) -> None:
        with file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes there, fewer where the file ends."""
        found = bytearray()
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while len(found) < length and (some := os.read(self._descriptor, length - len(found))):
                found += some
        return bytes(found)


def _lazy(tensor: ir.ExternalTensor, file: _File, path: Path) -> ir.LazyTensor:
    """Return a tensor that is read from `file` each time it is needed."""
    offset, length = tensor.offset or 0, tensor.nbytes
    if offset < 0 or tensor.length not in (None, length) or offset + length > file.size:
        raise ReciproError(
            f"{path}: tensor '{tensor.name}' of {length:,} bytes does not fit into its place in "
            f"the weights '{tensor.location}'."
        )

    def read() -> ir.TensorProtocol:
        data = file.read(offset, length)
        if len(data) < length:
            raise ReciproError(f"{path}: the weights '{tensor.location}' were cut short.")
        proto = onnx.TensorProto(
            name=tensor.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy(), raw_data=data
        )
        return ir.serde.deserialize_tensor(proto)

    return ir.LazyTensor(read, tensor.dtype, tensor.shape, name=tensor.name)
