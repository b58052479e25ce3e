"""What the committed results say to `gpt2opt doctor`, which is installed without them: what INT8 gains on each kind of CPU."""

import json
from pathlib import Path

from experiments.contract import json_path, read_result_of
from experiments.race.results import MAIN, TPOT, TTFT_512, Figure, RaceResult
from gpt2opt.report.table import milliseconds

FP32_BYTES = 4


def measured(results: Path) -> str:
    """Return the text of `gpt2opt/apps/doctor/measured.json`, given the folder of the results of all kinds of CPU."""
    kinds = sorted(path.name for path in results.iterdir() if json_path("race", path).exists())
    return json.dumps({kind: int8_gain(read_result_of("race", results / kind)) for kind in kinds}, indent=1) + "\n"


def int8_gain(race: RaceResult) -> str:
    """Say how our INT8 compares with the fastest of the engines that run the same pruned model in FP32, which a user would take instead."""
    shown = ", ".join(f"{name} {_gain(race, figure)}" for name, figure in (("TTFT", TTFT_512), ("TPOT", TPOT)))
    return f"{shown} (size of {race.size}, {MAIN.prompt_tokens} + {MAIN.new_tokens} tokens)"


def _gain(race: RaceResult, figure: Figure) -> str:
    in_fp32 = [engine for engine in race.raced if engine.block_bytes == FP32_BYTES and not engine.full_heads]
    found = [
        (seconds, engine.name, gain)
        for engine in in_fp32
        if (seconds := figure.median(engine)) and (gain := figure.ratio(engine, race.ours))
    ]
    if not found:
        return f"{milliseconds(figure.median(race.ours) or 0)} ms, gain not measured, since no FP32 engine was in the race"
    _, fastest, gain = min(found, key=lambda one: one[0])
    return f"{gain.value:.1f} [{gain.low:.1f}, {gain.high:.1f}] times as fast as {fastest}"
