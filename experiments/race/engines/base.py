"""What an engine of the race is: how to convert GPT-2 for it, load it, and time every token that it makes.

All decode greedily, keep a KV cache, go on after end-of-text, and want logits of the last position only where their API offers that.
Nothing heavy is imported before an engine is asked to work: a process that races one engine holds that engine's libraries alone.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import numpy as np

from gpt2opt import environment
from gpt2opt.decoding.decoder import Decoder, Greedy, Logits, Model, as_numpy
from gpt2opt.decoding.generation import stream
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.measure.turns import Contestants, Outcome, Start, in_child


@dataclass(frozen=True)
class Case:
    """What one call is asked: B prompts of T tokens, continued by `new_tokens` each.

    text: `random`, every token drawn by itself, or `repeating`, a pattern of 16 tokens over and over.
    """

    prompt_tokens: int
    new_tokens: int
    batch_size: int = 1
    text: str = "random"

    def __str__(self) -> str:
        return f"{self.batch_size}×({self.prompt_tokens}+{self.new_tokens}){'' if self.text == 'random' else ' ' + self.text}"


def make_prompts(case: Case, vocab_size: int, *seed: int) -> np.ndarray:
    """Return (B, T) int64 ids, the same for the same seed."""
    draw = np.random.default_rng((*seed, case.prompt_tokens, case.batch_size))
    length = case.prompt_tokens if case.text == "random" else 16
    ids = draw.integers(vocab_size, size=(case.batch_size, length))
    return np.ascontiguousarray(np.tile(ids, (1, -(-case.prompt_tokens // length)))[:, : case.prompt_tokens])


def timed_turns(contestants: Contestants, cases: Any, rounds: int, vocab_size: int, **named: Any) -> Iterator[Outcome]:
    """Let engines time their tokens in turns, see `Contestants.take_turns`: new prompts for every case and round."""

    def arguments(case: Case, number: int) -> tuple[np.ndarray, int]:
        return make_prompts(case, vocab_size, number), case.new_tokens

    return contestants.take_turns("timed", cases, rounds=rounds, seconds=attrgetter("total_s"), arguments=arguments, **named)


@dataclass(frozen=True)
class Timing:
    """One generate call on (B, T) prompts: seconds to the first token, and to each later one from the one before it."""

    first_s: float
    later_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        return self.first_s + sum(self.later_s)


def timing(marks: Sequence[float]) -> Timing:
    """Return the timing of a call from its clock readings: its start, then one when each token was there."""
    steps = [after - before for before, after in itertools.pairwise(marks)]
    return Timing(steps[0], tuple(steps[1:]))


@dataclass(frozen=True)
class Fidelity:
    """How near an engine's next-token distributions are to those of torch FP32 with the same weights, row by row of a text.

    kl_nats: summed KL(torch FP32 ‖ engine) of each row; None from an engine that tells which token it chose, and not by what logits.
    same_top: number of tokens at which both find the same token the most probable. tokens: scored ones of each row.
    """

    kl_nats: tuple[float, ...] | None
    same_top: tuple[int, ...]
    tokens: int


ROOT = Path(__file__).parents[3]


class Runner:
    """One way to run a model on a CPU: `prepare` converts it once, then `load` gets it ready in a process of its own.

    name: in tables. package: the distribution it needs beyond ours; where that is not installed it is left out. files: what of its folder
    counts as its size on disk. own_environment: folder, in the project's, of the environment that has the package, if it can't be
    installed beside ours; `load` and all that follows run there.
    """

    name: str
    package: str
    own_environment = ""
    files: tuple[str, ...] = ("*",)
    note = ""

    def prepare(self, source: Any, folder: Path) -> str | None:
        """Convert a model, `source`, into `folder`, which exists and is empty; return a remark on the result, or None."""
        raise NotImplementedError

    def load(self, folder: Path, threads: int) -> None:
        """Get ready to run with that many threads."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str | None:
        """Return the installed version of the package."""
        places = [str(path) for path in ROOT.glob(f"{cls.own_environment}/lib/python*/site-packages")] if cls.own_environment else sys.path
        return next((found.version for found in distributions(name=cls.package, path=places)), None)

    @classmethod
    def python(cls) -> Path | None:
        """Return the interpreter of its own environment; None for the one that runs this."""
        return ROOT / cls.own_environment / "bin" / "python" if cls.own_environment else None

    @classmethod
    def disk_bytes(cls, folder: Path) -> int:
        return sum(path.stat().st_size for pattern in cls.files for path in folder.glob(pattern) if path.is_file())


