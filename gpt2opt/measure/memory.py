"""Memory that a piece of work takes: VRAM by the counters of torch's allocator and of the driver, and RAM in a fresh process.

The memory of a process that has trained, plotted and quantized says nothing about one model.
"""

import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.measure.child import Child
from gpt2opt.measure.results import Resident


@dataclass(frozen=True)
class ChildRun:
    """The value that a fresh process returned, and the memory it used; each figure is None where the system has no /proc.

    steps: resident memory at `start` (before the call, with the libraries imported) and at every step that the function named. The peaks
    are the kernel's high-water marks (VmHWM, VmPeak) at the end.
    """

    value: Any
    steps: dict[str, Resident | None]
    peak_rss_bytes: int | None
    peak_address_space_bytes: int | None

    @property
    def start_rss_bytes(self) -> int | None:
        start = self.steps["start"]
        return start.rss_bytes if start else None


@dataclass(frozen=True)
class Vram:
    """VRAM of a piece of work: the peak that tensors took (allocated) and the peak that torch's allocator held for them (reserved).

    device_bytes: memory in use on the whole device at the end, as the driver counts it: of every process, CUDA contexts included.
    """

    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int


def in_fresh_process(
    function: Callable,
    *arguments: Any,
    libraries: tuple[str, ...] = (),
    address_space_bytes: int | None = None,
    python: Path | None = None,
) -> ChildRun:
    """Call a module-level function in a new interpreter; return its value with the memory that the call took. See `Child`.

    The peak is VmHWM, because `ru_maxrss` starts from the parent's own peak.

    Args:
        function: the child imports its module and calls it. A generator function yields the name of each step that it has reached;
            resident memory is read at that point, while the function still holds its objects.
        libraries: modules that the child imports before `start` is read.
        address_space_bytes: stricter than a limit of resident memory: mapped files and untouched pages count too.
        python: see `Child`.

    Raises:
        RuntimeError: the function raised, the child died (for example because memory ran out), or it got stuck under its limit.
    """
    try:
        with Child(Metered, libraries, address_space_bytes=address_space_bytes, python=python) as child:
            return child.call("run", function, arguments)
    except TimeoutError as error:
        raise RuntimeError(f"{function.__name__} gave {error} with {(address_space_bytes or 0) / 1e6:.0f} MB of address space") from error
    except RuntimeError as error:
        raise RuntimeError(f"{function.__name__} failed in a fresh process:\n{error}") from error


def peak_ram(function: Callable, *arguments: Any) -> int | None:
    """Return the peak RSS in bytes of a fresh process that calls a module-level function, its libraries included; None without /proc."""
    return in_fresh_process(function, *arguments).peak_rss_bytes


class Metered:
    """Calls functions in a fresh process and reads the memory that they take."""

    def __init__(self, libraries: tuple[str, ...]):
        for library in libraries:
            importlib.import_module(library)

    def run(self, function: Callable, arguments: tuple) -> ChildRun:
        steps = {"start": read_resident()}
        value = function(*arguments)
        if isinstance(value, Generator):
            try:
                while True:
                    step = next(value)
                    steps[step] = read_resident()
            except StopIteration as end:
                value = end.value
        peaks = _sizes("status")
        # The kernel counts pages in batches for each thread, so its mark may be some pages below what was read on the way.
        peak_rss = max(peaks["VmHWM"], *(step.rss_bytes for step in steps.values() if step), 0) if peaks else None
        return ChildRun(value, steps, peak_rss, peaks.get("VmPeak"))


def read_resident() -> Resident | None:
    """Return this process's resident memory; None where the system has no /proc/self/smaps_rollup (Linux before 4.14)."""
    sizes = _sizes("smaps_rollup")
    if not sizes:
        return None
    return Resident(sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"] - sizes["Anonymous"])


def read_peak_rss() -> int | None:
    """Return this process's peak RSS in bytes; None where there is no /proc."""
    return _sizes("status").get("VmHWM")


def _sizes(name: str) -> dict[str, int]:
    """Return the sizes in a file of /proc/self, field -> bytes; empty if there is no such file."""
    path = Path("/proc/self", name)
    if not path.exists():
        return {}
    lines = [line.split() for line in path.read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def peak_vram(work: Callable[[], Any]) -> Vram | None:
    """Run `work` and return the VRAM that it took, or None without a GPU. What came before, such as training, does not count."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    work()
    return read_peak_vram()


def read_peak_vram() -> Vram | None:
    """Return the peaks of this process so far and the memory in use on the device now; None without a GPU."""
    from torch import cuda

    in_use = device_vram()
    return None if in_use is None else Vram(cuda.max_memory_allocated(), cuda.max_memory_reserved(), in_use)


def device_vram() -> int | None:
    """Return the memory in use on the GPU now, of every process, as the driver counts it; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free
