"""The command line: parses arguments, calls the library, prints. Commands import what they need when they run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from lram_export.cli.stopping import Stopped, stopped_by_signals
from lram_export.cli.streams import CLOSED_PIPE, failure, prepare_streams, say, unread, write_out
from lram_export.errors import LramError
from lram_export.version import __version__

COMMANDS = {
    "convert": "checkpoint",
    "new": "checkpoint",
    "inspect": "inspect",
    "interface": "interface",
    "export": "export",
    "compile": "compile",
    "verify": "verify",
    "bench": "bench",
    "compare": "compare",
    "report": "report",
    "run": "run",
    "loop": "loop",
    "serve": "serve",
    "flight": "flight",
    "record": "record",
    "evaluate": "evaluate",
    "sweep": "sweep",
    "deploy": "deploy",
    "push": "push",
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
        prepare_streams()
        code, line = self._outcome(args, prog_name, settings)
        if line is not None:
            say(f"error: {' '.join(line.split())}")
        unwritten = write_out()
        if unwritten is not None:
            code, line = unwritten
            if line is not None:
                say(f"error: {line}")
        sys.exit(code)

    def _outcome(
        self, args: Sequence[str] | None, prog_name: str | None, settings: dict[str, Any]
    ) -> tuple[int, str | None]:
        """Exit code, and the line that says why it is not 0."""
        try:
            with stopped_by_signals():
                code = super().main(args, prog_name, standalone_mode=False, **settings)
        except SystemExit as error:
            # how click and rich leave when their reader has
            if error.code and (isinstance(error.__context__, BrokenPipeError) or unread(1)):
                return CLOSED_PIPE, None
            return (error.code, None) if isinstance(error.code, int) else (int(error.code is not None), error.code)
        except Stopped as stopped:
            return stopped.code, stopped.reason
        except click.exceptions.NoArgsIsHelpError as error:
            say(error.format_message())
            return error.exit_code, None
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
            return error.exit_code, error.format_message() + (f" See: {command} --help" if command else "")
        except (click.Abort, KeyboardInterrupt):
            return 130, "interrupted"
        except LramError as error:
            return error.exit_code, str(error)
        except MemoryError:
            return 1, "not enough memory for this model on this machine"
        except ModuleNotFoundError as error:
            if (error.name or "lram_export").startswith("lram_export"):
                raise
            return 2, (
                f"this command needs the package '{error.name}', which is not installed. "
                f"Install it with: pip install 'lram-export[export]'"
            )
        except OSError as error:
            return failure(error)
        return code if isinstance(code, int) else 0, None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lram-export")
def main() -> None:
    """Export policies from PyTorch to robots, with proof that they act the same.

    A checkpoint becomes a bundle (export); the bundle proves itself (verify), is timed (bench) and acts (run).
    """
