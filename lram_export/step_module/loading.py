"""`FILE.py:NAME`: a policy that a Python file makes. The file runs, as the user's own code; a checkpoint never does."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lram_export.checkpoints.loading import POLICY_FILE
from lram_export.errors import LramError, UsageError, describe
from lram_export.step_module.policy import StepPolicy


def load_step_policy(address: str | Path) -> StepPolicy:
    """Run the file and take the policy, or call the function that makes it.

    Raises:
        UsageError: no such file or name; what it makes is no :class:`StepPolicy`; an error of the file's own, with its
            line.
    """
    match = POLICY_FILE.fullmatch(str(address))
    if match is None:
        raise UsageError(f"{address}: which policy of it? Name it or the function that makes it: {address}:make")
    path, name = Path(match[1]), match[2]
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a Python file that has '{name}'")
    with _as_main_folder(path):
        module = _run(path)
        if not hasattr(module, name):
            raise UsageError(f"{path}: has no '{name}'; it has: {_candidates(module)}")
        found = getattr(module, name)
        if not isinstance(found, StepPolicy) and callable(found):
            try:
                found = found()
            except LramError:
                raise
            except (Exception, SystemExit) as error:
                raise UsageError(f"{address}: {describe(error)}{_line(error, path)}") from None
    if not isinstance(found, StepPolicy):
        raise UsageError(
            f"{address}: expected a lram_export.StepPolicy or a function that returns one, got {type(found).__name__}"
        )
    return found


def _candidates(module: Any) -> str:
    made = [n for n, value in vars(module).items() if isinstance(value, StepPolicy)]
    made += [n for n, value in vars(module).items() if _is_own_function(value, module)]
    return ", ".join(made) or "neither a StepPolicy nor a function"


@contextmanager
def _as_main_folder(path: Path) -> Iterator[None]:
    """What lies beside the file can be imported, as where Python runs it; what it prints is no result of ours."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(folder)


def _run(path: Path) -> Any:
    """The file as a module."""
    name = f"lram_export_policy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except LramError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path}: {describe(error)}{_line(error, path)}") from None
    return module


def _is_own_function(value: object, module: Any) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module.__name__ and not isinstance(value, type)


def _line(error: BaseException, path: Path) -> str:
    """The innermost line of the file that led to an error."""
    if isinstance(error, SyntaxError):
        return f" ({path}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
    frames = frames or [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    return f" ({path}:{frames[-1].lineno}: {(frames[-1].line or '').strip()})" if frames else ""
