"""What guessing several tokens at once gains: greedy decoding without guesses and with guesses of several sources, in turns.

The sources are the text so far, and beside it a table of n-grams: of the text that the model was fine-tuned on; of the tokens that the
model would have chosen there; or of what the model wrote by itself, which is the table that stage 4 keeps beside the IR.
"""

import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.contract import Experiment, now, say
from gpt2opt import environment
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.prompt_lookup import FILE, MASKS, PROMPT_TOKENS, DraftedText, Drafts, lookup_steps, write_drafts
from gpt2opt.decoding.text import encode, token_rows
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.measure.stats import PERCENT, paired_ratio
from gpt2opt.measure.turns import Contestants, in_child
from gpt2opt.report.table import Table, milliseconds, table
from gpt2opt.run.record import QUANTIZE, read_record
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.settings import check_whole
from gpt2opt.sources.documentation import unique_package_documents
from gpt2opt.sources.models import load_tokenizer
from gpt2opt.sources.texts import find_texts, take_bytes
from gpt2opt.storage import MARKER

ROW_TOKENS, PROMPT, NEW_TOKENS = 256, 128, 128
OTHER = ("asyncio", "email", "unittest", "logging", "importlib", "http", "json", "xml", "multiprocessing", "ctypes")
"""Packages of Python's own library. The bundled model was trained on other documentation, and fine-tuned on none of it."""
DOMAIN, ELSEWHERE, RANDOM = "held-out text of the domain", "documentation of Python's library", "random ids"
PLAIN, ITSELF = "no guesses", "the text itself"
FROM_TEXT, FROM_CHOICES, FROM_MODEL = "and the fine-tuning text", "and the model's choices in it", "and the model's own texts"
WAYS = (PLAIN, ITSELF, FROM_TEXT, FROM_CHOICES, FROM_MODEL)
"""Where guesses come from; the last three add a table to the text itself."""


@dataclass(frozen=True)
class Written:
    """What was written in one way behind prompts of one kind.

    seconds: per new token after the first, of each round. steps: after the first token, of each round. different: how many of all new
    tokens are not those of decoding without guesses.
    """

    way: str
    kind: str
    seconds: tuple[float, ...]
    steps: tuple[int, ...]
    different: int


@dataclass(frozen=True)
class DraftGains:
    """All ways of writing; the first is the one without guesses. table_*: of the table that stage 4 keeps."""

    created: str
    environment: dict[str, Any]
    model: str
    text: str
    table_entries: int
    table_bytes: int
    table_seconds: float
    written: tuple[Written, ...]
    schema: str = "gpt2opt.draft-gains/1"


def make_table(folder: Path, rows: Sequence[list[int]]) -> tuple[int, float]:
    """Write the table of an IR; return its entries and the seconds that took, the model being loaded."""
    model = load_ir(folder)
    begun = time.perf_counter()
    return write_drafts(folder, model, rows), time.perf_counter() - begun


def count_ngrams(rows: Iterable[Sequence[int]], following: Iterable[Sequence[int]]) -> dict[int, int]:
    """Return n-gram -> the token that most often follows it; each row comes with the tokens that follow each of its own."""
    counts: Counter[tuple[int, int]] = Counter()
    for row, after in zip(rows, following, strict=True):
        text = DraftedText(Drafts(), [])
        for token, chosen in zip(row, after, strict=False):
            text.read([token])
            counts.update({(text.last & mask, chosen) for mask in MASKS[1:]})  # a short text has fewer
    found: dict[int, int] = {}
    for (ngram, token), _ in counts.most_common():
        found.setdefault(ngram, token)
    return found


class Writer:
    """A contestant: the IR in a folder, which guesses in one of `WAYS`. rows: of the fine-tuning text."""

    def __init__(self, folder: Path, way: str, rows: Sequence[list[int]]):
        self.model, self.way = load_ir(folder), way
        if way in (PLAIN, ITSELF):
            self.model.drafts = Drafts()
        elif way == FROM_TEXT:
            self.model.drafts = Drafts(count_ngrams(rows, [row[1:] for row in rows]))
        elif way == FROM_CHOICES:
            self.model.drafts = Drafts(count_ngrams(rows, [self.model.logits(np.array([row]))[0].argmax(-1).tolist() for row in rows]))

    def write(self, prompt: list[int]) -> tuple[float, int, list[int]]:
        """Return the seconds per new token after the first, the steps for these, and the tokens."""
        decoder = self.model.decoder([prompt], NEW_TOKENS)
        steps = self._plainly(Greedy(decoder)) if self.way == PLAIN else lookup_steps(decoder, NEW_TOKENS)
        tokens, count = next(steps), 0
        begun = time.perf_counter()
        for step in steps:
            tokens, count = tokens + step, count + 1
        return (time.perf_counter() - begun) / (NEW_TOKENS - 1), count, tokens

    @staticmethod
    def _plainly(greedy: Greedy):
        greedy.start()
        for _ in range(NEW_TOKENS - 1):
            yield [int(greedy.next_ids[0, 0])]
            greedy.step()
        yield [int(greedy.next_ids[0, 0])]


