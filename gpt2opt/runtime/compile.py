"""From an IR directory to the compiled graphs: which properties the CPU plugin gets, and which graphs are made of the one in the file."""

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openvino

from gpt2opt.environment import has_int8_dot_product, threads
from gpt2opt.errors import raise_cause
from gpt2opt.runtime import passes
from gpt2opt.runtime.graph import activation_quantizer, matmuls
from gpt2opt.runtime.manifest import IR_NAME, read_manifest
from gpt2opt.runtime.paged_attention import cut
from gpt2opt.runtime.passes import apply_passes, choose_passes
from gpt2opt.settings import check_whole

PROPERTIES = {
    # bf16 is the silent default on machines with AMX, and weight-compressed models have their activations quantized at run time.
    # Both would change what FP32 and INT8 mean here.
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
    # In an INT8 KV cache each key is rounded once and by itself. By channel, which is the plugin's default, all keys of a block would be
    # rounded again whenever a token joins them, and the decoded tokens would depend on how many tokens were read at once.
    "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
}
SAME_BITS = {"SNIPPETS_MODE": "DISABLE"}
"""Without this, the plugin's code generator for chains of small operations makes a graph of fixed shapes round differently from one
of dynamic shapes."""
ROUNDED_AT_RUN_TIME = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
"""On a CPU with INT8 dot products the plugin reads INT8 weights fastest when it rounds each token's inputs to INT8, in groups of 32 (its
default). This loses less than the quantizers in the file, whose one range serves all tokens and channels."""
PRECISIONS = ("f32", "bf16")


def cpu_properties(num_threads: int | None = None, kv_cache: str = "f32", precision: str = "f32") -> dict[str, str]:
    """Return the properties that an IR is compiled with. num_threads: all that this process may use by default."""
    if num_threads is not None:
        check_whole("num_threads", num_threads, 1)
    chosen = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": kv_cache}
    return {**PROPERTIES, **chosen, "INFERENCE_NUM_THREADS": str(num_threads or threads())}


@dataclass(frozen=True)
class CompiledIr:
    """The graphs that are made of one IR. One compiled graph may serve two roles; then both fields refer to it.

    prefill: reads prompts and returns hidden states. decode: the same for one further token of several sequences, or several tokens of
    one sequence. head: from the hidden states of either to logits. single_step: one further token of one sequence, with a head of its
    own; None if the decode graph does this too.
    """

    prefill: openvino.CompiledModel
    decode: openvino.CompiledModel
    head: openvino.CompiledModel
    single_step: openvino.CompiledModel | None


def compile_ir(
    directory: Path | str, num_threads: int | None = None, precision: str = "f32", leave_out: Sequence[str] = (), count_time: bool = False
) -> CompiledIr:
    """Compile the graphs of an IR; see `load_ir` for the arguments.

    If no activation is quantized, one graph reads prompts and decodes. On a CPU with INT8 dot products a second graph decodes, with INT8
    weights and with inputs that are rounded token by token. On a CPU without them the plugin's INT8 convolution is the fastest way to
    decode too: one token of one sequence is decoded by the same graph with fixed shapes, up to the logits.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}, expected one of {', '.join(PRECISIONS)}")
    manifest = read_manifest(directory)
    xml = Path(directory, IR_NAME)
    properties = cpu_properties(num_threads, precision if manifest.weights == "f32" else manifest.kv_cache, precision)
    counting = {"PERF_COUNT": "YES"} if count_time else {}
    core = openvino.Core()

    def compiled(graph: openvino.Model, **changed: str) -> openvino.CompiledModel:
        found = core.compile_model(graph, "CPU", {**properties, **counting, **changed})
        for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"):  # the plugin may silently choose another type
            if (given := found.get_property(name).to_string()) != properties[name]:
                raise ValueError(f"{name} is {given} on this CPU, not {properties[name]} as asked; ask for one that the CPU has")
        return found

    try:
        graph = core.read_model(xml)
        case = case_of(graph)
        chosen = choose_passes(case, leave_out)
        graph = apply_passes(chosen, passes.SHARED, graph)
        same_bits = SAME_BITS if case == passes.NO_DOT_PRODUCT else {}
        single_step = compiled(apply_passes(chosen, passes.SINGLE_STEP, graph.clone()), **same_bits) if "fix_shapes" in chosen else None
        body, head = cut(apply_passes(chosen, passes.BODY, graph))
        prefill = compiled(apply_passes(chosen, passes.PREFILL, body.clone()), **same_bits)
        decode = compiled(apply_passes(chosen, passes.DECODE, body), **ROUNDED_AT_RUN_TIME) if "weight_only" in chosen else prefill
        return CompiledIr(prefill, decode, compiled(head), single_step)
    except RuntimeError as error:
        raise_cause(error)
        raise ValueError(f"can't compile {xml} ({str(error).strip()[-200:]!r}); export it again") from error


def case_of(graph: openvino.Model) -> str:
    """Return which of `CASES` this graph and this CPU are. A CPU whose instructions are not known counts as one without dot products."""
    if not any(activation_quantizer(node) for node in matmuls(graph)):
        return passes.FLOAT_INPUTS
    return passes.DOT_PRODUCT if has_int8_dot_product() else passes.NO_DOT_PRODUCT


def give_back_pages(weights: Path) -> None:
    """Release the pages of the mapped weights that have been read: the compiled graphs hold the weights in a layout of their own.

    A page that is needed again, for the embedding of a token for example, is read from the file again. Without /proc nothing is released.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text().splitlines():
        if line.endswith(f" {weights.resolve()}"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            madvise(start, end - start, mmap.MADV_DONTNEED)
