"""The server, asked by the protocols' own clients."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
import tritonclient.http

from boxes import make_scenes
from command import COMMAND, fails, run_python
from ov_recipro import Explainer
from ov_recipro.images.reading import read_image
from places import SCENE_DETECTOR
from served import NAME, Server, encoded, serving


@pytest.fixture(scope="module")
def server(lite0: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    models = ("-m", lite0, "-m", f"scenes={SCENE_DETECTOR / 'model.onnx'}")
    with serving(*models, "--grpc-port", str(port), OV_RECIPRO_REQUEST_SECONDS="2") as started:
        yield Server(started.url, started.process, f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def throughput(lite0: Path) -> Explainer:
    """An explainer like the server's own."""
    return Explainer(lite0, hint="throughput")


def test_v1(server: Server, throughput: Explainer, cat: Path, coffee: Path) -> None:
    include = ["maps", "raw", "overlay"]
    body = {
        "instances": [encoded(cat), encoded(coffee)],
        "parameters": {"targets": ["top1", "tabby"], "include": include},
    }
    answer = server.post("explain", body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["provenance"]["sha256"] == throughput.provenance()["sha256"]
    for entry, image in zip(found["explanations"], (cat, coffee), strict=True):
        own = throughput(image, ["top1", "tabby"])
        for name, maps in (("map", own.maps), ("raw", own.raw)):
            sent = np.array([target[name] for target in entry["targets"]], np.float32)
            np.testing.assert_array_equal(sent, maps)
        assert [each["label"] for each in entry["predictions"]] == [
            each.label for each in own.predictions
        ]
        assert entry["sha256"] == own.sha256
        drawn = base64.b64decode(entry["targets"][1]["overlay"]["b64"])
        pixels = cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(pixels, own.overlay("tabby"))
        assert not entry["targets"][0]["flat"]
    answer = server.post("predict", {"instances": [encoded(cat)]})
    (listed,) = answer.json()["predictions"]
    own_scores = [each.score for each in throughput.predict(cat)]
    assert [each["score"] for each in listed] == own_scores
    tensor, _ = throughput._prepared(read_image(cat))
    (listed,) = server.post("predict", {"instances": tensor.tolist()}).json()["predictions"]
    assert [each["score"] for each in listed] == own_scores


def test_verdicts(server: Server, coffee: Path) -> None:
    body = {"instances": [encoded(coffee)], "parameters": {"include": ["verification"]}}
    (target,) = server.post("explain", body).json()["explanations"][0]["targets"]
    assert target["verification"]["verdict"] == "supported"
    assert "map" not in target


def test_open_inference_protocol(server: Server, throughput: Explainer, cat: Path) -> None:
    client = tritonclient.http.InferenceServerClient(server.address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.get_server_metadata()["name"] == "ov-recipro"
    described = client.get_model_metadata(NAME)
    assert [each["name"] for each in described["inputs"]] == ["encoded_image", "image"]
    own = throughput(cat, ["tabby", 5])
    tensor, _ = throughput._prepared(read_image(cat))
    wanted = ["saliency_map", "record", "logits", "targets"]
    for data, is_binary in (
        (np.array([cat.read_bytes()], object), True),
        (np.array([encoded(cat)["b64"].encode()], object), False),
        (tensor, True),
        (tensor, False),
    ):
        is_file = data.dtype == object
        name = "encoded_image" if is_file else "image"
        given = tritonclient.http.InferInput(name, data.shape, "BYTES" if is_file else "FP32")
        given.set_data_from_numpy(data, binary_data=is_binary)
        outputs = [
            tritonclient.http.InferRequestedOutput(each, binary_data=is_binary) for each in wanted
        ]
        asked = {"targets": '["tabby", 5]'}
        number = "7" if is_binary else ""
        answer = client.infer(NAME, [given], outputs=outputs, parameters=asked, request_id=number)
        assert answer.get_response()["id"] == number
        assert [each["name"] for each in answer.get_response()["outputs"]] == wanted
        np.testing.assert_array_equal(answer.as_numpy("saliency_map"), own.maps)
        np.testing.assert_array_equal(answer.as_numpy("logits")[0], throughput.outputs(tensor))
        assert answer.as_numpy("targets").tolist() == [281, 5]
        record = json.loads(answer.as_numpy("record")[0])
        assert record["sha256"] == own.provenance["sha256"]
        assert (record["images"][0]["sha256"] == own.sha256) == is_file


GRPC = """
import numpy as np
import tritonclient.grpc as grpc

client = grpc.InferenceServerClient(ADDRESS)
assert client.is_server_ready()
assert client.get_model_metadata(NAME).outputs[1].name == "saliency_map"
given = grpc.InferInput("encoded_image", [1], "BYTES")
given.set_data_from_numpy(np.array([open(IMAGE, "rb").read()], object))
answer = client.infer(NAME, [given], parameters={"targets": "top2"})
np.save("maps.npy", answer.as_numpy("saliency_map"))
tensor = grpc.InferInput("image", [1, 3, 224, 224], "FP32")
tensor.set_data_from_numpy(np.load("tensor.npy"))
np.save("of_tensor.npy", client.infer(NAME, [tensor]).as_numpy("saliency_map"))
for name, asked, status in (
    (NAME, "nope", "NOT_FOUND"),
    (NAME, "[", "INVALID_ARGUMENT"),
    ("nope", "top1", "NOT_FOUND"),
):
    try:
        client.infer(name, [given], parameters={"targets": asked})
    except grpc.InferenceServerException as error:
        assert status in str(error), error
    else:
        raise AssertionError(status)
try:
    client.unload_model(NAME)
except grpc.InferenceServerException as error:
    assert "UNIMPLEMENTED" in str(error), error
else:
    raise AssertionError
"""


def test_grpc(server: Server, throughput: Explainer, cat: Path, tmp_path: Path) -> None:
    """In a process of its own: this client and KServe's SDK can't be in one."""
    tensor, _ = throughput._prepared(read_image(cat))
    np.save(tmp_path / "tensor.npy", tensor)
    names = f"ADDRESS, NAME, IMAGE = {server.grpc!r}, {NAME!r}, {str(cat)!r}"
    done = run_python(f"{names}{GRPC}", tmp_path)
    assert done.returncode == 0, done.stderr
    own = throughput(cat, "top2").maps
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npy"), own)
    np.testing.assert_array_equal(np.load(tmp_path / "of_tensor.npy"), own[:1])


def test_boxes(server: Server) -> None:
    scene = make_scenes(3)[0].image
    _, data = cv2.imencode(".png", scene)
    body = {"instances": [{"b64": base64.b64encode(data.tobytes()).decode()}]}
    (listed,) = server.post("predict", body, "scenes").json()["predictions"]
    own = Explainer(SCENE_DETECTOR / "model.onnx", hint="throughput")(scene, box=1)
    assert [each["score"] for each in listed] == [each.score for each in own.predictions]
    answer = server.post("explain", body | {"parameters": {"box": 1}}, "scenes").json()
    (target,) = answer["explanations"][0]["targets"]
    np.testing.assert_array_equal(np.array(target["map"], np.float32), own.maps[0])


GOOD = {"instances": [{"b64": "PLACE"}]}


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "instances"),
        ({"instances": []}, 400, "1 to 32"),
        ({"instances": [{"b64": "%%"}]}, 400, "base64"),
        ({"instances": [{"b64": "aaaa"}]}, 422, "not an image"),
        ({"instances": [{"url": "http://169.254.169.254/"}]}, 400, "unknown field `url`"),
        ({"instances": ["/etc/passwd"]}, 400, "neither"),
        ({"instances": [[1, 2]]}, 422, "shape"),
        ({"instances": [[[1], [2, 3]]]}, 400, "neither"),
        (GOOD | {"parameters": {"targets": "nope"}}, 404, "no class 'nope'"),
        (GOOD | {"parameters": {"targets": 10**30}}, 404, "no class"),
        (GOOD | {"parameters": {"top_k": 0}}, 400, "top_k"),
        (GOOD | {"parameters": {"targets": "top" + "9" * 5000}}, 404, "no class"),
        (GOOD | {"parameters": {"similar_to": [{"b64": ""}] * 33}}, 400, "at most 32"),
        (GOOD | {"parameters": {"similar_to": [{"b64": ""}]}}, 400, "'similar_to' is for an emb"),
        (GOOD | {"parameters": {"top_k": 1000, "include": ["raw"]}, "more": 1}, 400, "`more`"),
        (
            {"instances": [[[[0.0] * 224] * 224] * 3], "parameters": {"include": ["overlay"]}},
            400,
            "tensor",
        ),
        ({"instances": [{"b64": "PLACE"}] * 32, "parameters": {"top_k": 1000}}, 400, "too large"),
        (GOOD | {"parameters": {"top_k": 5, "include": ["verification"]}}, 400, "at most 4"),
        (GOOD | {"parameters": {"colour": "red"}}, 400, "colour"),
        (GOOD | {"parameters": {"include": ["everything"]}}, 400, "include"),
        (GOOD | {"parameters": {"box": 1}}, 400, "detector"),
        (GOOD | {"parameters": {"similar_to": "/etc"}}, 400, "similar_to"),
        (GOOD | {"parameters": {"top_k": 33, "include": ["overlay"]}}, 400, "at most 32"),
    ],
)
def test_what_clients_get_wrong(
    server: Server, cat: Path, body: Any, status: int, part: str
) -> None:
    text = json.dumps(body).replace("PLACE", encoded(cat)["b64"])
    answer = server.post("explain", json.loads(text))
    assert answer.status_code == status, answer.text
    assert part in answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("path", "data", "headers", "status"),
    [
        (f"v1/models/{NAME}:explain", b'{"instances": [', {}, 400),
        (f"v1/models/{NAME}:explain", b"\xff\xfe", {}, 400),
        ("v1/models/nope:explain", b"{}", {}, 404),
        (f"v2/models/{NAME}/infer", b'{"inputs": 3}', {}, 400),
        (f"v2/models/{NAME}/infer", b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (f"v2/models/{NAME}/infer", b'{"inputs": []}', {}, 400),
        (f"v2/models/{NAME}/infer", b'{"inputs": [], "id": "\\ud800"}', {}, 400),
        (f"v2/models/{NAME}/infer", b'{"inputs": [], "outputs": [{"name": "x"}]}', {}, 400),
        (f"v1/models/{NAME}:predict", b'{"instances": [1], "parameters": {"top_k": 1}}', {}, 400),
        (f"v1/models/{NAME}:explain", b"[" * 100_000, {}, 400),
        (f"v2/models/{NAME}/versions/7/infer", b'{"inputs": []}', {}, 501),
        (f"v2/repository/models/{NAME}/unload", b"", {}, 501),
        (f"v1/models/{NAME}:explain", bytes(40 << 20), {}, 413),
        ("v3", b"", {}, 404),
        ("metrics", b"", {}, 405),
    ],
)
def test_what_is_not_a_request(
    server: Server, path: str, data: bytes, headers: dict[str, str], status: int
) -> None:
    sent = {"content-type": "application/json"} | headers
    answer = requests.post(server.url + path, data=data, headers=sent, timeout=30)
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    assert "error" in answer.json()


