"""torch.profiler traces that open: in TensorBoard, in Perfetto and in Chrome, small, and checked to hold operators."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WORKER = "gpt2opt"
"""What the names of our trace files begin with."""


@dataclass(frozen=True)
class Trace:
    """A trace on disk, and the operators in it by their own time."""

    path: Path
    size_bytes: int
    operators: dict[str, float]
    """Operator -> seconds spent in it and not in the operators it calls, on the GPU if there is one, largest first."""


def record_trace(work: Callable[[], None], log_dir: Path, *, steps: int = 1) -> Trace:
    """Profile `work` and write one trace below `log_dir`, in place of an earlier one of ours.

    Args:
        work: called once to warm up, once while the profiler warms up, then `steps` times on record.
        log_dir: one directory a profile, as TensorBoard's profiler plugin reads them.

    Raises:
        ValueError: `log_dir` can't be written.
        RuntimeError: the trace holds no CPU operator, or no kernel although there is a GPU.
    """
    from torch import cuda
    from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    log_dir = Path(log_dir)
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for old in log_dir.glob(f"{WORKER}.*.pt.trace.json*"):
            old.unlink()
    except OSError as error:
        raise ValueError(f"can't write {log_dir}: {error.strerror}; name a writable directory for traces") from error
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda.is_available() else [])]
    save = tensorboard_trace_handler(str(log_dir), worker_name=WORKER, use_gzip=True)
    averages = []

    def on_trace_ready(profiler) -> None:
        averages.extend(profiler.key_averages())  # the profiler forgets them after this
        save(profiler)

    work()
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=1, active=steps),
        on_trace_ready=on_trace_ready,
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
    ) as profiler:
        for _ in range(1 + steps):
            work()
            profiler.step()
    path = next(log_dir.glob(f"{WORKER}.*.pt.trace.json.gz"), None)
    if path is None:
        raise RuntimeError(f"the profiler wrote no trace into {log_dir}; profile at least one whole step")
    check_trace(path, kernels=cuda.is_available())
    own_time = "self_device_time_total" if cuda.is_available() else "self_cpu_time_total"
    averages.sort(key=lambda event: -getattr(event, own_time))
    operators = {event.key: getattr(event, own_time) / 1e6 for event in averages if event.key.startswith("aten::")}
    return Trace(path, path.stat().st_size, operators)


def check_trace(path: Path, *, kernels: bool = False) -> int:
    """Return the number of CPU operators in a trace.

    Raises:
        RuntimeError: there are none, or `kernels` is asked for and there are none.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        categories = [event.get("cat") for event in json.load(file)["traceEvents"]]
    for category in ("cpu_op", *(["kernel"] if kernels else [])):
        if category not in categories:
            raise RuntimeError(f"{path.name} holds no event of kind {category!r}; profile at least one whole step")
    return categories.count("cpu_op")
