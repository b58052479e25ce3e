"""The KV cache in the blocks of the CPU plugin's paged attention, and the inputs that say which blocks the tokens of a call belong to.

The tokens of all sequences of a call are joined. `docs/runtime.md` works an example out, block by block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino

from gpt2opt.runtime.paged_attention import ROWS

Texts = Sequence[np.ndarray] | np.ndarray
"""The token ids of several texts: an array for each, or (B, T)."""
BLOCK = 32
"""Tokens in a block of the CPU plugin's KV cache."""


def blocks(tokens: int) -> int:
    """Return how many blocks of the cache this number of tokens takes.

    >>> [blocks(tokens) for tokens in (1, 32, 33, 1024)]
    [1, 1, 2, 32]
    """
    return -(-tokens // BLOCK)


@dataclass(frozen=True, eq=False)
class KvCache:
    """Keys and values of some sequences, each as long as the context may be.

    tensors: input of a graph (`key_cache.0`, `value_cache.0`, ...) -> (sequences · blocks of the context, ...), of the type that the
    graph has there. The text in slot i owns the blocks from i · blocks(context) on. memory: their bytes, (sequences, blocks, bytes).
    """

    sequences: int
    tensors: dict[str, openvino.Tensor]
    memory: dict[str, np.ndarray]

    def copy(self, source: "KvCache", pairs: Sequence[tuple[int, int]], tokens: Sequence[int] | np.ndarray) -> None:
        """For each pair (slot of `source`, slot here), copy the first blocks, those of this number of tokens."""
        for name, memory in self.memory.items():
            for (there, here), count in zip(pairs, tokens, strict=True):
                memory[here, : blocks(count)] = source.memory[name][there, : blocks(count)]


def new_kv_cache(ports: Mapping[str, openvino.ConstOutput], sequences: int, context: int) -> KvCache:
    """Reserve memory of zeros: anything else in new memory might read as NaN. The system backs only the pages that are written.

    ports: the cache inputs of a compiled graph, by name. sequences: 0 gives tensors without memory. context: in tokens.
    """
    tensors, memories = {}, {}
    for name, port in ports.items():
        shape = [sequences * blocks(context), *(size.get_length() for size in list(port.get_partial_shape())[1:])]
        kind = port.get_element_type()
        try:
            memory = np.zeros(math.prod(shape) * kind.size, np.uint8)
        except MemoryError:
            raise MemoryError(f"no memory for the KV cache of {sequences} sequences; decode fewer at once") from None
        tensors[name] = openvino.Tensor(memory, shape, kind)
        memories[name] = memory.reshape(sequences, blocks(context), -1) if sequences else memory
    return KvCache(sequences, tensors, memories)


def graph_inputs(texts: Texts, pasts: np.ndarray, slots: np.ndarray, context: int, every: bool = False) -> dict[str, np.ndarray]:
    """Return all inputs of a paged graph but the cache, to read further tokens of B texts, those of each text as one sequence.

    pasts: (B,) tokens of each text that are in the cache already. slots: (B,) see `KvCache`. every: whether the logits of all tokens are
    wanted, or those of each text's last one. Tokens of one text may also be texts of one token each, in the same slot: the plugin writes
    the keys and values of all tokens before it reads any.

    Returns:
        input_ids, position_ids (tokens,): of all texts, joined. past_lens (B,): tokens in the cache before those of the sequence.
        subsequence_begins (B + 1,): where each sequence begins among the tokens of the call, and where the last one ends.
        block_indices: the blocks of the cache of all sequences, joined. block_indices_begins (B + 1,): where those of each sequence
        begin, and where the last one's end. max_context_len (): of the longest text. rows: the tokens whose logits are wanted.
    """
    lengths, per_text = np.array([len(ids) for ids in texts]), blocks(context)
    ends = lengths.cumsum()
    return {
        "input_ids": np.concatenate(texts),
        "position_ids": np.arange(ends[-1]) + np.repeat(pasts - ends + lengths, lengths),
        "past_lens": pasts,
        "subsequence_begins": np.append(0, ends),
        "block_indices": (slots[:, None] * per_text + np.arange(per_text)).reshape(-1),
        "block_indices_begins": np.arange(len(slots) + 1) * per_text,
        "max_context_len": np.array((pasts + lengths).max()),
        ROWS: np.arange(ends[-1]) if every else ends - 1,
    }
