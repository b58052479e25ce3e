"""The race on stub engines, and the real engines on a tiny model: they must compute what torch computes."""

import dataclasses
import random
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

from experiments.contract import read_result_of, write_json
from experiments.race import quality, run, verdicts
from experiments.race import report as tables
from experiments.race.charts import plot_growth, plot_race
from experiments.race.engines import LlamaCpp, OnnxFp32, OnnxGenAi, OpenVinoFp32, TorchEagerAttention, TorchFp32, base
from experiments.race.engines.base import Case, Fidelity, Stepwise, Timing, make_prompts, started, timed_turns, timing
from experiments.race.quality import HeldOut
from experiments.race.results import (
    BATCHED,
    FIGURES,
    MAIN,
    READING,
    SHORT,
    TPOT,
    TTFT_512,
    CaseTimings,
    EngineResult,
    GrowthPoint,
    Models,
    RaceResult,
    Shape,
    best_peer,
    throughput,
)
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.measure import child, limits
from gpt2opt.measure.limits import Limits
from gpt2opt.measure.memory import ChildRun
from gpt2opt.measure.quality import kl_divergence
from gpt2opt.measure.stats import Estimate, paired_ratio
from gpt2opt.measure.turns import Contestants, Here
from tests.conftest import ROOT
from tests.experiments.stubs import Crashing, CrashingAloud, MissingStub, OursStub, Owning, PeerStub, Printing, Stub, UnconvertibleStub

SHAPE = Shape(block_weights=1000, head_weights=100)
CASE = Case(4, 3)


# --- the engines' part of the turns; the turns themselves are in tests/measure/test_turns.py


def test_all_engines_get_the_same_prompts_and_every_round_another():
    contestants = {name: Stub() for name in "abc"}
    with Contestants({name: Here(each) for name, each in contestants.items()}) as turns:
        *_, outcome = timed_turns(turns, (CASE, Case(4, 3, 2)), 3, 50)
    seen = [contestant.seen for contestant in contestants.values()]
    assert seen[1] == seen[2]
    assert len({str(prompts) for prompts in seen[1]}) == 2 * (1 + 3)  # one prompt of each case for the warm-up, one for each round
    assert outcome.samples["b"][CASE] == [Timing(0.002, (0.001, 0.001))] * 3


def test_too_few_tokens_are_not_a_fast_engine():
    class Stops(Stub):
        def generate(self, prompts, new_tokens):
            return super().generate(prompts, new_tokens - 1)

    with pytest.raises(RuntimeError, match="made 2 tokens where 3 were asked for"):
        Stops().timed(make_prompts(CASE, 50, 0), 3)


def test_repeating_prompt_repeats():
    prompts = make_prompts(Case(40, 3, 2, text="repeating"), 1000, 1)
    assert prompts.shape == (2, 40)
    assert (prompts[:, :16] == prompts[:, 16:32]).all()
    assert len(np.unique(prompts[0])) > 8


# --- processes


def test_engine_in_its_own_process_answers_and_its_death_is_told():
    with started(Printing, Path("."), 1)() as engine:
        assert engine.call("timed", np.zeros((1, 4), np.int64), 3) == Timing(0.002, (0.001, 0.001))
        with pytest.raises(RuntimeError):
            engine.call("timed", np.zeros((1, 4), np.int64), 9)


def test_an_engine_that_dies_leaves_its_signal_and_its_last_words(result):
    died = "failed on 1×(4+3): the process died with exit code -4 (SIGILL: Illegal instruction)"
    starts = {"ours": Here(Stub()), "mute": started(Crashing, Path("."), 1), "loud": started(CrashingAloud, Path("."), 1)}
    with Contestants(starts, may_fail=True) as turns:
        *_, outcome = timed_turns(turns, (CASE,), 1, 50)
        left = turns.left
    assert set(outcome.samples["ours"]) == {CASE}
    assert left == {"mute": f"{died}; it said nothing", "loud": f"{died}; it said last: built for another CPU | ggml: <AMX> | tile 3"}
    gone = tuple(run.with_outcome(engine_result(name, 1), outcome, left) for name in left)
    shown = tables.all_tables(dataclasses.replace(result, engines=(*result.engines, *gone)))[tables.ABSENT]
    assert [row[0] for row in shown.rows] == ["absent", "mute", "loud"]
    assert shown.rows[2][2] == f"{died}; it said last: built for another CPU / ggml: ‹AMX› / tile 3"  # in one cell, and no tag
    assert tables.ABSENT in tables.EXPERIMENT.in_documents


