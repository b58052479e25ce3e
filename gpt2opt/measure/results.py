"""Results of measurements: frozen, with raw samples, in SI base units. `None` means not measured; 0.0 never does."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt2opt.measure.stats import Estimate, paired_ratio, perplexity_interval, positive_mean_interval


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the samples lie, interpolated linearly between neighbours."""
    return float(np.quantile(samples, share))


@dataclass(frozen=True)
class Latency:
    """Time to first token (reading the prompt, one sample per run) and time per output token (one sample per later token).

    steady: whether the warm-up ended because runs had stopped getting faster. others_cpu_share: the share of the cores that other
    processes, and other machines on the same host, used meanwhile; None if unknown.
    """

    ttft_samples_s: tuple[float, ...]
    tpot_samples_s: tuple[float, ...]
    warmup_runs: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    steady: bool = True
    others_cpu_share: float | None = None

    @property
    def ttft_s(self) -> float:
        return statistics.median(self.ttft_samples_s)

    @property
    def tpot_s(self) -> float:
        return statistics.median(self.tpot_samples_s)

    @property
    def ttft_p95_s(self) -> float:
        return percentile(self.ttft_samples_s, 0.95)

    @property
    def tpot_p95_s(self) -> float:
        return percentile(self.tpot_samples_s, 0.95)

    @property
    def halves(self) -> tuple["Latency", ...]:
        """Return the first and the second half of the runs; the same runs alone if there are fewer than four."""
        runs = len(self.ttft_samples_s)
        if runs < 4:
            return (self,)
        tokens = runs // 2 * (len(self.tpot_samples_s) // runs)
        parts = (slice(runs // 2), slice(tokens)), (slice(runs // 2, None), slice(tokens, None))
        return tuple(replace(self, ttft_samples_s=self.ttft_samples_s[a], tpot_samples_s=self.tpot_samples_s[b]) for a, b in parts)

    @property
    def tpot_by_run_s(self) -> tuple[float, ...]:
        """Return the median time per output token of each run."""
        runs, steps = len(self.ttft_samples_s), len(self.tpot_samples_s) // len(self.ttft_samples_s)
        return tuple(statistics.median(self.tpot_samples_s[run * steps : (run + 1) * steps]) for run in range(runs))


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns, run by run, so that both see the same state of the machine; `ttft` and `tpot` are name ÷ base."""

    name: str
    base: str
    latency: Latency
    base_latency: Latency

    @property
    def latencies(self) -> dict[str, Latency]:
        """Return the latency of each of the two, by name."""
        return {self.name: self.latency, self.base: self.base_latency}

    @property
    def ttft(self) -> Estimate:
        return paired_ratio(self.latency.ttft_samples_s, self.base_latency.ttft_samples_s)

    @property
    def tpot(self) -> Estimate:
        return paired_ratio(self.latency.tpot_by_run_s, self.base_latency.tpot_by_run_s)


@dataclass(frozen=True)
class Resident:
    """A process's resident memory at one moment (Linux, /proc/self/smaps_rollup).

    pss_bytes: a page that n processes share counts as 1/n. uss_bytes: pages that no other process maps, pages of files included.
    file_bytes: pages of files, such as mapped weights and libraries, which the system may drop and read again.
    """

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Memory:
    """Memory of one model. RAM is measured in a fresh process that loads the model and generates, never in the notebook's own process.

    start_rss_bytes, start: the process with its libraries imported and without a model. loaded: with the model. steady: after generating,
    with the KV cache still held. peak_vram_bytes: taken by tensors; peak_vram_reserved_bytes: held for them by torch's allocator;
    driver_vram_bytes: by how much the memory in use on the device grew, the CUDA context included.
    """

    weight_bytes: int
    peak_rss_bytes: int | None = None
    start_rss_bytes: int | None = None
    peak_vram_bytes: int | None = None
    peak_vram_reserved_bytes: int | None = None
    driver_vram_bytes: int | None = None
    start: Resident | None = None
    loaded: Resident | None = None
    steady: Resident | None = None


@dataclass(frozen=True)
class Quality:
    """The summed NLL and the number of scored tokens of each document of a text.

    num_words: words separated by white space. protocol: the text and how it was scored; two perplexities can be compared only if they
    have the same one. Intervals are None for a single document, because nothing shows how much another text would differ.
    """

    document_nats: tuple[float, ...]
    document_tokens: tuple[int, ...]
    num_words: int
    num_bytes: int
    protocol: str

    @property
    def nll_nats(self) -> float:
        return math.fsum(self.document_nats)

    @property
    def num_tokens(self) -> int:
        return sum(self.document_tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll_nats / self.num_tokens)

    @property
    def course_perplexity(self) -> float:
        """Return the perplexity as the course's notebook weights it; compare it only with the numbers there.

        The mean loss of each document counts once for each of its tokens, the unscored first one included.
        """
        documents = zip(self.document_nats, self.document_tokens, strict=True)
        weighted = math.fsum(nats * (tokens + 1) / tokens for nats, tokens in documents)
        return math.exp(weighted / (self.num_tokens + len(self.document_tokens)))

    @property
    def word_perplexity(self) -> float | None:
        """Return the perplexity per word, which can be compared between tokenizers; None without white space, or if no float holds it."""
        try:
            return math.exp(self.nll_nats / self.num_words)
        except (OverflowError, ZeroDivisionError):
            return None

    @property
    def bits_per_byte(self) -> float:
        return self.nll_nats / math.log(2) / self.num_bytes

    def interval(self) -> tuple[float, float] | None:
        """Return the interval of the perplexity over other texts of such documents; see `stats.over_documents`."""
        return perplexity_interval(self.document_nats, self.document_tokens)

    def ratio_to(self, base: "Quality") -> float:
        """Return this perplexity ÷ `base`'s; raise ValueError unless both were scored on the same tokens by the same protocol."""
        if self.protocol != base.protocol or self.document_tokens != base.document_tokens:
            raise ValueError(f"can't compare {self.protocol!r} with {base.protocol!r}; score both with one protocol")
        return self.perplexity / base.perplexity

    def ratio_interval(self, base: "Quality") -> tuple[float, float] | None:
        """Return the interval of `ratio_to`; documents are paired."""
        self.ratio_to(base)
        nats = [ours - theirs for ours, theirs in zip(self.document_nats, base.document_nats, strict=True)]
        return perplexity_interval(nats, self.document_tokens)


@dataclass(frozen=True)
class Agreement:
    """How far a model's next-token distributions are from those of its reference model, over the scored tokens of each document.

    document_kl_nats: summed KL(reference ‖ model). document_same_top: number of tokens at which both models' most likely token is the
    same. kl_p99: the 99th percentile of KL over the tokens. Intervals are taken over documents, see `stats`; None if there are too few.
    """

    document_kl_nats: tuple[float, ...]
    document_same_top: tuple[int, ...]
    document_tokens: tuple[int, ...]
    kl_p99: float
    kl_p99_interval: tuple[float, ...] | None
    protocol: str
    reference: str

    @property
    def mean_kl(self) -> float:
        return math.fsum(self.document_kl_nats) / sum(self.document_tokens)

    @property
    def top1(self) -> float:
        """Return the share of tokens at which both models' most likely token is the same."""
        return sum(self.document_same_top) / sum(self.document_tokens)

    def mean_kl_interval(self) -> tuple[float, float] | None:
        return positive_mean_interval(self.document_kl_nats, self.document_tokens)

    def top1_interval(self) -> tuple[float, float] | None:
        """Return the interval of `top1`, computed from the share of the other tokens; None if there are no others."""
        others = [tokens - same for tokens, same in zip(self.document_tokens, self.document_same_top, strict=True)]
        interval = positive_mean_interval(others, self.document_tokens)
        return interval and (1 - interval[1], 1 - interval[0])
