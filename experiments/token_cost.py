"""What a decoded token costs, part by part: the bytes that each part of the decode step reads, and the time it takes.

The INT8 model and its control in FP32 run by the same decode step, and the INT8 model by OpenVINO alone, each in a process of its own, in
turns. The least time of a row is its bytes ÷ what the machine reads at best, as the probe measures it between the rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.contract import Experiment, columns, now, say
from experiments.race.run import check_size, prepare_models, quantize
from gpt2opt import environment
from gpt2opt.measure.limits import Limits, Probe
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.measure.stats import PERCENT, paired_ratio
from gpt2opt.measure.turns import Contestants, again, in_child
from gpt2opt.report.table import Table, megabytes, milliseconds, table
from gpt2opt.settings import check_whole

PROMPT_TOKENS, NEW_TOKENS = 512, 32
INT8, FP32, OPENVINO = "INT8", "FP32", "INT8, OpenVINO decodes"
NORMS, ATTENTION, SAMPLING, PYTHON = "norms", "attention", "sampling", "Python"
ROWS = {
    "attn.c_attn": "queries, keys, values", ATTENTION: ATTENTION, "attn.c_proj": "attention's projection", "mlp.c_fc": "MLP, in",
    "mlp.c_proj": "MLP, out", "lm_head": "head", NORMS: NORMS, SAMPLING: "sampling (argmax)", PYTHON: "Python, embedding, waking threads",
}  # fmt: skip
"""Part of a step -> how it is shown."""


@dataclass(frozen=True)
class Token:
    """Means over the tokens of one generation. tpot_s: of a whole token. parts: of `ROWS` -> seconds; empty if OpenVINO decodes."""

    tpot_s: float
    parts: dict[str, float]


@dataclass(frozen=True)
class TokenCost:
    """tokens: contestant -> one `Token` per round. bytes_read: contestant -> part -> bytes of weights, or of keys and values."""

    created: str
    environment: dict[str, Any]
    model: str
    limits: tuple[Limits, ...]
    tokens: dict[str, tuple[Token, ...]]
    bytes_read: dict[str, dict[str, int]]
    schema: str = "gpt2opt.token/1"


class Decoding:
    """A model after a prompt, which decodes the same tokens again and again."""

    def __init__(self, folder: Path, decode: str, threads: int):
        from gpt2opt.runtime.ir_model import load_ir

        self.model = load_ir(folder, threads, decode=decode)
        prompt = np.random.default_rng(0).integers(0, self.model.vocab_size, PROMPT_TOKENS)
        self.decoder = self.model.decoder(prompt[None], NEW_TOKENS)

    def bytes_read(self) -> dict[str, int]:
        """Return the bytes of each part: of the weights as they are stored, and of the cache in the middle of the new tokens."""
        sizes: dict[str, int] = {}
        for name, weight in (self.model.step.stored if self.model.step else {}).items():
            part = name.split(".", 2)[-1]
            sizes[part] = sizes.get(part, 0) + weight.nbytes
        whole = sum(memory[0].nbytes for memory in self.decoder.cache.memory.values())
        return {**sizes, ATTENTION: whole * (PROMPT_TOKENS + NEW_TOKENS // 2) // self.model.context}

    def decode(self, _task: str) -> Token:
        logits, step, total, parts = self.decoder.prefill(), self.model.step, 0.0, dict.fromkeys(ROWS, 0.0)
        for _ in range(NEW_TOKENS):
            begun = time.perf_counter()
            chosen = logits.argmax(-1)[:, None]
            sampled = time.perf_counter()
            logits = self.decoder.decode(chosen)
            ended = time.perf_counter()
            total += ended - begun
            parts[SAMPLING] += sampled - begun
            parts[PYTHON] += ended - sampled
            for name, seconds, norm in step.seconds() if step else ():
                parts[name.split(".", 2)[-1]] += seconds - norm
                parts[NORMS] += norm
                parts[PYTHON] -= seconds  # what is left is outside the compiled code
        return Token(total / NEW_TOKENS, {name: seconds / NEW_TOKENS for name, seconds in parts.items()} if step else {})


def measure_token(size: str = "gpt2", rounds: int = 8) -> TokenCost:
    """Quantize a model, of a size as in `run_race`, and time its tokens; rounds < 2 or an unknown size is a ValueError."""
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    check_size(size)
    threads = environment.threads()
    with tempfile.TemporaryDirectory() as scratch:
        say(f"model {size}, and its quantization")
        models, int8, fp32 = prepare_models(size, Path(scratch)), Path(scratch, "int8"), Path(scratch, "fp32")
        in_fresh_process(quantize, Path(scratch, "models", "pruned"), int8, "w8a8-naive")
        in_fresh_process(export_float, Path(scratch, "models", "pruned"), fp32)
        chosen = {INT8: (int8, "step"), FP32: (fp32, "step"), OPENVINO: (int8, "openvino")}
        starts = {name: in_child(Decoding, *given, threads) for name, given in chosen.items()}
        with Contestants({**starts, "probe": in_child(Probe, threads)}) as contestants:
            sizes = {name: contestants.call(name, "bytes_read") for name in chosen}
            turns = contestants.take_turns("decode", dict.fromkeys(chosen, ("token",)), rounds=rounds, seconds=lambda token: token.tpot_s)
            limits = [contestants.call("probe", "measure") for outcome in tqdm(turns, "timing", rounds + 1) if (last := outcome)]
    tokens = {name: tuple(taken["token"]) for name, taken in last.samples.items()}
    return TokenCost(now(), environment.describe(), f"{size}, weights: {models.weights}", tuple(limits), tokens, sizes)


def export_float(source: Path, folder: Path) -> None:
    from gpt2opt.export.openvino import export_ir
    from gpt2opt.quantize.linear import prepare_for_export
    from gpt2opt.sources.models import load_model

    tokenizer, model = load_model(source)
    export_ir(prepare_for_export(model), tokenizer, folder)


@dataclass(frozen=True)
class Row:
    """bytes_read: None for what reads next to nothing. least_s: at the probe's best speed."""

    name: str
    bytes_read: int | None
    least_s: float | None
    seconds: float


