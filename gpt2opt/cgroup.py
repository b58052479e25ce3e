"""How much CPU time and memory a container grants its processes (Linux control groups, versions 1 and 2)."""

from __future__ import annotations  # see environment.py, which imports this

import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float:
    """Return how many CPUs' worth of time this process may use: the least quota of its control group and of the groups around it.

    The result is infinite without a quota and where there are no control groups. `root` is the folder of `proc` and `sys`.
    """
    return min(map(_quota, _groups(root, "cpu")), default=math.inf)


def memory_limit(root: Path = ROOT) -> float:
    """Return how many bytes the processes of this control group may take together, likewise.

    Without a limit the result is infinite or, in version 1, larger than any memory.
    """
    return min(map(_memory_limit, _groups(root, "memory")), default=math.inf)


def memory_left(root: Path = ROOT) -> float:
    """Return how many bytes below that limit are not taken yet. Pages of files that can be dropped are free."""
    return min((_memory_limit(group) - _memory_taken(group) for group in _groups(root, "memory")), default=math.inf)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of each control group that may limit a resource: the group of this process, and the groups around it.

    Some folders may be missing: a container may see its own group at the top, while `/proc/self/cgroup` gives the host's path to it.
    """
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            mounts = ("", "unified")
        elif controller in controllers.split(","):
            mounts = (controllers, controller)
        else:
            continue
        for mount in mounts:
            folder = root / "sys/fs/cgroup" / mount
            yield folder
            for name in Path(group.lstrip("/")).parts:
                folder /= name
                yield folder


def _quota(folder: Path) -> float:
    """Return the quota of a group in CPUs; infinite if it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # the file is missing, unreadable or of an unknown format
        return math.inf


def _memory_limit(folder: Path) -> float:
    limit = _number(folder, "memory.max", "memory.limit_in_bytes")
    return math.inf if limit is None else limit


def _memory_taken(folder: Path) -> int:
    taken = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
    try:
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return taken - int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return taken


def _number(folder: Path, *names: str) -> int | None:
    """Return the number in the first of these files that holds one: version 2 and version 1 name them differently."""
    for name in names:
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):  # the file is missing or unreadable, or says `max`
            continue
    return None
