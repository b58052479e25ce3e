"""The machine and the package versions: the facts that every result is stored with."""

from __future__ import annotations  # an older Python then gets as far as the line that refuses it

import contextlib
import ctypes
import gc
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2opt.versions import requirements

PYTHON = ((3, 10), (3, 13))  # the first version that works, and the first that does not; see `check_python`
STACK = ("optimum-intel", "neural-compressor", "transformers", "numpy", "torch", "openvino")
"""The packages whose versions decide whether the four stages work at all. `versions.py` knows which versions do, and why."""
REPORTED = (*STACK, "datasets", "nncf", "tokenizers", "accelerate")
CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")

CPU_KINDS = {
    "amx": ("amx_int8", "AMX"),
    "avx512_vnni": ("avx512_vnni", "AVX-512 VNNI"),
    "avx_vnni": ("avx_vnni", "AVX-VNNI"),
    "i8mm": ("i8mm", "Arm i8mm"),
    "asimddp": ("asimddp", "Arm dot product"),
    "avx512": ("avx512f", "AVX-512 without VNNI"),
    "avx2": ("avx2", "AVX2 alone"),
}
"""Kind -> the CPU flag that shows it, and its label. A CPU is of the first kind whose flag it has. The kind decides the INT8 kernels."""
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how OpenMP's threads wait; where both are set, libgomp uses the second
NO_FLAGS = "instructions not known: the system does not name them"
ROOT = Path("/")
"""The folder of `proc` and `sys`, where a container reads how much CPU time and memory it was granted (Linux control groups, 1 and 2)."""


def cpu_kind(flags: Collection[str] | None) -> str:
    """Return the kind of CPU that a record was measured on, given its `cpu_flags`. Committed results are in a folder of that name.

    >>> cpu_kind(["avx2", "avx512f", "avx512_vnni"])
    'avx512_vnni'
    """
    return next((kind for kind, (flag, _) in CPU_KINDS.items() if flag in (flags or ())), "other")


def machine_label(facts: Mapping[str, Any]) -> str:
    """Return a caption's text for the CPU, its kind and the threads of a record's `environment`."""
    return f"{facts['cpu']} ({kind_label(facts['cpu_flags'])}), {facts['threads']} threads"


def kind_label(flags: Collection[str] | None) -> str:
    """Return the kind of a CPU as text, given its flags."""
    return CPU_KINDS.get(cpu_kind(flags), ("", instructions_label(flags)))[1]


def instructions_label(flags: Collection[str] | None) -> str:
    """Return a record's `cpu_flags` as text."""
    return NO_FLAGS if flags is None else ", ".join(flags) or "no known INT8 instructions"


