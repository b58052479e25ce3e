"""Run a GPT-2 IR on the CPU with openvino and numpy alone: the serving process loads no torch.

One directory gives several compiled graphs over one file of weights: one reads prompts, the others decode. All work on the same KV
cache, so that nothing is copied between them. Each decoder has a cache of its own, so that several decoders can take turns on one model.
"""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino

from gpt2opt.decoding.decoder import check_fits, check_prompts
from gpt2opt.runtime import attention_inputs
from gpt2opt.runtime.bound_graph import BoundGraph
from gpt2opt.runtime.compile import CompiledIr, compile_ir, give_back_pages
from gpt2opt.runtime.kv_cache import KvCache, new_kv_cache
from gpt2opt.runtime.manifest import read_config
from gpt2opt.runtime.paged_attention import LAST, ROWS, SEQUENCES

MANY_SEQUENCES = 16
"""From this number of rows on, a matmul is bound by arithmetic, and the prefill graph decodes faster than the decode graph."""


def load_ir(
    directory: Path | str,
    num_threads: int | None = None,
    precision: str = "f32",
    leave_out: Sequence[str] = (),
    count_time: bool = False,
) -> "IrModel":
    """Compile the IR in `directory` for the CPU.

    Args:
        directory: what `export_ir` or `quantize_int8` wrote.
        num_threads: CPU threads; None: all that this process may use.
        precision: of float arithmetic, `f32` or, on CPUs that have it (see `has_bf16`), `bf16`.
        leave_out: names of graph passes to do without, to measure what they gain; see `passes.PASSES`. The logits stay right. A
            pass that does not apply to this IR on this CPU makes no difference.
        count_time: let the graphs count the time of each node, at a small cost; see `counters.count_nodes`.

    Raises:
        ValueError: there is no IR, it is not the one that was exported, a pass in `leave_out` is not known or can't be left out, or the
            precision is not known or this CPU does not have it.
    """
    model = IrModel(compile_ir(directory, num_threads, precision, leave_out, count_time), read_config(directory, "n_positions"))
    # The CPU plugin packs the weights when they are first used: here, one graph after the other, and not during the first prompt.
    token, cache = np.zeros(1, np.int64), model._take_cache(1)
    for first_use in (
        lambda: model._prefill(model.prefill_graph, cache, [token], token, token),
        lambda: model._decode(cache, np.append(token, 0), 0, 0),
        lambda: model._decode(cache, token, 0, 0),
    ):
        first_use()
        give_back_pages(Path(directory) / "openvino_model.bin")
    model._return_cache(cache)
    return model


