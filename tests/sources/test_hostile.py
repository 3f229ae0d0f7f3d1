"""Files that mean harm: refused in one line, at once, with nothing of other files in any output."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from command import fails, measured
from graphs import Builder, residual
from ov_recipro import Explainer, ReciproError, split
from ov_recipro.images.reading import decode_image, find_images, read_image
from ov_recipro.sources import onnx_file
from ov_recipro.sources.companions import open_companion

MOST = 100 << 10  # KiB over the peak of the same command on a harmless file
USUAL: dict[str | Path, int] = {}  # peaks of commands on harmless files, in KiB
SECRET = np.arange(20, dtype=np.float32) + 0.125


def refused(
    folder: Path, command: list[str | Path], harmless: list[str | Path], *parts: str
) -> None:
    """Assert one line, exit 1, little memory and no new file but empty folders.

    `harmless` is a command on a small model, which takes about as much memory whatever model.
    """
    if harmless[0] not in USUAL:
        _, USUAL[harmless[0]] = measured(folder, *harmless)
    usual = USUAL[harmless[0]]
    before = {path for path in folder.rglob("*") if not path.is_dir()}
    done, peak = measured(folder, *command)
    fails(done, *parts)
    after = {path for path in folder.rglob("*") if not path.is_dir()}
    assert after == before
    assert "0.125" not in done.stdout + done.stderr
    assert peak - usual < MOST


def outside(folder: Path) -> Path:
    """Make a file of someone else's in `folder`, and return a folder beside it for the model."""
    (folder / "outside.bin").write_bytes(SECRET.tobytes())
    (folder / "inside").mkdir()
    return folder / "inside"


def with_weight(path: Path, make: Callable[[onnx.ModelProto, TensorProto], None]) -> Path:
    """Write a classifier whose weight [4,5] `make` has put somewhere else."""
    b = Builder()
    b.head(b.add("Relu", b.conv("image", 4, strides=[4, 4], output="feature")))
    model = onnx.load(b.save(path))
    weight = next(t for t in model.graph.initializer if list(t.dims) == [4, 5])
    model.graph.initializer.remove(weight)
    make(model, weight)
    path.write_bytes(model.SerializeToString())
    return path


def external(name: str, location: str, shape: list[int]) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, raw_data=b"")
    tensor.raw_data = bytes(4)
    set_external_data(tensor, location, offset=0, length=SECRET.nbytes)
    tensor.ClearField("raw_data")
    return tensor


def sparse_outside(path: Path) -> Path:
    def make(model: onnx.ModelProto, weight: TensorProto) -> None:
        values = external(weight.name, "outside.bin", [20])
        indices = onnx.numpy_helper.from_array(np.arange(20, dtype=np.int64), "indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 5]))

    return with_weight(path, make)


def function_outside(path: Path) -> Path:
    def make(model: onnx.ModelProto, weight: TensorProto) -> None:
        tensor = external("secret", "../outside.bin", [4, 5])
        body = [helper.make_node("Constant", [], ["w"], value=tensor)]
        imports = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("local", "Weight", [], ["w"], body, imports))
        model.opset_import.append(helper.make_opsetid("local", 1))
        call = helper.make_node("Weight", [], [weight.name], domain="local")
        model.graph.node.insert(0, call)

    return with_weight(path, make)


def default_outside(path: Path) -> Path:
    """The weight is what a function's attribute is by default, read as numbers are folded."""

    def make(model: onnx.ModelProto, weight: TensorProto) -> None:
        tensor = external("secret", "../outside.bin", [20])
        tensor.data_type = TensorProto.INT32
        constant = helper.make_node("Constant", [], ["w"])
        constant.attribute.append(
            onnx.AttributeProto(
                name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="value"
            )
        )
        imports = [helper.make_opsetid("", 17)]
        function = helper.make_function("local", "Weight", [], ["w"], [constant], imports)
        function.attribute_proto.append(helper.make_attribute("value", tensor))
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("local", 1))
        sizes = onnx.numpy_helper.from_array(np.array([4, 5], np.int64), "sizes")
        model.graph.initializer.append(sizes)
        nodes = [
            helper.make_node("Weight", [], ["numbers"], domain="local"),
            helper.make_node("Reshape", ["numbers", "sizes"], ["matrix"]),
            helper.make_node("Cast", ["matrix"], [weight.name], to=TensorProto.FLOAT),
        ]
        for node in reversed(nodes):
            model.graph.node.insert(0, node)

    return with_weight(path, make)


