"""Memory of one piece of work: a fresh process for RAM, the allocator's own counter for VRAM.

A process that has trained, plotted and quantized says nothing about a model; so the work runs in a child that does nothing else.
"""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ChildRun:
    """What a fresh process returned and used.

    start_rss_bytes: RSS with the function's module and the libraries imported, before the call. peak_rss_bytes: the kernel's
    high-water mark of RSS (VmHWM) at the end. Both are None where the system has no /proc.
    """

    value: Any
    start_rss_bytes: int | None
    peak_rss_bytes: int | None


def in_fresh_process(function: Callable, *arguments: Any, libraries: tuple[str, ...] = ()) -> ChildRun:
    """Call a module-level function in a new interpreter and return its value with the memory that took.

    A plain subprocess, not multiprocessing, which would import the caller's main script into the child. And the peak is VmHWM, not
    `ru_maxrss`, which starts from the parent's own peak.

    Args:
        function: what runs in the child; its module is imported there.
        arguments: what it is called with; they and its value are pickled.
        libraries: modules to import before `start_rss_bytes` is read, though the function would import them later.

    Raises:
        RuntimeError: the function raised, or the child died (out of memory, say).
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "answer")
        child = subprocess.run(
            [sys.executable, "-c", "from gpt2opt.measure.memory import _child; _child()", str(answer)],
            input=pickle.dumps((function, arguments, libraries)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
        )
        if child.returncode:
            complaint = child.stderr.decode(errors="replace").strip() or "it said nothing; was memory short?"
            raise RuntimeError(f"{function.__name__} failed in a fresh process, exit code {child.returncode}:\n{complaint}")
        return pickle.loads(answer.read_bytes())


def _child() -> None:
    function, arguments, libraries = pickle.load(sys.stdin.buffer)
    for library in libraries:
        importlib.import_module(library)
    start = _status_bytes("VmRSS")
    value = function(*arguments)
    Path(sys.argv[1]).write_bytes(pickle.dumps(ChildRun(value, start, _status_bytes("VmHWM"))))


def _status_bytes(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    sizes = [int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field)]
    return sizes[0] if sizes else None


def peak_vram(work: Callable[[], Any]) -> int | None:
    """Run `work` and return the peak of allocated VRAM during it, in bytes; without a GPU run it and return None.

    The peak is reset first: without that it still holds what an earlier stage, training say, once needed.
    """
    import torch

    if not torch.cuda.is_available():
        work()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
