"""How much processor time the control groups of this process allow it: the limit of a container or a service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time this process may use, such as 1.5, or None without a limit: the least of all its groups.

    A group is limited by those it is in as well. In a container the path in /proc/self/cgroup may be the host's,
    and the mount its own group: then only the mount is there to be read. ``root`` is where /proc and /sys are.
    """
    limits = [limit for group in _groups(root) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the groups that limit this process, of version 2 and of version 1, innermost first."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            own = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            own = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        inside = Path(path.lstrip("/"))
        if ".." in inside.parts:  # a group outside of what this process can see
            inside = Path()
        for mount in own:
            yield from (mount / group for group in (inside, *inside.parents))


def _limit(group: Path) -> float | None:
    """The limit of one group, or None: of version 2 ``cpu.max``, "quota period"; of version 1 two files."""
    words = _read(group / "cpu.max").split() or [
        *_read(group / "cpu.cfs_quota_us").split(),
        *_read(group / "cpu.cfs_period_us").split(),
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", no such file, or a form that is not known
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
