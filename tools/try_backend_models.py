"""Send every model of onnx's own backend tests through `layers`: listed, or refused in one line.

Models of strangers: each operation of the standard, alone, and the architectures and layers that
the package brings. Each runs in a process that is replaced when it dies, with a minute of time and
a gigabyte of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

_SECONDS = 60
_BYTES = 1 << 30
_WORKER = """
import io, json, resource, sys
from contextlib import redirect_stderr, redirect_stdout
from ov_recipro.cli import main
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), int(sys.argv[1])))
for line in sys.stdin:
    out, err, status, crash = io.StringIO(), io.StringIO(), 0, ""
    sys.argv = ["ov-recipro", "layers", line.strip()]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        except BaseException as error:
            crash = f"{type(error).__name__}: {error}"
    print(json.dumps([status, out.getvalue().count("\\n"), err.getvalue(), crash]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each n-th model")
    parser.add_argument("--json", action="store_true", help="print each model's outcome")
    arguments = parser.parse_args()
    outcomes: list[tuple[str, str, str]] = []
    with TemporaryDirectory() as folder:
        worker = Worker()
        for number, (name, path) in enumerate(models(Path(folder))):
            if number % arguments.every == 0:
                kind, text = worker.outcome(path)
                outcomes.append((name, kind, text))
                if kind not in ("listed", "refused"):
                    print(f"{name}: {kind}: {text}", file=sys.stderr, flush=True)
        worker.stop()
    counts = Counter(kind for _, kind, _ in outcomes)
    print(f"{len(outcomes)} models: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if arguments.json:
        print(json.dumps(outcomes, indent=1))
    if counts.keys() - {"listed", "refused"}:
        sys.exit(1)


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield models that onnx brings as files, and those that it makes."""
    data = Path(onnx.backend.test.__file__).parent / "data"
    for path in sorted(data.rglob("*.onnx")):
        yield path.relative_to(data).as_posix(), path
    path = folder / "model.onnx"
    with np.errstate(all="ignore"), warnings.catch_warnings():  # of their expected outputs
        warnings.simplefilter("ignore")
        cases = collect_testcases()
    for case in cases:
        if case.model is not None:
            onnx.save(case.model, path)
            yield f"node/{case.name}", path


class Worker:
    """A process that lists the layers of one model after another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, path: Path) -> tuple[str, str]:
        """Return what became of a model, in one word and in its own words."""
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - this file's own words
                [sys.executable, "-c", _WORKER, str(_BYTES)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process, started = self._process, time.monotonic()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes
        watch = Timer(_SECONDS, process.kill)
        watch.start()
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        watch.cancel()
        if not line:
            status = process.wait()
            self._process = None
            return "crash", f"status {status} after {time.monotonic() - started:.0f} s"
        status, lines, told, crash = json.loads(line)
        if crash or "Traceback" in told:
            return "traceback", crash or told.strip().splitlines()[-1]
        if status == 0:
            return "listed", f"{lines} lines"
        errors = [each for each in told.splitlines() if each]
        if len(errors) == 1 and errors[0].startswith("Error: "):
            return "refused", errors[0]
        return "unclear", told

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    main()
