"""Shapes of an ONNX graph: inferring them, folding shape arithmetic, freeing a frozen batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from onnx_ir.passes import common as passes

_MAX_ROUNDS = 50
_MAX_ELEMENTS = 4096  # of a value that shape arithmetic works on
_ARITHMETIC = frozenset({"Add", "Cast", "Ceil", "Clip", "Div", "Floor", "Mul", "Sub"})
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile", "OneHot", "Pad", "Resize"})


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the value's shape when all of it is known."""
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(size) for size in value.shape.numpy())


def bytes_of(value: ir.Value) -> int | None:
    """Return how many bytes the value takes when all of its shape is known."""
    shape = static_shape(value)
    bits = 32 if value.dtype in (None, ir.DataType.STRING) else value.dtype.bitwidth
    return None if shape is None else math.prod(shape) * bits // 8


def values_of(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the model's inputs and its nodes' outputs, sub-graphs included."""
    yield from model.graph.inputs
    for graph in model.graphs():
        for node in graph:
            yield from node.outputs


def of_unknown_size(model: ir.Model) -> Iterator[ir.Value]:
    """Yield values computed from constants alone, of a size not known before they are computed.

    A runtime computes them while it reads the model, however large they are.
    """
    for graph in model.graphs():
        for node in graph:
            grows = node.op_type in _GROWING and node.domain == ""
            if grows and static_shape(node.outputs[0]) is None and _is_of_constants(node):
                yield node.outputs[0]


def _is_of_constants(node: ir.Node) -> bool:
    """Whether a node depends on constants alone, not on an input of the model or a sub-graph."""
    pending: list[ir.Node] = [node]
    seen: set[ir.Node] = set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for value in current.inputs:
            if value is None or value.const_value is not None:
                continue
            if (producer := value.producer()) is None:
                return False
            pending.append(producer)
    return True


def fold(model: ir.Model) -> None:
    """Infer all shapes anew and replace what is computed from shapes alone by constants.

    The image input must have its static shape. Exports that read Shape(input) carry the batch
    size past every cut; once that is folded, nothing bypasses the cut.
    """
    for node in model.graph:
        for value in node.outputs:
            value.shape = None  # the file's own shapes are often stale
    infer = passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    folded: set[str] = set()
    for _ in range(_MAX_ROUNDS):
        infer(model)
        for node in model.graph:
            _shape_of_old_reshape(node)
        if not _fold_once(model, folded):
            return


def _shape_of_old_reshape(node: ir.Node) -> None:
    """Set the output shape of a Reshape before opset 5, which the onnx package does not infer."""
    target = node.attributes.get_ints("shape", []) if node.op_type == "Reshape" else []
    source = node.inputs[0] if target else None
    shape = static_shape(source) if source is not None else None
    if shape is None or node.outputs[0].shape is not None:
        return
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = -int(np.prod(shape) // np.prod(sizes))
    node.outputs[0].shape = ir.Shape(sizes)


def _fold_once(model: ir.Model, folded: set[str]) -> bool:
    """Fold every node that can be folded; return whether there was one."""
    changed = False
    for node in list(model.graph):
        values = _computed_from_shapes(node, folded)
        if values is None:
            continue
        for output, array in zip(list(node.outputs), values, strict=True):
            value = constant(model.graph, str(output.name), array)
            output.replace_all_uses_with(value, replace_graph_outputs=True)
            folded.add(str(value.name))
        model.graph.remove(node)
        changed = True
    return changed


def _computed_from_shapes(node: ir.Node, folded: set[str]) -> list[np.ndarray] | None:
    """Return the node's outputs when they follow from static shapes and constants alone."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type in ("Shape", "Size") and node.domain == "" and first is not None:
        shape = static_shape(first)
        if shape is None:
            return None
        if node.op_type == "Size":
            return [np.array(int(np.prod(shape)), np.int64)]
        begin = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(shape))
        return [np.array(shape[begin:end], np.int64)]
    from_shapes = any(value is not None and value.name in folded for value in node.inputs)
    integers = all(_is_integer(value) for value in node.outputs)
    if not (from_shapes or integers or _is_of_literals(node, folded)):
        return None  # arithmetic on weights is not ours to fold
    if any(not _is_small(value, node.op_type not in _GROWING) for value in node.outputs):
        return None
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return None
    if node.op_type == "Constant" or not node.inputs:
        return None
    arrays: dict[str, np.ndarray] = {}
    for value in node.inputs:
        if value is None:
            continue
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size > _MAX_ELEMENTS:
            return None
        arrays[str(value.name)] = tensor.numpy()
    return _evaluate(node, arrays)


