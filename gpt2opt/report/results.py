"""What a measurement is: frozen, with its raw samples, in SI base units. `None` means not measured; 0.0 never does."""

import dataclasses
import hashlib
import math
import statistics
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2opt.stats import Estimate, mean_interval, paired_ratio, positive_mean_interval


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the samples lie, interpolated linearly between neighbours."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Latency:
    """Time to first token (the prompt is read, one sample a run) and time per output token (one sample a later token).

    warmup_runs: untimed runs before these; steady says whether they ended because runs had stopped getting faster.
    others_cpu_share: share of all cores that other processes and other machines on the same host took meanwhile; None where
    the system does not tell.
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
    def tpot_by_run_s(self) -> tuple[float, ...]:
        """Return the median time per output token of each run."""
        steps = len(self.tpot_samples_s) // len(self.ttft_samples_s)
        runs = range(len(self.ttft_samples_s))
        return tuple(statistics.median(self.tpot_samples_s[run * steps : (run + 1) * steps]) for run in runs)


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns, run by run, so that both meet the same state of the machine."""

    name: str
    base: str
    latency: Latency
    base_latency: Latency

    @property
    def ttft(self) -> Estimate:
        return paired_ratio(self.latency.ttft_samples_s, self.base_latency.ttft_samples_s)

    @property
    def tpot(self) -> Estimate:
        return paired_ratio(self.latency.tpot_by_run_s, self.base_latency.tpot_by_run_s)


@dataclass(frozen=True)
class Resident:
    """What a process holds in RAM at one moment (Linux, /proc/self/smaps_rollup).

    pss_bytes: a page that n processes share counts as 1/n. uss_bytes: pages that no other process maps, those of files included.
    file_bytes: the part of RSS that belongs to files, mapped weights and libraries; the system may drop and read such pages again, the
    rest is anonymous. PSS and USS depend on who else runs: the process that measures maps the same libraries.
    """

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Memory:
    """Memory of one model. RAM is that of a fresh process that loads the model and generates, never of the notebook's own.

    start_rss_bytes, start: that process with its libraries imported and no model yet. loaded: with the model. steady: at rest after it
    has generated, still able to go on. peak_vram_bytes: what tensors took; peak_vram_reserved_bytes: what torch's allocator held for
    them; driver_vram_bytes: how much more the driver had in use on the device at the end than before, the CUDA context included.
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
    """Summed NLL over every scored token of a text, document by document.

    num_words: separated by white space. protocol says what was scored and how: two perplexities compare only under the same label.
    Intervals are None where there is but one document: nothing tells how much another text would differ.
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
    def word_perplexity(self) -> float | None:
        """Return the perplexity per word: unlike that per token, it compares between tokenizers.

        None where there is no such number: no white space separates words, or so little that it is larger than a float can be.
        """
        try:
            return math.exp(self.nll_nats / self.num_words)
        except (OverflowError, ZeroDivisionError):
            return None

    @property
    def bits_per_byte(self) -> float:
        return self.nll_nats / math.log(2) / self.num_bytes

    def interval(self) -> tuple[float, float] | None:
        """Return the interval of the perplexity over other texts of such documents, see `stats`."""
        return _exponential(mean_interval(self.document_nats, self.document_tokens))

    def ratio_to(self, base: "Quality") -> float:
        """Return this perplexity over `base`'s.

        Raises:
            ValueError: the two were not taken on the same tokens by the same protocol.
        """
        if self.protocol != base.protocol or self.document_tokens != base.document_tokens:
            raise ValueError(f"can't compare {self.protocol!r} with {base.protocol!r}; score both with one protocol")
        return self.perplexity / base.perplexity

    def ratio_interval(self, base: "Quality") -> tuple[float, float] | None:
        """Return the interval of `ratio_to`, the two paired document by document."""
        self.ratio_to(base)
        nats = [ours - theirs for ours, theirs in zip(self.document_nats, base.document_nats, strict=True)]
        return _exponential(mean_interval(nats, self.document_tokens))


@dataclass(frozen=True)
class Agreement:
    """How far a model's next-token distribution is from its parent's, document by document over the scored tokens of a text.

    document_kl_nats: summed KL(parent ‖ model). document_same_top: tokens where both expect the same one most. kl_p99: 99th percentile
    over the tokens, with its interval. Intervals are over documents, see `stats`; None where there are too few.
    """

    document_kl_nats: tuple[float, ...]
    document_same_top: tuple[int, ...]
    document_tokens: tuple[int, ...]
    kl_p99: float
    kl_p99_interval: tuple[float, ...] | None
    protocol: str
    parent: str

    @property
    def mean_kl(self) -> float:
        return math.fsum(self.document_kl_nats) / sum(self.document_tokens)

    @property
    def top1(self) -> float:
        """Return the share of tokens on which both models expect the same one most."""
        return sum(self.document_same_top) / sum(self.document_tokens)

    def mean_kl_interval(self) -> tuple[float, float] | None:
        return positive_mean_interval(self.document_kl_nats, self.document_tokens)

    def top1_interval(self) -> tuple[float, float] | None:
        """Return the interval of `top1`, taken from the share of the other tokens; None if there are none."""
        others = [tokens - same for tokens, same in zip(self.document_tokens, self.document_same_top, strict=True)]
        interval = positive_mean_interval(others, self.document_tokens)
        return interval and (1 - interval[1], 1 - interval[0])


