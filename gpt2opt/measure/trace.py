"""torch.profiler traces that open in TensorBoard, in Perfetto and in Chrome; they are small, and checked to hold operators."""

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.storage import write_whole

TRACE_NAME = "gpt2opt.pt.trace.json.gz"
"""TensorBoard's profiler plugin takes what stands before `.pt.trace.json` as the worker's name; a time stamp there is optional."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of the events that took place on a GPU."""

Event = dict[str, Any]
"""An event of a trace in Chrome's format; `ts` and `dur` are in µs."""


@dataclass(frozen=True)
class Trace:
    """A trace on disk, and the operators in it by their own time."""

    path: Path
    size_bytes: int
    operators: dict[str, float]
    """Operator -> seconds spent in it and not in the operators it calls, on the GPU if there is one, largest first."""


def trace_handler(log_dir: Path | str) -> Callable[[Any], None]:
    """Return an `on_trace_ready` for `torch.profiler.profile` that writes `log_dir/gpt2opt.pt.trace.json.gz`.

    An earlier trace of ours in `log_dir` is removed at once, so that nobody takes it for the new one if the profiler records nothing.
    Give each profile a directory of its own: TensorBoard's plugin shows one run per directory.

    Raises:
        ValueError: `log_dir` can't be written.

    Example:
        >>> import tempfile
        >>> from torch import cuda, ones
        >>> from torch.profiler import profile, schedule
        >>> log_dir, table = tempfile.mkdtemp(), ones(8, 8, device="cuda" if cuda.is_available() else "cpu")
        >>> with profile(schedule=schedule(wait=0, warmup=1, active=1), on_trace_ready=trace_handler(log_dir)) as profiler:
        ...     for _ in range(2):
        ...         product = table @ table
        ...         profiler.step()
        >>> "aten::mm" in read_trace(log_dir).operators
        True
    """
    log_dir = Path(log_dir)
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for old in log_dir.glob("gpt2opt.*pt.trace.json*"):  # earlier editions put a time stamp into the name
            old.unlink()
    except OSError as error:
        raise ValueError(f"can't write {log_dir}: {error.strerror}; name a writable directory for traces") from error

    def write(profiler) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            profiler.export_chrome_trace(str(Path(scratch, TRACE_NAME)))
            write_whole(log_dir / TRACE_NAME, Path(scratch, TRACE_NAME).read_bytes())

    return write


def read_trace(log_dir: Path | str) -> Trace:
    """Read what `trace_handler` wrote into `log_dir`, and check that it holds operators.

    Raises:
        RuntimeError: there is no trace, or it holds no CPU operator, or no kernel although there is a GPU.
    """
    from torch import cuda

    path = Path(log_dir) / TRACE_NAME
    if not path.exists():
        raise RuntimeError(f"the profiler wrote no trace into {log_dir}; profile at least one whole step, and call step() after each")
    events = check_trace(path, kernels=cuda.is_available())
    seconds = own_gpu_time(events) if cuda.is_available() else own_cpu_time(events)
    return Trace(path, path.stat().st_size, {name: time for name, time in seconds.most_common() if name.startswith("aten::")})


def record_trace(work: Callable[[], object], log_dir: Path | str, *, steps: int = 1) -> Trace:
    """Profile `work` and write one trace into `log_dir`: `trace_handler` and `read_trace` in one call.

    Args:
        work: called once to warm up, once while the profiler warms up, then `steps` times on record.
        log_dir: as in `trace_handler`.

    Raises:
        ValueError, RuntimeError: as `trace_handler` and `read_trace`.
    """
    from torch.profiler import profile, schedule

    handler = trace_handler(log_dir)
    work()
    with profile(
        schedule=schedule(wait=0, warmup=1, active=steps),
        on_trace_ready=handler,
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
    ) as profiler:
        for _ in range(1 + steps):
            work()
            profiler.step()
    return read_trace(log_dir)


def read_events(path: Path) -> list[Event]:
    """Return the events of a trace, packed or not, whatever they are.

    Raises:
        OSError, EOFError, ValueError, LookupError, TypeError: the file is no trace in Chrome's format.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def check_trace(path: Path, *, kernels: bool = False) -> list[Event]:
    """Return the events of a trace.

    Raises:
        RuntimeError: no CPU operator is among them, or `kernels` is asked for and there is none.
    """
    events = read_events(path)
    categories = {event.get("cat") for event in events}
    for category in ("cpu_op", *(["kernel"] if kernels else [])):
        if category not in categories:
            raise RuntimeError(f"{path.name} holds no event of kind {category!r}; profile at least one whole step")
    return events


def own_cpu_time(events: list[Event]) -> Counter[str]:
    """Return the seconds that the CPU spent in each operator itself, by name: its own time less that of the operators it called."""
    seconds: Counter[str] = Counter()
    callers: dict[tuple[Any, Any], list[Event]] = {}
    for event in sorted(_operators(events), key=lambda event: (event["ts"], -event["dur"])):
        stack = callers.setdefault((event["pid"], event["tid"]), [])
        while stack and stack[-1]["ts"] + stack[-1]["dur"] <= event["ts"]:
            stack.pop()
        if stack:
            seconds[stack[-1]["name"]] -= event["dur"] / 1e6
        seconds[event["name"]] += event["dur"] / 1e6
        stack.append(event)
    return seconds


def own_gpu_time(events: list[Event]) -> Counter[str]:
    """Return the seconds of GPU work that each operator itself started, by name; the profiler notes who started what."""
    names = {event["args"]["External id"]: event["name"] for event in _operators(events)}
    seconds: Counter[str] = Counter()
    for event in events:
        starter = names.get(event.get("args", {}).get("External id"))
        if starter and event.get("cat") in ON_GPU:
            seconds[starter] += event["dur"] / 1e6
    return seconds


def _operators(events: list[Event]) -> list[Event]:
    return [event for event in events if event.get("cat") == "cpu_op"]
