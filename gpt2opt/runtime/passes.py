"""The graph passes, as data: what is done to the graph of an IR in memory before it is compiled. The file stays as it is.

The file holds one graph with activation quantizers, which every OpenVINO runtime loads. Several graphs are made of it: one reads prompts
and is bound by arithmetic, one or two decode and are bound by the bytes of the weights. `docs/runtime.md` shows the list as a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openvino import Model

from gpt2opt.runtime.graph import as_convolutions, gelu_by_erf, look_up_integers, weight_only
from gpt2opt.runtime.paged_attention import describe_last_attention, fix_shapes, no_empty_sizes, page_kv_cache, pick_rows

FLOAT_INPUTS = "no quantized input, any CPU"
DOT_PRODUCT = "quantized inputs, CPU with VNNI or AMX"
NO_DOT_PRODUCT = "quantized inputs, CPU without them"
CASES = (FLOAT_INPUTS, DOT_PRODUCT, NO_DOT_PRODUCT)
"""What decides which passes run: whether the IR quantizes any matmul's input, and whether the CPU has INT8 dot products."""

SHARED, BODY, PREFILL, DECODE, SINGLE_STEP = "every graph", "prefill and decode", "prefill", "decode", "single-step"
"""Which graphs a pass works on. The shared graph is cloned for the single-step graph, then cut into body and head, and the body becomes the
prefill graph and the decode graph."""


@dataclass(frozen=True)
class GraphPass:
    """One rewriting of a graph.

    function: `leave_out` takes its name. cases: of `CASES`. graphs: those that it is applied to. required: why it can't be left out, if so.
    """

    function: Callable[[Model], Model]
    cases: tuple[str, ...]
    graphs: tuple[str, ...]
    required: str | None = None

    @property
    def name(self) -> str:
        return self.function.__name__


PASSES = (
    GraphPass(look_up_integers, CASES, (SHARED,)),
    GraphPass(page_kv_cache, CASES, (SHARED,), required="the graphs share their KV cache in blocks"),
    GraphPass(pick_rows, CASES, (SHARED,), required="callers name the rows whose logits they want"),
    GraphPass(no_empty_sizes, CASES, (SHARED,)),
    GraphPass(gelu_by_erf, (NO_DOT_PRODUCT,), (SHARED,)),
    GraphPass(describe_last_attention, CASES, (BODY,)),
    GraphPass(as_convolutions, (NO_DOT_PRODUCT,), (PREFILL, SINGLE_STEP)),
    GraphPass(fix_shapes, (NO_DOT_PRODUCT,), (SINGLE_STEP,)),  # if it is left out, the decode graph does the work
    GraphPass(weight_only, (DOT_PRODUCT,), (DECODE,)),  # if it is left out, the prefill graph does the work
)
"""In the order in which they are applied."""


def choose_passes(case: str, leave_out: Sequence[str] = ()) -> dict[str, GraphPass]:
    """Return the passes that run in one of `CASES`, by name and in order, without those that are left out for measuring."""
    known = {each.name: each for each in PASSES}
    for name in leave_out:
        if name not in known:
            raise ValueError(f"no graph pass is called {name!r}; expected one of {', '.join(known)}")
        if known[name].required:
            raise ValueError(f"the graph pass {name!r} can't be left out: {known[name].required}")
    return {name: each for name, each in known.items() if case in each.cases and name not in leave_out}


def apply_passes(chosen: Mapping[str, GraphPass], graph: str, model: Model) -> Model:
    """Apply those of the chosen passes that are for one of the graphs to a model, in place; return it."""
    for each in chosen.values():
        model = each.function(model) if graph in each.graphs else model
    return model
