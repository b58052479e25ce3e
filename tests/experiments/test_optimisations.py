"""The optimisations: stub engines in their own processes, and findings by arithmetic."""

import dataclasses
import json
import threading
import time

import matplotlib as mpl
import pytest
import torch

from experiments import optimisations as run
from experiments.contract import CONFIRMED, OPEN, REFUTED
from experiments.decoding.methods import settings_of
from experiments.optimisations import (
    EngineTimes,
    Optimisations,
    caption,
    compare_optimisations,
    find_all,
    plot_optimisations,
    speed_table,
    time_engines,
)
from experiments.race.engines.base import Case, Driven, make_prompts
from experiments.race.engines.pytorch import compiled
from experiments.race.results import Models, Shape
from gpt2opt.storage import from_json
from tests.experiments.stubs import Int8Stub, TorchStub, UnconvertibleTorchStub


def row(name: str, threads: int, seconds: float, **fields) -> EngineTimes:
    slow = (1.0, 1.01, 1.5)
    return EngineTimes(
        name, "a note", "numpy", "1", threads, tuple(seconds * s for s in slow), tuple(1.2 * seconds * s for s in slow), **fields
    )


@pytest.fixture
def result() -> Optimisations:
    rows = (
        row("torch eager FP32", 1, 2.0),
        row("torch eager FP32", 2, 1.5),
        row("torch FP32 without SDPA", 2, 1.51),
        row("torch.compile FP32", 2, 1.0),
        row("torch dynamic INT8", 1, 1.0),
        row("torch dynamic INT8", 2, 0.5),
        EngineTimes("ONNX Runtime FP32", "a note", "onnxruntime", None, 2, left_out="onnxruntime is not installed"),
    )
    machine = {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}
    took = {"torch eager FP32": (20.0, 15.0, 8.0), "torch dynamic INT8": (10.0, 6.0, 4.0)}
    several = {
        f"{name}, {way}": (seconds, 1.1 * seconds, 1.2 * seconds)
        for name, of_ways in took.items()
        for way, seconds in zip((run.IN_TURN, run.AT_ONCE, run.BATCH), of_ways, strict=True)
    }
    return Optimisations("2026", machine, "gpt2", "the bundled model's, stretched", Case(4, 8), 3, rows, several)


SHAPE = Shape(1, 1)
MODELS = Models("random", 12, 12, 320, 256, SHAPE, SHAPE)


def test_engines_take_turns_with_every_number_of_threads_and_what_fails_is_told(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run.environment, "threads", lambda: 2)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "full").symlink_to(model_dir)
    monkeypatch.setattr(run, "COMPILED", (Int8Stub,))
    raced = [TorchStub, Int8Stub, UnconvertibleTorchStub]
    found = time_engines(raced, MODELS, tmp_path, Case(4, 3), 2)
    assert [(row.name, row.threads) for row in found] == [
        ("torch eager FP32", 1), ("torch eager FP32 again", 1), ("torch eager FP32", 2), ("torch dynamic INT8", 2),
        ("ONNX Runtime FP32", 1), ("ONNX Runtime FP32", 2),
    ]  # fmt: skip
    assert [len(row.greedy_s) for row in found] == [len(row.sampling_s) for row in found] == [2, 2, 2, 2, 0, 0]
    assert [row.left_out for row in found] == [None] * 4 + ["failed: ValueError: no such operator"] * 2


