"""Run a GPT-2 IR on the CPU with openvino, numpy and our compiled decode step: the serving process loads neither torch nor numba.

OpenVINO reads prompts, by one compiled graph; the decode step reads one further token, or a few. Both work on one KV cache, so that
nothing is copied between them. Each decoder has a cache of its own, so that several decoders can take turns on one model.
"""

import weakref
from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import openvino

from gpt2opt.decoding.decoder import Greedy, check_fits, check_prompts
from gpt2opt.decoding.prompt_lookup import Drafts, load_drafts
from gpt2opt.errors import raise_cause
from gpt2opt.runtime.compile import CompiledIr, compile_ir, give_back_pages
from gpt2opt.runtime.decode_step import DecodeStep, load_step
from gpt2opt.runtime.kv_cache import KvCache, Texts, graph_inputs, new_kv_cache
from gpt2opt.runtime.manifest import IR_WEIGHTS, read_config
from gpt2opt.runtime.paged_attention import ROWS
from gpt2opt.runtime.step_layout import MOST_TOKENS

DECODE = ("step", "openvino")
"""What may read further tokens: our decode step, where it covers the model, or OpenVINO alone."""


def load_ir(
    directory: Path | str,
    num_threads: int | None = None,
    precision: str = "f32",
    leave_out: Sequence[str] = (),
    count_time: bool = False,
    decode: str = "step",
) -> "IrModel":
    """Load what `export_ir` or `quantize_int8` wrote, for the CPU.

    Args:
        num_threads: CPU threads, by default all that this process may use.
        precision: of float arithmetic, `f32` or, on CPUs that have it (see `has_bf16`), `bf16`.
        leave_out: names of graph passes to do without, to measure what they gain; see `compile.PASSES`. The logits stay right.
        count_time: let the graph count the time of each node, at a small cost; see `measure.ir_trace`.
        decode: `step`, or `openvino` to read single tokens by the graph that reads prompts. OpenVINO does so in any case where numba is
            missing, in bf16, and for INT4 weights and other forms that `ir_weights.read_weights` refuses.

    Raises:
        ValueError: there is no IR, it was changed or cut short, a pass in `leave_out` is not known, or the precision is not known or
            this CPU does not have it.
    """
    if decode not in DECODE:
        raise ValueError(f"decode={decode!r}, expected one of {', '.join(DECODE)}")
    model = IrModel(compile_ir(directory, num_threads, precision, leave_out, count_time), read_config(directory, "n_positions"))
    # The CPU plugin packs the weights when they are first used: here, and not during the first prompt. Before the decode step copies them
    # too, since the pages of the file that are read take memory until they are given back.
    file, token, cache = Path(directory, IR_WEIGHTS), np.zeros(1, np.int64), model._take_cache(1)
    model._read(cache, [token], token, token)
    give_back_pages(file)
    if decode == "step" and precision == "f32":
        model.step = load_step(directory, model.kv_cache, model.context, num_threads)
    model._prefill(cache, [token], token, token)
    give_back_pages(file)
    model._return_cache(cache)
    model.drafts = load_drafts(directory, model.vocab_size)
    return model