def _is_of_literals(node: ir.Node, folded: set[str]) -> bool:
    """Whether a node calculates with single numbers in the graph, as sizes of padding are found."""

    def is_literal(value: ir.Value | None) -> bool:
        producer = None if value is None else value.producer()
        if value is None or value.name in folded:
            return True
        tensor = ir.convenience.get_const_tensor(value)
        is_constant = producer is not None and producer.op_type == "Constant"
        return is_constant and tensor is not None and tensor.size == 1

    return node.op_type in _ARITHMETIC and all(map(is_literal, node.inputs))


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)


def _is_small(value: ir.Value, where_unknown: bool) -> bool:
    shape = static_shape(value)
    return where_unknown if shape is None else math.prod(shape) <= _MAX_ELEMENTS


def _evaluate(node: ir.Node, arrays: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """Run one node in the onnx package's reference evaluator."""
    proto = ir.serde.serialize_node(node)
    version = node.graph.opset_imports.get(node.domain) if node.graph else None
    if version is None:
        return None
    try:
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [proto],
                "node",
                [onnx.helper.make_empty_tensor_value_info(name) for name in arrays],
                [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output],
            ),
            opset_imports=[onnx.helper.make_opsetid(node.domain, version)],
        )
        results = onnx.reference.ReferenceEvaluator(model).run(None, arrays)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # stays in the graph as it is, which is always correct
    if any(np.size(result) > _MAX_ELEMENTS for result in results):
        return None
    return [np.asarray(result) for result in results]


