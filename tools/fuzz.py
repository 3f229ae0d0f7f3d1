"""Fuzz what reads files from strangers, guided by coverage; what breaks it is kept.

Needs `atheris`; `make fuzz` makes an environment with it. Each finding is written to `build/fuzz/`:
once it is mended, move it to `tests/corpus/TARGET/`, where the tests try it for ever.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

_FOUND = ROOT / "build" / "fuzz"
_CORPUS = ROOT / "tests" / "corpus"
_ENDLESS = 60  # seconds for one input
_MEMORY = 2048  # MiB


def main() -> None:
    from fuzzed import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="0 for another one each time")
    arguments = parser.parse_args()
    broken = False
    for name in arguments.targets or TARGETS:
        words = ["--target", name, str(arguments.seconds), str(arguments.seed)]
        started = time.monotonic()
        done = subprocess.run(  # noqa: S603 - this file
            [sys.executable, __file__, *words], capture_output=True, text=True, check=False
        )
        runs = [
            line for line in done.stderr.splitlines() if line.startswith("stat::number_of_exec")
        ]
        count = runs[0].rpartition(" ")[2] if runs else "?"
        seconds = time.monotonic() - started
        verdict = "nothing found" if done.returncode == 0 else f"FOUND, see {_FOUND}"
        print(f"{name}: {count} inputs in {seconds:.0f} s: {verdict}", flush=True)
        if done.returncode:
            broken = True
            print(done.stderr[-3000:], file=sys.stderr)
    if broken:
        sys.exit(1)


def fuzz(name: str, seconds: str, seed: str) -> None:
    """Fuzz one target in this process, which ends at the first finding."""
    import atheris

    with atheris.instrument_imports(include=["ov_recipro", "onnx_ir"]):
        import fuzzed
    _FOUND.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        corpus = _FOUND / "corpus" / name
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(fuzzed.seeds(name, Path(folder))):
            (corpus / f"seed-{number}").write_bytes(data)
    kept = _CORPUS / name
    words = [
        *(f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={_ENDLESS}"),
        *(f"-rss_limit_mb={_MEMORY}", f"-artifact_prefix={_FOUND}/{name}-", "-print_final_stats=1"),
        *("-max_len=65536", str(corpus), *([str(kept)] if kept.is_dir() else [])),
    ]
    atheris.Setup([sys.argv[0], *words], lambda data: fuzzed.check(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--target"]:
        fuzz(*sys.argv[2:])
    else:
        main()
