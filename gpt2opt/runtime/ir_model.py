"""Run a GPT-2 IR on the CPU with openvino and numpy alone: the serving process loads no torch.

One directory gives several compiled graphs over one file of weights: one reads prompts, the others decode. All work on the same KV
cache, so that nothing is copied between them. Each decoder has a cache of its own, so that several decoders can take turns on one model.
"""

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino

from gpt2opt.decoding import Greedy
from gpt2opt.runtime import attention_inputs
from gpt2opt.runtime.bound_graph import BoundGraph
from gpt2opt.runtime.compile import CompiledIr, compile_ir, give_back_pages
from gpt2opt.runtime.kv_cache import KvCache, new_kv_cache
from gpt2opt.runtime.manifest import read_config
from gpt2opt.runtime.paged_attention import LAST, ROWS, SEQUENCES
from gpt2opt.runtime.prompt_lookup import PromptLookup

MANY_SEQUENCES = 16
"""From this number of rows on, a matmul is bound by arithmetic, and the prefill graph decodes faster than the decode graph."""


def load_ir(directory: Path | str, num_threads: int | None = None, precision: str = "f32", leave_out: Sequence[str] = ()) -> "IrModel":
    """Compile the IR in `directory` for the CPU.

    Args:
        directory: what `export_ir` or `quantize_int8` wrote.
        num_threads: CPU threads; None: all that this process may use.
        precision: of float arithmetic, `f32` or, on CPUs that have it (see `has_bf16`), `bf16`.
        leave_out: names of graph passes to do without, to measure what they gain; see `passes.PASSES`. The logits stay right. A
            pass that does not apply to this IR on this CPU makes no difference.

    Raises:
        ValueError: there is no IR, it is not the one that was exported, or a pass in `leave_out` is not known or can't be left out.
    """
    model = IrModel(compile_ir(directory, num_threads, precision, leave_out), read_config(directory, "n_positions"))
    # The CPU plugin packs the weights when they are first used: here, one graph after the other, and not during the first prompt.
    token, cache = np.zeros(1, np.int64), model._take_cache(1)
    for first_use in (
        lambda: model._prefill(model.prefill_graph, cache, token[None], 0),
        lambda: model._decode(cache, np.append(token, 0), 0),
        lambda: model._decode(cache, token, 0),
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
            self.single_step_graph.bind(attention_inputs.token_by_token(np.zeros(1), 0, context))

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, T, V) float32 of whole sequences (B, T), computed by the prefill graph.

        Raises:
            ValueError: the sequences are longer than the context, or are no token ids of this model.
        """
        input_ids = self._check_ids(input_ids)
        batch, length = input_ids.shape
        self._check_fits(length, 0)
        cache = self._take_cache(batch)
        rows = self._prefill(self.prefill_graph, cache, input_ids, 0, every=True)
        logits = rows.reshape(batch, length, -1).copy()  # the next call overwrites the rows
        self._return_cache(cache)
        return logits

    def generate(self, input_ids: np.ndarray, max_new_tokens: int, prompt_lookup: bool = False) -> np.ndarray:
        """Continue (B, T) prompts greedily; return the new tokens (B, max_new_tokens).

        Args:
            input_ids: (B, T) int.
            max_new_tokens: an integer of at least 1, as transformers' `GenerationConfig` requires; no token ends the text earlier.
            prompt_lookup: for one prompt, decode several tokens per step if the text repeats itself; the tokens stay the same.

        Raises:
            ValueError: prompt and new tokens don't fit into the context, `input_ids` are no token ids of this model, `max_new_tokens` is
                less than 1 or no integer, or `prompt_lookup` is asked for several prompts.
        """
        if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r}, expected an integer of at least 1")
        decoder = self.decoder(input_ids)
        self._check_fits(decoder.prompt_ids.shape[1], max_new_tokens)
        if prompt_lookup:
            return np.array([PromptLookup(decoder).generate(max_new_tokens)])
        return np.array(Greedy(decoder).generate(max_new_tokens))

    def decoder(self, input_ids: np.ndarray) -> "IrDecoder":
        """Return a decoder of (B, T) prompts; several may be in use at once.

        Raises:
            ValueError: `input_ids` are no token ids of this model.
            MemoryError: there is no memory for its KV cache.
        """
        return IrDecoder(self, self._check_ids(input_ids))

    def _check_ids(self, input_ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not len(ids):
            raise ValueError(f"ids of shape {ids.shape}, expected (prompts, tokens) with at least one prompt")
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"ids of type {ids.dtype}, expected integers")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"token ids from {ids.min()} to {ids.max()}, expected from 0 to {self.vocab_size - 1}; use the model's own tokenizer"
            )
        return ids.astype(np.int64)

    def _check_fits(self, length: int, new_tokens: int) -> None:
        if new_tokens >= self.context:
            raise ValueError(f"{new_tokens} new tokens don't fit into the context of {self.context}; ask for at most {self.context - 1}")
        if not 0 < length <= self.context - new_tokens:
            advice = "shorten it, or keep its end with truncate" if length else "write at least a word"
            raise ValueError(
                f"the prompt has {length} tokens; with {new_tokens} new ones, from 1 to {self.context - new_tokens} fit into the context "
                f"of {self.context}: {advice}"
            )

    def _prefill(self, graph: BoundGraph, cache: KvCache, ids: np.ndarray, past: int, every: bool = False) -> np.ndarray:
        """Read (B, T) further tokens of B sequences that have `past` tokens in the cache; return the logits (B, V) of their last tokens.

        With `every`, return those of all tokens (B · T, V).
        """
        batch, length = ids.shape
        whole = attention_inputs.whole_texts(past, batch, length, self.context)
        last = whole if every else attention_inputs.texts_cut_at_blocks(past, batch, length, self.context)
        inputs = {
            "input_ids": ids.reshape(-1),
            "position_ids": np.tile(np.arange(past, past + length), batch),
            **whole,
            **self._for_last_attention(last),
            "max_context_len": np.array(past + length),
            ROWS: np.arange(batch * length) if every else np.arange(1, batch + 1) * length - 1,
        }
        return self._project(graph.run(cache, inputs))

    def _decode(self, cache: KvCache, ids: np.ndarray, past: int) -> np.ndarray:
        """Read (T,) further tokens of one sequence that has `past` tokens in the cache; return their logits (T, V).

        Each token is a sequence of its own, see `attention_inputs.token_by_token`. That is faster than `_prefill`, and if inputs are
        quantized, the bits of the hidden states don't depend on how many tokens are read at once.
        """
        if len(ids) > 1 or not self.single_step_graph:
            inputs = attention_inputs.token_by_token(ids, past, self.context)
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
        for graph in {self.prefill_graph, self.decode_graph, self.single_step_graph} - {None}:
            graph.bind_cache(self._no_cache)  # a cache that stays bound would keep its memory
        return new_kv_cache(self._cache_ports, sequences, self.context)

    def _return_cache(self, cache: KvCache) -> None:
        self._left = cache


class IrDecoder:
    """A `Decoder` of B prompts of one length, with a KV cache of its own. `IrModel.decoder` makes them."""

    def __init__(self, model: IrModel, prompt_ids: np.ndarray):
        self.model, self.prompt_ids = model, prompt_ids
        self.cache = model._take_cache(len(prompt_ids))
        weakref.finalize(self, model._return_cache, self.cache)

    def prefill(self) -> np.ndarray:
        """Read the prompts; return the logits (B, V) of their last tokens, which the next call overwrites.

        Raises:
            ValueError: they don't fit into the context.
        """
        length = self.prompt_ids.shape[1]
        self.model._check_fits(length, 0)
        logits = self.model._prefill(self.model.prefill_graph, self.cache, self.prompt_ids, 0)
        self.past = length
        return logits

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) for the tokens after them, until the next call.

        Raises:
            ValueError: the context is full.
        """
        self.model._check_fits(self.past + 1, 0)
        batch = len(self.prompt_ids)
        if batch == 1:
            logits = self.model._decode(self.cache, ids[0], self.past)
        else:
            graph = self.model.decode_graph if batch < MANY_SEQUENCES else self.model.prefill_graph
            logits = self.model._prefill(graph, self.cache, ids, self.past)
        self.past += 1
        return logits

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        """Read the last token of one sequence and guesses of what follows; return the guesses that are right and one token more.

        The cache keeps the rejected guesses too; the tokens that are read next overwrite them.
        """
        if len(self.prompt_ids) != 1:
            raise ValueError(f"{len(self.prompt_ids)} prompts, prompt lookup takes one at a time")
        ids = np.array([last, *guessed])
        self.model._check_fits(self.past + len(ids), 0)
        chosen = self.model._decode(self.cache, ids, self.past).argmax(-1)
        right = 0
        while right < len(guessed) and chosen[right] == guessed[right]:
            right += 1
        self.past += right + 1
        return chosen[: right + 1].tolist()