def _exponential(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return interval and (math.exp(interval[0]), math.exp(interval[1]))


@dataclass(frozen=True)
class Measurement:
    """One model, measured with every ruler, on one device.

    dtype is that of the weights and of the timed arithmetic; quality_dtype that of the arithmetic that scored the text.
    continuations: what it generated from each of the run's sample prompts, token by token.
    """

    name: str
    device: str
    dtype: str
    runtime: str
    parameters: int | None = None
    latency: Latency | None = None
    memory: Memory | None = None
    quality: Quality | None = None
    quality_dtype: str | None = None
    agreement: Agreement | None = None
    continuations: tuple[tuple[str, ...], ...] | None = None


def dominated_by(measurement: Measurement, others: typing.Iterable[Measurement]) -> list[Measurement]:
    """Return those of `others` that are no worse in perplexity, TPOT and bytes on disk, and better in one of them.

    Measurements that no other dominates are the Pareto front. Only those of the same device, scored text and timed prompt are held
    against each other, and only if all three were measured. It goes by the figures alone: their intervals may overlap.
    """
    setting = _setting(measurement)
    return [other for other in others if setting and _setting(other) == setting and _beats(other, measurement)]


def _setting(measurement: Measurement) -> tuple | None:
    latency, memory, quality = measurement.latency, measurement.memory, measurement.quality
    if not (latency and memory and quality):
        return None
    return measurement.device, quality.protocol, latency.prompt_tokens, latency.new_tokens, latency.batch_size


def _beats(one: Measurement, other: Measurement) -> bool:
    a, b = ((m.quality.perplexity, m.latency.tpot_s, m.memory.weight_bytes) for m in (one, other))
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Int8Audit:
    """What is INT8 in an IR file and in the graphs compiled from it, matmul by matmul, by their names in the model."""

    weights: str
    """What the weights of the blocks were asked to be stored in: `i8` or `i4`, or `f32` where nothing was quantized."""
    in_file: dict[str, str]
    """Matmul -> type of its stored weight."""
    reading: dict[str, tuple[str, str]]
    """Matmul -> types of its input and of its weight in the graph that reads prompts."""
    decoding: dict[str, tuple[str, str]]
    """The same in the graph that decodes."""
    float_inputs: tuple[str, ...]
    """Matmuls whose input the file does not quantize."""
    bytes_by_type: dict[str, int]
    """Type -> bytes of constants in the file."""
    num_layers: int

    @property
    def failures(self) -> list[str]:
        """Return one line for each matmul that is missing or not INT8 where it has to be."""
        return [f"{name}: {problem}" for name in self.expected if (problem := self._problem(name))]

    def _problem(self, name: str) -> str | None:
        integers = ("i4", "u4") if self.weights == "i4" and name != "lm_head" else INT8_TYPES
        if self.in_file.get(name) not in integers:
            return f"weight {self.in_file.get(name, 'not found')} in the file"
        for graph, executed in (("reading", self.reading.get(name)), ("decoding", self.decoding.get(name))):
            if executed is None:
                return f"not found in the {graph} graph"
            if executed[1] not in integers:
                return f"weight {executed[1]} in the {graph} graph"
        if name not in self.float_inputs and self.reading[name][0] not in INT8_TYPES:
            return f"input {self.reading[name][0]} in the reading graph"
        return None

    @property
    def expected(self) -> list[str]:
        """Return the names of all block matmuls and of the head: 4 a layer and 1."""
        blocks = [f"h.{layer}.{part}" for layer in range(self.num_layers) for part in BLOCK_MATMULS]
        return [*blocks, "lm_head"]

    @property
    def int8_share(self) -> float:
        """Return the share of the file's constant bytes that are integers of 8 bits or less."""
        return sum(self.bytes_by_type.get(name, 0) for name in (*INT8_TYPES, "i4", "u4")) / sum(self.bytes_by_type.values())

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class Harm:
    """What quantized inputs, and a quantized KV cache, cost: mean KL divergence from the FP32 parent, nats a token. See `deploy.gate`.

    alone, among: matmul, or `kv_cache` -> with its input alone quantized; and how much less it is with all but it. weights: with integer
    weights and no quantized input; the others are counted from there. together: all quantized. left: those that the gate kept.
    float_inputs: those that it left float.
    """

    alone: dict[str, float]
    among: dict[str, float]
    weights: float
    together: float
    left: float
    max_kl: float | None
    float_inputs: tuple[str, ...]


@dataclass(frozen=True)
class Quantized:
    """What `quantize_int8` did. harm is None where no input was to be quantized or no gate was asked for."""

    audit: Int8Audit
    harm: Harm | None


INT8_TYPES = ("i8", "u8")
BLOCK_MATMULS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class StageResult:
    """What one stage read, wrote and measured.

    weights_in, weights_out: SHA-256 of the weight files. controls: other models measured the same way, to tell causes apart.
    comparisons: models timed in turns.
    """

    name: str
    weights_in: str
    weights_out: str
    measurement: Measurement
    seconds: float
    controls: tuple[Measurement, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()

    def control(self, name: str) -> Measurement:
        return next(control for control in self.controls if control.name == name)


def hash_weights(directory: Path) -> str:
    """Return the SHA-256 over the weight files (`*.safetensors`, `*.bin`, IR `*.xml`) of a directory, in name order."""
    digest = hashlib.sha256()
    for path in weight_files(directory):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    return sorted(path for path in Path(directory).iterdir() if path.suffix in (".safetensors", ".bin", ".xml"))


def from_json(kind: Any, value: Any) -> Any:
    """Rebuild a value of type `kind` (a dataclass of this file, or a container of them) from parsed JSON."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_json(hints[name], item) for name, item in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_json(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return tuple(from_json(arguments[0], item) for item in value)
    if origin is dict and arguments[1] is not Any:
        return {key: from_json(arguments[1], item) for key, item in value.items()}
    return value
