"""Make each call on a file fail in turn, or kill the process at random; report what was lost.

Each command runs as a user would run it. Afterwards every file must be whole or absent, the error
one line, and the same command, run again, must give what it gives without a fault. Linux, with a C
compiler.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import onnx
import openvino as ov

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "efficientnet-lite0" / "efficientnet-lite0.onnx"
COMMANDS = {
    "split": ["split", "model.onnx", "-o", "bundle", "--force"],
    "explain": ["explain", "photos", "-m", "model.onnx", "-o", "out", "--save-maps", "--report"],
    "evaluate": [
        *("evaluate", "photos", "-m", "model.onnx", "-o", "out", "--step", "25088"),
        *("--methods", "recipro,random"),
    ],
    "report": ["report", "out"],
    "embed": ["embed", "model.onnx", "-o", "out.onnx", "--force"],
    "embed-ir": ["embed", "model.onnx", "-o", "out.xml", "--force"],
    "compare": ["compare", "model.onnx", "model.onnx", "photos", "-o", "out"],
    "ray": ["explain", "photos", "-m", "model.onnx", "--engine", "ray", "-o", "out"],
    "ray-cluster": [  # on a cluster that RAY_ADDRESS names
        *("explain", "photos", "-m", "model.onnx", "--engine", "ray", "--address", "auto"),
        *("--actors", "1", "-o", "out"),
    ],
}
ERRORS = ("ENOSPC", "EIO", "EMFILE", "ENOMEM")
_CHANGING = ("milliseconds", "created", "seconds", "started", "time")


@dataclass
class Tally:
    """What was tried with one command, and what went wrong."""

    command: str
    calls: int = 0
    tried: int = 0
    failed: int = 0
    survived: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "commands", nargs="*", default=[c for c in COMMANDS if not c.startswith("ray")]
    )
    parser.add_argument("--errors", nargs="+", default=list(ERRORS), choices=ERRORS)
    parser.add_argument(
        "--every", type=int, default=1, help="only each n-th call fails; errors take turns"
    )
    parser.add_argument("--reads", type=int, default=20, help="reads that fail, evenly spread")
    parser.add_argument("--kills", type=int, default=0, help="also kill this often")
    parser.add_argument(
        "--seed", type=int, default=0, help="which error comes first, and when kills come"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        tallies = []
        for name in arguments.commands:
            tally = Tally(name)
            work = Path(folder) / name
            try_command(tally, work, library, arguments)
            tallies.append(tally)
            print(shown(tally), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([vars(tally) for tally in tallies], indent=2))
    if any(tally.problems for tally in tallies):
        sys.exit(1)


def compiled(folder: Path) -> Path:
    """Compile the library that fails calls."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    words = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(words, check=True)  # noqa: S603 - this file's own words
    return library


def shown(tally: Tally) -> str:
    lines = [
        f"{tally.command}: {tally.calls} calls, {tally.tried} tried, {tally.failed} ended with an "
        f"error, {tally.survived} went on, {len(tally.problems)} problems"
    ]
    return "\n  ".join([*lines, *tally.problems[:20]])


