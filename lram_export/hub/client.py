"""The client of the Hub, `huggingface_hub`: imported when it is needed, silent, and its failures in one line each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from json import JSONDecodeError
from typing import Any

from lram_export.errors import HubError, LramError, UsageError, describe
from lram_export.hub.address import Address

EXTRA = "hub"
SIGN_IN = "sign in with `hf auth login`, or set HF_TOKEN"
_NETWORK = frozenset(("httpx", "httpx2", "httpcore", "requests", "urllib3"))
"""Packages whose errors, where no answer came, are of the network."""


def client(address: Address) -> Any:
    """The package `huggingface_hub`; raises UsageError with how to install it, naming what was asked for."""
    if find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{address}: needs the package huggingface_hub. Install it with: pip install 'lram-export[{EXTRA}]'"
        )
    import_module("huggingface_hub.errors")
    return import_module("huggingface_hub")


@contextmanager
def asking(address: Address) -> Iterator[None]:
    """Ask the Hub in the block: no bars and no warnings of its client, and whatever it raises as an LramError.

    Raises:
        UsageError: there is no such thing, or whoever asks may not have it.
        HubError: it cannot be reached, or failed.
    """
    try:
        with _silently():
            yield
    except LramError:
        raise
    except Exception as error:  # it has dozens, and those of whatever carries its requests
        raise told(error, address) from None


def unreached(error: BaseException) -> str | None:
    """Why no answer came, if that is what an error says: no network, offline by wish, too late, a Hub that is down."""
    status = _status(error)
    if status is not None:
        return f"status {status}" if status == 429 or status >= 500 else None
    network = isinstance(
        error, ConnectionError | TimeoutError | JSONDecodeError
    )  # JSON: a portal, say, that asks first
    return type(error).__name__ if network or type(error).__module__.partition(".")[0] in _NETWORK else None


def told(error: BaseException, address: Address) -> LramError:
    """What a failure of the client means, in one line."""
    errors = import_module("huggingface_hub.errors")
    while type(error) is RuntimeError and error.__cause__ is not None:  # says which file, not what went wrong
        error = error.__cause__
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        page = f"{_endpoint()}/{address.name}"
        return UsageError(f"{address}: gated; ask for access at {page}, and {SIGN_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{address}: no such revision; expected a branch, a tag or a commit of {address.name}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"{address}: no such repository at {_endpoint()}, or one that {_who()} may not see; check the name, "
            f"or {SIGN_IN}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        reason = "" if error.__cause__ is None else f" ({unreached(error.__cause__) or describe(error.__cause__)})"
        return HubError(f"{address}: not in the cache, and {_endpoint()} was not reached{reason}")
    if isinstance(error, errors.EntryNotFoundError):
        return UsageError(f"{address}: the repository has no such file")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{address}: no name of the Hub ({describe(error)})")
    if status == 401:
        return UsageError(f"{address}: the token is not accepted by {_endpoint()}; {SIGN_IN}")
    if status in (400, 403, 409, 412):
        said = getattr(error, "server_message", None) or describe(error)
        hint = f"; {SIGN_IN} of who may" if status == 403 else ""
        return UsageError(f"{address}: refused by {_endpoint()}: {said}{hint}")
    if status is not None and unreached(error) is not None:
        return HubError(f"{address}: {_endpoint()} failed ({unreached(error)}); try again later")
    if unreached(error) is not None:
        return HubError(f"{address}: {_endpoint()} was not reached ({describe(error)})")
    if isinstance(error, OSError) and error.errno is not None:
        return LramError(f"{address}: {error.strerror}: {error.filename or 'in the cache'}")
    return HubError(f"{address}: {_endpoint()} failed ({describe(error)})")


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about, if one came."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _endpoint() -> str:
    return str(import_module("huggingface_hub.constants").ENDPOINT)


def _who() -> str:
    """Whoever asks, as far as the client knows."""
    with suppress(Exception):
        if import_module("huggingface_hub").get_token() is not None:
            return "the token's user"
    return "a visitor without a token"


@contextmanager
def _silently() -> Iterator[None]:
    """The client without its bars, its log and its warnings: a command has its own line for each."""
    utils = import_module("huggingface_hub.utils")
    log, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils.disable_progress_bars()
        try:
            yield
        finally:
            if bars:
                utils.enable_progress_bars()
            utils.logging.set_verbosity(log)