def test_memory_is_suspected_only_of_what_was_killed():
    assert child._last_words(-9, "").endswith("(SIGKILL: Killed); it said nothing; was memory short?")
    assert child._last_words(3, "a\nb\nc\nd\n") == "a\nb\nc\nd\nthe process died with exit code 3; it said last: b | c | d"


def test_an_engine_may_live_in_an_environment_of_its_own(tmp_path, monkeypatch):
    place = tmp_path / ".venv-own" / "lib" / "python3.11" / "site-packages" / "own_package-1.2.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Name: own-package\nVersion: 1.2\n")
    (tmp_path / ".venv-own" / "bin").mkdir()
    python = tmp_path / ".venv-own" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(base, "ROOT", tmp_path)
    assert (Owning.version(), Stub.python(), TorchFp32.version() is not None) == ("1.2", None, True)
    with started(Owning, Path("."), 1)() as engine:
        assert engine.call("paths") == [str(ROOT)]  # none of this environment's packages gets into that one


@pytest.mark.slow
def test_run_names_what_is_missing_and_what_fails(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ENGINES", (OursStub, PeerStub, MissingStub, UnconvertibleStub))
    monkeypatch.setattr(run, "GROWTH_CASES", (Case(16, 2),))
    monkeypatch.setattr(run, "prepare_models", lambda size, out: run.make_models(size, out / "models"))  # faster than in a process
    result = run.run_race(str(model_dir), 2, "", tmp_path)
    assert {engine.name: engine.left_out for engine in result.engines} == {
        "ours": None,
        "ours again": None,
        "peer": None,
        "missing": "no-such-package is not installed",
        "unconvertible": "failed: ValueError: pruned heads are not supported",
    }
    assert result.models.full.block_weights > result.models.pruned.block_weights
    assert result.models.pruned_share == "2 of 12 heads (16.7%)"
    assert result.ours.note == "a stub; ten bytes"  # what the engine is, and the remark of its conversion
    assert [len(result.ours.timings(case)) for case in (SHORT, *BATCHED)] == [2, 2, 2]
    assert result.ours.disk_bytes == 10
    assert result.ours.peak_rss_bytes > 10e6
    assert len(result.limits) == result.rounds
    assert result.limit("int8_ops_per_s") > 1e9
    assert [(point.engine, len(point.timings)) for point in result.growth] == [
        ("ours", run.GROWTH_ROUNDS), ("ours again", run.GROWTH_ROUNDS),
    ]  # fmt: skip
    assert read_result_of("race", tmp_path) == result


@pytest.mark.slow
def test_a_race_that_is_interrupted_leaves_the_rounds_that_were_done(model_dir, tmp_path, monkeypatch):
    def prompts_of(case, vocab_size, *seed):
        if seed == (2,):
            raise KeyboardInterrupt
        return make_prompts(case, vocab_size, *seed)

    def in_this_process(function, *arguments):
        return ChildRun(function(*arguments), {}, None, None)

    monkeypatch.setattr(run, "in_fresh_process", in_this_process)  # faster; another test starts the processes
    monkeypatch.setattr(run, "ENGINES", (OursStub, PeerStub))
    monkeypatch.setattr(base, "make_prompts", prompts_of)
    with pytest.raises(KeyboardInterrupt):
        run.run_race(str(model_dir), 3, "", tmp_path)
    found = read_result_of("race", tmp_path)
    assert (found.rounds, len(found.limits), found.growth) == (1, 1, ())
    assert [len(engine.timings(SHORT)) for engine in found.raced] == [1, 1, 1]
    assert tables.engines_table(found).header


def test_wrong_input_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match="'gpt5' is neither"):
        run.run_race("gpt5", out=tmp_path)
    with pytest.raises(ValueError, match="'vllm' is not known; expected some of ours"):
        run.run_race("gpt2", engines="vllm", out=tmp_path)
    (tmp_path / "race.json").write_text('{"schema": "gpt2opt.run/3"}')
    with pytest.raises(ValueError, match="schema"):
        read_result_of("race", tmp_path)
    (tmp_path / "race.json").write_text(f'{{"schema": "{RaceResult.schema}"}}')
    with pytest.raises(ValueError, match="is not a whole result"):
        read_result_of("race", tmp_path)


