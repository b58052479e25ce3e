"""The chain on known timings, and the whole of it on a tiny model."""

import dataclasses
import json
import shutil

import matplotlib as mpl
import pytest

from experiments import attribution as attribution_module
from experiments.attribution import (
    CASE,
    NO_BF16,
    PERPLEXITY,
    SIZE,
    TPOT,
    TTFT,
    Attribution,
    Candidate,
    Step,
    _make_models,
    _race,
    attribute,
    attribution_caption,
    attribution_table,
    plot_attribution,
)
from experiments.race.engines.base import Timing, loaded
from experiments.race.engines.ours import Ours, OursBf16
from gpt2opt import environment
from gpt2opt.measure.results import Quality
from gpt2opt.measure.turns import Here
from gpt2opt.report.chart import BETTER, SAME, WORSE
from gpt2opt.runtime import ir_model
from gpt2opt.runtime.compile import cpu_properties
from gpt2opt.sources.texts import find_texts
from gpt2opt.storage import from_json
from tests.experiments.stubs import OursStub, Printing

SLOW_MINUTES = (1, 1.1, 3, 1, 2)
NOISE = (0.98, 1.02, 0.99, 1.03, 1)


def step(name: str, seconds_a_token: float, weight_bytes: int, nats: float, **fields) -> Step:
    timings = tuple(Timing(10 * seconds_a_token * slow, (seconds_a_token * slow,) * 3) for slow in SLOW_MINUTES)
    quality = Quality((nats, 1.1 * nats), (10, 10), 15, 50, "a text")
    return Step(name, f"what {name} changes", weight_bytes, quality, timings, **fields)


@pytest.fixture
def attribution() -> Attribution:
    second = step("second", 0.02, 1000, 40)
    same = step("same", 0.02, 1000, 40)
    same = dataclasses.replace(
        same, timings=tuple(Timing(t.first_s * n, tuple(s * n for s in t.later_s)) for t, n in zip(same.timings, NOISE, strict=True))
    )
    absent = Step("absent", "arithmetic", left_out="no such instructions")
    machine = {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}
    steps = (step("first", 0.04, 1000, 40), second, absent, same, step("last", 0.01, 250, 41))
    return Attribution(machine, "a model", CASE, len(SLOW_MINUTES), steps)


def test_factor_is_over_the_step_before_that_was_not_left_out_and_slow_minutes_cancel_out(attribution):
    (second, first), (same, before_same), (last, _) = attribution.pairs
    assert before_same is second
    assert TPOT.factor(second, first) == TTFT.factor(second, first) == "0.50 [0.50, 0.50]"
    assert TPOT.factor(same, second) == "1.00 [0.98, 1.03], no measurable difference"
    assert SIZE.factor(same, second) == "1.00"
    assert SIZE.factor(last, same) == "0.25"
    assert PERPLEXITY.factor(second, first) == "1.0000 [1.0000, 1.0000], no measurable difference"
    assert (
        PERPLEXITY.factor(last, same) == "1.1107 [1.0423, 1.1836]"
    )  # exp(0.105), two documents of 0.1 and 0.11 nats more per token, ± 12.7 × 0.005


def test_table_names_what_is_left_out_and_ends_with_the_whole_way(attribution):
    rows = {row[0]: row for row in attribution_table(attribution).rows}
    assert rows["absent"] == ("absent", "left out: no such instructions", "", *["–"] * 4)
    assert rows["first"][2:] == ("", "440", "44", "0.001", "66.69")
    assert rows["last"][3:6] == ("110; 0.50 [0.49, 0.51]", "11; 0.50 [0.49, 0.51]", "0.00025; 0.25")
    assert rows["all steps together"][2:] == ("first", "0.25 [0.25, 0.25]", "0.25 [0.25, 0.25]", "0.25", "1.1107 [1.0423, 1.1836]")
    assert "a CPU (AVX2 alone), 2 threads; prompt 256 tokens, 64 new, 5 rounds" in attribution_caption(attribution)


def test_a_branch_and_the_step_after_it_are_both_compared_with_what_the_branch_leaves(attribution):
    """So that no factor holds two changes, as bf16 and pruning, or bf16 taken back and INT8."""
    branch = step("branch", 0.01, 1000, 42, branch=True)
    branched = dataclasses.replace(attribution, steps=(*attribution.steps[:2], branch, *attribution.steps[2:]))
    assert [(later.name, before.name) for later, before in branched.pairs] == [
        ("second", "first"), ("branch", "second"), ("same", "second"), ("last", "same"),
    ]  # fmt: skip
    assert [s.name for s in branched.chain] == ["first", "second", "same", "last"]
    rows = {row[0]: row for row in attribution_table(branched).rows}
    assert [rows[name][2] for name in ("first", "second", "branch", "same", "last")] == ["", "first", "second", "second", "same"]
    assert rows["branch"][3].endswith("; 0.50 [0.50, 0.50]")
    assert {name: row for name, row in rows.items() if name != "branch"} == {row[0]: row for row in attribution_table(attribution).rows}
    mpl.use("Agg")
    _, later, _, _ = plot_attribution(branched)
    spans = [(round(bar.get_x(), 1), round(bar.get_width(), 1)) for bar in later.patches]
    assert spans[4] == (22.0, -11.0)  # the branch
    assert spans[6] == (22.0, 0.4)  # the step below it
    assert "branch is a branch: it and the step below it are over second" in later.figure.get_supxlabel()


