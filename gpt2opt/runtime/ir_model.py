"""Run a GPT-2 IR on the CPU with openvino and numpy alone: no torch in the serving process.

One directory, two compiled graphs over one file of weights: one reads prompts, the other writes tokens. Both work on the same KV cache,
so that nothing passes between them. Each decoder has a cache of its own, so that several can take turns on one model.
"""

import ctypes
import logging
import math
import mmap
import weakref
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino

from gpt2opt.decoding import Greedy
from gpt2opt.environment import has_int8_dot_product, threads
from gpt2opt.runtime import passes
from gpt2opt.runtime.manifest import read_config, read_manifest
from gpt2opt.runtime.prompt_lookup import PromptLookup

PROPERTIES = {
    # bf16 is the silent default on machines with AMX, and weight-compressed models have their activations quantized at run time.
    # Both would change what FP32 and INT8 mean here.
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
    # In an INT8 KV cache each key is rounded once and by itself. By channel, the plugin's default, those of a block would be rounded anew
    # with every token that joins them, and what is decoded would depend on how many tokens were read at once.
    "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
}
BLOCK = 32
"""Tokens in a block of the CPU plugin's KV cache."""

MANY_SEQUENCES = 16
"""From so many rows on a matmul is bound by arithmetic again, and the graph that reads prompts also decodes faster."""
SAME_BITS = {"SNIPPETS_MODE": "DISABLE"}
"""With these code generators for chains of small operations, a graph of fixed shapes would round otherwise than one without."""
ROUNDED_AT_RUN_TIME = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
"""With INT8 dot products the CPU plugin reads INT8 weights faster than by converting them: it rounds each token's inputs to INT8 by groups
of 32, as is its default. That loses less than the file's quantizers do, which have one range for all tokens and channels."""

logger = logging.getLogger(__name__)


def cpu_properties(num_threads: int | None = None, kv_cache: str = "f32", precision: str = "f32") -> dict[str, str]:
    """Return the properties that an IR is compiled with: `PROPERTIES`, and all threads that this process may use unless told."""
    chosen = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": kv_cache}
    return {**PROPERTIES, **chosen, "INFERENCE_NUM_THREADS": str(num_threads or threads())}


def load_ir(directory: Path | str, num_threads: int | None = None, precision: str = "f32") -> "IrModel":
    """Compile the IR in `directory` for the CPU.

    Args:
        directory: what `export_ir` or `quantize_int8` wrote.
        num_threads: CPU threads; all that this process may use unless told.
        precision: of float arithmetic, `f32` or, on CPUs that have it (see `has_bf16`), `bf16`.

    Raises:
        ValueError: there is no IR, or it is not the one that was exported.
    """
    model = IrModel(compile_ir(directory, num_threads, precision), read_config(directory, "n_positions"))
    # The CPU plugin packs the weights when they are first used: here, one graph after the other, and not during the first prompt.
    token, cache = np.zeros(1, np.int64), model._take_cache(1)
    for first_use in (
        lambda: model._read(model.reader, cache, token[None], 0),
        lambda: model._follow(cache, np.append(token, 0), 0),
        lambda: model._follow(cache, token, 0),
    ):
        first_use()
        _give_back_pages(Path(directory) / "openvino_model.bin")
    model._return_cache(cache)
    return model


@dataclass(frozen=True)
class CompiledIr:
    """The graphs that are made of one IR; where one of them does for two uses, it is the same one.

    reader: of prompts. writer: of one further token of several sequences, or of several of one. head: from the hidden states of either to
    logits. stepper: of one further token of one sequence, with a head of its own; None where the writer does for it.
    """

    reader: openvino.CompiledModel
    writer: openvino.CompiledModel
    head: openvino.CompiledModel
    stepper: openvino.CompiledModel | None


