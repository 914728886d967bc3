"""The command line: parses arguments, calls the library, prints. Commands import what they need when they run."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from lram_export import __version__
from lram_export.errors import LramError

COMMANDS = {
    "convert": "checkpoint",
    "new": "checkpoint",
    "inspect": "inspect",
    "export": "export",
    "compile": "compile",
    "verify": "verify",
    "bench": "bench",
    "compare": "compare",
    "report": "report",
    "run": "run",
    "record": "record",
    "evaluate": "evaluate",
    "sweep": "sweep",
    "deploy": "deploy",
    "doctor": "doctor",
}
"""Command -> module of this package that defines it."""

FUNCTIONS = {"compile": "compile_bundle"}
"""Command -> the function that defines it, where the command's own name would hide a builtin."""


class LazyGroup(click.Group):
    """Imports a command's module only when the command is used, and tells failures in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"lram_export.cli.{COMMANDS[name]}"), FUNCTIONS.get(name, name))
        return command

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **settings: Any,
    ) -> Any:
        """Run the command line; whatever a user can cause ends in one line on standard error."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **settings)
        if threading.current_thread() is threading.main_thread():
            # a stopped service cleans up like an interrupted user: nothing half-written stays
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            code = super().main(args, prog_name, standalone_mode=False, **settings)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
            _fail(error.format_message() + (f" See: {command} --help" if command else ""), error.exit_code)
        except click.Abort:
            _fail("interrupted", 130)
        except LramError as error:
            _fail(str(error), error.exit_code)
        except MemoryError:
            _fail("not enough memory for this model on this machine", 1)
        except ModuleNotFoundError as error:
            if (error.name or "lram_export").startswith("lram_export"):
                raise
            _fail(
                f"this command needs the package '{error.name}', which is not installed. "
                f"Install it with: pip install 'lram-export[export]'",
                2,
            )
        except OSError as error:
            _fail((f"{error.filename}: " if error.filename else "") + (error.strerror or str(error)), 1)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lram-export")
def main() -> None:
    """Export Large Recurrent Action Models from PyTorch to robots, with proof that they act the same.

    A checkpoint becomes a bundle (export); the bundle proves itself (verify), is timed (bench) and acts (run).
    """