def make_prompts(tokenizer: Any, domain: Sequence[str], elsewhere: Sequence[str], count: int) -> dict[str, list[list[int]]]:
    """Return, for each kind of prompt, `count` of them, evenly spread over the text."""
    prompts = {}
    for kind, documents in ((DOMAIN, domain), (ELSEWHERE, elsewhere)):
        ids = [token for document in encode(tokenizer, list(documents)).input_ids for token in document]
        starts = np.linspace(0, len(ids) - PROMPT, count).astype(int)
        prompts[kind] = [ids[start : start + PROMPT] for start in starts]
    return prompts | {RANDOM: np.random.default_rng(0).integers(len(tokenizer), size=(count, PROMPT)).tolist()}


def measure_drafts(run: str = "artifacts", text: str = "auto", rounds: int = 24) -> DraftGains:
    """Let the INT8 model of a run continue prompts in all `WAYS`, in turns, with new prompts in each round.

    Raises:
        ValueError: rounds < 2, there is no such run, or it was fine-tuned on another text.
    """
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    record, texts = read_record(Path(run, "run.json")), find_texts(text)
    if record.sources["text"]["revision"] != texts.revision:
        raise ValueError(f"the model in {run} was fine-tuned on {record.sources['text']['name']}, not on {texts}; name that text")
    tokenizer = load_tokenizer(Path(run, QUANTIZE))
    tuned_on = [document.text for document in take_bytes(texts.fine_tune, record.settings.fine_tune_bytes)]
    other = [document.text for document in unique_package_documents(OTHER, set())]
    prompts = make_prompts(tokenizer, [document.text for document in texts.score], other, rounds + 1)
    rows = token_rows(tuned_on, tokenizer, ROW_TOKENS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(Path(run, QUANTIZE), Path(scratch, "int8"), ignore=shutil.ignore_patterns(FILE, MARKER))
        say("the table of the model")
        entries, seconds = in_fresh_process(make_table, folder, token_rows(tuned_on, tokenizer, PROMPT_TOKENS)).value
        size = Path(folder, FILE).stat().st_size
        with Contestants({way: in_child(Writer, folder, way, rows) for way in WAYS}) as contestants:
            turns = contestants.take_turns(
                "write",
                list(prompts),
                rounds=rounds,
                seconds=lambda found: found[0],
                arguments=lambda kind, number: (prompts[kind][number],),
            )
            *_, outcome = tqdm(turns, "writing", rounds + 1)
    written = []
    for kind in prompts:
        plain = [tokens for _, _, tokens in outcome.samples[PLAIN][kind]]
        for way, by_kind in outcome.samples.items():
            seconds_each, steps, texts_each = zip(*by_kind[kind], strict=True)
            different = np.sum(np.array(texts_each) != np.array(plain))
            written.append(Written(way, kind, seconds_each, steps, int(different)))
    return DraftGains(now(), environment.describe(), record.sources["model"]["name"], str(texts), entries, size, seconds, tuple(written))


def drafts_table(result: DraftGains) -> Table:
    """Show the time per token of each way on each kind of prompt, and how many tokens a step gives."""
    plain = {each.kind: each.seconds for each in result.written if each.way == PLAIN}
    rows = []
    for each in result.written:
        ratio = "" if each.way == PLAIN else f"{paired_ratio(each.seconds, plain[each.kind]):.3f}"
        tokens = (NEW_TOKENS - 1) * len(each.steps) / sum(each.steps)
        rows.append((each.kind, each.way, milliseconds(statistics.median(each.seconds)), ratio, f"{tokens:.2f}", str(each.different)))
    return table(("prompts", "guesses from", "TPOT, ms", f"÷ no guesses [{PERCENT}]", "tokens per step", "other tokens"), rows)


def drafts_caption(result: DraftGains) -> str:
    machine, rounds = environment.machine_label(result.environment), len(result.written[0].seconds)
    return (
        f"The INT8 model of a run: {result.model}, pruned and fine-tuned on {result.text}. {machine}; each way in its own process, "
        f"{rounds} rounds in turns, with new prompts of {PROMPT} tokens and {NEW_TOKENS} new tokens in each. TPOT is the time after the "
        f"first token ÷ the tokens after it. The table of the model's own texts has {result.table_entries:,} entries "
        f"({result.table_bytes / 1e3:.0f} kB) and took {result.table_seconds:.1f} s. In the last column: how many of all new tokens are "
        "not those of decoding without guesses."
    )


EXPERIMENT = Experiment(
    DraftGains,
    measure_drafts,
    tables=lambda result: {"What guesses gain": drafts_table(result)},
    charts=lambda _: {},
    caption=drafts_caption,
)