def test_several_outputs_are_other_draws_of_one_prompt_made_in_every_way(tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("x")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = []

    def seconds(engine, prompts, settings):
        seen.append((prompts.shape, settings.seed, threading.current_thread().name, engine))
        time.sleep(0.01)
        return 0.5

    monkeypatch.setattr(TorchStub, "seconds", seconds)
    prompt, settings = make_prompts(Case(4, 3), 320, 0), settings_of("top-k", 3)
    took = {}
    for way, writers in ((run.IN_TURN, 1), (run.AT_ONCE, 2), (run.BATCH, 1)):
        seen.clear()
        took[way] = run.Several(TorchStub, tmp_path, way, 1, writers).seconds(prompt, settings)
        if way == run.BATCH:
            assert [shape for shape, *_ in seen] == [(run.OUTPUTS, 4)]
        else:
            assert sorted(seed for _, seed, *_ in seen) == list(range(run.OUTPUTS))
            assert len({name for _, _, name, _ in seen}) == writers
            assert len({id(engine) for *_, engine in seen}) == run.OUTPUTS  # each with a KV cache of its own
    assert took[run.BATCH] == 0.5
    assert took[run.IN_TURN] >= 0.1


def test_several_outputs_take_turns_in_processes_of_their_own(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run.environment, "threads", lambda: 2)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "torch-eager-fp32").mkdir()
    (tmp_path / "models" / "torch-eager-fp32" / "weights").write_text("x")
    found = run.time_several([TorchStub], MODELS, tmp_path, Case(4, 3), 2)
    assert {name: len(taken) for name, taken in found.items()} == dict.fromkeys(
        (f"torch eager FP32, {way}" for way in (run.IN_TURN, f"{run.IN_TURN} again", run.AT_ONCE, run.BATCH)), 2
    )
    assert all(0 < seconds < 5 for taken in found.values() for seconds in taken)
    assert run.time_several([], MODELS, tmp_path, Case(4, 3), 2) == {}


def test_every_engine_lets_its_caller_run_the_loop():
    assert all(issubclass(engine, Driven) and engine.decoder is not Driven.decoder for engine in run.ENGINES)


HELPED = "several outputs at once (multithreading) make dynamic INT8 faster still"
DYNAMIC_INT8 = ("dynamic INT8 is faster than FP32", HELPED, "dynamic INT8 is the fastest")


def verdicts(result: Optimisations) -> dict[str, tuple[str, str]]:
    return {finding.claim: (finding.verdict, finding.figure) for finding in find_all(result)}


def test_the_engines_confirm_or_refute_what_is_claimed_of_them(result):
    found = verdicts(result)
    assert found["dynamic INT8 is faster than FP32"] == (CONFIRMED, "its time ÷ FP32's, 2 threads: 0.33 [0.33, 0.33]")
    verdict, figure = found[HELPED]
    assert verdict == CONFIRMED
    assert figure == ("time of 10 outputs at once, a thread each ÷ one after another: 0.60 [0.60, 0.60]; as one batch: 0.40 [0.40, 0.40]")
    verdict, figure = found["dynamic INT8 is the fastest"]
    assert (verdict, figure) == (CONFIRMED, "time of torch.compile FP32 with 2 threads ÷ its time: 2.00 [2.00, 2.00]")
    assert found["torch.compile gains little (less than 10%)"][0] == REFUTED + ": it gains more"
    assert found["SDPA gains little (less than 10%)"][0] == CONFIRMED
    fast = dataclasses.replace(result, rows=(*result.rows, row("ONNX Runtime INT8", 2, 0.25)))
    verdict, figure = verdicts(fast)["dynamic INT8 is the fastest"]
    assert verdict == REFUTED
    assert figure == "time of ONNX Runtime INT8 with 2 threads ÷ its time: 0.50 [0.50, 0.50]"
    assert verdicts(fast)["dynamic INT8 is faster than FP32"] == found["dynamic INT8 is faster than FP32"]
    longer = result.several | {f"torch dynamic INT8, {run.AT_ONCE}": (11.0, 12.1, 13.2)}
    slow = dataclasses.replace(result, rows=(*result.rows[:-2], row("torch dynamic INT8", 2, 3.0)), several=longer)
    assert [verdicts(slow)[claim][0] for claim in DYNAMIC_INT8] == [REFUTED, REFUTED, REFUTED]
    alone = verdicts(dataclasses.replace(result, rows=result.rows[:2]))
    assert {alone[claim][0] for claim in DYNAMIC_INT8} == {"not measured here: needs torch dynamic INT8 and torch eager FP32"}
    assert alone["torch.compile gains little (less than 10%)"][0].startswith("not measured here: needs torch.compile FP32")


