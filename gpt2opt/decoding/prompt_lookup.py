"""Guess the next tokens of a greedy text, and check several of them in one step: the same tokens in fewer steps.

A guess is kept only if the model would have chosen it. The method is speculative decoding (Leviathan et al. 2023). The draft is the text so
far ("Prompt Lookup Decoding", A. Saxena 2023) and, where a model has one, a table of what the model wrote before: it continued many prompts
greedily, and each n-gram of these texts is kept with the token that most often followed. See `docs/decoding.md` for what else was tried.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from gpt2opt.decoding.decoder import Greedy
from gpt2opt.storage import add_file

LONGEST_GUESS = 7  # a step reads up to eight tokens in little more than the time of one
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, BATCH = 256, 32, 64, 32
"""What a table is made from. Five times as many prompts would save 4% of the time on held-out text."""
FILE, FORMAT, ENTRY, MOST_ENTRIES = "gpt2opt.drafts", "gpt2opt.drafts/1", np.dtype([("ngram", "<u8"), ("next", "<u4")]), 160_000
LONGEST_MATCH = 4
MASKS = [(1 << 16 * length) - 1 for length in range(LONGEST_MATCH + 1)]
"""An n-gram is one integer, 16 bits per token, the last one lowest. Ids from 65,535 on share bits, which spoils guesses and no more."""
KINDS = [(kind, MASKS[abs(kind)]) for length in range(LONGEST_MATCH, 0, -1) for kind in (length, -length)]
"""Kinds of guesses, the longest match first: the length of an n-gram of the text itself or, negative, of the table."""


class Drafts:
    """What one model's guesses are made from, and what was measured of them, lately above all.

    table: n-gram -> next token. right: kind -> share of right guesses. one, more: seconds of a step of one token, and of each further one.
    """

    def __init__(self, table: dict[int, int] | None = None):
        self.table = table or {}
        self.right = {kind: abs(kind) / (abs(kind) + 2) for kind, _ in KINDS}
        self.one, self.more = 1.0, 0.0
        self._timed: list[tuple[int, float]] = []  # (tokens, seconds) of the latest steps

    def learn(self, guesses: Sequence[tuple[int, int]], right: int, seconds: float) -> None:
        """Take what a step showed: how many of its guesses, (token, kind), were right, and how long it took."""
        for place, (_, kind) in enumerate(guesses[: right + 1]):
            self.right[kind] += ((place < right) - self.right[kind]) / 16
        self._timed.append((len(guesses) + 1, seconds))
        if len(self._timed) % 16:
            return
        # A straight line through the median of each length. One that came once weighs nothing: that step may have compiled code.
        times = {tokens: [time for read, time in self._timed if read == tokens] for tokens in {read for read, _ in self._timed}}
        weights, tokens, medians = np.array([(len(each) - 1, tokens, median_low(each)) for tokens, each in times.items()]).T
        if weights.any():
            read, mean = np.average([tokens, medians], 1, weights).tolist()
            # A further token takes from no time to that of a step of its own. Where all steps were alike, it is taken to lie in the middle.
            most, apart = mean / read, weights * (tokens - read)
            self.more = min(max(float((apart @ (medians - mean) + most / 2) / (apart @ (tokens - read) + 1)), 0.0), most)
            self.one = mean - (read - 1) * self.more
        del self._timed[:-48]


class DraftedText:
    """A text while it grows. own: its n-grams, each with the token that followed it last. last: the n-gram at its end."""

    def __init__(self, drafts: Drafts, tokens: Sequence[int]):
        self.drafts, self.own, self.last = drafts, dict[int, int](), 0
        for kind, share in Drafts().right.items():  # what other texts showed counts half: no kind of guess is given up for good
            drafts.right[kind] = (drafts.right[kind] + share) / 2
        self.read(tokens)

    def read(self, tokens: Sequence[int]) -> None:
        """Go on with further tokens."""
        for token in tokens:
            for mask in MASKS[1:]:
                self.own[self.last & mask] = token
            self.last = (self.last << 16 | token + 1 & 0xFFFF) & MASKS[-1]

    def guess(self, most: int) -> list[tuple[int, int]]:
        """Return up to `most` guesses, (token, kind), by the longest known n-grams: as many as promise the most tokens per second."""
        one, more = self.drafts.one, self.drafts.more
        guesses: list[tuple[int, int]] = []
        ngram, probability, expected = self.last, 1.0, 1.0
        best, count = expected / one, 0
        for number in range(1, most + 1):
            seconds = one + number * more
            if (expected + probability * (most + 1 - number)) / seconds <= best:
                break  # not even if all further guesses were right
            for kind, mask in KINDS:
                if (token := (self.own if kind > 0 else self.drafts.table).get(ngram & mask)) is not None:
                    break
            else:
                break
            guesses.append((token, kind))
            probability *= self.drafts.right[kind]
            expected += probability
            if expected / seconds > best:
                best, count = expected / seconds, number
            ngram = (ngram << 16 | token + 1 & 0xFFFF) & MASKS[-1]
        return guesses[:count]


def lookup_steps(decoder: Any, max_new_tokens: int, longest_guess: int = LONGEST_GUESS) -> Iterator[list[int]]:
    """Generate greedily from one prompt; yield the tokens that each step gives, `max_new_tokens` in all.

    decoder: of one sequence; see `IrDecoder.verify`. If it has `drafts`, these are its model's.
    """
    drafts = getattr(decoder, "drafts", None) or Drafts()
    text = DraftedText(drafts, [int(token) for token in decoder.prompts[0]])
    left, chosen = max_new_tokens, [int(decoder.prefill()[0].argmax())]
    while True:
        text.read(chosen)
        yield chosen
        left -= len(chosen)
        if not left:
            return
        guesses = text.guess(min(longest_guess, left - 1))
        begun = time.perf_counter()
        chosen = decoder.verify(chosen[-1], [token for token, _ in guesses])
        drafts.learn(guesses, len(chosen) - 1, time.perf_counter() - begun)


def write_drafts(directory: Path | str, model: Any, rows: Sequence[Sequence[int]]) -> int:
    """Make the table of a model and write it beside its IR, where `load_ir` finds it, at most 2 MB; return the number of entries.

    model: the IR, loaded. rows: token ids of such text as it is for. It continues `PROMPTS` of those with at least `LONGEST_MATCH` tokens.
    """
    usable = [[int(token) for token in row[:PROMPT_TOKENS]] for row in rows if len(row) >= LONGEST_MATCH]
    counts: Counter[tuple[int, int]] = Counter()
    for first in range(0, PROMPTS if usable else 0, BATCH):
        prompts = [usable[place * len(usable) // PROMPTS] for place in range(first, first + BATCH)]
        for prompt, new in zip(prompts, Greedy(model.decoder(prompts, NEW_TOKENS)).generate(NEW_TOKENS), strict=True):
            text = DraftedText(Drafts(), prompt)
            for token in new:
                counts.update((text.last & mask, token) for mask in MASKS[1:])
                text.read([token])
    table: dict[int, int] = {}
    for (ngram, token), _ in counts.most_common():
        table.setdefault(ngram, token)
    entries = np.array(list(table.items())[:MOST_ENTRIES], ENTRY).tobytes()
    add_file(Path(directory), FILE, _first_line(Path(directory), model.vocab_size, entries) + entries)
    return len(entries) // ENTRY.itemsize


def load_drafts(directory: Path | str, vocab_size: int) -> Drafts:
    """Return the drafts of the model in a directory: without a table where there is none, or, with a warning, where it can't be used."""
    path = Path(directory, FILE)
    if path.exists():
        first, end, entries = path.read_bytes().partition(b"\n")
        if first + end == _first_line(path.parent, vocab_size, entries):
            return Drafts(dict(np.frombuffer(entries, ENTRY).tolist()))
        logging.getLogger(__name__).warning("%s is damaged, or of another tokenizer, and not used: delete it, or write it again", path)
    return Drafts()


def _first_line(directory: Path, vocab_size: int, entries: bytes) -> bytes:
    """Return the line before the entries, which says what they are of and reveals a change."""
    tokenizer = b"".join(path.read_bytes() for name in ("tokenizer.json", "vocab.json") if (path := directory / name).exists())
    return " ".join((FORMAT, str(vocab_size), *(hashlib.sha256(part).hexdigest() for part in (tokenizer, entries)))).encode() + b"\n"
