"""How much CPU time a container grants its processes (Linux control groups, versions 1 and 2)."""

from __future__ import annotations  # see environment.py, which imports this

import math
from collections.abc import Iterator
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many CPUs' worth of time this process may use: the least quota of its control group and of the groups around it.

    The result is infinite without a quota and where there are no control groups. `root` is the folder of `proc` and `sys`.
    """
    return min(map(_quota, _groups(root)), default=math.inf)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folder of each control group that may limit CPU time: the group of this process, and the groups around it.

    Some folders may be missing: a container may see its own group at the top, while `/proc/self/cgroup` gives the host's path to it.
    """
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            mounts = ("", "unified")
        elif "cpu" in controllers.split(","):
            mounts = (controllers, "cpu")
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