# --- quality


class Knowing(Stepwise):
    """Its logits are those it is given, and wrong ones for every third token."""

    def __init__(self, logits):
        self.logits = logits

    def read(self, ids, past):
        self.place = 0 if not past else self.place + 1
        return np.roll(self.logits[:, self.place], int(self.place % 3 == 2), axis=-1)


class Telling(Knowing):
    """It tells the chosen token alone."""

    def forced(self, row, prompt_tokens):
        for logits in super().forced(row, prompt_tokens):
            yield int(logits.argmax())


def test_quality_is_that_of_what_is_decoded_step_by_step(tmp_path):
    logits = np.random.default_rng(0).normal(size=(1, 6, 50)).astype(np.float32)
    np.savez(tmp_path / "reference.npz", rows=np.arange(10)[None], logits=logits, distinct_tokens=50)
    found = Knowing(logits).fidelity(tmp_path / "reference.npz")
    reference, model = (torch.log_softmax(torch.from_numpy(each), -1) for each in (logits[0, 2::3], np.roll(logits[0, 2::3], 1, axis=-1)))
    assert found == Fidelity((pytest.approx(float(kl_divergence(reference, model).sum()), rel=1e-5),), (4,), 6)
    assert Telling(logits).fidelity(tmp_path / "reference.npz") == Fidelity(None, (4,), 6)
    np.savez(tmp_path / "copies.npz", rows=np.arange(10)[None], logits=logits, distinct_tokens=1)
    assert Telling(logits).fidelity(tmp_path / "copies.npz").same_top == (6,)  # all are copies of one token
    with pytest.raises(ValueError, match="not finite"):
        Knowing(logits * np.inf).fidelity(tmp_path / "reference.npz")


@pytest.fixture
def reference(model, tokenizer, tmp_path):
    """A folder of models, and the held-out text of a race between them."""
    for part in ("full", "pruned"):
        if part == "pruned":
            model.prune_heads({0: [0, 1], 1: [0, 1]})
        model.save_pretrained(tmp_path / part)
        tokenizer.save_pretrained(tmp_path / part)
    return tmp_path, quality.write_reference(tmp_path)


@pytest.mark.parametrize("engine", [TorchFp32, OnnxFp32, OnnxGenAi, OpenVinoFp32, LlamaCpp])
def test_a_float_engine_is_near_the_reference_of_its_own_weights(engine, reference, tmp_path):
    if engine.version() is None:
        pytest.skip(f"{engine.package} is not installed")
    models, held_out = reference
    source = models / ("full" if engine.full_heads else "pruned")
    if engine is OnnxGenAi:
        run.convert(OnnxFp32, source, tmp_path / "float")
        source = tmp_path / "float"
    run.convert(engine, source, tmp_path / "engine")
    loaded = base.loaded(engine, tmp_path / "engine", 1)
    most = 5e-3 if engine is LlamaCpp else 1e-6  # that one rounds to 8 bits
    own, other = ("full", "pruned") if engine.full_heads else ("pruned", "full")
    found = loaded.fidelity(quality.reference_file(models, own))
    assert 0 <= sum(found.kl_nats) < most * held_out.rows * held_out.tokens
    assert sum(found.same_top) > 0.95 * held_out.rows * held_out.tokens
    assert sum(loaded.fidelity(quality.reference_file(models, other)).kl_nats) > 2 * sum(found.kl_nats)


