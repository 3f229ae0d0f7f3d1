"""Running the command line, and other code, in a process of its own."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

COMMAND = [sys.executable, "-c", "from ov_recipro.cli import main; main()"]
_FILES = ("stdin", "stdout", "stderr", "peak")
_SECONDS = 120  # that anything may take
_IMPORTED = [
    *("ov_recipro.batch", "ov_recipro.embedding", "ov_recipro.faithfulness.evaluation"),
    *(f"ov_recipro.cli.{name}_command" for name in ("explain", "evaluate", "compare", "embed")),
]


def run(
    *arguments: str | Path, cwd: Path, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return _forked(_command, list(map(str, arguments)), cwd, stdin or b"", environment)[0]


def measured(cwd: Path, *arguments: str | Path) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a command; return also its peak memory in KiB."""
    return _forked(_command, list(map(str, arguments)), cwd, b"", {})


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script."""
    return _forked(_script, [code], cwd, b"", {})[0]


def _forked(
    work: Callable[[list[str]], None],
    words: list[str],
    cwd: Path,
    stdin: bytes,
    environment: dict[str, str],
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Do work in a process forked from one that has imported what most of it needs."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in _FILES]
        files[0].write_bytes(stdin)
        arguments = (work, words, str(cwd), os.environ | environment, files)
        process = _server().Process(target=_alone, args=arguments)
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{words} took more than {_SECONDS} seconds")
        out, err = (file.read_bytes().decode() for file in files[1:3])
        peak = int(files[3].read_text()) if files[3].exists() else 0
        return subprocess.CompletedProcess(words, process.exitcode, out, err), peak


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def _alone(
    work: Callable[[list[str]], None],
    words: list[str],
    cwd: str,
    environment: dict[str, str],
    files: list[Path],
) -> None:
    """Do work as if it were in a new process."""
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (file, flag) in enumerate(zip(files, flags, strict=False)):
        opened = os.open(file, flag)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing closed it
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    try:
        work(words)
    finally:
        files[3].write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _command(words: list[str]) -> None:
    from ov_recipro.cli import main

    sys.argv = ["ov-recipro", *words]
    main()


def _script(words: list[str]) -> None:
    exec(compile(words[0], "script", "exec"), {"__name__": "__main__"})  # noqa: S102


def fails(result: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """Assert one clear line on stderr and the exit code."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1, result.stderr
    for part in parts:
        assert part in errors[0]