def test_a_bar_spans_what_its_step_changes(attribution):
    mpl.use("Agg")
    _, later, _, quality = plot_attribution(attribution)
    spans = {(bar.get_facecolor(), round(bar.get_x(), 1), round(bar.get_width(), 1)) for bar in later.patches}
    better, same = (mpl.colors.to_rgba(color) for color in (BETTER, SAME))
    assert {(better, 44.0, -22.0), (same, 22.0, 0.4)} <= spans
    assert quality.patches[0].get_x() + quality.patches[0].get_width() == pytest.approx(attribution.chain[0].quality.perplexity)
    assert {bar.get_facecolor() for bar in quality.patches} >= {mpl.colors.to_rgba(WORSE)}
    assert [label.get_text() for label in later.figure.axes[0].get_yticklabels()] == ["first", "second", "same", "last"]
    assert "does not start at 0" in quality.get_xlabel()
    assert "absent is left out: no such instructions" in later.figure.get_supxlabel()


def test_a_step_that_fails_in_the_race_is_left_out_and_the_others_keep_their_timings(tmp_path):
    (tmp_path / "weights").touch()
    case = dataclasses.replace(CASE, new_tokens=9)
    engines = {"first": OursStub, "dying": Printing, "absent": OursStub}
    candidates = [Candidate(name, "", engine, tmp_path) for name, engine in engines.items()]
    steps = [Step(name, "", left_out="no such instructions" if name == "absent" else None) for name in engines]
    first, twice, dying, absent = _race(candidates, steps, case, 3, 50)
    assert (len(first.timings), len(twice.timings)) == (3, 3)
    assert (twice.name, twice.branch) == ("first again", True)
    assert (dying.timings, dying.left_out.split(":")[0]) == ((), "failed on 1×(256+9)")
    assert (absent.timings, absent.left_out) == ((), "no such instructions")


@pytest.mark.slow
def test_attribution_of_a_tiny_model(model_dir, text_file, quantized, monkeypatch):
    """Quantization and processes take longest and have tests of their own: an INT8 model that is there and this process replace them."""

    monkeypatch.setattr(attribution_module, "started", lambda *given: Here(loaded(*given, 2)))
    monkeypatch.setattr(environment, "has_bf16", lambda: False)
    monkeypatch.setattr(attribution_module, "quantize_int8", lambda *arguments: shutil.copytree(quantized[0], arguments[3]))
    case = dataclasses.replace(CASE, prompt_tokens=16, new_tokens=3)
    found = attribute(str(model_dir), str(text_file), 2, case=case, score_bytes=2000, calibration_rows=8)
    torch_fp32, twice, fp32, bf16, pruned, int8 = found.steps
    assert TPOT.factor(twice, torch_fp32)
    assert (bf16.left_out, bf16.quality) == (NO_BF16, None)
    assert [len(s.timings) for s in found.chain] == [2] * 4
    assert fp32.quality.ratio_to(torch_fp32.quality) == pytest.approx(1, abs=1e-4)
    assert pruned.change == "2 of 12 heads removed per layer, still FP32, not fine-tuned"
    assert abs(pruned.quality.ratio_to(fp32.quality) - 1) > 0.01
    assert int8.weight_bytes < pruned.weight_bytes < fp32.weight_bytes
    assert from_json(Attribution, json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert len(attribution_table(found).rows) == 7


@pytest.mark.slow
def test_on_a_cpu_with_bf16_only_the_branch_computes_in_it(model_dir, text_file, quantized, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "has_bf16", lambda: True)
    monkeypatch.setattr(attribution_module, "quantize_int8", lambda *arguments: shutil.copytree(quantized[0], arguments[3]))
    candidates = {c.name: c for c in _make_models(model_dir, find_texts(str(text_file)), tmp_path, 8)}
    assert [name for name, c in candidates.items() if c.engine is OursBf16] == ["OpenVINO bf16"]
    assert [name for name, c in candidates.items() if c.branch] == ["OpenVINO bf16"]
    assert candidates["pruned"].change == "2 of 12 heads removed per layer, still FP32, not fine-tuned"


def test_wrong_input_is_said_at_once(model_dir, text_file):
    with pytest.raises(ValueError, match="rounds=0, expected at least 1"):
        attribute(str(model_dir), str(text_file), 0)
    with pytest.raises(ValueError, match=r"1×\(256\+64\) tokens don't fit into the context of 256"):
        attribute(str(model_dir), str(text_file))


def test_bf16_is_asked_of_the_runtime_where_the_cpu_has_it(monkeypatch):
    asked = []
    monkeypatch.setattr(ir_model, "load_ir", lambda *arguments: asked.append(arguments))
    for engine in (Ours, OursBf16):
        engine().load("ir", 2)
    assert asked == [("ir", 2, "f32"), ("ir", 2, "bf16")]
    properties = cpu_properties(2, "bf16", "bf16")
    assert (properties["INFERENCE_PRECISION_HINT"], properties["KV_CACHE_PRECISION"]) == ("bf16", "bf16")
    assert cpu_properties()["INFERENCE_PRECISION_HINT"] == "f32"
    for flags, expected in (({"avx512f", "avx512_bf16"}, True), ({"amx_bf16"}, True), ({"avx512f"}, False)):
        monkeypatch.setattr(environment, "cpu_flags", lambda flags=flags: flags)
        assert environment.has_bf16() is expected