def test_of_random_weights_quality_says_nothing(reference, result):
    models, held_out = reference
    assert held_out.nll_nats > held_out.chance_nats
    assert HELD_OUT.says_something
    raced = dataclasses.replace(result, held_out=held_out)
    assert run.with_fidelity(raced, Contestants({}), models) == raced  # no engine was asked
    assert "columns of quality are empty, since these weights do not predict text" in tables.caption(raced)
    assert "Quality was not measured" in tables.caption(result)


def test_an_engine_without_quality_stays_in_the_race_and_says_why(result, tmp_path):
    entry = dataclasses.replace(engine_result("ours", 0.01), cases=(CaseTimings(SHORT, (Timing(0.1, (0.01,)),)),))
    raced = dataclasses.replace(result, engines=(entry,), held_out=HELD_OUT)
    with Contestants({"ours": Here(Stub())}, may_fail=True) as contestants:
        (found,) = run.with_fidelity(raced, contestants, tmp_path).engines
    assert (found.left_out, found.fidelity) == (None, None)
    assert found.note.startswith("a remark; quality not measured: failed: ")


def test_the_reference_is_torch_fp32_of_the_heads_that_the_engine_runs(result, tmp_path):
    class Asked(Stub):
        def fidelity(self, reference):
            return Fidelity(None, (len(reference.stem),), 8)

    taken = (CaseTimings(SHORT, (Timing(0.1, (0.01,)),)),)
    entries = tuple(dataclasses.replace(engine_result(*each), cases=taken) for each in (("ours", 1), ("whole", 1)))
    entries = (entries[0], dataclasses.replace(entries[1], full_heads=True))
    raced = dataclasses.replace(result, engines=entries, held_out=HELD_OUT)
    with Contestants({"ours": Here(Asked()), "whole": Here(Asked())}) as contestants:
        found = run.with_fidelity(raced, contestants, tmp_path).engines
    assert [engine.fidelity.same_top for engine in found] == [(len("pruned"),), (len("full"),)]


def test_the_table_of_engines_shows_quality_beside_time(result):
    fidelity = {"peer": Fidelity((0.1, 0.3), (60, 64), 64), "slow peer": Fidelity(None, (64, 64), 64)}
    engines = tuple(dataclasses.replace(engine, fidelity=fidelity.get(engine.name)) for engine in result.engines)
    raced = dataclasses.replace(result, engines=engines, held_out=HELD_OUT)
    ours, peer, slow_peer = (row[4:6] for row in tables.engines_table(raced).rows)
    assert ours == ("–", "–")
    assert peer[0].startswith("0.00313 [")
    assert peer[1] == "96.9%"
    assert slow_peer == ("–", "100.0%")
    assert "on 128 tokens of 2 documents of a text; the unpruned model takes 4.00 nats per token" in tables.caption(raced)


# --- figures, tables, charts


def test_interval_covers_a_known_ratio_through_a_shared_slow_down():
    draw = random.Random(1)
    load = [draw.choice((1, 3)) for _ in range(15)]
    ours = [x * draw.gauss(1, 0.02) for x in load]
    theirs = [1.5 * x * draw.gauss(1, 0.02) for x in load]
    ratio = paired_ratio(theirs, ours)
    assert ratio.low < 1.5 < ratio.high
    assert ratio.high - ratio.low < 0.1
    assert paired_ratio(ours, ours) == Estimate(1, 1, 1)


HELD_OUT = HeldOut("a text", rows=2, tokens=64, nll_nats=4.0, chance_nats=9.0)


def engine_result(name: str, seconds_a_token: float, **fields) -> EngineResult:
    def timings(case):
        step = seconds_a_token * case.batch_size
        return CaseTimings(case, tuple(Timing(50 * step * slow, (2 * step * slow, *(step * slow,) * 126)) for slow in (1, 1.1, 2)))

    fields = {"full_heads": False, "disk_bytes": 1000, "peak_rss_bytes": 2000} | fields
    return EngineResult(name, "numpy", "1.26", "a remark", shape=SHAPE, block_bytes=1, head_bytes=0.5, cases=(timings(MAIN),), **fields)


