"""What is said of a run."""

from __future__ import annotations

import pytest

from lram_export.loop import account as module
from lram_export.loop.account import Account


def test_a_long_run_counts_all_its_steps_and_keeps_the_times_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 100)
    account = Account()
    for step in range(1000):
        account.add(0.5 if step == 3 else 0.001)
    assert account.steps == 1000
    text = str(account)
    assert "p50 1.00 ms, p99 1.00 ms (of the last 100), largest 500.00 ms, 0 missed deadlines" in text


def test_only_what_happened_is_said() -> None:
    account = Account()
    assert str(account) == "0 missed deadlines, 0 bridged steps"
    account.faults["missing"] += 2
    account.bridged, account.stale = 1, 1
    assert str(account) == "0 missed deadlines, 1 bridged step, faults: missing 2, 1 stale action"
