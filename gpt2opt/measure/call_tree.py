"""From the events of a trace to a tree of calls, and from that to a table of operators.

Siblings of one name are one node: the layers of a model, and the tokens that are decoded one by one. So the tree stays small.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gpt2opt.measure.trace_file import ON_GPU, Event

FRAME, OPERATOR, RUNTIME, KERNEL = "frame", "operator", "runtime", "kernel"
"""A module or a Python function; an operator; a call into CUDA's runtime; work on a GPU."""
STEP = "ProfilerStep#"
NOBODY = "started by no recorded operator"

_KINDS = {"cpu_op": OPERATOR, "cuda_runtime": RUNTIME, "cuda_driver": RUNTIME, "user_annotation": FRAME}
_MODULE = re.compile(r"nn\.Module: (.+?)(?:_\d+)?$")
_OURS = re.compile(r"gpt2opt/(?:.*/)?(\w+\.py)\(\d+\): ([a-z]\w*)$")
ROUNDED_US = 0.01  # two calls one after the other may overlap by this little: times are rounded


@dataclass(slots=True, eq=False)
class Node:
    """All calls of one name from one place. cpu_us: elapsed on the CPU, children included; gpu_us: of the GPU work they started.

    notes: how it was executed, where the trace says so, with the number of calls.
    """

    name: str
    kind: str
    parent: "Node | None" = None
    calls: int = 0
    cpu_us: float = 0.0
    gpu_us: float = 0.0
    notes: Counter[str] = field(default_factory=Counter)
    children: dict[tuple[str, str], "Node"] = field(default_factory=dict)

    @property
    def own_cpu_us(self) -> float:
        return max(0.0, self.cpu_us - sum(child.cpu_us for child in self.children.values()))

    @property
    def own_gpu_us(self) -> float:
        return max(0.0, self.gpu_us - sum(child.gpu_us for child in self.children.values()))

    def child(self, kind: str, name: str) -> "Node":
        if (kind, name) not in self.children:
            self.children[kind, name] = Node(name, kind, self)
        return self.children[kind, name]

    def callers(self) -> Iterator["Node"]:
        """Yield the node that this one was called from, the one that called that, and so on to the root."""
        node = self.parent
        while node:
            yield node
            node = node.parent

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.children.values():
            yield from child.walk()


@dataclass(slots=True)
class Operator:
    """All calls of one operator, from wherever; times in µs. Of an operator that calls itself only the outermost counts as total."""

    name: str
    kind: str
    calls: int = 0
    own_cpu_us: float = 0.0
    cpu_us: float = 0.0
    own_gpu_us: float = 0.0
    gpu_us: float = 0.0
    notes: Counter[str] = field(default_factory=Counter)


def recorded(events: Iterable[Event]) -> list[Event]:
    """Return the events inside the profiler's steps, and all work on a GPU, which may end later; all events if there are no steps."""
    timed = [event for event in events if "ts" in event]
    steps = [(event["ts"], event["ts"] + event["dur"]) for event in timed if _is_step(event)]

    def inside(event: Event) -> bool:
        return any(start <= event["ts"] and event["ts"] + event.get("dur", 0) <= end for start, end in steps)

    return [event for event in timed if event.get("cat") in ON_GPU or inside(event)] if steps else timed


def _is_step(event: Event) -> bool:
    return event.get("cat") == "user_annotation" and event["name"].startswith(STEP)


def call_tree(events: list[Event]) -> Node:
    """Return the root of the tree of calls: all steps of the profiler, or all calls if there are no steps.

    Of Python's functions the tree has the modules of torch and the public functions of this package. A call belongs to the one around it
    in the same thread; work on a GPU belongs to the operator that started it.
    """
    root, starters = Node("whole recording", FRAME), {}
    threads: dict[tuple[Any, Any], list[tuple[float, Node]]] = {}
    calls = [(event, shown) for event in events if (shown := shown_as(event))]
    for event, (kind, name) in sorted(calls, key=lambda call: (call[0]["ts"], -call[0]["dur"])):
        around = threads.setdefault((event["pid"], event["tid"]), [])
        while around and around[-1][0] <= event["ts"] + ROUNDED_US:
            around.pop()
        node = (around[-1][1] if around else root).child(kind, name)
        node.calls += 1
        node.cpu_us += event["dur"]
        if note := event.get("args", {}).get("exec type"):
            node.notes[note] += 1
        if kind == OPERATOR and "External id" in event.get("args", {}):
            starters[event["args"]["External id"]] = node
        around.append((event["ts"] + event["dur"], node))
    for event in events:
        if event.get("cat") in ON_GPU:
            starter = starters.get(event.get("args", {}).get("External id")) or root.child(KERNEL, NOBODY)
            kernel = starter.child(KERNEL, event["name"])
            kernel.calls += 1
            for node in (kernel, *kernel.callers()):
                node.gpu_us += event["dur"]
    steps = [event["dur"] for event in events if _is_step(event)]
    root.calls, root.cpu_us = max(1, len(steps)), max(sum(steps), sum(child.cpu_us for child in root.children.values()))
    return root


def shown_as(event: Event) -> tuple[str, str] | None:
    """Return the kind and the name that a call on the CPU has in the tree; None if it has no place there."""
    category, name = event.get("cat"), event.get("name", "")
    if event.get("ph") != "X" or _is_step(event):
        return None
    if category in _KINDS:
        return _KINDS[category], name
    if category == "python_function":
        if module := _MODULE.match(name):
            return FRAME, module[1]
        if ours := _OURS.match(name):
            return FRAME, f"{ours[2]} ({ours[1]})"
    return None


def operator_table(root: Node) -> list[Operator]:
    """Return every operator, call of a runtime and kernel in the tree, the one with most time of its own first."""
    rows: dict[str, Operator] = {}
    for node in root.walk():
        if node.kind == FRAME:
            continue
        row = rows.setdefault(node.name, Operator(node.name, node.kind))
        row.calls += node.calls
        row.own_cpu_us += node.own_cpu_us
        row.own_gpu_us += node.own_gpu_us
        row.notes += node.notes
        if all(caller.name != node.name for caller in node.callers()):
            row.cpu_us += node.cpu_us
            row.gpu_us += node.gpu_us
    return sorted(rows.values(), key=lambda row: (-row.own_cpu_us - row.own_gpu_us, row.name))