@pytest.fixture
def result() -> RaceResult:
    raced = (engine_result("ours", 0.01), engine_result("peer", 0.02), engine_result("slow peer", 0.04))
    absent = dataclasses.replace(engine_result("absent", 1), cases=(), left_out="absent is not installed")
    growth = tuple(
        GrowthPoint(name, case, (Timing(0.1, (0.01, 0.01)),), 3000) for name in ("ours", "peer") for case in (Case(128, 8), Case(128, 8, 2))
    )
    machine = {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}
    models = Models("stretched", 12, 10, 100, 1024, SHAPE, SHAPE)
    rounds = (Limits(1e5, 1e6, 1e6), Limits(1e5, 1e6, 1e6), Limits(2e5, 2e7, 1e6))
    return RaceResult("2026-01-01", machine, "gpt2", models, 3, rounds, (*raced, absent), growth)


def test_figures_of_a_known_timing(result):
    assert throughput(Timing(0.1, (0.05, 0.05)), Case(4, 3, 2)) == pytest.approx(30)
    assert TPOT.median(result.ours) == pytest.approx(0.011)
    assert str(TTFT_512.ratio(result.engine("peer"), result.ours)) == "2.00 [2.00, 2.00]"
    assert best_peer(result).name == "peer"
    assert result.ours.read_bytes == 1050
    assert result.ours.operations(512) == 2 * (512 * 1000 + 100)


def test_result_survives_json(result, tmp_path):
    write_json(tmp_path / "race.json", result)
    assert read_result_of("race", tmp_path) == result


def test_tables_show_limits_and_who_is_left_out(result):
    table = tables.limits_table(result)
    assert table.header[2:6] == ("TPOT after 512: limit, ms", "÷ limit [95%]", "TTFT 512: limit, ms", "÷ limit [95%]")
    ours = next(row for row in table.rows if row[0] == "ours")
    assert ours[2] == "5.25"  # 1050 bytes at 200 kB/s, the best of all rounds
    assert ours[3].startswith("2.10 [")  # 10, 11 and 20 ms measured
    assert ours[6] == "2.0%"  # one step beyond a usual one, TTFT is 50
    assert "absent is not installed" in str(tables.remarks_table(result))
    assert "absent" not in str(tables.ratio_table(result))
    assert tables.engines_table(result).rows[1] == ("peer", "1100", "22", "3.92", "–", "–", "0.001", "0.002")


def test_what_an_engine_beats_is_not_called_a_limit(result):
    assert "no engine was faster" in tables.caption(result)
    fast = engine_result("fast peer", 0.005)
    beaten = dataclasses.replace(result, engines=(*result.engines, fast))
    assert [engine.name for engine in READING.faster(beaten)] == ["fast peer"]  # 5 ms in its best round, 5.5 in its median one
    assert READING.ratio(beaten, fast).value > 1
    assert "which is not the limit of the machine, since some engines were faster: fast peer." in tables.caption(beaten)
    assert tables.limits_table(beaten).header[2:6] == (
        "TPOT after 512: probe, ms", "÷ probe [95%]", "TTFT 512: limit, ms", "÷ limit [95%]",
    )  # fmt: skip


def test_the_probe_takes_the_best_of_all_its_ways():
    ways = [lambda: time.sleep(0.02), lambda: time.sleep(0.005), lambda: time.sleep(0.02)]
    assert 0.005 <= limits._best(ways) < 0.02


def test_the_caption_says_what_was_pruned_and_on_which_kind_of_cpu(result):
    caption = tables.caption(result)
    assert "2 of 12 heads (16.7%) of each layer pruned" in caption
    assert "a CPU (AVX2 alone), 2 threads" in caption


