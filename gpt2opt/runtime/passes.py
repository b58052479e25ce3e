"""The graph passes, as data: what is done to the graph of an IR in memory before it is compiled. The file stays as it is.

The file holds one graph with activation quantizers, which every OpenVINO runtime loads. Several graphs are made of it: one reads prompts
and is bound by arithmetic, one or two decode and are bound by the bytes of the weights. `docs/runtime.md` shows the list as a table.
"""

from collections.abc import Callable
from dataclasses import dataclass

from openvino import Model

from gpt2opt.runtime.convolutions import as_convolutions
from gpt2opt.runtime.graph import gelu_by_erf, look_up_integers, weight_only
from gpt2opt.runtime.paged_attention import describe_last_attention, fix_shapes, no_empty_sizes, page_kv_cache, pick_rows

FLOAT_INPUTS = "no quantized input, any CPU"
DOT_PRODUCT = "quantized inputs, CPU with VNNI or AMX"
NO_DOT_PRODUCT = "quantized inputs, CPU without them"
CASES = (FLOAT_INPUTS, DOT_PRODUCT, NO_DOT_PRODUCT)
"""What decides which passes run: whether the IR quantizes any matmul's input, and whether the CPU has INT8 dot products."""

SHARED, BODY, PREFILL, DECODE, SINGLE_STEP = "every graph", "prefill and decode", "prefill", "decode", "single-step"
"""Which graphs a pass works on. `compile_ir` makes them in this order: the shared graph is cloned for the single-step graph, then cut into
body and head, and the body becomes the prefill graph and the decode graph."""


@dataclass(frozen=True)
class GraphPass:
    """One rewriting of a graph.

    name: the name of the function, and the one that `leave_out` takes. cases: those of `CASES` in which the pass is applied. graphs: the
    graphs that it is applied to. purpose: one sentence. required: the reason why it can't be left out; None: it can.
    """

    name: str
    function: Callable[[Model], Model]
    cases: tuple[str, ...]
    graphs: tuple[str, ...]
    purpose: str
    required: str | None = None


PASSES = (
    GraphPass(
        "look_up_integers", look_up_integers, CASES, (SHARED,),
        "The embedding is looked up in the INT8 weight of the head, so that no FP32 copy of it is made.",
    ),
    GraphPass(
        "page_kv_cache", page_kv_cache, CASES, (SHARED,),
        "The KV cache becomes an input in blocks, which all graphs share.",
        required="the graphs share their KV cache in blocks",
    ),
    GraphPass(
        "pick_rows", pick_rows, CASES, (SHARED,),
        "The last block and the head compute only the rows whose logits are wanted.",
        required="callers name the rows whose logits they want",
    ),
    GraphPass(
        "no_empty_sizes", no_empty_sizes, CASES, (SHARED,),
        "The plugin does not copy the results of convolutions.",
    ),
    GraphPass(
        "gelu_by_erf", gelu_by_erf, (NO_DOT_PRODUCT,), (SHARED,),
        "GELU by erf, which is faster there, if a quantizer rounds the difference from tanh away.",
    ),
    GraphPass(
        "describe_last_attention", describe_last_attention, CASES, (BODY,),
        "The last attention stores keys and values for every token and computes only the wanted rows.",
    ),
    GraphPass(
        "as_convolutions", as_convolutions, (NO_DOT_PRODUCT,), (PREFILL, SINGLE_STEP),
        "INT8 matmuls become 1 × 1 convolutions, whose INT8 kernel is faster there.",
    ),
    GraphPass(
        "fix_shapes", fix_shapes, (NO_DOT_PRODUCT,), (SINGLE_STEP,),
        "One token of one sequence is decoded by a graph of fixed shapes; without the pass the decode graph does it.",
    ),
    GraphPass(
        "weight_only", weight_only, (DOT_PRODUCT,), (DECODE,),
        "Decoding reads INT8 weights without activation quantizers; without the pass the prefill graph decodes.",
    ),
)  # fmt: skip
"""In the order in which they are applied."""


@dataclass(frozen=True)
class Plan:
    """Which passes run. case: of `CASES`. leave_out: passes to do without, for measuring.

    Raises:
        ValueError: a pass in `leave_out` is not known or can't be left out.
    """

    case: str
    leave_out: tuple[str, ...] = ()

    def __post_init__(self):
        required = {each.name: each.required for each in PASSES}
        for name in self.leave_out:
            if name not in required:
                raise ValueError(f"no graph pass is called {name!r}; expected one of {', '.join(required)}")
            if required[name]:
                raise ValueError(f"the graph pass {name!r} can't be left out: {required[name]}")

    def passes(self, graph: str) -> list[GraphPass]:
        """Return the passes for one of the graphs, in order."""
        return [each for each in PASSES if graph in each.graphs and self._runs(each)]

    def _runs(self, each: GraphPass) -> bool:
        return self.case in each.cases and each.name not in self.leave_out

    def includes(self, name: str) -> bool:
        return any(each.name == name and self._runs(each) for each in PASSES)

    def apply(self, graph: str, model: Model) -> Model:
        """Apply the passes for one of the graphs to a model, in place; return it."""
        for each in self.passes(graph):
            model = each.function(model)
        return model


def table_rows() -> list[tuple[str, ...]]:
    """Return a row per pass for `docs/runtime.md`: name, graphs for each of `CASES`, whether it may be left out, its purpose."""
    return [
        (
            f"`{each.name}`",
            *(", ".join(each.graphs) if case in each.cases else "–" for case in CASES),
            "no" if each.required else "yes",
            each.purpose,
        )
        for each in PASSES
    ]
