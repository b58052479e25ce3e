"""The machine, the versions and the seed: what a number needs beside it to mean anything."""

from __future__ import annotations  # so that an older Python reads on to the line that refuses it

import ctypes
import gc
import logging
import math
import os
import platform
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2opt.cgroup import cpu_quota

PYTHON = ((3, 10), (3, 13))
"""First version that works, first that doesn't: neural-compressor 3.7.1 holds numpy<2, which has no wheel for 3.13."""

STACK = {
    "optimum-intel": ("1.27", "the last release with INCQuantizer; 2.0 removed it"),
    "neural-compressor": ("3.7", "the last with the API that INCQuantizer calls; 3.8 removed it"),
    "transformers": ("4.57", "version 5 removed GPT-2 head pruning"),
    "numpy": ("1.26", "neural-compressor 3.7.1 holds numpy<2"),
    "torch": ("2.", "developed and measured with 2.13"),
    "openvino": ("2026.", "developed and measured with 2026.4"),
}
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
"""Kind -> the flag that tells it, and how it is written. The first that a CPU has is its kind: which INT8 kernels run there."""
OTHER_CPU_KIND = "other"
UNTOLD = "instructions not known: the system does not tell them"


def cpu_kind(flags: Sequence[str] | None) -> str:
    """Return the kind of CPU that a record was taken on, from its `cpu_flags`; it is the name of the folder of committed results.

    >>> cpu_kind(["avx2", "avx512f", "avx512_vnni"])
    'avx512_vnni'
    """
    return next((kind for kind, (flag, _) in CPU_KINDS.items() if flag in (flags or ())), OTHER_CPU_KIND)


def machine_label(facts: Mapping[str, Any]) -> str:
    """Return the CPU, its kind and the threads of a record's `environment`, for captions and titles."""
    _, kind = CPU_KINDS.get(cpu_kind(facts["cpu_flags"]), (None, instructions_label(facts["cpu_flags"])))
    return f"{facts['cpu']} ({kind}), {facts['threads']} threads"


def instructions_label(flags: Sequence[str] | None) -> str:
    """Return a record's `cpu_flags` for a reader."""
    return UNTOLD if flags is None else ", ".join(flags) or "no known INT8 instructions"


def check_python(running: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Raise ImportError, with the reason, on a Python that the pinned stack has no packages for."""
    if not PYTHON[0] <= tuple(running[:2]) < PYTHON[1]:
        raise ImportError(
            f"Python {running[0]}.{running[1]} found, 3.10, 3.11 or 3.12 expected: neural-compressor 3.7.1 holds numpy<2, which has "
            "no wheel for 3.13; install one of these and run `make PYTHON=python3.11 run`"
        )


def check_stack() -> None:
    """Raise ImportError with one line a package whose version is known not to work, and why."""
    problems = []
    for package, (prefix, reason) in STACK.items():
        found = installed(package)
        if found is None or not found.startswith(prefix):
            problems.append(f"{package} {found or 'not installed'}, expected {prefix.rstrip('.')}.* ({reason})")
    if problems:
        raise ImportError("; ".join(problems) + "; `pip install -r requirements.txt` brings the versions that work together")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def describe() -> dict[str, Any]:
    """Return the facts that a result names: CPU, instruction sets, governor, threads, memory, GPU and its clocks, versions, commit."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_flags": None if _cpu_flags() is None else [flag for flag in CPU_FLAGS if flag in _cpu_flags()],
        "cpu_governor": _cpu_governor(),
        "threads": threads(),
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu_name(),
        "gpu_state": _gpu_state(),
        "versions": {package: installed(package) for package in REPORTED},
        "commit": _commit(),
    }


def threads() -> int:
    """Return how many CPU threads every engine is given: the cores that this process may use, fewer where a container has a quota."""
    return max(1, math.floor(min(cores(), cpu_quota())))


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> bool:
    """Return whether torchrun or `accelerate launch` started this process, as one of several or alone."""
    return "LOCAL_RANK" in os.environ


