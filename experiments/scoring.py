"""How fast a text is scored on a CPU: ours beside lm-evaluation-harness, each in its own process, in turns, with the same threads.

Both read each document by itself, from an end-of-text on, in windows of the model's context: what the harness does with WikiText-2.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.contract import Experiment, now, say
from experiments.race.run import check_size, prepare_models
from gpt2opt import environment
from gpt2opt.decoding.text import encode, end_of_text
from gpt2opt.measure.memory import read_peak_rss
from gpt2opt.measure.quality import perplexity, prepare_text
from gpt2opt.measure.stats import PERCENT, paired_ratio
from gpt2opt.measure.turns import Contestants, again, in_child
from gpt2opt.report.table import MISSING, Table, megabytes, table
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import load_model, load_tokenizer
from gpt2opt.sources.texts import find_texts, take_bytes
from gpt2opt.torch_model import logits_of

SCORED_BYTES = 32_000
"""What each turn scores: about eight windows of GPT-2."""


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
    schema: str = "gpt2opt.scoring/1"


class Ours:
    """Our own way; what runs in a process of its own."""

    package = "gpt2opt"

    def __init__(self, folder: Path, batch_size: int):
        import torch

        torch.set_num_threads(environment.threads())
        self.tokenizer, self.model = load_model(folder, "float32")
        self.logits, self.batch_size = logits_of(self.model), batch_size

    def score(self, documents: tuple[str, ...]) -> Scored:
        """Score the documents, tokenizing included."""
        start = time.perf_counter()
        nats = self.nats(documents)
        return Scored(time.perf_counter() - start, nats, read_peak_rss())

    def nats(self, documents: tuple[str, ...]) -> float:
        """Return the summed NLL."""
        texts = [prepare_text(self.tokenizer, [self.tokenizer.eos_token + document], "a document") for document in documents]
        return sum(perplexity(self.logits, text, batch_size=self.batch_size).nll_nats for text in texts)


class Harness(Ours):
    """That of lm-evaluation-harness."""

    package = "lm-eval"

    def __init__(self, folder: Path, batch_size: int):
        super().__init__(folder, batch_size)
        from lm_eval.models.huggingface import HFLM

        self.model.config._name_or_path = "local"
        self.harness = HFLM(pretrained=self.model, tokenizer=self.tokenizer, device="cpu", batch_size=self.batch_size)

    def nats(self, documents: tuple[str, ...]) -> float:
        from lm_eval.api.instance import Instance

        requests = [Instance("loglikelihood_rolling", {}, (document,), index) for index, document in enumerate(documents)]
        return -sum(self.harness.loglikelihood_rolling(requests, disable_tqdm=True))


CONTESTANTS: dict[str, tuple[type[Ours], int]] = {
    "gpt2opt": (Ours, 1),
    "lm-evaluation-harness, a window at a time": (Harness, 1),
    "lm-evaluation-harness, 4 windows at a time": (Harness, 4),
}


def compare_scoring(size: str = "gpt2", text: str = "auto", rounds: int = 5) -> ScoringComparison:
    """Let all contestants score the first held-out documents of a text with a model of a size as in `run_race`, in turns.

    Raises:
        ValueError: rounds < 2, an unknown size, or no such text.
    """
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    check_size(size)
    texts = find_texts(text)
    with tempfile.TemporaryDirectory() as scratch:
        say(f"model: {size}")
        models = prepare_models(size, Path(scratch))
        folder = Path(scratch, "models", "full")
        tokenizer = load_tokenizer(folder)
        end_of_text(tokenizer)  # each contestant puts it before a document
        documents = tuple(document.text for document in take_bytes(texts.score, SCORED_BYTES))
        tokens = sum(len(encode(tokenizer, document).input_ids) for document in documents)
        with Contestants({name: in_child(of, folder, batch_size) for name, (of, batch_size) in CONTESTANTS.items()}) as contestants:
            turns = contestants.take_turns("score", [documents], rounds=rounds, seconds=attrgetter("seconds"))
            *_, outcome = tqdm(turns, "scoring in turns", rounds + 1)
    packages = {again("gpt2opt"): Ours.package} | {name: of.package for name, (of, _) in CONTESTANTS.items()}
    scorers = tuple(Scorer(name, environment.installed(packages[name]), tuple(taken[documents])) for name, taken in outcome.samples.items())
    label = f"{texts.name} {texts.revision}"
    return ScoringComparison(now(), environment.describe(), f"{size}, weights: {models.weights}", label, len(documents), tokens, scorers)


def scoring_table(comparison: ScoringComparison) -> Table:
    """Show what each contestant takes, how much slower it is than ours, run by run, and what it gives."""

    rows, ours = [], [turn.seconds for turn in comparison.scorers[0].turns]
    for scorer in comparison.scorers:
        seconds, peak = [turn.seconds for turn in scorer.turns], max(turn.peak_rss_bytes or 0 for turn in scorer.turns)
        speed, nats = f"{comparison.tokens / statistics.median(seconds):.0f}", f"{scorer.turns[0].nats / comparison.tokens:.5f}"
        memory = megabytes(peak) if peak else MISSING
        rows.append((scorer.name, scorer.version or "", speed, str(paired_ratio(seconds, ours)), nats, memory))
    return table(("scored by", "version", "tokens/s", f"time ÷ ours [{PERCENT}]", "nats per token", "peak RSS, MB"), rows)


def scoring_caption(comparison: ScoringComparison) -> str:
    return (
        f"{comparison.model}; {comparison.text}, documents of the scored part: {comparison.documents}, tokens: {comparison.tokens:,}. "
        f"{environment.machine_label(comparison.environment)}, {len(comparison.scorers[0].turns)} rounds in turns."
    )


EXPERIMENT = Experiment(
    ScoringComparison, compare_scoring, tables=lambda found: {"Speed of scoring": scoring_table(found)}, charts=lambda _: {},
    caption=scoring_caption,
)  # fmt: skip
