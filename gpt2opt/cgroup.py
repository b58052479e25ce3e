"""How much CPU time and memory a container grants its processes (Linux control groups, versions 1 and 2)."""

from __future__ import annotations  # see environment.py, which imports this

import math
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float:
    """Return how many CPUs' worth of time this process may use: the least quota of its control group and of the groups around it.

    The result is infinite without a quota and where there are no control groups. `root` is the folder of `proc` and `sys`.
    """
    quotas = (_numbers(group, "cpu.max") or _numbers(group, "cpu.cfs_quota_us", "cpu.cfs_period_us") for group in _groups(root, "cpu"))
    return min((quota[0] / quota[1] for quota in quotas if len(quota) == 2 and min(quota) > 0), default=math.inf)


def memory_limit(root: Path = ROOT) -> float:
    """Return how many bytes these processes may take together. Without a limit it is infinite or, in version 1, beyond any memory."""
    return min((limit for limit, _ in _memory(root)), default=math.inf)


def memory_left(root: Path = ROOT) -> float:
    """Return how many bytes below that limit are not taken yet. Pages of files that can be dropped are free."""
    return min((limit - taken for limit, taken in _memory(root)), default=math.inf)


def _memory(root: Path) -> Iterator[tuple[float, int]]:
    """Yield the memory limit of each group and what is taken of it; the names of the files are those of version 2, else of version 1."""
    for group in _groups(root, "memory"):
        limit = _numbers(group, "memory.max") or _numbers(group, "memory.limit_in_bytes")
        taken = _numbers(group, "memory.current") or _numbers(group, "memory.usage_in_bytes")
        inactive = re.findall(r"^(?:total_)?inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
        yield limit[0] if limit else math.inf, sum(taken) - max(map(int, inactive), default=0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of each control group that may limit a resource: the group of this process, and the groups around it.

    Some folders may be missing: a container may see its own group at the top, while `/proc/self/cgroup` gives the host's path to it.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (controllers, controller) if controllers else ("", "unified"):  # version 1, version 2
            top = root / "sys/fs/cgroup" / mount
            own = top / group.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _numbers(folder: Path, *names: str) -> list[int]:
    """Return the numbers in some files; none if one of them says something else, such as `max`."""
    try:
        return [int(word) for name in names for word in _text(folder / name).split()]
    except ValueError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the file is missing or unreadable
        return ""
