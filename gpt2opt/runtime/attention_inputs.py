"""The inputs of paged attention: which tokens of a call follow each other, and where their keys and values lie in the KV cache.

The tokens of all sequences of a call lie end to end. `docs/runtime.md` works an example out, block by block.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from gpt2opt.runtime.kv_cache import BLOCK, blocks
from gpt2opt.runtime.paged_attention import ROWS


def whole_texts(pasts: np.ndarray, lengths: np.ndarray, slots: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """Describe further tokens of B texts, those of each text as one sequence.

    Args:
        pasts: (B,) tokens of each text that are in the cache already.
        lengths: (B,) how many tokens of each are read now.
        slots: (B,) where in the cache each text lies; see `KvCache`.
        context: tokens that the cache holds of each text.

    Returns:
        past_lens (B,): tokens in the cache before those of the sequence. subsequence_begins (B + 1,): where each sequence begins among
        the tokens of the call, and where the last one ends. block_indices: the blocks of the cache of all sequences, end to end.
        block_indices_begins (B + 1,): where those of each sequence begin, and where the last one's end.
    """
    per_text = blocks(context)
    return {
        "past_lens": pasts,
        "subsequence_begins": _begins(lengths),
        "block_indices": (slots[:, None] * per_text + np.arange(per_text)).reshape(-1),
        "block_indices_begins": np.arange(len(slots) + 1) * per_text,
    }


def texts_cut_at_blocks(pasts: np.ndarray, lengths: np.ndarray, slots: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """Describe the same texts so that attention computes almost nothing for tokens whose logits are not wanted.

    Keys and values of every token have to be stored, but only the last token's attention has to be computed in full. Each block of the
    cache before the last one becomes a sequence of its own: its tokens are stored in their place, and attend to their own block only.
    The last sequence of each text attends to everything before it.
    """
    per_text = blocks(context)
    sequences: list[tuple[int, int, Sequence[int]]] = []  # of each: the tokens before it that it attends to, how many it has, its blocks
    for past, length, slot in zip(pasts, lengths, slots, strict=True):
        starts = [past, *range((past // BLOCK + 1) * BLOCK, past + length, BLOCK)]
        first = slot * per_text
        for start, end in itertools.pairwise(starts):
            sequences.append((start % BLOCK, end - start, [first + start // BLOCK]))
        sequences.append((starts[-1], past + length - starts[-1], range(first, first + per_text)))
    past_lens, counts, indices = zip(*sequences, strict=True)
    return {
        "past_lens": np.array(past_lens),
        "subsequence_begins": _begins(counts),
        "block_indices": np.concatenate(indices),
        "block_indices_begins": _begins([len(own) for own in indices]),
    }


def _begins(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.cumsum([0, *counts])


def token_by_token(ids: np.ndarray, past: int, slot: int, context: int) -> dict[str, np.ndarray]:
    """Return the inputs of a graph for (T,) further tokens of the text in this slot, each as a sequence of its own over its blocks.

    Each token finds the keys and values of those before it in the cache, where the plugin writes them first. An empty sequence at the
    end keeps the plugin from splitting a lone sequence over its threads.
    """
    count, pasts = len(ids), np.arange(past, past + len(ids))
    return {
        "input_ids": ids,
        "position_ids": pasts,
        "past_lens": np.append(pasts, 0),
        "subsequence_begins": np.append(np.arange(count + 1), count),
        "block_indices": np.tile(slot * blocks(context) + np.arange(blocks(context)), count + 1),
        "block_indices_begins": np.arange(count + 2) * blocks(context),
        "max_context_len": np.array(past + count),
        ROWS: np.arange(count),
    }
