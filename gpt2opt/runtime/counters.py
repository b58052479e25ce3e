"""What OpenVINO's own counters tell of a generation, node by node, in the format of torch.profiler's traces.

torch.profiler does not see OpenVINO. Compiled with `PERF_COUNT`, a graph counts the time of each of its nodes, in whole µs; when a node
began is not told. So the nodes of a call stand one after another from its beginning, and what is left of the call is its own time.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from gpt2opt.decoding.decoder import Decoder, Greedy
from gpt2opt.runtime.ir_model import load_ir


def count_nodes(directory: Path | str, prompt: list[int], new_tokens: int) -> dict[str, Any]:
    """Generate greedily from an IR with its counters on; return a trace in Chrome's format.

    It has the calls of `prefill` and `decode`, the graphs that ran in each, and their nodes by type, with the kernel that ran them as
    `exec type`. The first generation, which warms up, is not in it.

    Raises:
        ValueError: as `load_ir`, or prompt and new tokens don't fit into the context.
    """
    log = _Log()
    model = load_ir(directory, count_time=True)
    for name, graph in (
        ("prefill graph", model.prefill_graph),
        ("decode graph", model.decode_graph),
        ("step graph", model.single_step_graph),
    ):
        if graph and not isinstance(graph.request, _Counted):
            graph.request = _Counted(name, graph.request, log)
    model.head = _Counted("head", model.head, log)
    greedy = Greedy(_Spans(model.decoder(np.array([prompt]), new_tokens), log))
    greedy.generate(new_tokens)
    log.events.clear()
    log.call("ProfilerStep#1", greedy.generate, new_tokens)
    return {"gpt2opt": {"runtime": f"OpenVINO {openvino.__version__.split('-')[0]}"}, "traceEvents": log.events}


class _Log:
    """Events in the order of their ends, by a clock that stands still while the counters are read; times in µs."""

    def __init__(self):
        self.events: list[dict[str, Any]] = []
        self.paused_us = 0.0

    def now_us(self) -> float:
        return time.perf_counter() * 1e6 - self.paused_us

    def add(self, category: str, name: str, start_us: float, duration_us: float, **arguments: Any) -> None:
        place = {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": start_us, "dur": duration_us}
        self.events.append({**place, "args": arguments})

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function; log the call under a name, and return what it returned."""
        start_us = self.now_us()
        returned = function(*arguments, **options)
        self.add("user_annotation", name, start_us, self.now_us() - start_us)
        return returned

    def add_nodes(self, counted: list[openvino.ProfilingInfo]) -> None:
        """Add the nodes of the call that was logged last."""
        begun_us, call = time.perf_counter() * 1e6, self.events[-1]
        durations = [node.real_time.total_seconds() * 1e6 for node in counted]
        fit = min(1.0, call["dur"] / max(sum(durations), 1e-9))  # rounding may carry the sum a little beyond the call
        at_us = call["ts"]
        for node, duration in zip(counted, durations, strict=True):
            if duration:
                self.add("cpu_op", node.node_type, at_us, duration * fit, node=node.node_name, **{"exec type": node.exec_type})
                at_us += duration * fit
        self.paused_us += time.perf_counter() * 1e6 - begun_us


class _Spans:
    """A decoder whose calls are logged."""

    def __init__(self, decoder: Decoder, log: _Log):
        self.decoder, self.log = decoder, log

    def prefill(self) -> np.ndarray:
        return self.log.call("prefill", self.decoder.prefill)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        return self.log.call("decode", self.decoder.decode, ids)


class _Counted:
    """An infer request that logs its calls, and what was counted in each."""

    def __init__(self, name: str, request: openvino.InferRequest, log: _Log):
        self.name, self.request, self.log = name, request, log

    def infer(self, **options: Any) -> None:
        self.log.call(self.name, self.request.infer, **options)
        self.log.add_nodes(self.request.profiling_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)
