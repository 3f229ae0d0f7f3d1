"""The command line: it parses, calls and prints, nothing else. Each command has its own module."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

import click

from ov_recipro.errors import ReciproError, codes_of

COMMANDS = (
    "layers",
    "split",
    "explain",
    "report",
    "compare",
    "embed",
    "evaluate",
    "serve",
    "bench",
    "devices",
    "cache",
)
INTERRUPTED = 130
_EXAMPLES = (
    "ov-recipro explain image.jpg",
    "ov-recipro explain photos/ -m model.onnx -t top3 --report",
    "ov-recipro layers model.onnx",
)


class _Lazy(click.Group):
    """Imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"ov_recipro.cli.{cmd_name}_command").command
        return command if isinstance(command, click.Command) else None


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\n" + "\n".join(["Examples:", *(f"  {each}" for each in _EXAMPLES)]),
)
@click.version_option(package_name="ov-recipro")
def cli() -> None:
    """See why a deployed vision model said what it said.

    Saliency maps by Recipro-CAM for ONNX and OpenVINO models: no PyTorch, no gradients, no training
    code.
    """


def main() -> None:
    """Run the command line: a user's mistake is one line; exit codes are 0, 1, 2 and 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    try:
        code = cli.main(standalone_mode=False)
    except ReciproError as error:
        click.echo(f"Error: {error}", err=True)
        code = codes_of(error)[0]
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; finished results are kept.", err=True)
        code = INTERRUPTED
    except BrokenPipeError:  # whoever was reading our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
