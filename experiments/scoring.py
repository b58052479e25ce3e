"""How fast a text is scored on a CPU: ours beside lm-evaluation-harness, each in its own process, in turns, with the same threads.

Both read each document by itself, from an end-of-text on, in windows of the model's context: what the harness does with WikiText-2.
"""

import datetime
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.contract import Experiment
from experiments.race.run import check_size, prepare_models
from gpt2opt import environment
from gpt2opt.decoding.text import encode, end_of_text
from gpt2opt.measure.child import Child, thread_settings
from gpt2opt.measure.memory import read_peak_rss
from gpt2opt.measure.quality import perplexity, prepare_text
from gpt2opt.measure.stats import PERCENT, paired_ratio
from gpt2opt.report.tables import MISSING, Table, megabytes, table
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import load_model, load_tokenizer
from gpt2opt.sources.texts import find_texts
from gpt2opt.torch_model import logits_of

SCHEMA = "gpt2opt.scoring/1"
WINDOWS = 8
"""Each turn scores the tokens of so many windows, in whole documents."""


@dataclass(frozen=True)
class Scored:
    """One turn: what scoring the documents took, tokenizing included, and the sum it gave."""

    seconds: float
    nats: float
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class Scorer:
    """One way of scoring, and its turns; the first contestant is ours."""

    name: str
    version: str | None
    turns: tuple[Scored, ...]


@dataclass(frozen=True)
class ScoringComparison:
    """All turns of all contestants. documents, tokens: scored by each, in each turn."""

    created: str
    environment: dict[str, Any]
    model: str
    text: str
    documents: int
    tokens: int
    scorers: tuple[Scorer, ...]
    schema: str = SCHEMA


class Ours:
    package = "gpt2opt"

    def __init__(self, folder: Path, threads: int, batch_size: int):
        self.tokenizer, model = _loaded(folder, threads)
        self.logits, self.batch_size = logits_of(model), batch_size

    def score(self, documents: list[str]) -> Scored:
        start = time.perf_counter()
        texts = [prepare_text(self.tokenizer, [self.tokenizer.eos_token + document], "a document") for document in documents]
        nats = sum(perplexity(self.logits, text, batch_size=self.batch_size).nll_nats for text in texts)
        return Scored(time.perf_counter() - start, nats, read_peak_rss())


class Harness:
    package = "lm-eval"

    def __init__(self, folder: Path, threads: int, batch_size: int):
        from lm_eval.models.huggingface import HFLM

        tokenizer, model = _loaded(folder, threads)
        model.config._name_or_path = "local"
        self.model = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=batch_size)

    def score(self, documents: list[str]) -> Scored:
        from lm_eval.api.instance import Instance

        start = time.perf_counter()
        requests = [Instance("loglikelihood_rolling", {}, (document,), index) for index, document in enumerate(documents)]
        nats = -sum(self.model.loglikelihood_rolling(requests, disable_tqdm=True))
        return Scored(time.perf_counter() - start, nats, read_peak_rss())


CONTESTANTS = {
    "gpt2opt": (Ours, 1),
    "lm-evaluation-harness, a window at a time": (Harness, 1),
    "lm-evaluation-harness, 4 windows at a time": (Harness, 4),
}


def _loaded(folder: Path, threads: int):
    import torch

    torch.set_num_threads(threads)
    return load_model(folder, "float32")


def compare_scoring(size: str = "gpt2", text: str = "auto", rounds: int = 5) -> ScoringComparison:
    """Let all contestants score one text with one model, in a new random order in each round; progress goes to stderr.

    Args:
        size: as in `run_race`: a size, the bundled model stretched to it where there are no real weights, or a directory with a GPT-2.
        text: see `find_texts`; the first documents of its scored part.
        rounds: timed turns of each, after a turn to warm up; at least 2.

    Raises:
        ValueError: rounds < 2, an unknown size, or no such text.
        RuntimeError: a contestant fails.
    """
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    check_size(size)
    texts, threads = find_texts(text), environment.threads()
    with tempfile.TemporaryDirectory() as scratch:
        _say(f"model: {size}")
        models = prepare_models(size, Path(scratch))
        folder = Path(scratch, "models", "full")
        tokenizer = load_tokenizer(folder)
        end_of_text(tokenizer)  # each contestant puts it before a document
        documents, tokens = _first(tokenizer, [document.text for document in texts.score], WINDOWS * models.context)
        workers = {
            name: Child(of, folder, threads, batch, environment=thread_settings(threads)) for name, (of, batch) in CONTESTANTS.items()
        }
        try:
            turns = _take_turns(workers, documents, rounds)
        finally:
            for worker in workers.values():
                worker.close()
    scorers = tuple(Scorer(name, environment.installed(CONTESTANTS[name][0].package), tuple(taken)) for name, taken in turns.items())
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    label = f"{texts.name} {texts.revision}"
    return ScoringComparison(created, environment.describe(), f"{size}, weights: {models.weights}", label, len(documents), tokens, scorers)


def _first(tokenizer, documents: Sequence[str], num_tokens: int) -> tuple[list[str], int]:
    """Return the first documents, until they give so many tokens or there are no more; and how many they give."""
    kept, tokens = [], 0
    for document in documents:
        if tokens >= num_tokens:
            break
        kept.append(document)
        tokens += len(encode(tokenizer, document).input_ids)
    return kept, tokens


def _take_turns(workers: Mapping[str, Child], documents: list[str], rounds: int) -> dict[str, list[Scored]]:
    turns: dict[str, list[Scored]] = {name: [] for name in workers}
    draw = random.Random(0)
    for number in range(rounds + 1):
        for name in draw.sample(list(workers), len(workers)):
            taken = workers[name].call("score", documents)
            if number:
                turns[name].append(taken)
        _say(f"round {number} of {rounds}" if number else "warm-up done")
    return turns


def scoring_table(comparison: ScoringComparison) -> Table:
    """Show what each contestant takes, how much slower it is than ours, run by run, and that all give the same number."""
    ours, rows = comparison.scorers[0], []
    for scorer in comparison.scorers:
        seconds = [turn.seconds for turn in scorer.turns]
        ratio = paired_ratio(seconds, [turn.seconds for turn in ours.turns])
        peaks = [turn.peak_rss_bytes for turn in scorer.turns if turn.peak_rss_bytes is not None]
        rows.append(
            (
                scorer.name, scorer.version or "", f"{comparison.tokens / statistics.median(seconds):.0f}",
                str(ratio),
                f"{scorer.turns[0].nats / comparison.tokens:.5f}", megabytes(max(peaks)) if peaks else MISSING,
            )
        )  # fmt: skip
    return table(("scored by", "version", "tokens/s", f"time ÷ ours [{PERCENT}]", "nats per token", "peak RSS, MB"), rows)


def scoring_caption(comparison: ScoringComparison) -> str:
    return (
        f"{comparison.model}; {comparison.text}, documents of the scored part: {comparison.documents}, tokens: {comparison.tokens:,}. "
        f"{environment.machine_label(comparison.environment)}, {len(comparison.scorers[0].turns)} rounds in turns."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


EXPERIMENT = Experiment(
    ScoringComparison, compare_scoring, tables=lambda found: {"Speed of scoring": scoring_table(found)}, charts=lambda _: {},
    caption=scoring_caption,
)  # fmt: skip
