"""What a page shows of one trace, as JSON: the tree of calls, the operators, memory over time."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from gpt2opt.measure.call_tree import Node, call_tree, operator_table, recorded, shown_as
from gpt2opt.measure.results import Comparison
from gpt2opt.measure.stats import PERCENT
from gpt2opt.measure.trace_file import Event, read_trace_file
from gpt2opt.report.chart import color
from gpt2opt.report.tables import show_ratio
from gpt2opt.run.record import ROLES, folder_name, read_record, reference_folder

TRACED = {folder_name(name, role): name for name, role in ROLES.items() if role.speed}
BESIDE = {folder_name(name, role): reference_folder(role) for name, role in ROLES.items() if role.speed and role.reference}
MODELS = {BESIDE[folder]: str(ROLES[name].reference) for folder, name in TRACED.items() if folder in BESIDE} | TRACED
"""Folder of a trace -> the model that is traced there. TRACED: the folders of each model's own trace. BESIDE: folder of a model's own trace
-> folder of the trace of its reference model that was recorded in turns with it."""
PHASES = ("prefill", "decode")
MAX_NOTES = 3
MAX_POINTS = 400
CPU_TYPE = 0  # of c10::DeviceType

Curve = list[tuple[float, int]]
"""(µs since the first event, bytes more than at that time), a step each."""


def summarize(path: Path, name: str) -> dict[str, Any]:
    """Read a trace, as torch.profiler or `count_nodes` wrote it, and return what a page shows of it under a name.

    Returns:
        model: which of the four stages' it is, by the folder's name, or None; beside: name of the trace of the reference model that was
        recorded in turns with this one; again: it is such a trace, and the model has one of its own; names: (name, kind, note) of the
        tree's nodes; tree: its root as (number in names, calls, µs on the CPU, µs on GPUs, children); memory: device -> (µs, bytes);
        phases: see `phases`; ratios: see `measured_ratios`. Times count from the beginning of the recording.

    Raises:
        ValueError: the file is no trace, is larger than 10 MB, or holds no call.
    """
    content, events, curves, root = read_calls(path)
    folder, numbers = Path(name).name, dict[tuple[str, str, str], int]()
    tree = _packed(root, numbers)
    return {
        "name": name,
        "model": MODELS.get(folder),
        "color": color(MODELS.get(folder, "")),
        "beside": _neighbour(name, BESIDE[folder]) if folder in BESIDE else "",
        "again": folder in MODELS and folder not in TRACED,
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
        "ratios": measured_ratios(path.parent.parent / "run.json", name),
    }  # fmt: skip


def read_calls(path: Path) -> tuple[dict[str, Any], list[Event], dict[str, Curve], Node]:
    """Read a trace; return its content, its events inside the profiler's steps, their memory curves and the root of their calls.

    Raises:
        ValueError: as `summarize`.
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
    return content, events, curves, root


def measured_ratios(record: Path, name: str) -> dict[str, str]:
    """Return what a run measured of a trace's model in turns with others, without a profiler: name of the other's trace -> a sentence."""
    try:
        pairs = read_record(record).comparisons()
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


def _neighbour(name: str, folder: str) -> str:
    """Return the name of the trace in another folder of the same run."""
    return Path(name).with_name(folder).as_posix()


def phases(events: list[Event]) -> list[tuple[str, float, float]]:
    """Return when prompts were read and tokens decoded: (`prefill` or `decode`, start, end), in µs since the first event."""
    first, found = min(event["ts"] for event in events), []
    for event in sorted(events, key=lambda event: event["ts"]):
        _, name = shown_as(event) or ("", "")
        if (phase := name.split(" ")[0]) in PHASES:
            found.append((phase, _us(event["ts"] - first), _us(event["ts"] + event["dur"] - first)))
    return found


def _packed(node: Node, numbers: dict[tuple[str, str, str], int]) -> list[Any]:
    number = numbers.setdefault((node.name, node.kind, _note(node.notes)), len(numbers))
    children = [_packed(child, numbers) for child in node.children.values()]
    return [number, node.calls, _us(node.cpu_us), _us(node.gpu_us), children]


def _note(notes: Counter[str]) -> str:
    shown = [f"{note} × {calls}" for note, calls in notes.most_common(MAX_NOTES)]
    return ", ".join(shown + ["…"] * (len(notes) > MAX_NOTES))


def _us(value: float) -> float:
    return round(value, 1)


def memory_curves(events: list[Event]) -> dict[str, Curve]:
    """Return a curve for each device that something was allocated on: `CPU`, `GPU 0` and so on.

    What was allocated before the recording, such as the weights, is not in it: a curve begins at 0.
    """
    start = min((event["ts"] for event in events), default=0.0)
    curves: dict[str, Curve] = defaultdict(lambda: [(0.0, 0)])
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        arguments = event["args"]
        curve = curves["CPU" if arguments["Device Type"] == CPU_TYPE else f"GPU {arguments['Device Id']}"]
        curve.append((event["ts"] - start, curve[-1][1] + arguments["Bytes"]))
    return {device: thinned(curve) for device, curve in sorted(curves.items())}


def thinned(curve: Curve) -> Curve:
    """Return at most 400 points of a curve: both ends, and the lowest and the highest of each stretch between them."""
    if len(curve) <= MAX_POINTS:
        return curve
    numbers, stretch = range(len(curve)), -(-len(curve) // (MAX_POINTS // 2 - 1))
    stretches = [numbers[start : start + stretch] for start in range(0, len(curve), stretch)]
    kept = {0, len(curve) - 1, *(pick(part, key=lambda number: curve[number][1]) for part in stretches for pick in (min, max))}
    return [curve[number] for number in sorted(kept)]
