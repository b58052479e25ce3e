"""The graph passes, as data: what is done to the graph of an IR in memory before it is compiled. The file stays as it is.

The file holds one graph with activation quantizers, which every OpenVINO runtime loads. `docs/runtime.md` shows the list as a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from openvino import Model

from gpt2opt.runtime.graph import as_convolutions, gelu_by_erf, look_up_integers
from gpt2opt.runtime.paged_attention import page_kv_cache, pick_rows

ANY = "INT8 dot products, or no quantized input"
NO_DOT_PRODUCT = "quantized inputs, CPU without INT8 dot products"
CASES = (ANY, NO_DOT_PRODUCT)
"""What decides which passes run: whether the CPU has INT8 dot products (VNNI or AMX), if the IR quantizes any matmul's input."""

WHOLE, BODY = "whole graph", "body"
"""What a pass works on: the graph of the file, or what is left of it when the last norm and the head are cut off."""


@dataclass(frozen=True)
class GraphPass:
    """One rewriting of a graph.

    function: `leave_out` takes its name. cases: of `CASES`. graph: what it is applied to. required: why it can't be left out, if so.
    """

    function: Callable[[Model], Model]
    cases: tuple[str, ...]
    graph: str
    required: str | None = None

    @property
    def name(self) -> str:
        return self.function.__name__


PASSES = (
    GraphPass(look_up_integers, CASES, WHOLE),
    GraphPass(page_kv_cache, CASES, WHOLE, required="prompts and single tokens share their KV cache in blocks"),
    GraphPass(pick_rows, CASES, WHOLE, required="callers name the rows whose logits they want"),
    GraphPass(gelu_by_erf, (NO_DOT_PRODUCT,), WHOLE),
    GraphPass(as_convolutions, (NO_DOT_PRODUCT,), BODY),
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
        model = each.function(model) if each.graph == graph else model
    return model