def check_python(running: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Raise ImportError, with the reason, on a Python version for which the required packages do not exist."""
    if not PYTHON[0] <= tuple(running[:2]) < PYTHON[1]:
        raise ImportError(
            f"Python {running[0]}.{running[1]} found, 3.10, 3.11 or 3.12 expected: neural-compressor 3.7.1 holds numpy<2, which has "
            "no wheel for 3.13; install one of these and run `make PYTHON=python3.11 run`"
        )


def check_stack() -> None:
    """Raise ImportError if a package has a version that is known not to work; the message gives the reason for each."""
    wanted = [(requirements()[name], installed(name)) for name in STACK]
    problems = [problem for need, found in wanted if (problem := need.problem(found)) and not need.is_untested(found)]
    if problems:
        raise ImportError("; ".join(problems) + "; `pip install -r requirements.txt` brings the versions that work together")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def at_least(package: str, oldest: str) -> bool:
    """Return whether an installed package has this version or a newer one; for arguments that were renamed meanwhile."""
    from packaging.version import Version

    return Version(version(package)) >= Version(oldest)


@cache
def describe() -> dict[str, Any]:
    """Return the facts that a result is stored with: CPU, instruction sets, threads and how they wait, memory, GPU, versions, commit.

    cpu_governor: how the kernel chooses the CPU clock, for example `performance`; None in most VMs. gpu_tf32: whether torch may round the
    inputs of FP32 matmuls to TF32, which it does not by default.
    """
    import psutil
    import torch

    gpu, governor = torch.cuda.is_available(), Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **describe_cpu(),
        "cpu_governor": governor.read_text().strip() if governor.exists() else None,
        "wait_policy": wait_policy(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "gpu_state": next(iter(nvidia_smi("driver_version", "clocks.sm", "clocks.max.sm", "power.limit")), None) if gpu else None,
        "gpu_tf32": torch.backends.cuda.matmul.allow_tf32 if gpu else None,
        "versions": {package: installed(package) for package in REPORTED},
        "commit": commit(),
    }


def describe_cpu() -> dict[str, Any]:
    """Return those of these facts that `machine_label` shows; torch is not loaded for them."""
    flags = cpu_flags()
    shown = None if flags is None else [flag for flag in CPU_FLAGS if flag in flags]
    return {"cpu": cpu_name(), "cpu_flags": shown, "threads": threads()}


def threads() -> int:
    """Return how many CPU threads every engine gets: the cores that this process may use, or fewer if a container has a CPU quota."""
    return max(1, math.floor(min(cores(), cpu_quota())))


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def launched() -> bool:
    """Return whether torchrun or `accelerate launch` started this process, alone or as one of several."""
    return "LOCAL_RANK" in os.environ


def launched_processes() -> int:
    """Return how many processes a launcher started, on all machines together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def is_main_process() -> bool:
    """Return whether this process writes and prints: one of all that a launcher started does."""
    return os.environ.get("RANK", "0") == "0"


def has_int8_dot_product() -> bool | None:
    """Return whether the CPU sums INT8 products in 32 bits (VNNI, AMX, Arm dot product), None if unknown. Without it, INT8 gains less."""
    return _has_any("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def has_bf16() -> bool | None:
    """Return whether the CPU multiplies in bf16 (AVX512-BF16, AMX), None if unknown. On other CPUs, OpenVINO emulates bf16."""
    return _has_any("avx512_bf16", "amx_bf16")


def _has_any(*instructions: str) -> bool | None:
    flags = cpu_flags()
    return None if flags is None else not flags.isdisjoint(instructions)


def device() -> str:
    """Return where torch computes here: `cuda` if there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def give_back_memory() -> None:
    """Collect garbage, and return freed memory to the system and to the GPU; glibc and torch would keep it for the process."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing unless a GPU is in use
    with contextlib.suppress(AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str] | None:
    """Return the CPU's instruction-set flags; None where the system does not list them."""
    flags = _cpuinfo().get("flags", _cpuinfo().get("Features"))  # the second on Arm
    return None if flags is None else set(flags.split())


@cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    facts = (line.partition(":") for line in path.read_text().splitlines()) if path.exists() else ()
    return {name.strip(): value.strip() for name, _, value in facts}


class CpuWatch:
    """Measures how much of the cores' time others than this process and its children use; a busy machine makes timings too slow."""

    def __init__(self):
        self._start = self._read()

    def others_share(self) -> float:
        """Return the share that other processes, or other machines on the same host, used."""
        seconds, busy, own = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return min(1.0, max(0.0, busy - own) / (seconds * cores()))

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Return the clock, the busy seconds of the cores that this process may use, and its CPU seconds with those of its children."""
        import psutil

        every = psutil.cpu_times(percpu=True)
        usable = [every[core] for core in os.sched_getaffinity(0) if core < len(every)]
        busy = sum(core.user + core.nice + core.system + core.irq + core.softirq + core.steal for core in usable)
        own, children = psutil.Process().cpu_times(), 0.0
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                children += sum(child.cpu_times()[:2])
        return time.monotonic(), busy, sum(own[:4]) + children  # user and system, and those of children that have ended


def nvidia_smi(*fields: str) -> list[dict[str, str]]:
    """Return these fields of each GPU; none without the tool or its driver."""
    lines = (_output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader") or "").splitlines()
    rows = [[value.strip() for value in line.split(",")] for line in lines]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def commit() -> str | None:
    """Return the commit of this library, if it runs from its repository."""
    return _output("git", "rev-parse", "--short", "HEAD")


def _output(*command: str) -> str | None:
    """Return what a program prints when it runs in the folder of this library; None if there is no such program, or it fails or hangs."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=5).strip()
    return None


def let_waiting_threads_sleep() -> None:
    """Let the threads of torch sleep soon where they wait for each other. Call it before torch is imported; a user's own setting stays.

    libgomp's threads spin 300,000 times by default: beside one other busy process, all of torch's work then takes several times as long.
    Without any spinning, short steps take longer alone. `python -m experiments waiting` measures both; 1000, libgomp's own count where
    there are more threads than cores, does well in either.
    """
    if "torch" not in sys.modules and wait_policy() is None:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def wait_policy() -> str | None:
    """Return how the environment asks OpenMP's threads to wait for each other; None if it does not, and libgomp's default holds."""
    return ", ".join(f"{name}={os.environ[name]}" for name in WAIT_VARIABLES if os.environ.get(name)) or None


def leave_home_alone() -> None:
    """Keep OpenVINO, NNCF and INC from writing into the user's home. Call it before they are imported.

    Without asking, OpenVINO and NNCF would store an id there and send usage data under it, unless the package `openvino_telemetry` is
    missing; this function makes it look missing. INC would write a log there.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None is how Python notes that a module is missing
    os.environ.setdefault("LOG_LEVEL_INC", "6")  # the level without a log file


def quiet() -> None:
    """Silence log lines and warnings of the libraries that this project uses. Call it before they are imported. Errors still raise."""
    os.environ.update(
        TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", DATASETS_VERBOSITY="error", HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        LOGLEVEL="ERROR", TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="6",
    )  # fmt: skip
    warnings.filterwarnings("ignore")
    for name in ("neural_compressor", "nncf", "optimum", "transformers", "torch", "openvino"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # This logger reports an error before OpenVINO tries another way, which succeeds.
    logging.getLogger("openvino.frontend.pytorch.utils").setLevel(logging.CRITICAL)


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
