import math
from pathlib import Path

import pytest

from gpt2opt.environment import cpu_quota

V1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n0::/\n"
V1_QUOTA = {"docker/abc/cpu.cfs_quota_us": "250000\n", "docker/abc/cpu.cfs_period_us": "100000\n"}


def machine(root: Path, memberships: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": memberships, **{f"sys/fs/cgroup/{name}": content for name, content in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("memberships", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # as a container with version 2 sees itself
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a.slice/b\n", {"a.slice/cpu.max": "200000 100000\n", "a.slice/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a.slice/b\n", {"a.slice/cpu.max": "400000 100000\n", "a.slice/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a:b\n", {"a:b/cpu.max": "300000 100000\n"}, 3),
        ("0::/on/the/host\n", {"cpu.max": "100000 100000\n"}, 1),  # named as the host does, seen at the top
        (V1, {f"cpu,cpuacct/{name}": content for name, content in V1_QUOTA.items()}, 2.5),
        (V1, {f"cpu/{name}": content for name, content in V1_QUOTA.items()}, 2.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        (V1, {"unified/cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "nonsense\n"}, math.inf),
    ],
)
def test_the_quota_is_the_least_of_all_groups_around(tmp_path, memberships, files, quota):
    assert cpu_quota(machine(tmp_path, memberships, files)) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path) == math.inf