def nested_outside(path: Path) -> Path:
    """The weight is in a branch of an If inside of a function."""

    def make(model: onnx.ModelProto, weight: TensorProto) -> None:
        branches = {}
        for name in ("then_branch", "else_branch"):
            tensor = external(f"{name}_w", "../outside.bin", [4, 5])
            value = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, [4, 5])
            branches[name] = helper.make_graph([], name, [], [value], [tensor])
        condition = onnx.numpy_helper.from_array(np.array(True), "condition")
        body = [
            helper.make_node("Constant", [], ["c"], value=condition),
            helper.make_node("If", ["c"], ["w"], **branches),
        ]
        imports = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("local", "Weight", [], ["w"], body, imports))
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.graph.node.insert(0, helper.make_node("Weight", [], [weight.name], domain="local"))

    return with_weight(path, make)


def linked_outside(path: Path) -> Path:
    (path.parent / "weights.bin").symlink_to("../outside.bin")
    return with_weight(
        path, lambda m, w: m.graph.initializer.append(external(w.name, "weights.bin", [4, 5]))
    )


def linked_folder_outside(path: Path) -> Path:
    (path.parent / "linked").symlink_to("..")
    return with_weight(
        path,
        lambda m, w: m.graph.initializer.append(external(w.name, "linked/outside.bin", [4, 5])),
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (sparse_outside, "sparse tensor"),
        (function_outside, "'../outside.bin' lie outside the model's folder"),
        (default_outside, "'../outside.bin' lie outside the model's folder"),
        (nested_outside, "'../outside.bin' lie outside the model's folder"),
        (linked_outside, "'weights.bin' lie outside the model's folder"),
        (linked_folder_outside, "'linked/outside.bin' lie outside the model's folder"),
    ],
)
def test_no_weights_from_outside(
    write: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    """The command runs where the file is that it must not read."""
    folder = outside(tmp_path)
    harmless = residual(folder / "harmless.onnx")
    model = write(folder / "m.onnx")
    usual: list[str | Path] = ["layers", harmless]
    refused(tmp_path, ["split", model], usual, message)
    refused(tmp_path, ["layers", model], usual, message)


def ir(path: Path) -> Path:
    ov.save_model(ov.convert_model(residual(path.with_suffix(".onnx"))), path)
    return path


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "device"])
@pytest.mark.parametrize("form", ["onnx", "xml"])
def test_weights_are_a_regular_file_inside(form: str, kind: str, tmp_path: Path) -> None:
    folder = outside(tmp_path)
    if form == "xml":
        model = ir(folder / "m.xml")
        weights = folder / "m.bin"
    else:
        model = residual(folder / "m.onnx")
        weights = folder / "m.data"
        onnx.save(
            onnx.load(model), model, save_as_external_data=True, location="m.data", size_threshold=0
        )
    (tmp_path / "moved.bin").write_bytes(weights.read_bytes())
    weights.unlink()
    if kind == "link":
        weights.symlink_to("../moved.bin")
    elif kind == "fifo":
        os.mkfifo(weights)
    elif kind == "folder":
        weights.mkdir()
    else:
        weights.symlink_to("/dev/zero")
    message = "not a regular file" if kind in ("fifo", "folder") else "outside the model's folder"
    fails(measured(tmp_path, "split", model)[0], message)
    assert not list(tmp_path.glob("*.recipro"))


def test_a_bundles_weights_too(tmp_path: Path, cat: Path) -> None:
    split(ir(tmp_path / "m.xml"), tmp_path / "b.recipro")
    (tmp_path / "tail.bin").write_bytes((tmp_path / "b.recipro" / "tail.bin").read_bytes())
    (tmp_path / "b.recipro" / "tail.bin").unlink()
    (tmp_path / "b.recipro" / "tail.bin").symlink_to("../tail.bin")
    done, _ = measured(tmp_path, "explain", cat, "-m", "b.recipro")
    fails(done, "'tail.bin' lie outside the model's folder")