def launched_processes() -> int:
    """Return how many processes a launcher started over all machines; 1 where there was none."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def is_main_process() -> bool:
    """Return whether this process writes and prints; of several that a launcher started, over all machines, one does."""
    return os.environ.get("RANK", "0") == "0"


def has_int8_dot_product() -> bool | None:
    """Return whether the CPU sums INT8 products in 32 bits (VNNI, AMX, Arm dot product); without it INT8 gains less. None: nobody knows."""
    return _has_any({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


def has_bf16() -> bool | None:
    """Return whether the CPU multiplies in bf16 (AVX512-BF16, AMX), elsewhere OpenVINO emulates it. None: nobody knows."""
    return _has_any({"avx512_bf16", "amx_bf16"})


def _has_any(instructions: set[str]) -> bool | None:
    return None if _cpu_flags() is None else bool(instructions & _cpu_flags())


def give_back_memory() -> None:
    """Free what only cycles hold, and return freed memory to the system where the C library keeps it (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:
        trim(0)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str] | None:
    """Return what instructions the CPU has; None where the system does not tell, as on macOS and Windows."""
    for line in _cpuinfo():
        if line.lower().startswith(("flags", "features")):
            return set(line.split(":", 1)[1].split())
    return None


@cache
def _cpuinfo() -> tuple[str, ...]:
    path = Path("/proc/cpuinfo")
    return tuple(path.read_text().splitlines()) if path.exists() else ()


def _cpu_governor() -> str | None:
    """Return how the kernel chooses the clock, `performance` or `powersave` say; None where it does not tell, as in most VMs."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else None


class CpuWatch:
    """Watches what others do with the cores of this process from the moment it is made: a busy machine gives slow numbers."""

    def __init__(self):
        self._start = self._read()

    def others_share(self) -> float | None:
        """Return the share of the cores' time that went to other processes, or to other machines on the host; None if untold."""
        if self._start is None:
            return None
        seconds, busy, own = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return min(1.0, max(0.0, busy - own) / (seconds * cores()))

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Return the time, the busy seconds of the cores that this process may use, and those of this process."""
        import psutil

        if not hasattr(os, "sched_getaffinity"):
            return None
        every = psutil.cpu_times(percpu=True)
        cores = [every[core] for core in os.sched_getaffinity(0) if core < len(every)]
        busy = sum(core.user + core.nice + core.system + core.irq + core.softirq + core.steal for core in cores)
        own = psutil.Process().cpu_times()
        return time.monotonic(), busy, own.user + own.system


def _memory_bytes() -> int:
    import psutil

    return psutil.virtual_memory().total


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _gpu_state() -> dict[str, str] | None:
    """Return the GPU's driver and clocks, as its own tool tells them; None without a GPU or the tool."""
    fields = ("driver_version", "clocks.sm", "clocks.max.sm", "power.limit")
    if _gpu_name() is None:
        return None
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
    return dict(zip(fields, (value.strip() for value in line.split(",")), strict=True))


def _commit() -> str | None:
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def leave_home_alone() -> None:
    """Keep OpenVINO, NNCF and INC from writing into the user's home; call it before they are imported.

    OpenVINO and NNCF would store a persistent id there and send usage data under it, without asking. Both do neither where the package for
    that is not installed, and this makes it look so. INC would write a log there.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    os.environ.setdefault("LOG_LEVEL_INC", "6")  # the level without a log file


def quiet() -> None:
    """Silence the log lines and warnings of the libraries below us; call it before they are imported. Errors still raise."""
    os.environ.update(
        TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", DATASETS_VERBOSITY="error", HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        LOGLEVEL="ERROR", TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="6",
    )  # fmt: skip
    warnings.filterwarnings("ignore")
    for name in ("neural_compressor", "nncf", "optimum", "transformers", "torch", "openvino"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # This one logs an error and then goes on by another way, which succeeds.
    logging.getLogger("openvino.frontend.pytorch.utils").setLevel(logging.CRITICAL)
