"""The inputs of paged attention: which tokens of a call follow each other, and where their keys and values lie in the KV cache.

The tokens of all sequences of a call lie end to end. `docs/runtime.md` works an example out, block by block.
"""

import numpy as np

from gpt2opt.runtime.kv_cache import BLOCK, blocks
from gpt2opt.runtime.paged_attention import ROWS


def whole_texts(past: int, batch: int, length: int, context: int) -> dict[str, np.ndarray]:
    """Describe B texts of T further tokens, each as one sequence.

    Args:
        past: tokens of each text that are in the cache already.
        batch: B, the number of texts.
        length: T, how many tokens of each are read now.
        context: tokens that the cache holds of each text.

    Returns:
        past_lens (B,): tokens in the cache before those of the sequence. subsequence_begins (B + 1,): where each sequence begins among
        the tokens of the call, and where the last one ends. block_indices: the blocks of the cache of all sequences, end to end.
        block_indices_begins (B + 1,): where those of each sequence begin, and where the last one's end.
    """
    return _sequences([past], batch, length, context)


def texts_cut_at_blocks(past: int, batch: int, length: int, context: int) -> dict[str, np.ndarray]:
    """Describe the same texts so that attention computes almost nothing for tokens whose logits are not wanted.

    Keys and values of every token have to be stored, but only the last token's attention has to be computed in full. Each block of the
    cache before the last one becomes a sequence of its own: its tokens are stored in their place, and attend to their own block only.
    The last sequence of each text attends to everything before it.
    """
    return _sequences([past, *range((past // BLOCK + 1) * BLOCK, past + length, BLOCK)], batch, length, context)


def _sequences(starts: list[int], batch: int, length: int, context: int) -> dict[str, np.ndarray]:
    """Describe B texts of T further tokens, each as sequences that start at these positions of the text.

    The last sequence of a text gets all of the text's blocks, each earlier one only the block that it lies in.
    """
    starts, per_text, text = np.array(starts), blocks(context), np.arange(batch)[:, None]
    own = np.concatenate([starts[:-1] // BLOCK, np.arange(per_text)])
    return {
        "past_lens": np.tile(np.append(starts[:-1] % BLOCK, starts[-1]), batch),
        "subsequence_begins": np.append(text * length + starts - starts[0], batch * length),
        "block_indices": (text * per_text + own).reshape(-1),
        "block_indices_begins": np.append(text * len(own) + np.arange(len(starts)), batch * len(own)),
    }


def token_by_token(ids: np.ndarray, past: int, context: int) -> dict[str, np.ndarray]:
    """Return the inputs of a graph for (T,) further tokens of one text, each as a sequence of its own over the text's blocks.

    Each token finds the keys and values of those before it in the cache, where the plugin writes them first. An empty sequence at the
    end keeps the plugin from splitting a lone sequence over its threads.
    """
    count, pasts = len(ids), np.arange(past, past + len(ids))
    return {
        "input_ids": ids,
        "position_ids": pasts,
        "past_lens": np.append(pasts, 0),
        "subsequence_begins": np.append(np.arange(count + 1), count),
        "block_indices": np.tile(np.arange(blocks(context)), count + 1),
        "block_indices_begins": np.arange(count + 2) * blocks(context),
        "max_context_len": np.array(past + count),
        ROWS: np.arange(count),
    }
