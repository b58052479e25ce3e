"""What the generation loop costs: the time per output token of an INT8 IR, beside that of the plain loop that the measurements use."""

import time
from collections.abc import Callable
from pathlib import Path

from experiments.decoding.methods import GREEDY, settings_of
from experiments.decoding.results import LoopTimes
from experiments.race.turns import thread_settings
from gpt2opt import environment
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.generation import stream
from gpt2opt.measure.child import Child
from gpt2opt.measure.memory import in_fresh_process

LOOP_RUNS, LOOP_TOKENS = 15, 32


class LoopContestant:
    """An INT8 IR that is driven by the plain loop of the measurements and by the generation loop."""

    def __init__(self, folder: Path, prompt: list[int]):
        from gpt2opt.runtime.ir_model import load_ir

        self.model, self.prompt = load_ir(folder), prompt

    def plain(self, new_tokens: int) -> float:
        """Return the TPOT of `Greedy`, in seconds."""
        greedy = Greedy(self.model.decoder([self.prompt], new_tokens))
        greedy.start()
        start = time.perf_counter()
        for _ in range(new_tokens - 1):
            greedy.step()
        return (time.perf_counter() - start) / (new_tokens - 1)

    def loop(self, new_tokens: int) -> float:
        """Return the TPOT of `stream`, in seconds."""
        tokens = stream(self.model, [self.prompt], settings_of(GREEDY, new_tokens))
        next(tokens)
        start = time.perf_counter()
        for _ in tokens:
            pass
        return (time.perf_counter() - start) / (new_tokens - 1)


LOOP_STEPS = ("exporting the IR", "the cost of the generation loop")


def time_loop(source: Path, prompt: list[int], step: Callable[[str], None]) -> LoopTimes:
    """Export a model as an INT8 IR (weights alone) and time both loops on it, in turns: the second one first in every second run."""
    step(LOOP_STEPS[0])
    folder = source.parent / "ir"
    in_fresh_process(export_int8, source, folder)
    step(LOOP_STEPS[1])
    seconds: dict[str, list[float]] = {"plain": [], "loop": []}
    with Child(LoopContestant, folder, prompt, environment=thread_settings(environment.threads())) as worker:
        for number in range(LOOP_RUNS + 1):
            for way in ("plain", "loop") if number % 2 else ("loop", "plain"):
                taken = worker.call(way, LOOP_TOKENS)
                if number:
                    seconds[way].append(taken)
    return LoopTimes(tuple(seconds["plain"]), tuple(seconds["loop"]))


def export_int8(source: Path, folder: Path) -> None:
    """Write the model in `source` as an IR with INT8 weights; nothing is calibrated, so any rows of tokens do."""
    from datasets import Dataset

    from gpt2opt.quantize.int8 import quantize_int8
    from gpt2opt.settings import MIN_CALIBRATION_SEQUENCES
    from gpt2opt.sources.models import load_model

    environment.quiet()
    tokenizer, model = load_model(source)
    rows = Dataset.from_dict({"input_ids": [list(range(16))] * MIN_CALIBRATION_SEQUENCES})
    quantize_int8(model, tokenizer, rows, folder, "w8")
