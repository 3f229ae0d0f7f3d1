"""Load a server: how fast it answers eight clients, and what two thousand mixed requests do to it.

Starts `ov-recipro serve` with the bundled model at a free port of this machine, and prints a table.
A third of the mixed requests is bad; each must be answered by its own status, and each good one by
the explainer's own map, to the last bit. Needs `requests` and the extra `serve`.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import requests

from ov_recipro import Explainer

ROOT = Path(__file__).resolve().parents[1]
NAME = "efficientnet-lite0"
IMAGES = [ROOT / "examples" / name for name in ("chelsea.jpg", "coffee.jpg")]
CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="mixed ones")
    parser.add_argument("--timed", type=int, default=400, help="images to time, of 8 clients")
    parser.add_argument("--images", type=int, default=1, help="of a request that is timed")
    parser.add_argument("--turns", type=int, default=3, help="turns of server and stream")
    arguments = parser.parse_args()
    with serving("--no-isolate") as (url, pid):
        print("without isolation:")
        time_requests(url, arguments.timed, arguments.turns, False, arguments.images)
    with serving() as (url, pid):
        print("isolated:")
        time_requests(url, arguments.timed, arguments.turns, True, arguments.images)
        mix(url, pid, arguments.requests)
        overload(url)


@contextmanager
def serving(*more: str) -> Iterator[tuple[str, int]]:
    """Start a server; yield its address and its process."""
    words = ["-c", "from ov_recipro.cli import main; main()", "serve", "--port", "0", "-q", *more]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        yield found[0], process.pid
    finally:
        process.terminate()
        print(f"stopped by SIGTERM: exit code {process.wait(60)}")


def body_of(image: Path, times: int = 1, **parameters: Any) -> dict[str, Any]:
    data = base64.b64encode(image.read_bytes()).decode()
    return {"instances": [{"b64": data}] * times, "parameters": parameters}


def time_requests(url: str, count: int, turns: int, is_isolated: bool, images: int) -> None:
    """Compare the server at 8 clients with a stream of such an explainer, in turns."""
    explainer = Explainer(hint="throughput", isolate=is_isolated)
    list(explainer.stream(IMAGES * 20))  # warms up
    bodies = [json.dumps(body_of(image, images)) for image in IMAGES]
    ratios, waits = [], []

    def ask(number: int) -> float:
        started = time.perf_counter()
        connection = light_connection(url)
        headers = {"content-type": "application/json"}
        connection.request("POST", f"/v1/models/{NAME}:explain", bodies[number % 2], headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"answered by {answer.status}")
        return time.perf_counter() - started

    for _ in range(turns):
        started = time.perf_counter()
        for _ in explainer.stream(IMAGES[number % 2] for number in range(count)):
            pass
        stream = count / (time.perf_counter() - started)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(ask, range(2 * CLIENTS)))
            started = time.perf_counter()
            waits += list(pool.map(ask, range(count // images)))
            served = count / (time.perf_counter() - started)
        ratios.append(served / stream)
        print(f"stream {stream:.1f} images/s, server {served:.1f} images/s: {ratios[-1]:.2f}")
    cuts = statistics.quantiles(waits, n=100)
    median, late = 1e3 * cuts[49], 1e3 * cuts[98]
    print(f"ratio {statistics.median(ratios):.2f}; p50 {median:.0f} ms, p99 {late:.0f} ms")


_local = threading.local()


def light_connection(url: str) -> http.client.HTTPConnection:
    """Return a thread's connection of the standard library, which takes less time than others."""
    if not hasattr(_local, "connection"):
        _local.connection = http.client.HTTPConnection(address_of(url), timeout=120)
    return _local.connection


def session() -> requests.Session:
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    return _local.session