def test_linked_weights_of_a_linked_model_are_read(tmp_path: Path) -> None:
    """A store of files by their hashes, with links of their names beside: as hubs keep them."""
    store, named = tmp_path / "store", tmp_path / "named"
    store.mkdir()
    named.mkdir()
    model = ir(tmp_path / "m.xml")
    for suffix in (".xml", ".bin"):
        model.with_suffix(suffix).rename(store / f"hash-of-{suffix[1:]}")
        (named / f"m{suffix}").symlink_to(f"../store/hash-of-{suffix[1:]}")
    split(named / "m.xml", tmp_path / "b.recipro")


def test_what_was_checked_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights' name leads elsewhere right after the check: that is noticed when it is read."""
    path = residual(tmp_path / "m.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "other").write_bytes(bytes((tmp_path / "w").stat().st_size))

    def then_swapped(model: Path, name: str) -> BinaryIO:
        file = open_companion(model, name)
        if not (tmp_path / "kept").exists():
            (tmp_path / name).rename(tmp_path / "kept")
            (tmp_path / name).symlink_to("other")
        return file

    monkeypatch.setattr("ov_recipro.sources.companions.open_companion", then_swapped)
    found = onnx_file.load(path)
    with pytest.raises(ReciproError, match="its weights 'w' have changed"):
        [tensor.numpy() for tensor in onnx_file.tensors(found.model)]


def test_many_files_of_weights_take_few_descriptors(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.name, old = f"w_{tensor.name}", tensor.name
        for node in model.graph.node:
            node.input[:] = [tensor.name if name == old else name for name in node.input]
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    assert len(list(tmp_path.iterdir())) > 6
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = onnx_file.load(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(tensor.numpy().size for tensor in onnx_file.tensors(kept.model))


def sparse_bomb(path: Path) -> Path:
    def make(model: onnx.ModelProto, weight: TensorProto) -> None:
        values = onnx.numpy_helper.from_array(np.ones(1, np.float32), weight.name)
        indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "indices")
        sparse = helper.make_sparse_tensor(values, indices, [20000, 20000])
        model.graph.sparse_initializer.append(sparse)

    return with_weight(path, make)


def made_by(path: Path, op: str, size: list[int]) -> Path:
    """A tensor of this size is made from a few numbers inside the graph."""
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4], output="feature"))
    zero = b.add(op, b.constant(size, np.int64))
    b.head(b.add("Add", feature, b.add("ReduceMean", zero, keepdims=0)))
    return b.save(path)


def input_bomb(path: Path) -> Path:
    b = Builder(shape=(1, 3, 100_000, 100_000))
    b.head(b.add("Relu", b.conv("image", 4, strides=[4, 4], output="feature")))
    return b.save(path)


def calls(path: Path, depth: int, times: int) -> Path:
    """Functions that call each other `times` times, `depth` deep."""
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4], output="feature"))
    b.head(b.add(f"F{depth}", feature, domain="local"))
    model = onnx.load(b.save(path))
    model.opset_import.append(helper.make_opsetid("local", 1))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(depth + 1):
        op, domain = (f"F{level - 1}", "local") if level else ("Relu", "")
        names = ["x", *(f"t{i}" for i in range(times - 1)), "y"]
        body = [
            helper.make_node(op, [names[i]], [names[i + 1]], domain=domain) for i in range(times)
        ]
        function = helper.make_function("local", f"F{level}", ["x"], ["y"], body, imports)
        model.functions.append(function)
    onnx.save(model, path)
    return path


def recursive(path: Path) -> Path:
    model = onnx.load(calls(path, depth=1, times=1))
    model.functions[0].node[0].op_type = "F1"
    model.functions[0].node[0].domain = "local"
    onnx.save(model, path)
    return path


def many_sparse(path: Path) -> Path:
    model = onnx.load(residual(path))
    for number in range(40):
        values = onnx.numpy_helper.from_array(np.ones(1, np.float32), f"s{number}")
        indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "indices")
        sparse = helper.make_sparse_tensor(values, indices, [4096, 6000])
        model.graph.sparse_initializer.append(sparse)
    onnx.save(model, path)
    return path