def compile_ir(directory: Path | str, num_threads: int | None = None, precision: str = "f32") -> CompiledIr:
    """Compile the graphs of an IR; see `load_ir`.

    Where no activation is quantized, one graph reads and decodes. With INT8 dot products a second one decodes, with INT8 weights and
    the inputs of each token rounded by themselves. Without them the plugin's INT8 convolution is the fastest way to decode, too: the
    second graph is the first one with fixed shapes, and goes on to the logits.

    Raises:
        ValueError: as `load_ir`.
    """
    manifest = read_manifest(directory)
    xml = Path(directory) / "openvino_model.xml"
    properties = cpu_properties(num_threads, precision if manifest.weights == "f32" else manifest.kv_cache, precision)
    core = openvino.Core()

    def compiled(graph: openvino.Model, **changed: str) -> openvino.CompiledModel:
        return core.compile_model(graph, "CPU", {**properties, **changed})

    try:
        graph, stepper = passes.paged(core.read_model(str(xml))), None
        rounded = any(passes.activation_quantizer(node) for node in passes.matmuls(graph))
        by_convolutions = rounded and not has_int8_dot_product()
        if by_convolutions:
            passes.gelu_by_erf(graph)
            stepper = compiled(passes.one_step(passes.as_convolutions(graph.clone())), **SAME_BITS)
        body, head = passes.cut(passes.describe_last_attention(graph))
        if by_convolutions:
            reader = writer = compiled(passes.as_convolutions(passes.multiply_parts(body)), **SAME_BITS)
        else:
            reader = writer = compiled(body.clone())
            if rounded:
                writer = compiled(passes.weight_only(body), **ROUNDED_AT_RUN_TIME)
        return CompiledIr(reader, writer, compiled(head), stepper)
    except RuntimeError as error:
        raise ValueError(f"can't compile {xml} ({str(error).strip()[-200:]!r}); export it again") from error


