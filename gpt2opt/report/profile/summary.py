"""What a page shows of one trace, as JSON: the tree of calls, the operators, memory over time."""

from collections import Counter
from pathlib import Path
from typing import Any

from gpt2opt.measure.call_tree import Node, call_tree, operator_table, recorded, shown_as
from gpt2opt.measure.results import Comparison
from gpt2opt.measure.stats import PERCENT
from gpt2opt.measure.trace_file import Event, read_trace_file
from gpt2opt.report.profile.memory import memory_curves
from gpt2opt.report.style import color
from gpt2opt.report.tables import show_ratio
from gpt2opt.run.record import ROLES, folder_name, read_record, reference_folder

TRACED = {folder_name(name, role): name for name, role in ROLES.items() if role.speed}
BESIDE = {folder_name(name, role): reference_folder(role) for name, role in ROLES.items() if role.speed and role.reference}
MODELS = {BESIDE[folder]: str(ROLES[name].reference) for folder, name in TRACED.items() if folder in BESIDE} | TRACED
"""Folder of a trace -> the model that is traced there; TRACED are those that each model has for itself, BESIDE tells in which folder lies
what was recorded of a model's reference, in turns with it."""
PHASES = ("prefill", "decode")
MAX_NOTES = 3


def summarize(path: Path, name: str) -> dict[str, Any]:
    """Read a trace and return what a page shows of it.

    Args:
        path: of the trace, as torch.profiler or `count_nodes` wrote it.
        name: that the page gives it; of a trace of the four stages the name of its folder.

    Returns:
        name, model (None if it is none of the four stages'), color, runtime; beside: name of the trace of the reference model that was
        recorded in turns with this one; again: it is such a trace, and the model has one for itself; names: (name, kind, note) of the
        tree's nodes; tree: its root as (number in names, calls, µs on the CPU, µs on GPUs, children); operators; memory: device ->
        (µs, bytes); phases: (`prefill` or `decode`, start, end) in µs; ratios: see `measured_ratios`. Times count from the beginning of
        the recording.

    Raises:
        ValueError: the file is no trace, is larger than 10 MB, or holds no call.
    """
    content = read_trace_file(path)
    try:
        events = recorded(content["traceEvents"])
        root = call_tree(events)
        curves = memory_curves(events)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has events that are not as in Chrome's format ({type(error).__name__}: {error})") from error
    if not root.children:
        raise ValueError(f"{path.name} holds no call; profile at least one whole step")
    model = MODELS.get(Path(name).name)
    numbers: dict[tuple[str, str, str], int] = {}
    tree = _packed(root, numbers)
    return {
        "name": name,
        "model": model,
        "color": color(model or ""),
        "beside": _neighbour(name, BESIDE.get(Path(name).name)),
        "again": Path(name).name in set(MODELS) - set(TRACED),
        "runtime": content.get("gpt2opt", {}).get("runtime", "torch"),
        "names": list(numbers),
        "tree": tree,
        "operators": [
            {
                "name": row.name, "kind": row.kind, "note": _note(row.notes), "calls": row.calls,
                "own": {"cpu": _us(row.own_cpu_us), "gpu": _us(row.own_gpu_us)}, "total": {"cpu": _us(row.cpu_us), "gpu": _us(row.gpu_us)},
            }
            for row in operator_table(root)
        ],
        "memory": {device: [(_us(at), size) for at, size in curve] for device, curve in curves.items()},
        "phases": phases(events),
        "ratios": measured_ratios(record_of(path), name),
    }  # fmt: skip


def record_of(path: Path) -> Path:
    """Return where the record lies of the run that left a trace, if one did."""
    return path.parent.parent / "run.json"


def measured_ratios(record: Path, name: str) -> dict[str, str]:
    """Return what a run measured of the model of a trace without a profiler, in turns with others: name of the other's trace -> a sentence.

    It is empty if there is no record.
    """
    try:
        pairs = [pair for model in read_record(record).models.values() for pair in model.comparisons()]
    except ValueError:
        return {}
    both = [*pairs, *(Comparison(pair.base, pair.name, pair.base_latency, pair.latency) for pair in pairs)]
    return {
        _neighbour(name, folder): (
            f"Timed in turns and without a profiler, {pair.name} ÷ {pair.base} (median of the rounds, {PERCENT} interval): "
            f"TTFT {show_ratio(pair.ttft)}; TPOT {show_ratio(pair.tpot)}. "
            "That is the difference in speed; the recordings below show where the time goes."
        )
        for pair in both
        for folder, model in MODELS.items()
        if pair.name == MODELS.get(Path(name).name) and pair.base == model
    }


def _neighbour(name: str, folder: str | None) -> str:
    """Return the name of the trace in another folder of the same run; an empty one for none."""
    return Path(name).with_name(folder).as_posix() if folder else ""


def phases(events: list[Event]) -> list[tuple[str, float, float]]:
    """Return when prompts were read and tokens decoded: (`prefill` or `decode`, start, end), in µs since the first event."""
    first = min(event["ts"] for event in events)
    calls = ((shown, event["ts"] - first, event["dur"]) for event in events if (shown := shown_as(event)))
    return sorted(
        ((phase, _us(at), _us(at + took)) for (_, name), at, took in calls if (phase := name.split(" ")[0]) in PHASES),
        key=lambda phase: phase[1],
    )


def _packed(node: Node, numbers: dict[tuple[str, str, str], int]) -> list[Any]:
    number = numbers.setdefault((node.name, node.kind, _note(node.notes)), len(numbers))
    children = [_packed(child, numbers) for child in node.children.values()]
    return [number, node.calls, _us(node.cpu_us), _us(node.gpu_us), children]


def _note(notes: Counter[str]) -> str:
    shown = [f"{note} × {calls}" for note, calls in notes.most_common(MAX_NOTES)]
    return ", ".join(shown + ["…"] * (len(notes) > MAX_NOTES))


def _us(value: float) -> float:
    return round(value, 1)