def raw(server: Server, data: bytes) -> socket.socket:
    host, port = server.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(data)
    return connection


def test_clients_that_are_slow_or_leave(server: Server, cat: Path) -> None:
    head = f"POST /v1/models/{NAME}:explain HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    for _ in range(3):
        raw(server, head.encode() + b"{").close()
    with raw(server, head.encode() + b'{"instances"') as slow:
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    assert server.post("explain", {"instances": [encoded(cat)]}).status_code == 200


def test_answers_have_no_headers_of_requests(server: Server, cat: Path) -> None:
    """Chunked, of another content type, with headers that are nobody else's business."""
    body = json.dumps({"instances": [encoded(cat)]}).encode()
    answer = requests.post(
        f"{server.url}v1/models/{NAME}:explain",
        data=iter([body[:1000], body[1000:]]),
        headers={"content-type": "application/json; charset=utf-8", "authorization": "secret"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert not {"authorization", "transfer-encoding", "host"} & {
        each.lower() for each in answer.headers
    }


def test_endless_headers(server: Server) -> None:
    with raw(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: ") as connection:
        with pytest.raises(OSError):  # noqa: PT011 - broken pipe or reset
            connection.sendall(bytes(64 << 20))
        assert requests.get(f"{server.url}v2/health/live", timeout=30).ok


def test_metrics(server: Server, cat: Path) -> None:
    server.post("explain", {"instances": [encoded(cat)]})
    text = requests.get(f"{server.url}metrics", timeout=30).text
    assert f'request_explain_seconds_count{{model_name="{NAME}"}}' in text


def test_a_killed_worker_is_replaced(server: Server, cat: Path) -> None:
    assert len(server.children) == 2
    for child in server.children:
        os.kill(child, signal.SIGKILL)
    assert server.post("explain", {"instances": [encoded(cat)]}).status_code == 200


def test_overload_and_recovery(lite0: Path, cat: Path) -> None:
    with serving("-m", lite0, "--workers", "1", "--queue", "1") as server:
        slow = {"instances": [encoded(cat)], "parameters": {"include": ["verification"]}}
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(server.post, "explain", slow) for _ in range(2)]
            time.sleep(1)
            refused = server.post("explain", {"instances": [encoded(cat)]})
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert "try again" in refused.json()["error"]
            assert requests.get(f"{server.url}v2/health/live", timeout=30).status_code == 200
            assert [each.result().status_code for each in waiting] == [200, 200]
        assert server.post("explain", {"instances": [encoded(cat)]}).status_code == 200


def test_what_kserve_adds_and_ports_that_are_taken(lite0: Path, cat: Path) -> None:
    added = ("--model_name", "classifier", "--predictor_host", "x.y", "--http_port", "0")
    with serving("-m", lite0, *added, "--workers", "2") as server:
        assert server.post("predict", {"instances": [encoded(cat)]}, "classifier").ok
        port = server.address.split(":")[1]
        for options in (("--port", port), ("--port", "0", "--grpc-port", port)):
            done = subprocess.run(
                [*COMMAND, "serve", "-m", lite0, *options],
                capture_output=True,
                text=True,
                check=False,
            )
            fails(done, f"Can't listen on 127.0.0.1:{port}")


def test_without_the_extra(tmp_path: Path, lite0: Path) -> None:
    (tmp_path / "kserve.py").write_text("raise ImportError('no module')")
    done = subprocess.run(
        [*COMMAND, "serve", "-m", lite0],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    fails(done, "pip install 'ov-recipro[serve]'")


def test_a_stop_loses_nothing_that_was_accepted(lite0: Path, cat: Path) -> None:
    body = json.dumps({"instances": [encoded(cat)] * 4}).encode()
    head = (
        f"POST /v1/models/{NAME}:explain HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    stopping = threading.Event()
    answers: list[tuple[bool, bytes]] = []  # whether it was sent in time, and how it begins

    def ask(server: Server) -> None:
        while True:
            is_in_time = False
            try:
                with raw(server, head.encode() + body) as connection:
                    is_in_time = not stopping.is_set()
                    answers.append((is_in_time, connection.recv(12)))
            except OSError:  # it listens no more
                if is_in_time:
                    answers.append((True, b""))
                return

    with serving("-m", f"{NAME}={lite0}") as server:
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(8)]
        for each in threads:
            each.start()
        time.sleep(2)
        children = server.children
        stopping.set()
        time.sleep(0.2)  # what is on its way arrives
        code, said = server.stop()
        for each in threads:
            each.join()
    assert code == 0
    assert "Traceback" not in said
    in_time = [begins for was_in_time, begins in answers if was_in_time]
    assert len(in_time) >= 8
    assert set(in_time) == {b"HTTP/1.1 200"}
    assert not any(Path(f"/proc/{each}").exists() for each in children)
