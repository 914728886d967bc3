"""What the machine allows: cores, control groups, and the threads that follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lram_export.system import machine
from lram_export.system.cgroup import cpu_quota
from lram_export.system.machine import physical_cores, suitable_threads, usable_cores


def system(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": membership, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000", "cpu.max": "max 1"}, 0.5),
        # in a container: the host's path, but only the own group is mounted
        ("0::/system.slice/docker-1234.scope\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/../../other\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/1234\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            "1:cpu:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "100000", "unified/cpu.max": "max 1"},
            0.5,
        ),
        ("2:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
    ],
)
def test_the_quota_is_the_least_of_the_groups(
    membership: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(system(tmp_path, membership, files)) == expected


@pytest.mark.parametrize(
    ("quota", "cores", "expected"), [(None, 4, 4), (0.5, 4, 1), (2.0, 4, 2), (3.9, 4, 3), (64.0, 4, 4)]
)
def test_a_quota_bounds_the_cores(
    quota: float | None, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded down: a thread beyond the quota stands still for the rest of every period, and all wait for it."""
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine, "physical_cores", lambda: cores)
    assert usable_cores() == expected


@given(st.integers(1, 10**10), st.integers(1, 10**4))
def test_threads_are_within_the_cores_and_never_fall_with_the_work(weights: int, rows: int) -> None:
    threads = suitable_threads(weights, rows)
    assert 1 <= threads <= usable_cores() <= physical_cores()
    assert suitable_threads(2 * weights, rows) >= threads and suitable_threads(weights, 2 * rows) >= threads


def test_small_models_get_one_thread_and_the_published_sizes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    assert suitable_threads(500_000) == suitable_threads(5_000_000) == 1
    assert 1 < suitable_threads(15_500_000) < 8
    assert suitable_threads(206_000_000) == 8
    assert suitable_threads(500_000, rows=256) == 8