class IrModel:
    """A loaded GPT-2. Several decoders may take turns on it; it is not for use from several threads at once.

    step: what reads further tokens; None if OpenVINO does.
    """

    step: DecodeStep | None = None

    def __init__(self, compiled: CompiledIr, context: int):
        self.context, self.kv_cache = context, compiled.kv_cache
        self.request = compiled.prefill.create_infer_request()
        self._inputs: dict[str, np.ndarray] = {}  # name -> the array that the tensor shares memory with
        self._bound: KvCache | None = None
        self._compile_head = compiled.compile_head
        self._cache_ports = {port.get_any_name(): port for port in compiled.prefill.inputs if "_cache." in port.get_any_name()}
        self.drafts = Drafts()
        self._no_cache = new_kv_cache(self._cache_ports, 0, context)
        # What a deleted decoder leaves for the next one: new memory costs time when it is first written.
        self._left: KvCache | None = None
        self.vocab_size = compiled.vocab_size

    @cached_property
    def head(self) -> openvino.InferRequest:
        """The graph of the last norm and the head, for the logits of many tokens; compiled when it is first needed."""
        return self._compile_head().create_infer_request()

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, T, V) float32 of whole sequences (B, T), computed by the prefill graph."""
        texts = check_prompts(input_ids, 0, self.context, self.vocab_size)
        cache = self._take_cache(len(texts))
        rows = self._prefill(cache, texts, np.zeros(len(texts), int), np.arange(len(texts)), every=True)
        logits = rows.reshape(*np.shape(texts), -1).copy()  # the next call overwrites the rows
        self._return_cache(cache)
        return logits

    def decoder(self, prompts: np.ndarray | Sequence[Sequence[int]], max_new_tokens: int = 0) -> "IrDecoder":
        """Return a decoder of B prompts of any lengths, see `decoding.decoder.Model`; several decoders may be in use at once."""
        return IrDecoder(self, check_prompts(prompts, max_new_tokens, self.context, self.vocab_size))

    def _prefill(self, cache: KvCache, texts: Texts, pasts: np.ndarray, slots: np.ndarray, every: bool = False) -> np.ndarray:
        """Read further tokens of B texts, which have `pasts` (B,) tokens in these slots of the cache; return the last ones' logits (B, V).

        With `every`, return those of all tokens, text after text.
        """
        return self._project(self._read(cache, texts, pasts, slots, every), every)

    def _read(self, cache: KvCache, texts: Texts, pasts: np.ndarray, slots: np.ndarray, every: bool = False) -> openvino.Tensor:
        """Return what the last layer leaves for the wanted tokens, (rows, 1, width), until the next call; see `_prefill`.

        Tensors stay bound from call to call: setting eight inputs and the cache again for every token would cost time.
        """
        self._bind(cache)
        inputs = graph_inputs(texts, pasts, slots, self.context, every)
        for name, value in inputs.items():
            if name in self._inputs and self._inputs[name].shape == value.shape:
                self._inputs[name][...] = value
            else:
                self._inputs[name] = value.astype(self.request.get_tensor(name).element_type.to_dtype())  # a copy: it is written to
                self.request.set_tensor(name, openvino.Tensor(self._inputs[name], shared_memory=True))
        try:
            self.request.infer(share_outputs=True)
        except RuntimeError as error:
            raise_cause(error)  # a lack of memory
            raise
        left = self.request.get_output_tensor()
        if left.shape[0] != len(inputs[ROWS]):  # the plugin found no memory, raised nothing, and left the output of the call before
            tokens = len(inputs["input_ids"])
            raise MemoryError(f"no memory to read {tokens} tokens of {len(texts)} sequences at once; decode fewer at once")
        return left

    def _bind(self, cache: KvCache) -> None:
        if self._bound is not cache:
            for name, tensor in cache.tensors.items():
                self.request.set_tensor(name, tensor)
            self._bound = cache

    def _decode(self, cache: KvCache, ids: np.ndarray, past: int, slot: int) -> np.ndarray:
        """Read (T,) further tokens of one text that has `past` tokens in this slot of the cache; return their logits (T, V).

        If OpenVINO decodes, each token is a sequence of its own, and one that is alone is read twice: the plugin sums a single row in
        another order than several. The empty sequence at the end keeps it from splitting a lone sequence over its threads.
        """
        count, positions = len(ids), past + np.arange(len(ids))
        if self.step:
            starts = range(0, count, MOST_TOKENS)
            steps = (self.step(cache, ids[start:][:MOST_TOKENS], slot, positions[start:][:MOST_TOKENS]) for start in starts)
            return next(steps) if len(starts) == 1 else np.concatenate([logits.copy() for logits in steps])
        times = 2 if count == 1 else 1
        tokens, pasts = np.repeat(ids, times), np.append(np.repeat(positions, times), 0)
        return self._prefill(cache, [*tokens[:, None], tokens[:0]], pasts, np.full(len(pasts), slot), every=True)[:count]

    def _project(self, left: openvino.Tensor, every: bool = False) -> np.ndarray:
        """Return the logits (rows, V) of what the last layer left, (rows, 1, width); the next call overwrites them."""
        if self.step and not every and left.shape[0] <= MOST_TOKENS:
            return self.step.head(left.data[:, 0])
        self.head.set_input_tensor(left)
        self.head.infer(share_outputs=True)
        return self.head.get_output_tensor().data.reshape(left.shape[0], -1)

    def _take_cache(self, sequences: int) -> KvCache:
        """Return a cache for this number of sequences that nothing else uses; call `_return_cache` when it is no longer needed."""
        left, self._left = self._left, None
        if left and left.sequences == sequences:
            return left
        del left
        self._bind(self._no_cache)  # a cache that stays bound would keep its memory
        return new_kv_cache(self._cache_ports, sequences, self.context)

    def _return_cache(self, cache: KvCache) -> None:
        self._left = cache


class IrDecoder:
    """A `Decoder` of B prompts of any lengths, with a KV cache of its own. `IrModel.decoder` makes them.

    pasts: (B,) tokens of each sequence in the cache. slots: (B,) where in the cache each is.
    """

    def __init__(self, model: IrModel, prompts: list[np.ndarray]):
        self.model, self.prompts, self.drafts = model, prompts, model.drafts
        self._own(model._take_cache(len(prompts)))

    def _own(self, cache: KvCache) -> None:
        self.cache = cache
        self._give_back = weakref.finalize(self, self.model._return_cache, cache)

    def prefill(self) -> np.ndarray:
        """Read the prompts; return the logits (B, V) of their last tokens, which the next call overwrites."""
        nothing, self.slots = np.zeros(len(self.prompts), int), np.arange(len(self.prompts))
        logits = self.model._prefill(self.cache, self.prompts, nothing, self.slots)
        self.pasts = np.array([len(ids) for ids in self.prompts])
        return logits

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) for the tokens after them, until the next call."""
        check_fits(int(self.pasts.max()) + 1, 0, self.model.context)
        if self.model.step and len(self.slots) <= MOST_TOKENS:
            logits = self.model.step(self.cache, ids[:, 0], self.slots, self.pasts)
        elif len(self.slots) == 1:
            logits = self.model._decode(self.cache, ids[0], int(self.pasts[0]), int(self.slots[0]))
        else:
            logits = self.model._prefill(self.cache, ids, self.pasts, self.slots)
        self.pasts = self.pasts + 1
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order; one that is named twice is copied in the cache."""
        slots, pasts = self.slots[list(rows)], self.pasts[list(rows)]
        copied = np.setdiff1d(np.arange(len(slots)), np.unique(slots, return_index=True)[1])  # all places of a slot but the first
        if len(slots) > self.cache.sequences:  # move to a larger cache
            before = self.cache
            self._give_back.detach()
            self._own(self.model._take_cache(before.sequences + len(rows)))
            self.cache.copy(before, [(slot, slot) for slot in self.slots], self.pasts)
        targets = np.setdiff1d(np.arange(self.cache.sequences), slots)[: len(copied)]
        self.cache.copy(self.cache, list(zip(slots[copied], targets, strict=True)), pasts[copied])
        slots[copied] = targets
        self.slots, self.pasts = slots, pasts

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        """Read the last token of one sequence and guesses of what follows; return the guesses that are right and one token more.

        The cache keeps the rejected guesses too; the tokens that are read next overwrite them.
        """
        if len(self.slots) != 1:
            raise ValueError(f"{len(self.slots)} prompts, prompt lookup takes one at a time")
        ids, past = np.array([last, *guessed]), int(self.pasts[0])
        check_fits(past + len(ids), 0, self.model.context)
        chosen = self.model._decode(self.cache, ids, past, int(self.slots[0])).argmax(-1)
        right = int((chosen[:-1] == guessed).cumprod().sum())
        self.pasts = self.pasts + right + 1
        return chosen[: right + 1].tolist()


def decoder_from_ir(directory: str, prompt: list[int]) -> IrDecoder:
    """Load an IR with a prompt, to be timed; runs in a process of its own."""
    return load_ir(directory).decoder([prompt])


def generate_from_ir(directory: str, ids: list[int], new_tokens: int) -> Generator[str, None, list[int]]:
    """Load an IR and generate greedily, in a fresh process whose memory is measured; yield the name of each step that is done."""
    model = load_ir(directory)
    yield "loaded"
    (tokens,) = Greedy(model.decoder([ids], new_tokens)).generate(new_tokens)
    yield "steady"
    return tokens
