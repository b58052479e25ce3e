"""What memory and disk a run needs for each size of GPT-2, and what is free of them here."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.environment import memory_left
from gpt2opt.report.table import Table, gigabytes, table
from gpt2opt.settings import FINETUNE, PROFILE, PRUNE, QUANTIZE

BUNDLED = "bundled"
"""The model that `make run` can always have."""
PARAMETERS = {BUNDLED: 8_501_760, "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080}
GENERATE = "generate, INT8"
PEAK_BYTES = {
    PROFILE: (1.08e9, 2.15e9),
    PRUNE: (2.02e9, 3.7e9),
    FINETUNE: (2.51e9, 6.35e9),
    QUANTIZE: (1.88e9, 3.86e9),
    GENERATE: (0.16e9, 0.52e9),
}
"""Stage -> measured peak of RAM without a GPU, for the bundled model and for gpt2: of the run's process with those that
it starts to time models (PSS, so that shared pages count once), and of one that generates alone.

Measured once, on 2 cores with AVX-512 VNNI, for gpt2 with random weights. Quantizing gpt2, generating: the most in the committed results.
"""
DISK_PER_PARAMETER = 24
"""Bytes: the eight models of a run take 16, and an export writes its largest file, of 4, twice more before it is in place."""
TRACES_BYTES = 20e6
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Need:
    """What one stage needs of RAM for one size, in bytes. measured: it was; else it is estimated."""

    size: str
    stage: str
    bytes: int
    measured: bool


def ram_needs() -> list[Need]:
    """Return the need of every stage for every size: points on the line through the two measured sizes, by the number of parameters.

    Activations grow more slowly than the parameters, so a larger model needs less than that rather than more.
    """
    shares = {size: (count - PARAMETERS[BUNDLED]) / (PARAMETERS["gpt2"] - PARAMETERS[BUNDLED]) for size, count in PARAMETERS.items()}
    return [
        Need(size, stage, round(small + share * (large - small)), measured=share in (0, 1))
        for size, share in shares.items()
        for stage, (small, large) in PEAK_BYTES.items()
    ]


def disk_bytes(size: str) -> int:
    """Return what a run of all four stages writes; a download of the model comes on top, at 4 bytes per parameter."""
    return round(DISK_PER_PARAMETER * PARAMETERS[size] + TRACES_BYTES)


def needs_table() -> Table:
    """Show what RAM each stage needs for each size, and what disk a run, and whether that is free here."""
    free, needs = free_ram(), ram_needs()
    ram = [(f"RAM, {stage}", *(_shown(need.bytes, free, need.measured) for need in needs if need.stage == stage)) for stage in PEAK_BYTES]
    disk = ("disk, a whole run", *(_shown(disk_bytes(size), free_disk(), True) for size in PARAMETERS))
    return table(("needed", *PARAMETERS), [*ram, disk])


def _shown(needed: int, free: int | None, measured: bool) -> str:
    figures = f"{'' if measured else 'about '}{gigabytes(needed)}"
    return f"{figures}, too much here" if free is not None and needed > free else figures


def free_ram() -> int | None:
    """Return how many bytes this process may still take, of the machine and of its container; None where the system does not say."""
    available = meminfo("MemAvailable")
    return None if available is None else round(min(available, memory_left()))


def meminfo(name: str) -> int | None:
    """Return a figure of the machine's RAM in bytes, such as `MemTotal`, container or not; None where the system does not say."""
    try:
        rows = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(rows[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return None


def free_disk() -> int:
    """Return the free bytes on the disk of the working folder, which a run writes to."""
    return shutil.disk_usage(Path.cwd()).free