def _give_back_pages(weights: Path) -> None:
    """Let go of the pages of the mapped weights that have been read: the compiled graphs hold them in a layout of their own.

    A page that is needed again, the embedding of a token say, is read from the file again. Does nothing where there is no /proc.
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


@dataclass(frozen=True, eq=False)
class KvCache:
    """Keys and values of up to so many sequences of the whole context: a tensor for each input of the graphs that holds some of them."""

    sequences: int
    tensors: dict[str, openvino.Tensor]


class IrModel:
    """A compiled GPT-2. Several decoders may take turns on it; it is not for use from several threads at once."""

    def __init__(self, compiled: CompiledIr, context: int):
        self.context = context
        self.reader = compiled.reader.create_infer_request()
        self.writer = self.reader if compiled.writer is compiled.reader else compiled.writer.create_infer_request()
        self.head = compiled.head.create_infer_request()
        self.stepper = compiled.stepper and compiled.stepper.create_infer_request()
        self.num_cores = compiled.reader.get_property("INFERENCE_NUM_THREADS")
        self._bound: dict[openvino.InferRequest, dict[str, np.ndarray]] = {
            request: {} for request in (self.reader, self.writer, self.stepper) if request
        }
        self.vocab_size = compiled.head.output(0).get_partial_shape()[-1].get_length()
        self._cache_ports = {port.get_any_name(): port for port in compiled.reader.inputs if "_cache." in port.get_any_name()}
        self._cache_of: dict[openvino.InferRequest, KvCache] = {}
        self._no_cache = self._new_cache(0)
        self._left: KvCache | None = None  # by a decoder that is gone, for the next one: new memory costs time when it is first written
        if self.stepper:
            self._bind(self.stepper, self._following(np.zeros(1), 0))

    def logits(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, T, V) float32 of whole sequences (B, T), read as prompts are.

        Raises:
            ValueError: the sequences are longer than the context, or are no token ids of this model.
        """
        input_ids = self._check_ids(input_ids)
        batch, length = input_ids.shape
        self._check_fits(length, 0)
        cache = self._take_cache(batch)
        logits = self._read(self.reader, cache, input_ids, 0, every=True).reshape(batch, length, -1).copy()  # the next call writes over it
        self._return_cache(cache)
        return logits

    def generate(self, input_ids: np.ndarray, max_new_tokens: int, prompt_lookup: bool = False) -> np.ndarray:
        """Continue (B, T) prompts greedily; return the new tokens (B, max_new_tokens).

        Args:
            input_ids: (B, T) int.
            max_new_tokens: an integer of at least 1, as transformers' `GenerationConfig` wants it; no token ends the text earlier.
            prompt_lookup: decode several tokens a step where the text repeats itself, for one prompt; the tokens stay the same.

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
        """Return what decodes (B, T) prompts step by step; several may be in use at once.

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

    def _read(self, request, cache: KvCache, ids: np.ndarray, past: int, every: bool = False) -> np.ndarray:
        """Read (B, T) further tokens of B sequences that have `past` tokens in the cache; return the logits (B, V) of their last tokens.

        With `every`, those of all tokens (B · T, V).
        """
        batch, length = ids.shape
        whole = self._describe([past], batch, length)
        # Behind the last attention only the wanted rows go on. What is before their block has to get into the cache, and nothing else:
        # as sequences of a block each it costs the last attention next to nothing.
        blocks = range((past // BLOCK + 1) * BLOCK, past + length, BLOCK)
        apart = whole if every else self._describe([past, *blocks], batch, length)
        inputs = {
            "input_ids": ids.reshape(-1),
            "position_ids": np.tile(np.arange(past, past + length), batch),
            **whole,
            **_for_last_attention(apart),
            "max_context_len": np.array(past + length),
            passes.ROWS: np.arange(batch * length) if every else np.arange(1, batch + 1) * length - 1,
        }
        return self._project(self._infer(request, cache, inputs))

    def _describe(self, starts: list[int], batch: int, length: int) -> dict[str, np.ndarray]:
        """Describe B texts of T further tokens to attention, each as sequences that start at these positions.

        The last of a text's sequences attends to all that is before it, the others to what their own block of the cache holds.
        """
        starts, blocks, text = np.array(starts), _blocks(self.context), np.arange(batch)[:, None]
        own = np.concatenate([starts[:-1] // BLOCK, np.arange(blocks)])
        return {
            "past_lens": np.tile(np.append(starts[:-1] % BLOCK, starts[-1]), batch),
            "subsequence_begins": np.append(text * length + starts - starts[0], batch * length),
            "block_indices": (text * blocks + own).reshape(-1),
            "block_indices_begins": np.append(text * len(own) + np.arange(len(starts)), batch * len(own)),
        }

    def _follow(self, cache: KvCache, ids: np.ndarray, past: int) -> np.ndarray:
        """Read (T,) further tokens of one sequence that has `past` tokens in the cache; return their logits (T, V).

        Each is read as a sequence of its own over the blocks of the one: it finds the keys and values of those before it there, which the
        plugin writes first. That is faster than a prompt's way, and where inputs are quantized the bits of the hidden states don't depend
        on how many tokens are read at once. An empty sequence beside them keeps the plugin from splitting a lone one over its threads.
        """
        if len(ids) > 1 or not self.stepper:
            inputs = self._following(ids, past)
            return self._project(self._infer(self.writer, cache, {**inputs, **_for_last_attention(inputs)}))
        past_lens = np.array([past, 0])
        changed = {"input_ids": ids, "position_ids": past_lens[:1], "past_lens": past_lens, "max_context_len": past_lens[0] + 1}
        return self._infer(self.stepper, cache, changed).data.reshape(1, -1)

    def _following(self, ids: np.ndarray, past: int) -> dict[str, np.ndarray]:
        """Return the inputs of a graph for `_follow`."""
        count, pasts = len(ids), np.arange(past, past + len(ids))
        return {
            "input_ids": ids,
            "position_ids": pasts,
            "past_lens": np.append(pasts, 0),
            "subsequence_begins": np.append(np.arange(count + 1), count),
            "block_indices": np.tile(np.arange(_blocks(self.context)), count + 1),
            "block_indices_begins": np.arange(count + 2) * _blocks(self.context),
            "max_context_len": np.array(past + count),
            passes.ROWS: np.arange(count),
        }

    def _infer(self, request, cache: KvCache, inputs: dict[str, np.ndarray]):
        """Run a graph on a cache; return its output, which the next call writes over. See `passes.paged` for the inputs."""
        self._bind_cache(request, cache)
        self._bind(request, inputs)
        request.infer(share_outputs=True)
        return request.get_output_tensor()

    def _bind(self, request, inputs: dict[str, np.ndarray]) -> None:
        bound = self._bound[request]
        for name, value in inputs.items():
            if name in bound and bound[name].shape == value.shape:
                bound[name][...] = value  # cheaper than setting eight tensors anew for every token
            else:
                bound[name] = value.astype(request.get_tensor(name).element_type.to_dtype())  # ours to write to
                request.set_tensor(name, openvino.Tensor(bound[name], shared_memory=True))

    def _project(self, hidden) -> np.ndarray:
        """Return the logits (rows, V) of hidden states (rows, 1, width); the next call writes over them."""
        self.head.set_input_tensor(hidden)
        self.head.infer(share_outputs=True)
        return self.head.get_output_tensor().data.reshape(hidden.shape[0], -1)

    def _bind_cache(self, request, cache: KvCache) -> None:
        if self._cache_of.get(request) is not cache:
            for name, tensor in cache.tensors.items():
                request.set_tensor(name, tensor)
            self._cache_of[request] = cache

    def _take_cache(self, sequences: int) -> KvCache:
        """Return a cache for so many sequences that nobody else has; `_return_cache` is to be called when it is no longer needed.

        Raises:
            MemoryError: there is no memory for it.
        """
        left, self._left = self._left, None
        if left and left.sequences == sequences:
            return left
        del left
        for request in self._bound:  # else they keep memory that nobody needs any more
            self._bind_cache(request, self._no_cache)
        return self._new_cache(sequences)

    def _return_cache(self, cache: KvCache) -> None:
        self._left = cache

    def _new_cache(self, sequences: int) -> KvCache:
        """Reserve memory of zeros: whatever else lies in new memory might read as NaN. The system gives it only to what is written."""
        tensors = {}
        for name, port in self._cache_ports.items():
            shape = [sequences * _blocks(self.context), *(size.get_length() for size in list(port.get_partial_shape())[1:])]
            kind = port.get_element_type()
            try:
                memory = np.zeros(math.prod(shape) * kind.size, np.uint8)
            except MemoryError:
                raise MemoryError(f"no memory for the KV cache of {sequences} sequences; decode fewer at once") from None
            tensors[name] = openvino.Tensor(memory, shape, kind)
        return KvCache(sequences, tensors)


def _for_last_attention(sequences: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {passes.LAST + name: sequences[name] for name in passes.SEQUENCES}


def _blocks(tokens: int) -> int:
    """Return how many blocks of the cache so many tokens take."""
    return -(-tokens // BLOCK)


class IrDecoder:
    """A `Decoder` of B prompts of one length, with a KV cache of its own. `IrModel.decoder` makes them."""

    def __init__(self, model: IrModel, prompt_ids: np.ndarray):
        self.model, self.prompt_ids = model, prompt_ids
        self.cache = model._take_cache(len(prompt_ids))
        weakref.finalize(self, model._return_cache, self.cache)

    def prefill(self) -> np.ndarray:
        """Read the prompts; return the logits (B, V) of their last tokens, which the next call writes over.

        Raises:
            ValueError: they don't fit into the context.
        """
        length = self.prompt_ids.shape[1]
        self.model._check_fits(length, 0)
        logits = self.model._read(self.model.reader, self.cache, self.prompt_ids, 0)
        self.past = length
        return logits

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) behind them, which the next call writes over.

        Raises:
            ValueError: the context is full.
        """
        self.model._check_fits(self.past + 1, 0)
        batch = len(self.prompt_ids)
        if batch == 1:
            logits = self.model._follow(self.cache, ids[0], self.past)
        else:
            request = self.model.writer if batch < MANY_SEQUENCES else self.model.reader
            logits = self.model._read(request, self.cache, ids, self.past)
        self.past += 1
        return logits

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        """Read the last token of one sequence and guesses of what follows; return the guesses that are right and one token more.

        The cache keeps the rejected ones too; what is read next is written over them.
        """
        if len(self.prompt_ids) != 1:
            raise ValueError(f"{len(self.prompt_ids)} prompts, prompt lookup takes one at a time")
        ids = np.array([last, *guessed])
        self.model._check_fits(self.past + len(ids), 0)
        chosen = self.model._follow(self.cache, ids, self.past).argmax(-1)
        right = 0
        while right < len(guessed) and chosen[right] == guessed[right]:
            right += 1
        self.past += right + 1
        return chosen[: right + 1].tolist()


def continue_text(directory: Path | str, prompt: str, new_tokens: int = 50, truncate: bool = False) -> str:
    """Continue a prompt greedily with the IR and the tokenizer in `directory`; return the new text.

    Args:
        directory: what `quantize_int8` or `export_ir` wrote.
        prompt: any text.
        new_tokens: how many to generate.
        truncate: keep the end of a prompt that is too long, and say so, instead of refusing it.

    Raises:
        ValueError: no IR, an empty prompt, a prompt that is not Unicode text, or more tokens than the model's context holds.
    """
    from gpt2opt.sources.models import load_tokenizer

    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of the prompt is no text but {prompt[error.start]!r}; give it in UTF-8") from None
    model = load_ir(directory)
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(prompt, verbose=False).input_ids
    room = model.context - new_tokens
    if truncate and 0 < room < len(ids):
        logger.warning("the prompt has %d tokens; its last %d are kept, %d new ones fill the context", len(ids), room, new_tokens)
        ids = ids[-room:]
    return tokenizer.decode(model.generate(np.array([ids]), new_tokens, prompt_lookup=True)[0])


def generate_from_ir(directory: str, ids: list[int], new_tokens: int) -> Generator[str, None, list[int]]:
    """Load an IR and generate greedily; runs in a fresh process, to see what that takes, and names its steps."""
    model = load_ir(directory)
    yield "loaded"
    tokens = model.generate(np.array([ids]), new_tokens)[0].tolist()
    yield "steady"
    return tokens
