"""What the committed results tell `gpt2opt doctor`, which is installed without them: what INT8 gains, and how much RAM was measured."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.contract import json_path, read_result_of
from experiments.race.results import MAIN, TPOT, TTFT_512, Figure, RaceResult
from gpt2opt.apps.doctor.needs import GENERATE
from gpt2opt.environment import machine_label
from gpt2opt.run.record import read_record
from gpt2opt.settings import QUANTIZE

FP32_BYTES = 4


def measured(results: Path) -> str:
    """Return the text of `gpt2opt/apps/doctor/measured.json`, given the folder of the results of all kinds of CPU."""
    kinds = sorted(path.name for path in results.iterdir() if path.is_dir())
    races = {kind: read_result_of("race", results / kind) for kind in kinds if json_path("race", results / kind).exists()}
    ram: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, race in races.items():
        _keep_largest(ram, race.size, QUANTIZE, race.ours.prepare_peak_rss_bytes, kind)
        _keep_largest(ram, race.size, GENERATE, race.ours.peak_rss_bytes, kind)
    for kind in kinds:
        if (path := results / kind / "run.json").exists() and (record := read_record(path)).stages[-1].name == QUANTIZE:
            memory = record.measured("INT8").memory
            _keep_largest(ram, record.sources["model"]["name"], GENERATE, memory.peak_rss_bytes if memory else None, kind)
    content = {"int8": {kind: int8_gain(race) for kind, race in races.items()}, "ram": ram}
    return json.dumps(content, indent=1) + "\n"


def int8_gain(race: RaceResult) -> dict[str, Any]:
    """Return the times of our INT8, and how many times as long the fastest FP32 engine takes; None if no such engine raced."""
    facts = {"size": f"size of {race.size}", "machine": machine_label(race.environment)}
    case = {"prompt_tokens": MAIN.prompt_tokens, "new_tokens": MAIN.new_tokens}
    return facts | case | {name: _gain(race, figure) for name, figure in (("TTFT", TTFT_512), ("TPOT", TPOT))}


def _gain(race: RaceResult, figure: Figure) -> dict[str, Any]:
    """Compare with the fastest of the engines that run the same pruned model in FP32: what else a user of this CPU would take."""
    in_fp32 = [engine for engine in race.raced if engine.block_bytes == FP32_BYTES and not engine.full_heads and figure.per_round(engine)]
    fastest = min(in_fp32, key=figure.order, default=None)
    times = fastest and figure.ratio(fastest, race.ours)
    return {
        "int8_s": figure.median(race.ours),
        "fp32_s": fastest and figure.median(fastest),
        "fp32_engine": fastest and fastest.name,
        "times": times and list(dataclasses.astuple(times)),
    }


def _keep_largest(ram: dict, size: str, stage: str, taken: int | None, kind: str) -> None:
    known = ram.setdefault(size, {}).get(stage)
    if taken is not None and (known is None or taken > known["bytes"]):
        ram[size][stage] = {"bytes": taken, "kind": kind}
