"""What kernels for Mamba cannot do: rows of the table beside this module."""

from __future__ import annotations

from lram_export.targets.limits import UNROLLED_TOKENS

LIMITS = (UNROLLED_TOKENS,)
