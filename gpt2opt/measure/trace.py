"""torch.profiler traces that open in TensorBoard, in Perfetto and in Chrome; they are small, and checked to hold operators."""

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.measure.call_tree import KERNEL, OPERATOR, call_tree, recorded
from gpt2opt.measure.trace_file import TRACE_NAME, Event, parse_trace, read_trace_file, remove_trace, write_trace

logger = logging.getLogger(__name__)

_errors: dict[Path, BaseException] = {}  # folder -> what went wrong while its trace was written


@dataclass(frozen=True)
class Trace:
    """A trace on disk. operators: name -> seconds of its own, see `operator_seconds`; on the GPU if there is one."""

    path: Path
    operators: dict[str, float]


def trace_handler(log_dir: Path | str) -> Callable[[Any], None]:
    """Return an `on_trace_ready` for `torch.profiler.profile` that writes `log_dir/gpt2opt.pt.trace.json.gz`.

    An earlier trace there is removed at once, so that nobody takes it for the new one. Whatever goes wrong when the trace is written, such
    as a full disk or a trace larger than 10 MB, is logged and raised by `read_trace`: an exception that left the handler would keep torch
    from ending its step, and torch crashes then.

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
    log_dir = _make_room(log_dir)
    remove_trace(log_dir)

    def write(profiler) -> None:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                raw = Path(scratch, "trace.json")
                _export(profiler, raw)
                write_trace(parse_trace(raw), log_dir)
        except BaseException as error:
            _errors.setdefault(log_dir, error)
            logger.warning("no trace was written into %s (%s: %s)", log_dir.name, type(error).__name__, error)

    return write


def _make_room(log_dir: Path | str) -> Path:
    """Make a folder for a trace, forget what went wrong there earlier, and return the folder's full path."""
    folder = Path(log_dir).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"can't write {log_dir}: {error.strerror}; name a writable directory for traces") from error
    _errors.pop(folder, None)
    return folder


def read_trace(log_dir: Path | str) -> Trace:
    """Read what `trace_handler` wrote into `log_dir`, or raise what went wrong there; see `check_trace` for what is refused."""
    from torch import cuda

    if error := _errors.pop(Path(log_dir).resolve(), None):
        raise error
    path = Path(log_dir) / TRACE_NAME
    if not path.exists():
        raise RuntimeError(f"the profiler wrote no trace into {log_dir}; profile at least one whole step, and call step() after each")
    events = check_trace(path, kernels=cuda.is_available())
    return Trace(path, operator_seconds(events, on_gpu=cuda.is_available()))


def record_trace(work: Callable[[], object], log_dir: Path | str) -> Trace:
    """Profile `work` and write one trace into `log_dir`. It calls `work` to warm up, while the profiler warms up, and once on record."""
    return record_in_turns({log_dir: work}, rounds=1)[0]


def record_in_turns(works: Mapping[Path | str, Callable[[], object]], *, rounds: int) -> list[Trace]:
    """Profile several pieces of work in turns, and write the fastest recording of each: other processes disturbed that one least.

    works: folder of the trace -> work, as in `record_trace`. An earlier trace stays until there is a new one.
    """
    for log_dir, work in works.items():
        _make_room(log_dir)
        work()
    with tempfile.TemporaryDirectory() as scratch:
        recordings: dict[Path | str, list[tuple[float, Path]]] = {log_dir: [] for log_dir in works}
        for number in range(rounds):
            for place, (log_dir, work) in enumerate(works.items()):
                path = Path(scratch, f"trace-{place}-{number}.json")
                recordings[log_dir].append((_record(work, path), path))
        for log_dir, recorded_here in recordings.items():
            write_trace(parse_trace(min(recorded_here)[1]), Path(log_dir))
    return [read_trace(log_dir) for log_dir in works]


def _record(work: Callable[[], object], path: Path) -> float:
    """Profile a call of `work`, write the trace as torch does, and return how many seconds the call took."""
    from torch.profiler import profile, schedule

    recording = schedule(wait=0, warmup=1, active=1, repeat=1)
    with profile(schedule=recording, record_shapes=True, profile_memory=True, with_stack=True) as profiler:
        work()
        profiler.step()
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        profiler.step()
    _export(profiler, path)  # here, and not in a callback of torch's, an exception does no harm
    return seconds


def _export(profiler, path: Path) -> None:
    profiler.export_chrome_trace(str(path))
    if not path.exists():  # torch logs that it could not write, and goes on
        raise OSError(f"torch.profiler could not write its trace into {path.parent.parent}; see that there is room on the disk")


def check_trace(path: Path, *, kernels: bool = False) -> list[Event]:
    """Return the events of a trace; raise RuntimeError if no CPU operator is among them, or no kernel although `kernels` asks for some."""
    events = read_trace_file(path)["traceEvents"]
    categories = {event.get("cat") for event in events}
    for category in ("cpu_op", *(["kernel"] if kernels else [])):
        if category not in categories:
            raise RuntimeError(f"{path.name} holds no event of kind {category!r}; profile at least one whole step")
    return events


def operator_seconds(events: list[Event], *, on_gpu: bool) -> dict[str, float]:
    """Return the seconds that each operator took itself, largest first: on the CPU as a profile's page shows them, or of a GPU's work.

    Work on a GPU counts for the operator that started it, and only operators that started some are returned.
    """
    own_us: dict[str, float] = defaultdict(float)
    for node in call_tree(recorded(events)).walk():
        started = [child.gpu_us for child in node.children.values() if child.kind == KERNEL]
        if node.kind == OPERATOR and (started or not on_gpu):
            own_us[node.name] += sum(started) if on_gpu else node.own_cpu_us
    return {name: us / 1e6 for name, us in sorted(own_us.items(), key=lambda item: -item[1])}