def test_rows_of_ours_are_no_peers(result):
    faster = (engine_result("ours, unpruned", 0.001, full_heads=True), engine_result("ours again", 0.001))
    extended = dataclasses.replace(result, engines=(*result.engines, *faster))
    assert best_peer(extended).name == "peer"
    assert "unpruned" not in str(tables.verdict_table(extended))


def test_the_smallest_measurable_difference_comes_from_ours_against_itself(result):
    assert [row[2] for row in tables.verdict_table(result).rows] == ["–"] * 4
    again = dataclasses.replace(result, engines=(*result.engines, engine_result("ours again", 0.0103)))
    assert [row[2] for row in tables.verdict_table(again).rows] == ["1.03 [1.03, 1.03]"] * 4


def test_the_verdict_says_whom_ours_is_behind_even_with_and_ahead_of(result):
    def said_of(*more: EngineResult) -> tuple[str, ...]:
        rows = tables.verdict_table(dataclasses.replace(result, engines=(*result.engines, *more))).rows
        assert len(rows) == 4  # of the figures that were measured alone
        return next(row for row in rows if row[0] == "TTFT 512")

    assert said_of() == ("TTFT 512", "550 ms", "–", "peer", "2.00 [2.00, 2.00]", "none", "0", "2")
    behind, even = engine_result("quick peer", 0.009, full_heads=True), engine_result("twin", 0.01)
    assert said_of(behind, even)[3:] == ("quick peer *", "0.90 [0.90, 0.90]", "quick peer *", "1", "2")


def test_the_p95_of_tpot_is_paired_by_round():
    def of(slow: float) -> EngineResult:
        steps = tuple(slow * step for step in range(1, 101))
        return dataclasses.replace(engine_result("one", 1), cases=(CaseTimings(MAIN, tuple(Timing(1, steps) for _ in range(7))),))

    (figure,) = (figure for figure in FIGURES if figure.name == "p95 of TPOT")
    assert figure.median(of(1)) == pytest.approx(95, abs=1)
    assert str(figure.ratio(of(3), of(1))) == "3.00 [3.00, 3.00]"


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [True, False, False, True]),  # Holm's bounds: 0.0125, 0.0167, then 0.03 > 0.025
        ([0.05], [True]),
        ([0.06, 0.001], [False, True]),
        ([0.02, 0.02, 0.02], [False] * 3),  # each is below 0.05, the smallest is above 0.0167
        ([], []),
    ],
)
def test_holm_rejects_step_by_step(p_values, rejected):
    assert verdicts.holm(p_values) == rejected


def test_seven_rounds_can_show_a_difference_of_a_tenth_among_a_hundred_comparisons():
    draw = random.Random(1)
    base = [draw.gauss(1, 0.02) for _ in range(7)]
    assert verdicts.p_value([1.1 * x * draw.gauss(1, 0.02) for x in base], base) < 0.05 / 100
    assert verdicts.p_value([x * draw.gauss(1, 0.02) for x in base], base) > 0.05
    assert [verdicts.p_value([1.0] * count, [1.0] * count) for count in (1, 2)] == [1, 1]


def test_many_comparisons_need_a_clearer_difference(result):
    """What would be slower alone is even among many."""

    def noisy(name: str) -> EngineResult:
        rounds = tuple(Timing(0.5 * slow * noise, (0.02,)) for slow, noise in zip((1, 1.1, 2), (1.2, 1.32, 1.25), strict=True))
        return dataclasses.replace(engine_result(name, 0.01), cases=(CaseTimings(MAIN, rounds),))

    def verdict_on(count: int) -> str:
        engines = (result.ours, *(noisy(f"peer {number}") for number in range(count)))
        return verdicts.verdicts(dataclasses.replace(result, engines=engines))[TTFT_512, "peer 0"]

    assert verdict_on(1) == verdicts.SLOWER
    assert verdict_on(30) == verdicts.EVEN


