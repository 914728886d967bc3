"""Errors a user can cause, each one line: what is wrong, where, what was expected, what to do.

The command line prints the message without a traceback and exits with ``exit_code``.
Bad *inputs to a step* (observation, state, reward) raise plain ``ValueError`` instead: they are
programming errors of the control loop, not of the command line.

Errors pass between processes: all that makes one is its message, whatever a class method builds that from.
"""

from __future__ import annotations


class LramError(Exception):
    """Work that failed: the file or the result is at fault (exit code 1)."""

    exit_code = 1


class UsageError(LramError):
    """A request that cannot be carried out as asked: wrong option, task, path or target (exit code 2)."""

    exit_code = 2


class HubError(LramError):
    """The Hugging Face Hub was not reached, or failed: what was asked for may be there another time."""


class RemoteError(LramError):
    """A policy server was not reached, did not answer in time, or did not let a robot in or go on."""


class CheckpointError(LramError):
    """A checkpoint that cannot be read, is damaged, or does not match its config."""


class BundleError(LramError):
    """A bundle that cannot be read, is damaged, or was written by a newer version."""


class ParityError(LramError):
    """An artifact that does not do what the reference model does."""


class StepError(LramError):
    """A step whose results are not finite, or one that cannot be taken because such a step lost the state."""


class EnvironmentFailure(LramError):
    """An environment, which is foreign code, raised something; says what it was doing."""

    @classmethod
    def of(cls, environment: str, doing: str, error: Exception) -> EnvironmentFailure:
        """The failure of an environment at something."""
        reason = str(error).strip().splitlines()
        return cls(f"{environment}: failed in {doing}: {type(error).__name__}: {reason[0] if reason else ''}")

    @property
    def environment(self) -> str:
        """Whose failure it is: every message begins with the name, and a colon."""
        return str(self).partition(": ")[0]


class TargetNotInstalledError(UsageError):
    """The runtime or the toolkit of a target is missing from this environment."""

    @classmethod
    def of(cls, target: str, package: str, extra: str) -> TargetNotInstalledError:
        """The error for a missing package, with the command that installs it."""
        return cls(
            f"target '{target}' needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'lram-export[{extra}]'"
        )


def describe(error: BaseException) -> str:
    """One line about any error: our own messages as they are, foreign ones with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LramError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