def mix(url: str, pid: int, count: int) -> None:
    """Send requests of which a third is bad; check every answer, and the server's memory."""
    explainer = Explainer(hint="throughput")
    own = {image: explainer(image, "top2").maps for image in IMAGES}
    predicted = {image: [each.score for each in explainer.predict(image)] for image in IMAGES}
    verbs = {verb: f"{url}v1/models/{NAME}:{verb}" for verb in ("explain", "predict")}

    def explain(image: Path) -> str:
        answer = session().post(verbs["explain"], json=body_of(image, targets="top2"), timeout=120)
        if answer.status_code != 200:
            return f"explain: {answer.status_code}"
        maps = [each["map"] for each in answer.json()["explanations"][0]["targets"]]
        is_same = np.array_equal(np.array(maps, np.float32), own[image])
        return "explain: 200, the same map" if is_same else "explain: ANOTHER MAP"

    def predict(image: Path) -> str:
        answer = session().post(verbs["predict"], json=body_of(image), timeout=120)
        if answer.status_code != 200:
            return f"predict: {answer.status_code}"
        is_same = [each["score"] for each in answer.json()["predictions"][0]] == predicted[image]
        return "predict: 200, the same scores" if is_same else "predict: OTHER SCORES"

    def bad(name: str, status: int, **keywords: Any) -> Callable[[], str]:
        def send() -> str:
            answer = session().post(verbs["explain"], timeout=120, **keywords)
            return f"{name}: {answer.status_code}{'' if answer.status_code == status else ' WRONG'}"

        return send

    cut = base64.b64encode(IMAGES[0].read_bytes()[:5000]).decode()
    kinds: list[Callable[[], str]] = [
        bad("truncated image", 422, json={"instances": [{"b64": cut}]}),
        bad("huge body", 413, data=bytes(33 << 20)),
        bad("wrong type", 400, json={"instances": "cat.jpg"}),
        bad("unknown class", 404, json=body_of(IMAGES[0], targets="unicorn")),
        bad("unknown parameter", 400, json=body_of(IMAGES[0], colour="red")),
        bad(
            "broken JSON", 400, data='{"instances": [', headers={"content-type": "application/json"}
        ),
        lambda: slow(url),
        lambda: left(url),
    ]
    random = Random(0)  # noqa: S311 - the same mixture each time
    jobs: list[Callable[[], str]] = []
    for number in range(count):
        image = IMAGES[number % 2]
        if number % 3 == 0:
            jobs.append(kinds[number // 3 % len(kinds)])
        else:
            jobs.append(partial(random.choice((explain, predict)), image))
    random.shuffle(jobs)
    counts: Counter[str] = Counter()
    memory = [memory_of(pid)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        for number, result in enumerate(pool.map(lambda job: job(), jobs)):
            counts[result] += 1
            if number % max(1, count // 10) == count // 10 - 1:
                memory.append(memory_of(pid))
    for result, times in sorted(counts.items()):
        print(f"{times:5d} {result}")
    print("memory, MB:", " ".join(f"{each:.0f}" for each in memory))


def slow(url: str) -> str:
    """Send a body that never ends, for as long as the server waits."""
    with connected(url, 1000) as connection:
        connection.sendall(b'{"instances"')
        return f"slow body: {connection.recv(64).decode().split(' ')[1]}"


def left(url: str) -> str:
    """Close the connection in the middle of a body."""
    with connected(url, 1000) as connection:
        connection.sendall(b'{"instances"')
    return "closed connection: nothing awaited"


def address_of(url: str) -> str:
    return url.removeprefix("http://").rstrip("/")


def connected(url: str, length: int) -> socket.socket:
    host, port = address_of(url).split(":")
    connection = socket.create_connection((host, int(port)), timeout=120)
    head = f"POST /v1/models/{NAME}:explain HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def memory_of(pid: int) -> float:
    """Return the memory of a process and its children, in MB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for each in (pid, *map(int, children)):
        status = Path(f"/proc/{each}/status").read_text()
        total += int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    return total / 1024


def overload(url: str) -> None:
    """Ask far more than the queue holds, at once; then once more."""
    body = json.dumps(body_of(IMAGES[0]))
    counts: Counter[str] = Counter()

    def ask(_: int) -> str:
        headers = {"content-type": "application/json"}
        answer = requests.post(
            f"{url}v1/models/{NAME}:explain", data=body, headers=headers, timeout=120
        )
        retry = answer.headers.get("retry-after")
        return f"{answer.status_code}{'' if retry is None else f', Retry-After {retry}'}"

    with ThreadPoolExecutor(128) as pool:
        counts.update(pool.map(ask, range(512)))
    print("512 requests of 128 clients:", dict(counts))
    print("after them:", ask(0))


if __name__ == "__main__":
    main()
