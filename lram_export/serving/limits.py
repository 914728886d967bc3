"""What both sides agree on beside the messages."""

from __future__ import annotations

from lram_export.errors import BundleError, LramError, StepError, UsageError

MOST_MESSAGE = 1 << 28
"""Bytes of a message that carries a state."""
NONCE_BYTES = 16
KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, StepError, UsageError, BundleError, LramError)
}
"""What a policy raises, by the name that passes between processes; all but the first are of the last."""