def rows(result: TokenCost, name: str = INT8) -> list[Row]:
    """Return the parts of a token and their sum; seconds are medians over the rounds."""
    speed, sizes = max(limits.read_bytes_per_s for limits in result.limits), result.bytes_read[name]
    taken = [token.parts for token in result.tokens[name]]
    found = [
        Row(shown, sizes.get(part), sizes[part] / speed if part in sizes else None, statistics.median(parts[part] for parts in taken))
        for part, shown in ROWS.items()
    ]
    read = sum(sizes.values())
    return [*found, Row("all", read, read / speed, statistics.median(token.tpot_s for token in result.tokens[name]))]


def cost_table(result: TokenCost) -> Table:
    shown: Mapping[str, Any] = {
        "part of a token": lambda row: row.name,
        "read, MB": lambda row: megabytes(row.bytes_read) if row.bytes_read else "",
        "least, ms": lambda row: milliseconds(row.least_s) if row.least_s else "",
        "took, ms": lambda row: f"{row.seconds * 1e3:.3f}",
        "beyond the least, ms": lambda row: f"{(row.seconds - (row.least_s or 0)) * 1e3:.3f}",
    }
    return columns(rows(result), shown)


def ratio_table(result: TokenCost) -> Table:
    """Show the time of a token of each contestant, and ÷ that of INT8 by the decode step, paired by rounds."""
    times = {name: [token.tpot_s for token in tokens] for name, tokens in result.tokens.items()}
    return table(
        ("decoded by", "TPOT, ms", f"÷ INT8, decode step [{PERCENT}]"),
        [
            (
                name if name == OPENVINO else f"{name}, decode step",
                milliseconds(statistics.median(seconds)),
                "" if name == INT8 else f"{paired_ratio(seconds, times[INT8]):.3f}",
            )
            for name, seconds in times.items()
        ],
    )


def caption(result: TokenCost) -> str:
    speed = max(limits.read_bytes_per_s for limits in result.limits)
    return (
        f"{result.model}; 2 of 12 heads of each layer pruned; INT8, every input quantized for prompts. "
        f"{environment.machine_label(result.environment)}; {NEW_TOKENS} tokens after {PROMPT_TOKENS}, each contestant in its own process, "
        f"{len(result.tokens[INT8])} rounds in turns; medians. The probe reads {speed / 1e9:.1f} GB/s at best; the least time is bytes ÷ "
        f"that. `{again(INT8)}` is the same in another process: its true ratio is 1. Taken on {result.created[:10]}."
    )


EXPERIMENT = Experiment(
    TokenCost,
    measure_token,
    tables=lambda result: {"What a token costs": cost_table(result), "The same token, decoded otherwise": ratio_table(result)},
    charts=lambda result: {},
    caption=caption,
)