class Engine(Runner):
    """One way to run GPT-2, from the directory of a model.

    made_from: the engine whose folder `prepare` starts from; None for the model directory itself. full_heads: it can't run pruned heads
    and gets the unpruned model. block_bytes, head_bytes: stored bytes per weight, scales included, of the block matmuls and of the output
    head; decoding reads each of them once per token. texts: the kinds of prompt that it races on.
    """

    made_from: "type[Engine] | None" = None
    full_heads = False
    block_bytes: float = 4
    head_bytes: float = 4
    texts: tuple[str, ...] = ("random",)

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        """Continue (B, T) int64 prompts greedily by `new_tokens` each, at least 2, and time every token."""
        raise NotImplementedError

    def forced(self, row: np.ndarray, prompt_tokens: int) -> Iterator[Any]:
        """Yield by what the engine would choose each token of a row (T,) behind its prompt, whatever it chose before.

        That is the logits, (V,) each, which hold until the next is asked for; or the id that it chooses, where its API gives no logits.
        """
        raise NotImplementedError

    def fidelity(self, reference: Path) -> Fidelity:
        """Compare what the engine decodes with torch FP32; rows and expected logits are in a file of `quality.write_reference`."""
        with np.load(reference) as file:
            rows, expected, distinct = file["rows"], file["logits"], int(file["distinct_tokens"])
        divergences = np.zeros(expected.shape[:2])
        same = np.zeros(expected.shape[:2], bool)
        for number, (row, theirs) in enumerate(zip(rows, expected, strict=True)):
            for place, (found, logits) in enumerate(zip(self.forced(row, len(row) - len(theirs)), theirs, strict=True)):
                is_logits = np.ndim(found) > 0
                divergences[number, place] = kl_divergence(logits, found) if is_logits else np.nan
                same[number, place] = logits.argmax() % distinct == (found.argmax() if is_logits else found) % distinct
        kl_nats = None if np.isnan(divergences).all() else tuple(divergences.sum(1).tolist())
        return Fidelity(kl_nats, tuple(same.sum(1).tolist()), expected.shape[1])

    def decodes_by(self) -> str | None:
        """Return how this engine decodes, where it has more than one way."""
        return None

    def timed(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        """Return what `generate` does, if it made every token: too few are not a fast engine."""
        found = self.generate(prompts, new_tokens)
        if len(found.later_s) != new_tokens - 1:
            raise RuntimeError(f"made {len(found.later_s) + 1} tokens where {new_tokens} were asked for")
        return found


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Return KL(reference ‖ model) in nats from the logits (V,) of both; ValueError if they are not finite."""
    if not np.isfinite(logits).all():
        raise ValueError("the engine gave logits that are not finite")
    shifted = (each - each.max() for each in (reference.astype(float), logits.astype(float)))
    expected, found = (each - np.log(np.exp(each).sum()) for each in shifted)
    return float(np.exp(expected) @ (expected - found))


def loaded(engine: type[Runner], folder: Path, threads: int) -> Any:
    """Return an engine, ready to run."""
    contestant = engine()
    contestant.load(folder, threads)
    return contestant


def started(engine: type[Runner], folder: Path, threads: int | None = None) -> Start:
    """Return what starts an engine in a process of its own, with all threads by default."""
    count = threads or environment.threads()
    return in_child(loaded, engine, folder, count, threads=count, python=engine.python())


class Driven(Engine):
    """An engine that gives a `Decoder`, so that its caller runs the loop."""

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        return time_greedy(self.decoder(prompts, new_tokens), new_tokens)

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> Decoder:
        """Return a decoder of (B, T) prompts, with room for the new tokens; not timed."""
        raise NotImplementedError

    def forced(self, row: np.ndarray, prompt_tokens: int) -> Iterator[np.ndarray]:
        decoder = self.decoder(row[None, :prompt_tokens], len(row) - prompt_tokens)
        yield as_numpy(decoder.prefill())[0]
        for token in row[prompt_tokens:-1]:
            yield as_numpy(decoder.decode(np.array([[token]])))[0]

    def seconds(self, prompts: np.ndarray, settings: DecodingSettings) -> float:
        """Continue (B, T) prompts by the generation loop and return the seconds of it all, prefill included."""
        tokens = stream(cast(Model, self), cast(Any, prompts), settings)  # it has no `context`, which only prompts that are texts need
        start = time.perf_counter()
        for _ in tokens:
            pass
        return time.perf_counter() - start


class Stepwise(Driven):
    """An engine that is called step by step: a call reads the tokens that follow those in the KV cache and returns logits."""

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> Decoder:
        batch, length = prompts.shape
        self.open(batch, length + new_tokens)
        return StepwiseDecoder(self, prompts)

    def open(self, batch: int, context: int) -> None:
        """Make an empty KV cache, where the engine wants one of a known size; not timed."""

    def read(self, ids: Any, past: int) -> Logits:
        """Read (B, T) ids that follow `past` cached ones, 0 for an empty cache; return the logits (B, V) of the last position."""
        raise NotImplementedError


class StepwiseDecoder(Decoder):
    """A decoder over an engine that is read step by step. It can't drop sequences."""

    def __init__(self, engine: Stepwise, prompts: np.ndarray):
        self.engine, self.prompts = engine, prompts

    def prefill(self) -> Logits:
        self.past = self.prompts.shape[1]
        return self.engine.read(self.prompts, 0)

    def decode(self, ids: Any) -> Logits:
        self.past += 1
        return self.engine.read(ids, self.past - 1)

    def keep(self, rows: Sequence[int]) -> None:
        raise NotImplementedError


def time_greedy(decoder: Decoder, new_tokens: int) -> Timing:
    """Decode greedily and time every token."""
    greedy = Greedy(decoder)
    marks = [time.perf_counter()]
    for act in (greedy.start, *[greedy.step] * (new_tokens - 1)):
        act()
        marks.append(time.perf_counter())
    return timing(marks)