def test_each_need_is_told_its_fastest_choice(result):
    claim = "the choice depends on what is needed"
    verdict, figure = verdicts(result)[claim]
    assert verdict == CONFIRMED
    assert figure == (
        "one text: torch dynamic INT8, 2 threads (0.25 [0.25, 0.25] × the time of torch eager FP32, 1 thread); one text, exactly as FP32 "
        "writes it: torch.compile FP32, 2 threads (0.50 [0.50, 0.50] × the time of torch eager FP32, 1 thread); 10 texts: torch dynamic "
        "INT8, as one batch (0.20 [0.20, 0.20] × the time of torch eager FP32, one after another)"
    )
    noisy = dataclasses.replace(result.rows[5], greedy_s=(0.9, 1.2, 0.9))
    assert verdicts(dataclasses.replace(result, rows=(*result.rows[:5], noisy)))[claim][0] == OPEN
    alone = dataclasses.replace(result, rows=result.rows[:2], several={})
    assert verdicts(alone)[claim][0] == REFUTED


def test_an_older_result_without_several_outputs_stays_readable(result):
    content = {name: value for name, value in json.loads(json.dumps(dataclasses.asdict(result))).items() if name != "several"}
    older = from_json(Optimisations, content)
    assert verdicts(older)[HELPED] == ("not measured here: needs several outputs at once", "")
    assert list(run.EXPERIMENT.tables(older)) == list(run.EXPERIMENT.tables(result))[:-1]


def test_tables_and_chart_show_every_row_and_what_is_left_out(result):
    rows = speed_table(result).rows
    assert rows[5][:6] == ("torch dynamic INT8", "2", "63.1", "75.8", "0.25 [0.25, 0.25]", "1.20 [1.20, 1.20]")
    assert rows[5][6:] == ("numpy 1", "a note")
    assert rows[6] == ("ONNX Runtime FP32", "2", *["–"] * 4, "onnxruntime", "left out: onnxruntime is not installed")
    assert run.several_table(result).rows[4] == ("torch dynamic INT8, at once, a thread each", "6.6", "0.30 [0.30, 0.30]")
    assert "the bundled model's, stretched" in caption(result)
    mpl.use("Agg")
    axes = plot_optimisations(result)
    assert [bar.get_width() for bar in axes.patches[:2]] == pytest.approx([1e3 * 0.505 / 8, 1e3 * 1.01 / 8])
    assert len(axes.patches) == 12
    assert "stand-in" in axes.get_title()


def test_the_whole_with_stub_engines(model_dir, monkeypatch, bars):
    monkeypatch.setattr(run, "ENGINES", (TorchStub, Int8Stub))
    monkeypatch.setattr(run, "TorchFp32", TorchStub)
    monkeypatch.setattr(run, "TorchInt8", Int8Stub)
    found = compare_optimisations(str(model_dir), "torch-dynamic-int8", 2)
    assert {row.name for row in found.timed} == {"torch eager FP32", "torch eager FP32 again", "torch dynamic INT8"}
    assert all(len(row.greedy_s) == 2 for row in found.rows)
    assert from_json(Optimisations, json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert bars == [("engines in turns", 3, 3), ("several outputs in turns", 3, 3)]
    assert all(len(taken) == 2 for taken in found.several.values())
    assert {name.partition(",")[0] for name in found.several} == {"torch eager FP32", "torch dynamic INT8"}


def test_what_torch_compiles_too_often_is_an_error_and_not_run_in_eager_mode(tmp_path, monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", False)
    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compile_model(model, dynamic=dynamic, backend="eager"))
    model = compiled(lambda x, kind: x + len(kind), tmp_path)
    *kinds, one_too_many = ("a" * count for count in range(torch._dynamo.config.recompile_limit + 1))
    for kind in kinds:
        model(torch.ones(2), kind)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        model(torch.ones(2), one_too_many)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engines": "torch-int3"}, r"engine 'torch-int3' is not known; expected some of torch-eager-fp32, .*onnx-runtime-int8"),
        ({"size": "gpt3"}, "size 'gpt3' is neither a directory nor one of gpt2"),
        ({"rounds": 1}, "rounds=1, expected at least 2"),
    ],
)
def test_wrong_input_is_said_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        compare_optimisations(**wrong)
