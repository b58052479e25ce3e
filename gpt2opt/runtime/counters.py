"""What OpenVINO's own counters measure of a generation, node by node, in the format of torch.profiler's traces.

Compiled with `PERF_COUNT`, a graph counts how long each of its nodes ran, in whole µs, and not when it began. So the nodes of a call are
placed one after another from its beginning, and what is left of the call is its own time.
"""

import functools
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from gpt2opt.decoding.decoder import Greedy

if TYPE_CHECKING:
    from gpt2opt.runtime.ir_model import IrModel

MATMULS = ("Convolution", "FullyConnected", "FullyConnectedCompressed", "MatMul")
"""What the plugin makes of a matmul, whichever it finds fastest. All are shown as `MatMul`, so that two models compare."""
WARMUPS, RECORDED = 2, 5
"""Generations before the recording, and in it; the fastest of these is kept, which others disturbed least."""

_LAYER = re.compile(r"\.((?:attn|mlp)\.\w+|lm_head)/")


def count_nodes(models: Sequence["IrModel"], prompt: list[int], new_tokens: int) -> list[dict[str, Any]]:
    """Generate greedily in turns with models that were loaded with `count_time`; return a trace in Chrome's format of each.

    It has the calls of `prefill` and `decode`, the graphs that ran in each, and their nodes: by type, matmuls by the layer too, with the
    kernel that ran them as `exec type`. Of several generations it is the fastest one.
    """
    counted = [_counted(model, prompt, new_tokens) for model in models]
    recordings: list[list[list[dict[str, Any]]]] = [[] for _ in models]
    for number in range(-WARMUPS, RECORDED):
        for (greedy, log), kept in zip(counted, recordings, strict=True):
            log.events = []
            log.call(f"ProfilerStep#{number}", greedy.generate, new_tokens)
            kept.append(log.events)
    runtime = {"runtime": f"OpenVINO {openvino.__version__.split('-')[0]}"}
    fastest = [min(kept[WARMUPS:], key=lambda events: events[-1]["dur"]) for kept in recordings]  # the step ends last
    return [{"gpt2opt": runtime, "traceEvents": events} for events in fastest]


def _counted(model: "IrModel", prompt: list[int], new_tokens: int) -> tuple[Greedy, "Log"]:
    """Make a model log its nodes; return what generates from it, and the log that its calls and nodes go to."""
    log = Log()
    graphs = {model.single_step_graph: "step graph", model.decode_graph: "decode graph", model.prefill_graph: "prefill graph"}
    for graph, role in graphs.items():  # where one graph has several roles, the last one names it
        if graph:
            log.listen(graph.request, "graph", role)
    log.listen(model.head, "head", "head")
    decoder = model.decoder(np.array([prompt]), new_tokens)
    for name in ("prefill", "decode"):
        setattr(decoder, name, functools.partial(log.call, name, getattr(decoder, name)))
    return Greedy(decoder), log


class Log:
    """Events in the order of their ends, by a clock that stands still while the counters are read; times in µs."""

    def __init__(self):
        self.events: list[dict[str, Any]] = []
        self.paused_us = 0.0

    def now_us(self) -> float:
        return time.perf_counter() * 1e6 - self.paused_us

    def add(self, category: str, name: str, start_us: float, duration_us: float, **arguments: Any) -> None:
        event = {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": start_us, "dur": duration_us, "args": arguments}
        self.events.append(event)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **further: Any) -> Any:
        """Call a function; log the call under a name with these further arguments, and return what the function returned."""
        start_us = self.now_us()
        returned = function(*arguments)
        self.add("user_annotation", name, start_us, self.now_us() - start_us, **further)
        return returned

    def listen(self, request: openvino.InferRequest, name: str, role: str) -> None:
        """Log the calls of a request under a name, and what was counted in each. role: which of the graphs it is."""
        infer = request.infer

        def logged(**options: Any) -> None:
            self.call(name, lambda: infer(**options), **{"exec type": role})
            self.add_nodes(request.profiling_info)

        request.infer = logged

    def add_nodes(self, counted: list[openvino.ProfilingInfo]) -> None:
        """Add the nodes of the call that was logged last."""
        begun_us, call = time.perf_counter() * 1e6, self.events[-1]
        durations = [node.real_time.total_seconds() * 1e6 for node in counted]
        fit = min(1.0, call["dur"] / max(sum(durations), 1e-9))  # rounding may carry the sum a little beyond the call
        at_us = call["ts"]
        for node, duration in zip(counted, durations, strict=True):
            if duration:
                name, kernel = shown_as(node)
                self.add("cpu_op", name, at_us, duration * fit, node=node.node_name, **{"exec type": kernel})
                at_us += duration * fit
        self.paused_us += time.perf_counter() * 1e6 - begun_us


def shown_as(node: openvino.ProfilingInfo) -> tuple[str, str]:
    """Return the name that a node has in the trace, and what ran it."""
    if node.node_type not in MATMULS:
        return node.node_type, node.exec_type
    layer = _LAYER.search(node.node_name)
    return f"MatMul {layer[1]}" if layer else "MatMul", f"{node.node_type} {node.exec_type}"
