"""What OpenVINO's counters and our decode step measure of a generation, node by node, in the format of torch.profiler's traces.

Compiled with `PERF_COUNT`, a graph counts how long each of its nodes ran, in whole µs, and not when it began. So the nodes of a call are
placed one after another from its beginning, and what is left of the call is its own time.
"""

import functools
import itertools
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from gpt2opt.decoding.decoder import Greedy
from gpt2opt.runtime.decode_step import WHOLE, DecodeStep

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
    log.listen(model.request, "graph", "prefill graph")
    if model.step:
        log.listen_to_step(model.step)
    else:
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
            self.add_nodes(lambda: [(*shown_as(node), node.node_name, node.real_time.total_seconds()) for node in request.profiling_info])

        request.infer = logged

    def listen_to_step(self, step: DecodeStep) -> None:
        """Log the calls of a decode step, and its phases."""
        run = step.run

        def logged(x: np.ndarray, what: int) -> np.ndarray:
            logits = self.call("decode step" if what == WHOLE else "head", run, x, what, **{"exec type": "decode step"})
            if what == WHOLE:
                self.add_nodes(lambda: list(itertools.chain(*map(phase_nodes, step.seconds()))))
            return logits

        step.run = logged  # type: ignore[method-assign]

    def add_nodes(self, counted: Callable[[], list[tuple[str, str, str, float]]]) -> None:
        """Add the nodes of the call that was logged last: of each how it is shown, what ran it, its name in the graph, and seconds."""
        begun_us, call = time.perf_counter() * 1e6, self.events[-1]
        nodes = counted()
        fit = min(1.0, call["dur"] / max(sum(node[-1] * 1e6 for node in nodes), 1e-9))  # rounding may carry the sum beyond the call
        at_us = call["ts"]
        for name, kernel, node, seconds in nodes:
            if seconds:
                self.add("cpu_op", name, at_us, seconds * 1e6 * fit, node=node, **{"exec type": kernel})
                at_us += seconds * 1e6 * fit
        self.paused_us += time.perf_counter() * 1e6 - begun_us


def phase_nodes(phase: tuple[str, float, float]) -> list[tuple[str, str, str, float]]:
    """Return a phase of the decode step, its name, its seconds and those of the norm in it, as nodes."""
    name, seconds, norm = phase
    part = name.split(".", 2)[-1]
    shown = "Attention" if part == "attention" else f"MatMul {part}"
    return [("LayerNorm", "decode step", f"norm before {name}", norm), (shown, "decode step", name, seconds - norm)]


def shown_as(node: openvino.ProfilingInfo) -> tuple[str, str]:
    """Return the name that a node has in the trace, and what ran it."""
    if node.node_type not in MATMULS:
        return node.node_type, node.exec_type
    layer = _LAYER.search(node.node_name)
    return f"MatMul {layer[1]}" if layer else "MatMul", f"{node.node_type} {node.exec_type}"
