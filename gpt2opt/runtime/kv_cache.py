"""The memory of keys and values, in the blocks that the CPU plugin's paged attention reads and writes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino

BLOCK = 32
"""Tokens in a block of the CPU plugin's KV cache."""


def blocks(tokens: int) -> int:
    """Return how many blocks of the cache this number of tokens takes.

    Example:
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

    Args:
        ports: the cache inputs of a compiled graph, by name.
        sequences: how many sequences the cache holds; 0 gives tensors without memory.
        context: the largest number of tokens of a sequence.

    Raises:
        MemoryError: there is no memory for it.
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
