"""OpenVINO IR files: reading one as a `Graph`, and writing its head and tail."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import ModelFile
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.cut.graph import Graph, Node, Shape
from ov_recipro.cut.outputs import read_graph
from ov_recipro.errors import ModelError
from ov_recipro.limits import NODES, TENSOR_BYTES
from ov_recipro.options import Constants, Cut
from ov_recipro.sources import inputs
from ov_recipro.sources.metadata import count_labels, find_kind
from ov_recipro.sources.openvino_models import name_of, ports, read_model_file, reason, sizes_of
from ov_recipro.sources.rewriting.joining import join_in_openvino
from ov_recipro.sources.rewriting.openvino_float32 import hand_over, to_float32
from ov_recipro.sources.source import SplitFiles

_LARGEST_TEXT = 1 << 30  # bytes of an .xml file


@dataclass(frozen=True)
class OpenVINOSource:
    """An IR classifier, ready to be cut (see `ov_recipro.sources.source.Source`)."""

    path: Path
    graph: Graph
    image_shape: Shape
    image_dtype: str
    metadata: dict[str, str]
    constants: Constants

    @property
    def companions(self) -> tuple[Path, ...]:
        """The weights beside the .xml file."""
        weights = self.path.with_suffix(".bin")
        return (weights,) if weights.is_file() else ()

    def outline(self) -> tuple[ov.Model, dict[str, ov.Output]]:
        """Read the model in float32 (see `Source.outline`)."""
        model = self._read()
        to_float32(model)
        return model, {name_of(port): port for _, port in ports(model)}

    def write_split(self, point: CutPoint, folder: Path) -> SplitFiles:
        """Write `head.xml` and `tail.xml` into `folder` (see `Source.write_split`)."""
        with _reported(self.path, "can't be cut there"):
            return self._write(point, folder)

    def _write(self, point: CutPoint, folder: Path) -> SplitFiles:
        boundary, scores = point.boundary, self.graph.scores
        widened = self._read()
        differs = to_float32(widened)
        deployed = self._read()
        head_outputs = (*boundary, scores) if differs else boundary
        _save(_outputs(deployed, head_outputs, as_float32=True), folder / "head.xml")
        reference: tuple[ModelFile, ...] = ()
        if differs or self.constants:
            ends = (*boundary, scores, self.graph.output)
            reference = (ModelFile("reference.xml", (self.graph.image,), ends),)
            _save(_outputs(widened, ends), folder / "reference.xml")
            widened = self._read()
            to_float32(widened)
        _save(_tail(widened, boundary, scores), folder / "tail.xml")
        return SplitFiles(
            head=ModelFile("head.xml", (self.graph.image,), head_outputs),
            tail=ModelFile("tail.xml", boundary, (scores,)),
            reference=reference,
            low_precision=differs,
        )

    def _read(self) -> ov.Model:
        model = _at_batch_1(_load(self.path), self.path, self.image_shape, self.constants)[0]
        if self.graph.joined:
            known = {name_of(port): port for _, port in ports(model)}
            join_in_openvino(model, [known[name] for name in self.graph.joined], self.graph.scores)
        return model


def open_openvino(path: Path, cut: Cut) -> OpenVINOSource:
    """Read an IR classifier; arguments and errors as for `onnx_source.open_onnx`."""
    with _reported(path, "is not a readable OpenVINO IR"):
        return _describe(path, cut)


def _describe(path: Path, cut: Cut) -> OpenVINOSource:
    model, image = _at_batch_1(_load(path), path, cut.input_shape, cut.constants)
    operations = {name_of(port): node.get_type_name() for node, port in ports(model)}
    dtype = image.get_element_type()
    to_float32(model)
    shapes = {
        name_of(port): tuple(port.shape)
        for _, port in ports(model)
        if _has_shape(port) and name_of(port) in operations
    }
    for name in _integer_valued(model):
        shapes.pop(name, None)
    nodes = tuple(
        _neutral(node, operations)
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Parameter", "Result")
    )
    results = [name_of(result.input(0).get_source_output()) for result in model.get_results()]
    aliases = {alias: name_of(port) for _, port in ports(model) for alias in port.get_names()}
    output = cut.output_name
    asked = aliases.get(output, output) if output is not None else None
    name, entries = name_of(image), metadata_of(model)
    graph = read_graph(
        nodes,
        name,
        results,
        shapes,
        declared=find_kind(entries, path),
        classes=count_labels(entries, path),
        asked=asked,
        task=cut.task,
        aliases={alias: tensor for alias, tensor in aliases.items() if alias != tensor},
    )
    if not graph.path_nodes:
        raise ModelError(f"{path}: output '{graph.output}' does not depend on '{name}'.")
    return OpenVINOSource(
        path=path,
        graph=graph,
        image_shape=shapes[name],
        image_dtype=np.dtype(dtype.to_dtype()).name,
        metadata=entries,
        constants=cut.constants,
    )


def _load(path: Path) -> ov.Model:
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise ModelError(f"{path} is not a readable OpenVINO IR: it is larger than 1 GiB.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        text = ""
    if "<net" not in text[:4096]:  # else OpenVINO would try its other readers and complain
        raise ModelError(f"{path} is not a readable OpenVINO IR: it has no <net> element.")
    NODES.check(len(re.findall(r"<layer\s", text)), str(path))
    return read_model_file(path)


@contextmanager
def _reported(path: Path, what: str) -> Iterator[None]:
    """Turn OpenVINO's errors into ours."""
    try:
        yield
    except (RuntimeError, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(f"{path} {what}: {reason(error)}") from error


def _at_batch_1(
    model: ov.Model,
    path: Path,
    image_shape: Sequence[int] | None,
    constants: Constants,
) -> tuple[ov.Model, ov.Output]:
    """Fix the image's shape at batch 1 and the other inputs' values; make ShapeOf a constant."""
    entries = list(model.inputs)
    found = [inputs.Input(name_of(port), sizes_of(port)) for port in entries]
    chosen = inputs.choose_image(found, constants, path)
    shape = inputs.image_shape(found[chosen], image_shape, path, metadata_of(model))
    for index, port in enumerate(entries):
        if index != chosen:
            value = inputs.constant_value(found[index], constants)
            dtype = port.get_element_type().to_dtype()
            hand_over(port, ops.constant(value.astype(dtype)).output(0))
            model.remove_parameter(port.get_node())
    try:
        model.reshape({0: ov.PartialShape(list(shape))})
    except RuntimeError as error:
        raise ModelError(
            f"{path} does not accept the input shape {list(shape)}: {reason(error)}"
        ) from error
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf" and node.input_value(0).get_partial_shape().is_static:
            numbers = np.array(list(node.input_value(0).shape))
            dtype = node.output(0).get_element_type().to_dtype()
            hand_over(node.output(0), ops.constant(numbers.astype(dtype)).output(0))
    model.validate_nodes_and_infer_types()
    for _, port in ports(model):
        if _has_shape(port):
            size = math.prod(port.shape) * port.get_element_type().size
            TENSOR_BYTES.check(size, f"{path}: tensor '{name_of(port)}'")
    return model, model.inputs[0]


def _has_shape(port: ov.Output) -> bool:
    return bool(port.get_partial_shape().is_static)


def _integer_valued(model: ov.Model) -> set[str]:
    """Return the tensors whose zero is not at 0: they count quantisation steps."""
    names: set[str] = set()
    for node, port in ports(model):
        source = node.input_value(0) if node.get_input_size() else None
        steps = port.get_element_type().is_integral() or (
            source is not None
            and name_of(source) in names
            and node.get_type_name() not in ("Subtract", "Parameter")
        )
        readers = [each.get_node().get_type_name() for each in port.get_target_inputs()]
        if steps or (readers and set(readers) == {"Subtract"}):
            names.add(name_of(port))
    return names


def _neutral(node: ov.Node, operations: dict[str, str]) -> Node:
    outputs = tuple(name_of(port) for port in node.outputs())
    return Node(
        name=str(node.get_friendly_name()),
        op=operations.get(outputs[0] if outputs else "", str(node.get_type_name())),
        inputs=tuple(dict.fromkeys(name_of(port.get_source_output()) for port in node.inputs())),
        outputs=outputs,
        axes=_axes(node),
        centred=node.get_attributes().get("box_encoding") == "center",
    )


def _axes(node: ov.Node) -> tuple[int, ...]:
    kind = node.get_type_name()
    rank = len(node.output(0).get_partial_shape()) if _has_rank(node) else 0
    if rank and kind in ("Softmax", "SoftMax", "LogSoftmax"):
        return (int(node.get_attributes()["axis"]) % rank,)
    if kind in ("Transpose", "ReduceMean", "MVN") and node.get_input_size() > 1:
        numbers = node.input_value(1).get_node()
        source = node.input_value(0).get_partial_shape()
        if numbers.get_type_name() == "Constant" and source.rank.is_static:
            return tuple(int(n) % len(source) for n in np.ravel(numbers.data))
    return ()


def _has_rank(node: ov.Node) -> bool:
    return bool(node.get_output_size() > 0 and node.output(0).get_partial_shape().rank.is_static)


def metadata_of(model: ov.Model) -> dict[str, str]:
    """Return the file's "model_info", and the metadata of the ONNX file that it was made from."""
    found: dict[str, str] = {}
    for section, prefix in (("framework", ""), ("model_info", "model_info ")):
        if model.has_rt_info([section]):
            info = model.get_rt_info([section]).astype(dict)
            found |= {f"{prefix}{key}": _text(value) for key, value in info.items()}
    return found


def _text(value: Any) -> str:
    plain = value.value if hasattr(value, "value") else value
    return " ".join(map(str, plain)) if isinstance(plain, list | tuple) else str(plain)


def _outputs(model: ov.Model, names: Sequence[str], as_float32: bool = False) -> ov.Model:
    """Return `model` with these tensors as its outputs."""
    known = {name_of(port): port for _, port in ports(model)}
    results = []
    for name in names:
        port = known[name]
        port.add_names({name})
        if as_float32 and port.get_element_type() != ov.Type.f32:
            port = ops.convert(port, ov.Type.f32).output(0)
            port.add_names({f"{name}/float32"})
        results.append(ops.result(port))
    return ov.Model(results, model.get_parameters(), "head")


def _tail(model: ov.Model, boundary: Sequence[str], scores: str) -> ov.Model:
    """Return the part of `model` from the boundary to the scores, with its batch freed."""
    known = {name_of(port): port for _, port in ports(model)}
    end = known[scores]
    end.add_names({scores})
    parameters = []
    for name in boundary:
        port = known[name]
        shape = list(port.shape)
        first = [-1] if shape[:1] == [1] else shape[:1]
        parameter = ops.parameter([*first, *shape[1:]], port.get_element_type())
        for reader in list(port.get_target_inputs()):
            reader.replace_source_output(parameter.output(0))
        port.set_names(set())
        parameter.output(0).add_names({name})
        parameter.set_friendly_name(name)
        parameters.append(parameter)
    reached = set(boundary)
    for node in ov.Model([ops.result(end)], parameters, "tail").get_ordered_ops():
        sources = [name_of(port.get_source_output()) for port in node.inputs()]
        if reached.intersection(sources) and node.get_type_name() != "Result":
            reached.update(name_of(port) for port in node.outputs())
            _free_batch(node, parameters[0], reached)
    try:
        return ov.Model([ops.result(end)], parameters, "tail")
    except RuntimeError:
        for parameter in parameters:  # the batch is frozen in the graph
            parameter.set_partial_shape(ov.PartialShape([1, *list(parameter.partial_shape)[1:]]))
        return ov.Model([ops.result(end)], parameters, "tail")


def _free_batch(node: ov.Node, feature: ov.Node, reached: set[str]) -> None:
    """Let a node whose batch is frozen at 1 take any batch; a later run proves it.

    A Reshape keeps all sizes but the first, a Squeeze names its axes, and what a Concat joins to
    every image is repeated for each.
    """
    kind = node.get_type_name()
    if node.get_output_size() != 1 or not _has_shape(node.output(0)):
        return
    shape = list(node.output(0).shape)
    if kind == "Reshape" and shape and 0 not in shape:
        target = ops.constant(np.array([-1, *shape[1:]], np.int64))
        node.input(1).replace_source_output(target.output(0))
        node.set_attribute("special_zero", False)
    elif kind == "Squeeze" and node.get_input_size() == 1:
        source = list(node.input_value(0).shape)
        axes = [axis for axis, size in enumerate(source) if size == 1 and axis > 0]
        new = ops.squeeze(node.input_value(0), ops.constant(np.array(axes, np.int64)))
        reached.add(name_of(node.output(0)))
        hand_over(node.output(0), new.output(0))
    elif kind == "Concat" and int(node.get_attributes()["axis"]) % max(1, len(shape)) != 0:
        for port in node.inputs():
            source = port.get_source_output()
            if name_of(source) not in reached and list(source.shape)[:1] == [1]:
                zero = ops.constant(np.array([0], np.int64))
                batch = ops.gather(ops.shape_of(feature), zero, ops.constant(np.int64(0)))
                rest = ops.constant(np.array(list(source.shape)[1:], np.int64))
                repeated = ops.broadcast(source, ops.concat([batch, rest], 0))
                port.replace_source_output(repeated.output(0))


def _save(model: ov.Model, path: Path) -> None:
    with _reported(path, "can't be written"):
        ov.save_model(model, path, compress_to_fp16=False)
