"""What memory and disk each stage needs for each size of GPT-2: by a formula, beside what was measured."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.apps.doctor.finding import FAILS, Finding, measured
from gpt2opt.cgroup import memory_left
from gpt2opt.report.table import gigabytes
from gpt2opt.settings import FINETUNE, PROFILE, PRUNE, QUANTIZE, Settings

MAIN = "bundled"
"""The model that `make run` can always have."""
GENERATE = "generate, INT8"
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Size:
    """The shape of a GPT-2."""

    layers: int
    width: int
    vocab: int = 50257
    context: int = 1024

    @property
    def parameters(self) -> int:
        """Return how many there are; the head is the token embedding."""
        block = 12 * self.width**2 + 13 * self.width
        return (self.vocab + self.context) * self.width + self.layers * block + 2 * self.width


SIZES = {
    MAIN: Size(6, 288, 8192, 512),
    "gpt2": Size(12, 768),
    "gpt2-medium": Size(24, 1024),
    "gpt2-large": Size(36, 1280),
}


@dataclass(frozen=True)
class Work:
    """What a stage keeps in RAM at its peak, without a GPU.

    libraries: bytes of the imported libraries. per_parameter: bytes of all copies of the weights, gradients and optimizer states.
    tokens: read at once; None: a context of the model. per_channel: FP32 numbers kept per token, layer and channel. per_logit: FP32
    copies of the logits.
    """

    libraries: float
    per_parameter: float
    tokens: int | None = None
    per_channel: float = 0
    per_logit: float = 0

    def ram_bytes(self, size: Size) -> int:
        tokens = size.context if self.tokens is None else self.tokens
        kept = self.per_channel * size.layers * size.width + self.per_logit * size.vocab
        return round(self.libraries + self.per_parameter * size.parameters + 4 * tokens * kept)


FP16, FP32 = 2, 4
GRADIENTS, ADAMW = FP32, 2 * FP32
TRAINED_PER_CHANNEL, TRAINED_PER_LOGIT = 54, 4
"""Numbers kept for the backward pass: around GELU, which is 4 times as wide, and with GPT-2's dropout the attention's weights."""

WORK = {
    PROFILE: Work(1e9, 2 * FP16 + FP32, per_logit=4),
    PRUNE: Work(1e9, FP16 + FP32 + GRADIENTS, 4 * Settings.sequence_length, TRAINED_PER_CHANNEL, TRAINED_PER_LOGIT),
    FINETUNE: Work(1e9, FP16 + FP32 + GRADIENTS + ADAMW, 8 * Settings.sequence_length, TRAINED_PER_CHANNEL, TRAINED_PER_LOGIT),
    QUANTIZE: Work(1e9, 6 * FP32, per_logit=4),
    GENERATE: Work(0.15e9, 3),
}
"""The stages as the notebook runs them, one after the other in one process, and generation from the INT8 IR in a process of its own."""

WEIGHT_FILES = {
    "Baseline": 2,
    "Pruned": 2,
    "Pruned, first heads": 2,
    "Fine-tuned": 2,
    "Fine-tuned, unpruned": 2,
    "FP32": 4,
    "INT8": 1,
    "INT8, naive": 1,
}
"""Bytes per parameter that a run leaves on disk, by model. An export writes its largest file twice more before it is in place."""
DISK_PER_PARAMETER = sum(WEIGHT_FILES.values()) + 2 * max(WEIGHT_FILES.values())
TRACES_BYTES = 20e6


@dataclass(frozen=True)
class Need:
    """What one stage needs of RAM for one size, in bytes: by `WORK`, and as measured on one kind of CPU, None where it was not."""

    size: str
    stage: str
    bytes: int
    measured_bytes: int | None
    measured_on: str | None


def ram_needs() -> list[Need]:
    """Return the need of every stage for every size."""
    needs = []
    for name, size in SIZES.items():
        for stage, work in WORK.items():
            taken = measured()["ram"].get(name, {}).get(stage, {})
            needs.append(Need(name, stage, work.ram_bytes(size), taken.get("bytes"), taken.get("kind")))
    return needs


def disk_bytes(size: Size) -> int:
    """Return what a run of all four stages writes; a download of the model comes on top, at 4 bytes per parameter."""
    return round(DISK_PER_PARAMETER * size.parameters + TRACES_BYTES)


def total_ram() -> int | None:
    """Return the bytes of RAM that the machine shows, container or not; None where the system does not tell."""
    return _meminfo("MemTotal")


def free_ram() -> int | None:
    """Return how many bytes this process may still take, of the machine and of its container; None where the system does not tell."""
    available = _meminfo("MemAvailable")
    return None if available is None else round(min(available, memory_left()))


def _meminfo(name: str) -> int | None:
    try:
        rows = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(rows[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return None


def free_disk() -> int:
    """Return the free bytes on the disk of the working folder, which a run writes to."""
    return shutil.disk_usage(Path.cwd()).free


def check_ram() -> list[Finding]:
    free = free_ram()
    if free is None:
        return [Finding("free RAM", "not known: the system does not tell")]
    largest = max((need for need in ram_needs() if need.size == MAIN), key=lambda need: need.bytes)
    if free >= largest.bytes:
        return [Finding("free RAM", gigabytes(free))]
    do = f"stage {largest.stage} of the {MAIN} model takes about {gigabytes(largest.bytes)}; close programs, or give the container more"
    return [Finding("free RAM", gigabytes(free), FAILS, do)]


def check_disk() -> list[Finding]:
    free, needed = free_disk(), disk_bytes(SIZES[MAIN])
    if free >= needed:
        return [Finding("free disk", gigabytes(free))]
    return [Finding("free disk", gigabytes(free), FAILS, f"free {gigabytes(needed)} on the disk of {Path.cwd().name}: a run writes that")]
