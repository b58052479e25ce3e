"""From an IR directory to the compiled graphs: which properties the CPU plugin gets, and what is cut out of the graph in the file."""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import openvino

from gpt2opt.environment import has_int8_dot_product, threads
from gpt2opt.errors import raise_cause
from gpt2opt.runtime.graph import activation_quantizer, as_convolutions, gelu_by_erf, look_up_integers, matmuls
from gpt2opt.runtime.manifest import IR_NAME, read_manifest
from gpt2opt.runtime.paged_attention import cut, page_kv_cache, pick_rows
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
PRECISIONS = ("f32", "bf16")
ANY = "INT8 dot products, or no quantized input"
NO_DOT_PRODUCT = "quantized inputs, CPU without INT8 dot products"
PASSES = {ANY: (look_up_integers,), NO_DOT_PRODUCT: (look_up_integers, gelu_by_erf, as_convolutions)}
"""The graph passes that gain time or memory, in order. They change a graph in memory, not its file, which every OpenVINO runtime loads.

Which of them run depends on whether the CPU has INT8 dot products (VNNI or AMX), if the IR quantizes any matmul's input.
"""


def cpu_properties(num_threads: int | None = None, kv_cache: str = "f32", precision: str = "f32") -> dict[str, str]:
    """Return the properties that an IR is compiled with. num_threads: all that this process may use by default."""
    if num_threads is not None:
        check_whole("num_threads", num_threads, 1)
    chosen = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": kv_cache}
    return {**PROPERTIES, **chosen, "INFERENCE_NUM_THREADS": str(num_threads or threads())}


@dataclass(frozen=True)
class CompiledIr:
    """What is made of one IR.

    prefill: the graph that reads tokens of any texts and returns what the last layer leaves for the wanted ones. compile_head: compiles the
    graph from there to the logits. kv_cache: the type of the KV cache.
    """

    prefill: openvino.CompiledModel
    compile_head: Callable[[], openvino.CompiledModel]
    kv_cache: str
    vocab_size: int


def compile_ir(
    directory: Path | str, num_threads: int | None = None, precision: str = "f32", leave_out: Sequence[str] = (), count_time: bool = False
) -> CompiledIr:
    """Compile the graph of an IR; see `load_ir` for the arguments."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}, expected one of {', '.join(PRECISIONS)}")
    known = [each.__name__ for each in PASSES[NO_DOT_PRODUCT]]
    for name in leave_out:
        if name not in known:
            raise ValueError(f"no graph pass is called {name!r}; expected one of {', '.join(known)}")
    manifest = read_manifest(directory)
    xml = Path(directory, IR_NAME)
    kv_cache = precision if manifest.weights == "f32" else manifest.kv_cache
    properties = cpu_properties(num_threads, kv_cache, precision)
    counting = {"PERF_COUNT": "YES"} if count_time else {}
    core = openvino.Core()

    def compiled(graph: openvino.Model) -> openvino.CompiledModel:
        try:
            found = core.compile_model(graph, "CPU", {**properties, **counting})
        except RuntimeError as error:
            raise_cause(error)  # a lack of memory, also when the head is compiled later
            raise
        for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"):  # the plugin may silently choose another type
            if (given := found.get_property(name).to_string()) != properties[name]:
                raise ValueError(f"{name} is {given} on this CPU, not {properties[name]} as asked; ask for one that the CPU has")
        return found

    try:
        graph = core.read_model(xml)
        passes = PASSES[case_of(graph)]
        body, head = cut(pick_rows(page_kv_cache(graph)))
        for change in passes:
            body = body if change.__name__ in leave_out else change(body)
        vocab_size = head.output(0).get_partial_shape()[-1].get_length()
        return CompiledIr(compiled(body), lambda: compiled(head), kv_cache, vocab_size)
    except RuntimeError as error:
        raise_cause(error)
        raise ValueError(f"can't compile {xml} ({str(error).strip()[-200:]!r}); export it again") from error


def case_of(graph: openvino.Model) -> str:
    """Return which of `PASSES` this graph gets on this CPU. A CPU whose instructions are not known counts as one without dot products."""
    quantized = any(activation_quantizer(node) for node in matmuls(graph))
    return NO_DOT_PRODUCT if quantized and not has_int8_dot_product() else ANY


def give_back_pages(weights: Path) -> None:
    """Release the pages of mapped files that only loading needs: of the weights, and of the code of OpenVINO and LLVM that compiles.

    The compiled graph and the decode step hold the weights in layouts of their own. A page that is needed again, for the embedding of a
    token for example, is read from the file again. Without /proc nothing is released.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text().splitlines():
        addresses, access, offset, *_ = line.split()
        # Of a library only what was never written to: its code, and the constants that its file begins with.
        library = line.endswith("/libllvmlite.so") or "/libopenvino" in line
        unchanged = library and (access == "r-xp" or (access == "r--p" and int(offset, 16) == 0))
        if unchanged or line.endswith(f" {weights.resolve()}"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(start, end - start, mmap.MADV_DONTNEED)
