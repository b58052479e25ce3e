"""The generation loop: it drives any `Decoder`, chooses tokens, and hands each of them out as soon as it is chosen.

One loop serves the IR, torch and ONNX Runtime. A sequence that has ended leaves the batch, and the others go on. Greedy decoding and
seeded sampling choose the same tokens for a prompt alone and in a batch: each sequence draws from numbers of its own.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2opt.decoding.beam import beam_search
from gpt2opt.decoding.decoder import Decoder, Logits, Model, as_numpy
from gpt2opt.decoding.processors import Process, log_softmax, make_process
from gpt2opt.decoding.prompt_lookup import LONGEST_GUESS, Drafts, lookup_steps
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import TextStream, decoder_of, encode_prompt

Chosen = Iterator[list[tuple[int, int, Logits]]]
"""For each step, (sequence, token, logits (V,) or None) of all sequences that have not ended."""


@dataclass(frozen=True)
class Token:
    """A token that was chosen.

    sequence: index of its prompt. text: what can be shown of the text now; it may lag behind the tokens. logprob: its log-probability in
    the model's own distribution, in nats. top: ids and log-probabilities of the most probable tokens. Both are None unless `top_logprobs`
    asks for them. finish: why the sequence ends here, `end of text`, `stop string`, `length` or `stopped` (by the caller), else None.
    """

    sequence: int
    id: int
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] | None = None
    finish: str | None = None


Prompts = Sequence[Any] | np.ndarray
Stop = Callable[[Token], bool]


@dataclass(frozen=True)
class Generated:
    """What was generated from one prompt: the tokens, their text if a tokenizer was given, and why it ended. See `Token`."""

    ids: tuple[int, ...]
    text: str
    finish: str
    logprobs: tuple[float, ...] | None
    top: tuple[tuple[tuple[int, float], ...], ...] | None


def stream(
    model: Model, prompts: Prompts, settings: DecodingSettings, tokenizer: Any = None, *, truncate: bool = False, stop: Stop | None = None
) -> Iterator[Token]:
    """Continue prompts, and yield each token as soon as it is chosen; of several sequences in turn.

    The prompts are checked before this returns. Beam search knows its tokens only at its end, and yields them then. Closing the iterator
    ends the generation.

    Args:
        prompts: B texts, or B lists of token ids, of any lengths.
        settings: the method and its limits. A text ends at the tokenizer's end-of-text token, unless they name another.
        tokenizer: of transformers, or a `FastTokenizer`; needed for prompts that are texts, for stop strings, and for `Token.text`.
        truncate: shorten a text that is too long to its end, with a warning, instead of refusing it.
        stop: called with each token; if it returns True, the token's sequence ends.

    Raises:
        ValueError: a prompt is empty, no text, or too long; or tokenizer or engine can't do what the settings ask for.
    """
    if settings.stop_strings and tokenizer is None:
        raise ValueError("stop_strings without a tokenizer: text is needed to find them, pass the tokenizer")
    ids: Any = prompts
    if tokenizer is not None:
        room = model.context - settings.max_new_tokens
        ids = [prompt if isinstance(prompt, list) else encode_prompt(tokenizer, prompt, room, truncate) for prompt in prompts]
        if settings.eos_token_id is None:
            settings = dataclasses.replace(settings, eos_token_id=tokenizer.eos_token_id)
    return _tokens(model.decoder(ids, settings.max_new_tokens), ids, settings, tokenizer, stop)


def generate(model: Model, prompts: Prompts, settings: DecodingSettings, tokenizer: Any = None, **options: Any) -> list[Generated]:
    """Continue B prompts and return what was generated from each. Arguments and errors are those of `stream`."""
    return collect(len(prompts), stream(model, prompts, settings, tokenizer, **options))


def collect(count: int, tokens: Iterator[Token]) -> list[Generated]:
    """Gather the tokens of `count` sequences as `stream` yields them."""
    gathered: list[list[Token]] = [[] for _ in range(count)]
    for token in tokens:
        gathered[token.sequence].append(token)
    found = []
    for sequence in gathered:
        ids, text = tuple(token.id for token in sequence), "".join(token.text for token in sequence)
        logprobs = tuple(token.logprob for token in sequence if token.logprob is not None)
        top = tuple(token.top for token in sequence if token.top is not None)
        found.append(Generated(ids, text, sequence[-1].finish or "stopped", logprobs or None, top or None))
    return found


def _tokens(decoder: Decoder, prompts: Any, settings: DecodingSettings, tokenizer: Any, stop: Stop | None) -> Iterator[Token]:
    ended: set[int] = set()
    decode_text = decoder_of(tokenizer) if tokenizer is not None else lambda _: ""
    texts = [TextStream(decode_text, settings.stop_strings, prompt) for prompt in prompts]
    counts = [0] * len(prompts)
    for tokens in _chosen(decoder, prompts, settings, ended):
        for sequence, token, logits in tokens:
            if sequence in ended:
                continue
            counts[sequence] += 1
            finish = "end of text" if token == settings.eos_token_id else None
            text = texts[sequence]
            shown = text.finish() if finish else text.push(token)
            if text.stopped:
                finish = "stop string"
            if not finish and counts[sequence] >= settings.max_new_tokens:
                finish = "length"
                shown += text.finish()
            logprob, top = (None, None) if settings.top_logprobs is None else _log_probabilities(logits, token, settings.top_logprobs)
            made = Token(sequence, token, shown, logprob, top, finish)
            if stop and not finish and stop(made):
                made = dataclasses.replace(made, text=shown + text.finish(), finish="stopped")
            if made.finish:
                ended.add(sequence)
            yield made
        if len(ended) == len(prompts):
            return


def _chosen(decoder: Decoder, prompts: Any, settings: DecodingSettings, ended: set[int]) -> Chosen:
    """Choose tokens by the method that the settings ask for. ended: sequences that have ended, which the caller adds to."""
    process = make_process(settings)
    if settings.num_beams > 1:
        return beam_search(decoder, prompts, settings, process)
    longest_guess = settings.prompt_lookup_num_tokens
    if longest_guess is None and process is None and not settings.do_sample and settings.top_logprobs is None and len(prompts) == 1:
        longest_guess = LONGEST_GUESS if getattr(decoder, "drafts", Drafts()).table else 0
    if longest_guess:
        if len(prompts) != 1 or not hasattr(decoder, "verify"):
            raise ValueError(f"prompt_lookup_num_tokens with {len(prompts)} prompts; expected one, and an IR, which can check guesses")
        steps = lookup_steps(decoder, settings.max_new_tokens, longest_guess)
        return ([(0, token, None)] for step in steps for token in step)
    return _one_by_one(decoder, prompts, settings, process, ended)


def _one_by_one(decoder: Decoder, prompts: Any, settings: DecodingSettings, process: Process | None, ended: set[int]) -> Chosen:
    """Decode greedily, or sample, as long as the caller asks for more."""
    draws = _generators(prompts, settings.seed) if settings.do_sample else None
    texts = [list(prompt) for prompt in prompts]
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
                scores = process(texts[sequence], logits[row]) if process else logits[row]
                tokens.append(draw(scores, draws[sequence]) if draws else int(scores.argmax()))
        yield [(sequence, token, logits[row]) for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))]
        going_on = [row for row, sequence in enumerate(sequences) if sequence not in ended]
        if len(going_on) < len(sequences):
            decoder.keep(going_on)
            sequences, tokens = [sequences[row] for row in going_on], [tokens[row] for row in going_on]
        for sequence, token in zip(sequences, tokens, strict=True):
            texts[sequence].append(token)
        logits = decoder.decode(np.array(tokens)[:, None])


def _generators(prompts: Sequence[Sequence[int]], seed: int) -> list[np.random.Generator]:
    """Return a source of random numbers for each prompt. It depends on the seed alone, but for a prompt that comes more than once."""
    texts = [tuple(prompt) for prompt in prompts]
    return [np.random.default_rng([seed, texts[:place].count(text)]) for place, text in enumerate(texts)]


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
