"""Where the program `lram-export` starts: an interrupt while the command line is still being imported is one line, too.

What it imports takes next to no time, so there is hardly any in which it is not ready: `_signal` is what `signal`
wraps, and that takes milliseconds.
"""

import _signal as signal  # type: ignore[import-not-found]
import os


def _leave(*_: object) -> None:
    """Nothing is open yet that had to be closed; an exception could come to harm in whatever is being imported."""
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(128 + signal.SIGINT)


def main() -> None:
    """Import the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored: in the background of a script
        signal.signal(signal.SIGINT, _leave)
    from lram_export.cli import main as command

    command(prog_name="lram-export")