class IrModel:
    """A compiled GPT-2. Several decoders may take turns on it; it is not for use from several threads at once."""

    def __init__(self, compiled: CompiledIr, context: int):
        self.context = context
        self.prefill_graph = BoundGraph(compiled.prefill)
        self.decode_graph = self.prefill_graph if compiled.decode is compiled.prefill else BoundGraph(compiled.decode)
        self.single_step_graph = BoundGraph(compiled.single_step) if compiled.single_step else None
        self.head = compiled.head.create_infer_request()
        self.num_cores = compiled.prefill.get_property("INFERENCE_NUM_THREADS")
        self.vocab_size = compiled.head.output(0).get_partial_shape()[-1].get_length()
        self._input_names = {port.get_any_name() for port in compiled.prefill.inputs}
        self._cache_ports = {port.get_any_name(): port for port in compiled.prefill.inputs if "_cache." in port.get_any_name()}
        self._no_cache = new_kv_cache(self._cache_ports, 0, context)
        # What a deleted decoder leaves for the next one: new memory costs time when it is first written.
        self._left: KvCache | None = None
        if self.single_step_graph:
            self.single_step_graph.bind(attention_inputs.token_by_token(np.zeros(1), 0, 0, context))

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, T, V) float32 of whole sequences (B, T), computed by the prefill graph.

        Raises:
            ValueError: the sequences are longer than the context, or are no token ids of this model.
        """
        texts = self._check(input_ids)
        cache = self._take_cache(len(texts))
        rows = self._prefill(self.prefill_graph, cache, texts, np.zeros(len(texts), int), np.arange(len(texts)), every=True)
        logits = rows.reshape(*np.shape(texts), -1).copy()  # the next call overwrites the rows
        self._return_cache(cache)
        return logits

    def decoder(self, prompts: np.ndarray | Sequence[Sequence[int]], max_new_tokens: int = 0) -> "IrDecoder":
        """Return a decoder of B prompts of any lengths; several decoders may be in use at once.

        Args:
            prompts: token ids, (B, T) or a list for each prompt.
            max_new_tokens: how many tokens of each have to fit into the context behind it.

        Raises:
            ValueError: the prompts are no token ids of this model, or they and the new tokens don't fit into the context.
            MemoryError: there is no memory for its KV cache.
        """
        return IrDecoder(self, self._check(prompts, max_new_tokens))

    def _check(self, prompts: np.ndarray | Sequence[Sequence[int]], new_tokens: int = 0) -> list[np.ndarray]:
        return check_prompts(prompts, new_tokens, self.context, self.vocab_size)

    def _prefill(
        self,
        graph: BoundGraph,
        cache: KvCache,
        texts: Sequence[np.ndarray] | np.ndarray,
        pasts: np.ndarray,
        slots: np.ndarray,
        every: bool = False,
    ) -> np.ndarray:
        """Read further tokens of B texts, which have `pasts` (B,) tokens in these slots of the cache; return the last ones' logits (B, V).

        With `every`, return those of all tokens, end to end.
        """
        lengths = np.array([len(ids) for ids in texts])
        ends = lengths.cumsum()
        whole = attention_inputs.whole_texts(pasts, lengths, slots, self.context)
        cut = not every and ends[-1] > len(texts)  # one token each: there is nothing to cut
        last = attention_inputs.texts_cut_at_blocks(pasts, lengths, slots, self.context) if cut else whole
        inputs = {
            "input_ids": np.concatenate(texts),
            "position_ids": np.arange(ends[-1]) + np.repeat(pasts - ends + lengths, lengths),
            **whole,
            **self._for_last_attention(last),
            "max_context_len": np.array((pasts + lengths).max()),
            ROWS: np.arange(ends[-1]) if every else ends - 1,
        }
        hidden = graph.run(cache, inputs)
        if hidden.shape[0] != len(inputs[ROWS]):  # the plugin found no memory, raised nothing, and left the output of the call before
            raise MemoryError(f"no memory to read {ends[-1]} tokens of {len(texts)} sequences at once; decode fewer at once")
        return self._project(hidden)

    def _decode(self, cache: KvCache, ids: np.ndarray, past: int, slot: int) -> np.ndarray:
        """Read (T,) further tokens of one text that has `past` tokens in this slot of the cache; return their logits (T, V).

        Each token is a sequence of its own, see `attention_inputs.token_by_token`. That is faster than `_prefill`, and if inputs are
        quantized, the bits of the hidden states don't depend on how many tokens are read at once.
        """
        if len(ids) > 1 or slot or not self.single_step_graph:
            inputs = attention_inputs.token_by_token(ids, past, slot, self.context)
            return self._project(self.decode_graph.run(cache, {**inputs, **self._for_last_attention(inputs)}))
        past_lens = np.array([past, 0])
        changed = {"input_ids": ids, "position_ids": past_lens[:1], "past_lens": past_lens, "max_context_len": past_lens[0] + 1}
        return self.single_step_graph.run(cache, changed).data.reshape(1, -1)

    def _for_last_attention(self, sequences: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {LAST + name: sequences[name] for name in SEQUENCES if LAST + name in self._input_names}

    def _project(self, hidden: openvino.Tensor) -> np.ndarray:
        """Return the logits (rows, V) of hidden states (rows, 1, width); the next call overwrites them."""
        self.head.set_input_tensor(hidden)
        self.head.infer(share_outputs=True)
        return self.head.get_output_tensor().data.reshape(hidden.shape[0], -1)

    def _take_cache(self, sequences: int) -> KvCache:
        """Return a cache for this number of sequences that nothing else uses; call `_return_cache` when it is no longer needed.

        Raises:
            MemoryError: there is no memory for it.
        """
        left, self._left = self._left, None
        if left and left.sequences == sequences:
            return left
        del left
        for graph in (self.prefill_graph, self.decode_graph, self.single_step_graph):
            if graph:
                graph.bind_cache(self._no_cache)  # a cache that stays bound would keep its memory
        return new_kv_cache(self._cache_ports, sequences, self.context)

    def _return_cache(self, cache: KvCache) -> None:
        self._left = cache


class IrDecoder:
    """A `Decoder` of B prompts of any lengths, with a KV cache of its own. `IrModel.decoder` makes them.

    pasts: (B,) tokens of each sequence in the cache. slots: (B,) where in the cache each lies.
    """

    def __init__(self, model: IrModel, prompts: list[np.ndarray]):
        self.model, self.prompts = model, prompts
        self._own(model._take_cache(len(prompts)))

    def _own(self, cache: KvCache) -> None:
        self.cache = cache
        self._give_back = weakref.finalize(self, self.model._return_cache, cache)

    def prefill(self) -> np.ndarray:
        """Read the prompts; return the logits (B, V) of their last tokens, which the next call overwrites."""
        nothing, self.slots = np.zeros(len(self.prompts), int), np.arange(len(self.prompts))
        logits = self.model._prefill(self.model.prefill_graph, self.cache, self.prompts, nothing, self.slots)
        self.pasts = np.array([len(ids) for ids in self.prompts])
        return logits

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) for the tokens after them, until the next call.

        Raises:
            ValueError: the context is full.
        """
        check_fits(int(self.pasts.max()) + 1, 0, self.model.context)
        batch = len(self.slots)
        if batch == 1:
            logits = self.model._decode(self.cache, ids[0], int(self.pasts[0]), int(self.slots[0]))
        else:
            graph = self.model.decode_graph if batch < MANY_SEQUENCES else self.model.prefill_graph
            logits = self.model._prefill(graph, self.cache, ids, self.pasts, self.slots)
        self.pasts = self.pasts + 1
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order; one that is named twice is copied in the cache.

        Raises:
            MemoryError: there is no memory for the copies.
        """
        kept, copies, slots = set(), [], self.slots[list(rows)]
        free = [slot for slot in range(self.cache.sequences) if slot not in set(slots.tolist())]
        for place, slot in enumerate(slots.tolist()):
            if slot in kept:
                copies.append((place, slot))
            kept.add(slot)
        pasts = self.pasts[list(rows)]
        if len(copies) > len(free):
            self._grow(len(rows))
            free = [slot for slot in range(self.cache.sequences) if slot not in kept]
        targets = free[: len(copies)]
        pairs = [(slot, target) for (_, slot), target in zip(copies, targets, strict=True)]
        self.cache.copy(self.cache, pairs, [int(pasts[place]) for place, _ in copies])
        for (place, _), target in zip(copies, targets, strict=True):
            slots[place] = target
        self.slots, self.pasts = slots, pasts

    def _grow(self, sequences: int) -> None:
        """Move to a cache of this many sequences more."""
        before = self.cache
        self._give_back.detach()
        self._own(self.model._take_cache(before.sequences + sequences))
        self.cache.copy(before, [(slot, slot) for slot in self.slots], self.pasts)

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        """Read the last token of one sequence and guesses of what follows; return the guesses that are right and one token more.

        The cache keeps the rejected guesses too; the tokens that are read next overwrite them.
        """
        if len(self.slots) != 1:
            raise ValueError(f"{len(self.slots)} prompts, prompt lookup takes one at a time")
        ids, past = np.array([last, *guessed]), int(self.pasts[0])
        check_fits(past + len(ids), 0, self.model.context)
        chosen = self.model._decode(self.cache, ids, past, int(self.slots[0])).argmax(-1)
        right = 0
        while right < len(guessed) and chosen[right] == guessed[right]:
            right += 1
        self.pasts = self.pasts + right + 1
        return chosen[: right + 1].tolist()