def test_optimum_intels_own_int8_stands_beside_ours_on_each_kind_of_cpu(result):
    ours = dataclasses.replace(engine_result("ours", 0.01), decode="decode step", fidelity=Fidelity((0.2, 0.6), (9, 9), 10))
    theirs = dataclasses.replace(engine_result("OpenVINO INT8", 0.02), fidelity=Fidelity((1.0, 1.0), (8, 9), 10))
    after = dataclasses.replace(result, engines=(ours, theirs))
    before = dataclasses.replace(result, engines=(*result.engines, engine_result("OpenVINO INT8", 0.03)))
    shown = tables.optimum_table({"avx2": before, "avx512_vnni": after})
    assert shown.header[0] == "optimum-intel's INT8, gpt2 [95%]"
    assert [label.endswith("(before the decode step)") for label in shown.header[1:]] == [True, False]
    rows = {row[0]: row[1:] for row in shown.rows}
    assert rows["TPOT after 512, ÷ ours"][1] == "2.00 [2.00, 2.00]"
    assert rows["same top token as FP32"] == ("–", "85.0%; ours 90.0%")
    assert rows["KL from FP32, nats per token"][1].startswith("0.10000 [")
    assert "; ours 0.04000 [" in rows["KL from FP32, nats per token"][1]
    assert "Ours decoded by: decode step." in tables.caption(after)
    assert "Taken before the decode step" in tables.caption(result)


def test_of_tokens_a_second_more_is_better(result):
    def with_batch(engine: EngineResult, seconds: float) -> EngineResult:
        taken = CaseTimings(BATCHED[0], (Timing(seconds, (seconds,) * 31),) * 3)
        return dataclasses.replace(engine, cases=(*engine.cases, taken))

    ours, peer, slow_peer, absent = result.engines
    raced = dataclasses.replace(result, engines=(with_batch(ours, 0.02), with_batch(peer, 0.01), with_batch(slow_peer, 0.03), absent))
    assert tables.verdict_table(raced).rows[-1] == (
        "batch 4", "200 tokens/s", "–", "peer", "2.00 [2.00, 2.00]", "peer", "0", "1",
    )  # fmt: skip


def test_charts_show_every_engine_that_raced(result):
    mpl.use("Agg")
    first, *_ = plot_race(result)
    assert [label.get_text() for label in first.get_yticklabels()] == ["ours", "peer", "slow peer"]
    assert [bar.get_width() for bar in first.patches] == pytest.approx([550, 1100, 2200])
    assert [line.get_label() for line in plot_growth(result)[0].lines] == ["ours", "peer"]


# --- the engines themselves


@pytest.mark.parametrize("engine", [TorchFp32, TorchEagerAttention, OpenVinoFp32, OnnxFp32, OnnxGenAi, LlamaCpp])
def test_engine_generates_what_torch_generates(engine, model, tokenizer, tmp_path):
    """Greedy tokens of two sequences; the engines that can, with pruned heads."""
    if engine.version() is None:
        pytest.skip(f"{engine.package} is not installed")
    if not engine.full_heads:
        model.prune_heads({0: [0, 1], 1: [0, 1]})
    source, folder = tmp_path / "source", tmp_path / "engine"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    if engine is OnnxGenAi:  # from the float model: INT8 need not choose the same tokens
        run.convert(OnnxFp32, source, tmp_path / "float")
        source = tmp_path / "float"
    run.convert(engine, source, folder)
    prompts = np.random.default_rng(1).integers(len(tokenizer), size=(2, 12))
    expected = model.generate(
        torch.from_numpy(prompts), attention_mask=torch.ones(2, 12), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
    )
    loaded = engine()
    loaded.load(folder, 1)
    for asked in (prompts[:, ::-1].copy(), prompts):  # the second call finds nothing of the first
        tokens = Greedy(loaded.decoder(asked, 6)).generate(6)
    assert tokens == expected[:, 12:].tolist()


def test_marks_become_times_of_tokens():
    start = time.perf_counter()
    taken = timing([start, start + 3, start + 4, start + 6])
    assert (taken.first_s, *taken.later_s) == pytest.approx((3, 1, 2))
    assert taken.total_s == pytest.approx(6)