def free_batch(tail: ir.Graph, feature: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Let `tail` take any number of feature maps, where its batch is frozen at 1.

    `shapes` are the shapes at batch 1. A Reshape whose target is constant keeps all sizes but the
    first, the batch; the target of a Resize gets the feature map's own batch; a Squeeze without
    axes gets them. Whether that is correct is proven by running, not assumed.
    """
    if tail.num_nodes() == 0:
        return  # the cut is the scores themselves
    batch = _batch_of(tail, feature)
    carried = {str(value.name) for value in tail.inputs}
    for node in list(tail):
        if node.op_type == "Shape" or not any(
            v is not None and v.name in carried for v in node.inputs
        ):
            continue
        carried.update(str(value.name) for value in node.outputs)
        if node.domain != "":
            continue
        if node.op_type == "Concat":
            _free_concat(tail, node, batch, carried, shapes)
        elif node.op_type == "Reshape":
            _free_reshape(tail, node, shapes)
        elif node.op_type == "Squeeze":
            _free_squeeze(tail, node, shapes)
        elif node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3] is not None:
            _free_resize(tail, node, batch)
    if not batch.uses():
        for unused in (batch.producer(), _shape_node(batch)):
            if unused is not None:
                tail.remove(unused)
    for value in (*tail.inputs, *tail.outputs, *(v for n in tail for v in n.outputs)):
        value.shape = None
    for value in tail.inputs:
        shape = shapes[str(value.name)]
        value.shape = ir.Shape(["N", *shape[1:]] if shape[:1] == (1,) else shape)


def _free_reshape(tail: ir.Graph, node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> None:
    shape = shapes.get(str(node.outputs[0].name))
    if not shape or 0 in shape:
        return
    target = np.array([-1, *shape[1:]], np.int64)
    if len(node.inputs) > 1:
        if node.inputs[1] is None or ir.convenience.get_const_tensor(node.inputs[1]) is None:
            return
        node.replace_input_with(1, constant(tail, f"{node.outputs[0].name}/shape", target))
    else:  # before opset 5
        node.attributes["shape"] = ir.AttrInt64s("shape", target.tolist())


def _free_squeeze(tail: ir.Graph, node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> None:
    shape = shapes.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    has_axes = "axes" in node.attributes or (len(node.inputs) > 1 and node.inputs[1] is not None)
    if shape is None or has_axes:
        return
    axes = [axis for axis, size in enumerate(shape) if size == 1 and axis > 0]
    if tail.opset_imports.get("", 1) < 13:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    else:
        node.resize_inputs(2)
        name = f"{node.outputs[0].name}/axes"
        node.replace_input_with(1, constant(tail, name, np.array(axes, np.int64)))


def _free_resize(tail: ir.Graph, node: ir.Node, batch: ir.Value) -> None:
    sizes = ir.convenience.get_const_tensor(node.inputs[3]) if node.inputs[3] else None
    if sizes is None or sizes.size != 4:
        return
    name = f"{node.outputs[0].name}/sizes"
    rest = constant(tail, f"{name}/rest", sizes.numpy()[1:].astype(np.int64))
    joined = ir.node("Concat", [batch, rest], {"axis": 0}, name=name)
    joined.outputs[0].name = name
    tail.insert_before(node, joined)
    node.replace_input_with(3, joined.outputs[0])


def _free_concat(
    tail: ir.Graph,
    node: ir.Node,
    batch: ir.Value,
    carried: set[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Repeat a value that is joined to every image, such as a class token, for each image."""
    if node.attributes.get_int("axis", 0) == 0:
        return
    for index, value in enumerate(node.inputs):
        if value is None or value.name in carried:
            continue
        tensor = ir.convenience.get_const_tensor(value)
        shape = shapes.get(str(value.name)) if tensor is None else tuple(tensor.shape.numpy())
        if shape is None or shape[0] != 1:
            continue
        name = f"{node.outputs[0].name}/input{index}"
        rest = constant(tail, f"{name}/rest", np.array(shape[1:], np.int64))
        target = ir.node("Concat", [batch, rest], {"axis": 0}, name=f"{name}/shape")
        repeated = ir.node("Expand", [value, target.outputs[0]], name=f"{name}/repeated")
        for added in (target, repeated):
            added.outputs[0].name = added.name
        tail.insert_before(node, [target, repeated])
        node.replace_input_with(index, repeated.outputs[0])


def _batch_of(tail: ir.Graph, feature: str) -> ir.Value:
    """Add nodes that read the feature map's batch size; return it as an int64 tensor [1]."""
    value = next(v for v in tail.inputs if v.name == feature)
    shape = ir.node("Shape", [value], name=f"{feature}/shape")
    shape.outputs[0].name = f"{feature}/shape"
    first = constant(tail, f"{feature}/first_axis", np.array([0], np.int64))
    batch = ir.node("Gather", [shape.outputs[0], first], name=f"{feature}/batch")
    batch.outputs[0].name = f"{feature}/batch"
    tail.insert_before(tail[0], [shape, batch])
    return batch.outputs[0]


def _shape_node(batch: ir.Value) -> ir.Node | None:
    gather = batch.producer()
    source = gather.inputs[0] if gather is not None else None
    return source.producer() if source is not None else None


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register `array` as an initialiser, numbered where another value has the name."""
    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}.{count}"
    value = ir.Value(name=unique, const_value=ir.tensor(np.asarray(array), name=unique))
    value.shape = ir.Shape(array.shape)
    value.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value