def branch_bomb(path: Path) -> Path:
    """What is large is made inside the branches of an If."""
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4], output="feature"))
    b.head(b.add("Add", feature, "chosen"))
    model = onnx.load(b.save(path))
    branches = {}
    for name in ("then_branch", "else_branch"):
        size = onnx.numpy_helper.from_array(np.array([40_000, 40_000], np.int64))
        nodes = [
            helper.make_node("Constant", [], [f"{name}_size"], value=size),
            helper.make_node("ConstantOfShape", [f"{name}_size"], [f"{name}_large"]),
            helper.make_node("ReduceMean", [f"{name}_large"], [f"{name}_end"], keepdims=0),
        ]
        end = helper.make_tensor_value_info(f"{name}_end", TensorProto.FLOAT, [])
        branches[name] = helper.make_graph(nodes, name, [], [end])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    place = next(i for i, node in enumerate(model.graph.node) if "chosen" in node.input)
    model.graph.node.insert(place, helper.make_node("If", ["yes"], ["chosen"], **branches))
    onnx.save(model, path)
    return path


def hidden_size(path: Path) -> Path:
    """The size is computed from constants in a way that shape inference does not follow."""
    b = Builder()
    feature = b.add("Relu", b.conv("image", 4, strides=[4, 4], output="feature"))
    shape = b.add("Shape", b.add("NonZero", b.constant(np.ones(5000))))
    large = b.add("ConstantOfShape", b.add("Mul", shape, b.constant([40_000, 8], np.int64)))
    b.head(b.add("Add", feature, b.add("ReduceMean", large, keepdims=0)))
    return b.save(path)


def known_levels(path: Path) -> Path:
    """Each function is also called by the graph itself, the innermost first."""
    model = onnx.load(calls(path, depth=100, times=1))
    for level in range(100):
        call = helper.make_node(f"F{level}", ["feature"], [f"unused{level}"], domain="local")
        model.graph.node.insert(1 + level, call)
    onnx.save(model, path)
    return path


def renamed_domain(path: Path) -> Path:
    model = onnx.load(calls(path, depth=30, times=2))
    for function in model.functions:
        function.domain = ""
    for message in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        message.domain = "ai.onnx" if message.domain == "local" else message.domain
    path.write_bytes(model.SerializeToString())
    return path


