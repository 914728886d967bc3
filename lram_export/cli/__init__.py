"""The command line: parses arguments, calls the library, prints. Commands import what they need when they run."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from lram_export import __version__
from lram_export.errors import LramError

COMMANDS = {
    "convert": "checkpoint",
    "new": "checkpoint",
    "inspect": "inspect",
    "export": "export",
    "verify": "verify",
    "bench": "bench",
    "run": "run",
    "doctor": "doctor",
}
"""Command -> module of this package that defines it."""


class FailedWork(click.ClickException):
    """Any failure as one line on standard error; exit code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: Any = None) -> None:
        """Print ``error: ...`` to standard error."""
        click.echo(f"error: {self.message}", file=file or sys.stderr)


class WrongUse(FailedWork):
    """A request that cannot be carried out as asked; exit code 2."""

    exit_code = 2


class LazyGroup(click.Group):
    """Imports a command's module only when the command is used, and turns known failures into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"lram_export.cli.{COMMANDS[name]}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what a user can cause ends in one line, not in a traceback."""
        try:
            return super().invoke(ctx)
        except LramError as error:
            kind = WrongUse if error.exit_code == WrongUse.exit_code else FailedWork
            raise kind(str(error)) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise FailedWork(f"{where}{error.strerror or error}") from None
        except MemoryError:
            raise FailedWork("not enough memory for this model on this machine") from None
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("lram_export"):
                raise
            raise WrongUse(
                f"this command needs the package '{error.name}', which is not installed. "
                f"Install it with: pip install 'lram-export[export]'"
            ) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lram-export")
def main() -> None:
    """Export Large Recurrent Action Models from PyTorch to robots, with proof that they act the same.

    A checkpoint becomes a bundle (export); the bundle proves itself (verify), is timed (bench) and acts (run).
    """