def try_command(tally: Tally, work: Path, library: Path, arguments: argparse.Namespace) -> None:
    """Run a command without a fault, and then with each of them."""
    words = COMMANDS[tally.command]
    pristine = work / "pristine"
    prepare(pristine, tally.command)
    expected_in = fresh(pristine, work / "expected")
    started = time.monotonic()
    done = run(words, expected_in)
    took = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{tally.command} fails without a fault: {done.stderr}")
    expected = results(expected_in)
    for kind in ("other", "read"):
        count = calls_of(words, fresh(pristine, work / "count"), library, kind)
        tally.calls += count
        step = arguments.every if kind == "other" else max(1, count // max(1, arguments.reads))
        points = range(1, count + 1, step) if kind == "other" or arguments.reads else ()
        for number, at in enumerate(points, arguments.seed):
            name = arguments.errors[number % len(arguments.errors)]
            here = fresh(pristine, work / "faulty")
            done = run(words, here, fault(library, here, kind, at, name))
            judge(tally, f"{kind} {at}, {name}", done, here, words, expected)
    moments = np.random.default_rng(arguments.seed)
    for number in range(arguments.kills):
        here = fresh(pristine, work / "killed")
        moment = float(moments.uniform(0, took))
        killed(words, here, moment)
        judge(tally, f"kill {number} after {moment:.2f} s", None, here, words, expected)


def prepare(folder: Path, command: str) -> None:
    """Make the folder in which a command runs."""
    (folder / "photos").mkdir(parents=True)
    shutil.copy(MODEL, folder / "model.onnx")
    for path in sorted((ROOT / "examples").glob("*.jpg")):
        shutil.copy(path, folder / "photos")
    if command == "report":
        done = run(["explain", "photos", "-m", "model.onnx", "-o", "out", "--save-maps"], folder)
        done.check_returncode()
        shutil.rmtree(folder / "cache", ignore_errors=True)


def fresh(pristine: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(pristine, target)
    return target


def run(
    words: list[str], folder: Path, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this package
        command_of(words),
        cwd=folder,
        env=environment(folder) | (more or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def command_of(words: list[str]) -> list[str]:
    return [sys.executable, "-c", "from ov_recipro.cli import main; main()", *words]


def environment(folder: Path) -> dict[str, str]:
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | own


def fault(library: Path, folder: Path, kind: str, at: int, error: str) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(library),
        "FAULT_FOLDER": str(folder),
        "FAULT_KIND": kind,
        "FAULT_AT": str(at),
        "FAULT_ERRNO": str(getattr(errno, error)),
    }


def calls_of(words: list[str], folder: Path, library: Path, kind: str) -> int:
    count = folder.parent / "calls"
    more = fault(library, folder, kind, 0, "EIO") | {"FAULT_COUNT": str(count)}
    run(words, folder, more).check_returncode()
    return int(count.read_text())


def killed(words: list[str], folder: Path, moment: float) -> None:
    process = subprocess.Popen(  # noqa: S603 - this package
        command_of(words),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(moment)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(
    tally: Tally,
    what: str,
    done: subprocess.CompletedProcess[str] | None,
    folder: Path,
    words: list[str],
    expected: dict[str, object],
) -> None:
    """Count a run, and note what is wrong with what it left."""
    tally.tried += 1
    if done is not None:
        tally.failed += done.returncode != 0
        tally.survived += done.returncode == 0
        if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
            tally.problems.append(f"{what}: status {done.returncode}: {last_lines(done.stderr)}")
        elif done.returncode and not any(
            line.startswith("Error") for line in done.stderr.splitlines()
        ):
            tally.problems.append(f"{what}: no error line: {last_lines(done.stderr)}")
        for path in left_over(folder):
            tally.problems.append(f"{what}: left {path} ({last_lines(done.stderr)})")
    for problem in broken(folder):
        tally.problems.append(f"{what}: {problem}")
    again = run(words, folder)
    if again.returncode:
        tally.problems.append(f"{what}: run again, {last_lines(again.stderr)}")
    elif (found := results(folder)) != expected:
        names = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
        tally.problems.append(f"{what}: run again, other results: {sorted(names)}")


def last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-2:])[:300]


def left_over(folder: Path) -> Iterator[str]:
    for path in folder.rglob(".*"):
        if path.name != ".lock" and not path.name.endswith(".lock"):
            yield str(path.relative_to(folder))


def broken(folder: Path) -> Iterator[str]:
    """Yield what is wrong with files that are not whole."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or hidden or "photos" in path.parts:
            continue
        check = _CHECKS.get(path.suffix)
        if check is None:
            continue
        try:
            check(path)
        except Exception as error:
            yield f"{path.relative_to(folder)} is broken: {str(error)[:100]}"


def _picture(path: Path) -> None:
    if cv2.imread(str(path)) is None:
        raise ValueError("no picture")


def _page(path: Path) -> None:
    if not path.read_text().rstrip().endswith("</html>"):
        raise ValueError("no end")


def _records(path: Path) -> None:
    for line in path.read_text().splitlines()[:-1]:  # the last may be cut off by a kill
        json.loads(line)


_CHECKS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": _records,
    ".html": _page,
    ".png": _picture,
    ".npz": lambda path: dict(np.load(path)),
    ".onnx": onnx.load,
    ".xml": lambda path: ov.Core().read_model(path),
}


def results(folder: Path) -> dict[str, object]:
    """Return what a command has made, without what changes from run to run."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)  # what a kill leaves
        if not path.is_file() or hidden or inside.parts[0] in ("photos", "cache"):
            continue
        if path.suffix == ".json":
            found[str(inside)] = steady(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = [json.dumps(steady(json.loads(line))) for line in path.read_text().splitlines()]
            found[str(inside)] = sorted(lines)
        elif path.suffix == ".npz":
            found[str(inside)] = {k: v.tobytes() for k, v in np.load(path).items()}
        elif path.suffix == ".xml":  # OpenVINO numbers nodes without a name as a process makes them
            found[str(inside)] = re.sub(rb"(?<=[a-z])_\d+", b"", path.read_bytes())
        elif path.suffix in (".html", ".parquet"):
            found[str(inside)] = "there"
        else:
            found[str(inside)] = path.read_bytes()
    return found


def steady(value: object) -> object:
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in _CHANGING}
    if isinstance(value, list):
        return [steady(each) for each in value]
    return value


if __name__ == "__main__":
    main()
