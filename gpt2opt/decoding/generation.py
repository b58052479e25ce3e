"""The generation loop: it drives any `Decoder`, chooses tokens, and hands each of them out as soon as it is chosen.

One loop serves the IR, torch and ONNX Runtime. A sequence that has ended leaves the batch, and the others go on. Greedy decoding and
seeded sampling choose the same tokens for a prompt alone and in a batch: each sequence draws from numbers of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2opt.decoding.beam import beam_search
from gpt2opt.decoding.contrastive import contrastive_search
from gpt2opt.decoding.decoder import Decoder, Logits, as_numpy
from gpt2opt.decoding.processors import Process, log_softmax, make_process
from gpt2opt.decoding.prompt_lookup import PromptLookup
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import DecodeText, TextStream


@dataclass(frozen=True)
class Token:
    """A token that was chosen.

    sequence: index of its prompt. id: the token. text: what can be shown of the text now; it may lag behind the tokens. logprob: its
    log-probability in the model's own distribution, in nats, before any setting changes it. top: ids and log-probabilities of the most
    probable tokens. Both are None unless `top_logprobs` asks for them. finish: why the sequence ends with this token, `end of text`,
    `stop string`, `length` or `stopped` (by the caller); None: it goes on.
    """

    sequence: int
    id: int
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Generated:
    """What was generated from one prompt: the tokens, their text where a tokenizer was given, and why it ended. See `Token`."""

    ids: tuple[int, ...]
    text: str
    finish: str
    logprobs: tuple[float, ...] | None
    top: tuple[tuple[tuple[int, float], ...], ...] | None


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: DecodingSettings,
    *,
    decode_text: DecodeText | None = None,
    process: Process | None = None,
    stop: Callable[[Token], bool] | None = None,
) -> Iterator[Token]:
    """Generate, and yield each token as soon as it is chosen; of several sequences in turn.

    Beam search knows its tokens only at its end, and yields them then. Closing the iterator ends the generation.

    Args:
        decoder: a fresh decoder of `prompts`.
        prompts: B lists of token ids, of any lengths.
        settings: the method and its limits.
        decode_text: from tokens to text; needed for stop strings, and for `Token.text`.
        process: changes the scores before a token is chosen; None: the processors that the settings ask for.
        stop: called with each token; where it returns True, the token's sequence ends.

    Raises:
        ValueError: there are stop strings and no `decode_text`, or the method wants what the decoder does not give.
    """
    if settings.stop_strings and not decode_text:
        raise ValueError("stop_strings without a tokenizer: text is needed to find them, pass decode_text")
    if process is None:
        process = make_process(settings)
    chosen: Iterator[list[tuple[int, int, Logits]]]
    ended: set[int] = set()
    if settings.num_beams > 1:
        chosen = beam_search(decoder, prompts, settings, process)
    elif settings.penalty_alpha:
        chosen = contrastive_search(decoder, prompts, settings, process, ended)
    elif settings.prompt_lookup_num_tokens:
        chosen = _looked_up(decoder, len(prompts), settings, ended)
    else:
        chosen = _one_by_one(decoder, prompts, settings, process, ended)
    texts = [TextStream(decode_text, settings.stop_strings, prompt) if decode_text else None for prompt in prompts]
    counts = [0] * len(prompts)
    for tokens in chosen:
        for sequence, token, logits in tokens:
            if sequence in ended:
                continue
            counts[sequence] += 1
            finish = "end of text" if token == settings.eos_token_id else None
            text, shown = texts[sequence], ""
            if text:
                shown = text.finish() if finish else text.push(token)
                if text.stopped:
                    finish = "stop string"
            if not finish and counts[sequence] >= settings.max_new_tokens:
                finish = "length"
                shown += text.finish() if text else ""
            logprob, top = _log_probabilities(logits, token, settings.top_logprobs) if settings.top_logprobs is not None else (None, None)
            made = Token(sequence, token, shown, logprob, top, finish)
            if stop and stop(made) and not finish:
                made = Token(sequence, token, shown + (text.finish() if text else ""), logprob, top, "stopped")
            if made.finish:
                ended.add(sequence)
            yield made


def generate(decoder: Decoder, prompts: Sequence[Sequence[int]], settings: DecodingSettings, **options: Any) -> list[Generated]:
    """Generate from B prompts and return what came of each. Arguments and errors are those of `stream`."""
    return collect(len(prompts), stream(decoder, prompts, settings, **options))


def collect(count: int, tokens: Iterator[Token]) -> list[Generated]:
    """Gather the tokens of `count` sequences as `stream` yields them."""
    gathered: list[list[Token]] = [[] for _ in range(count)]
    for token in tokens:
        gathered[token.sequence].append(token)
    return [
        Generated(
            tuple(token.id for token in sequence),
            "".join(token.text for token in sequence),
            sequence[-1].finish or "stopped",
            tuple(token.logprob for token in sequence if token.logprob is not None) or None,
            tuple(token.top for token in sequence if token.top is not None) or None,
        )
        for sequence in gathered
    ]


def _one_by_one(
    decoder: Decoder, prompts: Sequence[Sequence[int]], settings: DecodingSettings, process: Process | None, ended: set[int]
) -> Iterator[list[tuple[int, int, Logits]]]:
    """Greedy decoding and sampling: yield, for each step, (sequence, token, logits (V,)) of all sequences that have not ended."""
    draws = _generators(prompts, settings.seed) if settings.do_sample else None
    texts = [list(prompt) for prompt in prompts] if process else None
    sequences = list(range(len(prompts)))
    logits = decoder.prefill()
    while True:
        if process or draws or settings.top_logprobs is not None:
            logits = as_numpy(logits)
        if process is None and draws is None:
            tokens = logits.argmax(-1).tolist()
        else:
            tokens = []
            for row, sequence in enumerate(sequences):
                scores = process(texts[sequence], logits[row]) if process and texts else logits[row]
                tokens.append(draw(scores, draws[sequence]) if draws else int(scores.argmax()))
        yield [(sequence, token, logits[row]) for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))]
        going_on = [row for row, sequence in enumerate(sequences) if sequence not in ended]
        if not going_on:
            return
        if len(going_on) < len(sequences):
            decoder.keep(going_on)
            sequences, tokens = [sequences[row] for row in going_on], [tokens[row] for row in going_on]
        if texts:
            for sequence, token in zip(sequences, tokens, strict=True):
                texts[sequence].append(token)
        logits = decoder.decode(np.array(tokens)[:, None])


def _looked_up(decoder: Any, prompts: int, settings: DecodingSettings, ended: set[int]) -> Iterator[list[tuple[int, int, Logits]]]:
    """Prompt lookup: yield (sequence, token, None), one token after the other."""
    if prompts != 1 or not hasattr(decoder, "verify"):
        raise ValueError(f"prompt_lookup_num_tokens with {prompts} prompts, expected one, and an engine that checks guesses: the IR")
    for step in PromptLookup(decoder, settings.prompt_lookup_num_tokens or 0).steps(settings.max_new_tokens):
        for token in step:
            yield [(0, token, None)]
            if ended:
                return


def _generators(prompts: Sequence[Sequence[int]], seed: int) -> list[np.random.Generator]:
    """Return a source of random numbers for each prompt. It depends on the seed alone, but for a prompt that comes more than once."""
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in map(tuple, prompts):
        generators.append(np.random.default_rng([seed, seen[prompt]]))
        seen[prompt] += 1
    return generators


def draw(scores: np.ndarray, source: np.random.Generator) -> int:
    """Draw a token from the softmax of scores (V,), by the inverse of the distribution function: one random number for each token."""
    weights = np.exp(np.asarray(scores, np.float64) - scores.max())
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, source.random() * sums[-1], side="right")), len(sums) - 1)


def _log_probabilities(logits: np.ndarray, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    found = log_softmax(as_numpy(logits))
    best = np.argpartition(found, -count)[-count:] if 0 < count < len(found) else np.arange(len(found) if count else 0)
    best = best[np.argsort(-found[best], kind="stable")]
    return float(found[token]), tuple((int(each), float(found[each])) for each in best)