def ir_bomb(path: Path) -> Path:
    text = ir(path.with_suffix(".xml")).read_text()
    text = text.replace("<dim>16</dim>", "<dim>160000</dim>").replace(
        "1,3,16,16", "1,3,160000,160000"
    )
    path.with_suffix(".xml").write_text(text)
    return path.with_suffix(".xml")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (sparse_bomb, "has 1,600,000,000 bytes"),
        (lambda path: made_by(path, "ConstantOfShape", [100_000, 100_000]), "bytes"),
        (input_bomb, "OV_RECIPRO_MAX_TENSOR_BYTES"),
        (ir_bomb, "OV_RECIPRO_MAX_TENSOR_BYTES"),
        (lambda path: calls(path, depth=30, times=2), "OV_RECIPRO_MAX_NODES"),
        (lambda path: calls(path, depth=100, times=1), "OV_RECIPRO_MAX_FUNCTION_DEPTH"),
        (recursive, "OV_RECIPRO_MAX_FUNCTION_DEPTH"),
        (many_sparse, "the sum of its sparse tensors"),
        (branch_bomb, "_large' has 6,400,000,000 bytes"),
        (hidden_size, "is not known before it is computed"),
        (known_levels, "OV_RECIPRO_MAX_FUNCTION_DEPTH"),
        (renamed_domain, "OV_RECIPRO_MAX_NODES"),
    ],
    ids=[
        *("sparse", "made", "input", "ir", "calls", "depth", "recursion"),
        *("sparses", "branch", "hidden", "levels", "domain"),
    ],
)
def test_bombs(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    usual: list[str | Path] = ["split", residual(tmp_path / "harmless.onnx"), "-o", "h.recipro"]
    model = write(tmp_path / "m.onnx")
    refused(tmp_path, ["split", model], usual, message)


def test_functions_that_nothing_calls_cost_nothing(tmp_path: Path) -> None:
    model = onnx.load(calls(tmp_path / "m.onnx", depth=30, times=2))
    (call,) = [node for node in model.graph.node if node.domain == "local"]
    call.op_type, call.domain = "Relu", ""
    model.functions[0].node[0].op_type = "F30"  # in a circle, too
    model.functions[0].node[0].domain = "local"
    onnx.save(model, tmp_path / "m.onnx")
    assert onnx_file.load(tmp_path / "m.onnx").model.graph.num_nodes() == len(model.graph.node)


def test_a_function_of_thousands_of_nodes_is_inlined_at_once(tmp_path: Path) -> None:
    path = calls(tmp_path / "m.onnx", depth=13, times=2)
    assert onnx_file.load(path).model.graph.num_nodes() > 1 << 14


def png_bomb(path: Path, side: int) -> Path:
    """A black picture of 1 bit a pixel: some 100 kB for 30000 x 30000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


def test_a_picture_that_would_fill_the_memory(tmp_path: Path, cat: Path) -> None:
    bomb = png_bomb(tmp_path / "bomb.png", 30_000)
    assert bomb.stat().st_size < 1 << 20
    _, usual = measured(tmp_path, "explain", cat)
    done, peak = measured(tmp_path, "explain", bomb)
    assert done.returncode == 1
    assert "bomb.png has 900,000,000 pixels" in done.stderr
    assert "OV_RECIPRO_MAX_PIXELS" in done.stderr
    assert peak - usual < MOST


def test_a_picture_with_two_headers(cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader of headers jumps over the true one, which the decoder finds."""
    data = cat.read_bytes()
    place = data.find(b"\xff\xc0") if b"\xff\xc0" in data else data.find(b"\xff\xc2")
    length = int.from_bytes(data[place + 2 : place + 4], "big")
    true = data[place : place + 2 + length]
    false = true[:5] + bytes([0, 8, 0, 8]) + true[9:]
    comment = b"\xff\xfe" + (2 + len(false)).to_bytes(2, "big") + false
    jump = b"\xff\x00" + (2 + len(true) + 4).to_bytes(2, "big")
    forged = data[:place] + jump + true + comment + data[place + len(true) :]
    assert decode_image(forged, "forged").shape == (300, 451, 3)
    monkeypatch.setenv("OV_RECIPRO_MAX_PIXELS", "1000")
    with pytest.raises(ReciproError, match=r"forged has 135,300 pixels"):
        decode_image(forged, "forged")


def test_a_picture_in_a_large_file(tmp_path: Path, cat: Path) -> None:
    path = tmp_path / "long.jpg"
    path.write_bytes(cat.read_bytes())
    with path.open("r+b") as file:
        file.truncate(600 << 20)
    with pytest.raises(ReciproError, match=r"OV_RECIPRO_MAX_IMAGE_BYTES"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"mean": 1, "std": [1, 1, 1]}'),
        ("config.json", '{"pretrained_cfg": {"mean": ["a", 0, 0], "std": [1, 1, 1]}}'),
        ("preprocessor_config.json", '{"image_mean": [0, 0, 0], "size": "large"}'),
        ("config.json", " " * (5 << 20)),
        ("metadata.yaml", " " * (5 << 20)),
    ],
)
def test_what_lies_beside_a_model_is_malformed(name: str, text: str, tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    (tmp_path / name).write_text(text)
    with pytest.raises(ReciproError) as error:
        Explainer(path)
    assert "\n" not in str(error.value)


def test_a_number_in_the_metadata_is_none(tmp_path: Path) -> None:
    path = residual(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="model_info mean_values", value="0 0 0")
    model.metadata_props.add(key="model_info pad_value", value="x")
    onnx.save(model, path)
    with pytest.raises(ReciproError, match="malformed"):
        split(path, tmp_path / "b.recipro")


def test_limits_are_raised_and_lowered(
    tmp_path: Path, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OV_RECIPRO_MAX_PIXELS", "1000")
    with pytest.raises(ReciproError, match=r"has 135,300 pixels; at most 1,000 are read"):
        read_image(cat)
    monkeypatch.setenv("OV_RECIPRO_MAX_PIXELS", "135300")
    assert read_image(cat).shape == (300, 451, 3)
    monkeypatch.setenv("OV_RECIPRO_MAX_PIXELS", "many")
    with pytest.raises(ReciproError, match="must be a whole number, not 'many'"):
        read_image(cat)
    monkeypatch.setenv("OV_RECIPRO_MAX_NODES", "5")
    with pytest.raises(ReciproError, match="nodes; at most 5 are read"):
        split(residual(tmp_path / "m.onnx"), tmp_path / "b.recipro")


def test_a_pipe_named_like_a_picture_blocks_nobody(tmp_path: Path, cat: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert find_images([str(tmp_path)]) == [tmp_path / "pipe.jpg"]
    done, _ = measured(tmp_path, "explain", "pipe.jpg", cat)
    assert done.returncode == 1
    assert "pipe.jpg is not a file." in done.stderr
    assert "1 of 2 images could not be explained" in done.stderr
