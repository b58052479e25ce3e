"""How the threads of torch should wait for each other: each way of waiting, alone and beside a process that keeps every core busy.

At the end of every parallel step, OpenMP's threads wait for the slowest. They may spin, which takes the core from whoever could use it, or
sleep, which takes some microseconds to end. libgomp spins 300,000 times before it sleeps, unless the environment says otherwise.
"""

import contextlib
import copy
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

from tqdm import tqdm

from experiments.contract import Experiment, now
from gpt2opt import environment
from gpt2opt.measure.child import Child
from gpt2opt.measure.stats import PERCENT, paired_ratio
from gpt2opt.measure.turns import again, turn_orders
from gpt2opt.report.tables import Table, show_ratio, table
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import find_model

ROWS, ROW_TOKENS = 8, 256
"""Calibration rows: a short quantization, since it is done in every round in every way of waiting."""
STEPS, STEP_ROWS = 4, 4
"""Training steps, and rows of `ROW_TOKENS` in each."""
PROMPT_TOKENS, NEW_TOKENS = 64, 64
SETTLE_S = 5
"""Until the busy process has loaded torch and keeps the cores busy."""
SPINS = "GOMP_SPINCOUNT"
POLICIES = {
    "libgomp's default": {SPINS: "300000"},
    f"{SPINS}=20000": {SPINS: "20000"},
    f"{SPINS}=1000": {SPINS: "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Ways of waiting, by the variables that ask for them; the first is the one that the others are compared with."""
WORKS = ("quantizing", "training", "generating")
"""What is timed: INC, gate and export; training steps; tokens. All of the bundled model, in torch but for the export."""


@dataclass(frozen=True)
class Waited:
    """One way of waiting. alone, beside: of each work of `WORKS`, the seconds of every round, without and beside a busy process."""

    policy: str
    alone: dict[str, tuple[float, ...]]
    beside: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Waiting:
    """What each way of waiting costs, the first of `POLICIES` first."""

    created: str
    environment: dict[str, Any]
    model: str
    waited: tuple[Waited, ...]
    schema: str = "gpt2opt.waiting/1"


class Work:
    """What runs in a process of its own."""

    def seconds(self, model: str) -> dict[str, float]:
        """Quantize, train and generate in torch, one after the other; return the seconds of each work of `WORKS`."""
        import torch

        from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
        from gpt2opt.sources.models import load_model
        from gpt2opt.sources.texts import find_texts
        from gpt2opt.torch_model import generate_tokens

        torch.set_num_threads(environment.threads())
        tokenizer, loaded = load_model(Path(model))
        rows = prepare_calibration_dataset([text.text for text in find_texts().calibration], tokenizer, ROW_TOKENS, ROWS)
        batch = torch.tensor(rows["input_ids"][:STEP_ROWS])

        def quantize() -> None:
            with tempfile.TemporaryDirectory() as scratch:
                quantize_int8(loaded, tokenizer, rows, Path(scratch, "int8"))

        def train() -> None:
            student = copy.deepcopy(loaded).train()
            optimizer = torch.optim.AdamW(student.parameters(), 1e-5)
            for _ in range(STEPS):
                student(batch, labels=batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        generate = partial(generate_tokens, loaded, [batch[0, :PROMPT_TOKENS].tolist()], NEW_TOKENS)
        generate()  # a process's first pass makes threads and buffers
        works: tuple[Callable[[], object], ...] = (quantize, train, generate)
        return {name: timeit(work, number=1) for name, work in zip(WORKS, works, strict=True)}


class Busy:
    """What keeps the cores busy in a process of its own: products of matrices without end, in as many threads as there are cores."""

    def __init__(self):
        threading.Thread(target=self.multiply, daemon=True).start()

    def multiply(self) -> None:
        import torch

        torch.set_num_threads(environment.threads())
        matrix = torch.ones(1024, 1024)
        while True:
            matrix @ matrix


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Keep every core busy meanwhile, from a process that waits as libgomp does by default."""
    with Child(Busy, environment=next(iter(POLICIES.values()))):
        time.sleep(SETTLE_S)
        yield


def compare_waiting(model: str = "auto", rounds: int = 5) -> Waiting:
    """Time three works in every way of waiting, in turns, alone and beside a busy process; progress goes to stderr.

    Every run is in a new process, which starts with the variables of its way of waiting; so nothing is warmed up between runs.

    Raises:
        ValueError: rounds < 2, or there is no such model.
    """
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    found = find_model(model)
    first = next(iter(POLICIES))
    policies = {first: POLICIES[first], again(first): POLICIES[first], **POLICIES}
    taken: dict[tuple[str, bool, str], list[float]] = defaultdict(list)
    for order in tqdm(turn_orders(list(policies), rounds), "rounds", rounds):
        for beside in (False, True):
            with busy_process() if beside else contextlib.nullcontext():
                for policy in order:
                    with Child(Work, environment=policies[policy]) as child:
                        for work, seconds in child.call("seconds", str(found.path)).items():
                            taken[policy, beside, work].append(seconds)
    waited = (Waited(name, *({work: tuple(taken[name, busy, work]) for work in WORKS} for busy in (False, True))) for name in policies)
    return Waiting(now(), environment.describe(), found.name, tuple(waited))


def work_table(result: Waiting, work: str) -> Table:
    """Show what a work takes in every way of waiting, alone and beside a busy process, and that over the first way."""
    first, *_ = result.waited
    rows = []
    for waited in result.waited:
        cells = []
        for seconds, base in ((waited.alone[work], first.alone[work]), (waited.beside[work], first.beside[work])):
            cells += [f"{statistics.median(seconds):.3g}", "" if waited is first else show_ratio(paired_ratio(seconds, base))]
        rows.append((waited.policy, *cells))
    over = f"÷ the first row's [{PERCENT}]"
    return table(("how threads wait", "alone, s", over, "beside a busy process, s", over), rows)


def waiting_caption(result: Waiting) -> str:
    rounds, machine = len(result.waited[0].alone[WORKS[0]]), environment.machine_label(result.environment)
    return (
        f"{result.model}. {machine}; each run in a process of its own, {rounds} rounds in turns. Quantizing: {ROWS} rows of {ROW_TOKENS} "
        f"tokens through INC, gate and export. Training: {STEPS} steps of {STEP_ROWS} rows. Generating: a prompt of {PROMPT_TOKENS} "
        f"tokens and {NEW_TOKENS} more in torch FP32. The busy process multiplies matrices in as many threads as there are cores."
    )


EXPERIMENT = Experiment(
    Waiting,
    compare_waiting,
    tables=lambda result: {work.capitalize(): work_table(result, work) for work in WORKS},
    charts=lambda _: {},
    caption=waiting_caption,
)
