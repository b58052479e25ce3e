import dataclasses

from gpt2opt.measure.results import Latency, Memory, Quality
from gpt2opt.report.tables import (
    audit_table,
    environment_table,
    explain_products,
    memory_table,
    perplexity_ratio,
    provenance_table,
    quality_table,
    record_tables,
    samples_table,
    shared_memory_table,
    speed_table,
    stage_table,
    stand_in_notice,
    summary_table,
    table,
    throughput_table,
    tradeoff_table,
    with_interval,
)
from tests.report.conftest import change, keep


def test_text_is_aligned_and_markdown_has_a_rule():
    small = table(("name", "ms"), [("a", "1"), ("longer", "22")])
    assert str(small).splitlines() == ["name    ms", "------  --", "a       1", "longer  22"]
    assert small.markdown().splitlines() == ["| name | ms |", "| --- | --- |", "| a | 1 |", "| longer | 22 |"]


def test_the_summary_has_a_row_a_measurement(record):
    summary = summary_table(record)
    assert [row[0] for row in summary.rows] == [
        "Baseline",
        "Pruned",
        "Pruned, first heads (control)",
        "Fine-tuned",
        "FP32 (control)",
        "INT8",
    ]
    assert summary.rows[0][4:6] == ("110", "15 (19.5)")
    assert summary.rows[2][4] == "–"  # not measured
    assert summary.rows[0][9] == "600 RSS"


def test_a_stage_stands_beside_the_one_before_and_its_controls(record):
    assert [row[0] for row in stage_table(record, "2-prune").rows] == ["Baseline", "Pruned", "Pruned, first heads (control)"]
    assert [row[0] for row in stage_table(record, "1-profile").rows] == ["Baseline"]


def test_vram_is_named(gpu_record):
    assert summary_table(gpu_record).rows[0][9] == "500 VRAM"


def test_memory_is_shown_step_by_step(record, gpu_record):
    names = [row[0] for row in memory_table(record).rows]
    assert names == ["Baseline", "Pruned", "Fine-tuned", "FP32 (control)", "INT8"]
    assert memory_table(record).rows[0][1:] == ("250", "200", "450", "500", "600", "–")
    assert shared_memory_table(record).rows[0] == ("Baseline", "500", "490", "470", "150")
    assert memory_table(gpu_record).rows[0][1:] == ("250", *["–"] * 4, "500 / 600 / 900")


def test_a_record_from_before_the_steps_is_still_shown(record):
    change(record, "Baseline", memory=Memory(250_000_000, 600_000_000, 200_000_000))
    assert memory_table(record).rows[0][1:] == ("250", "200", "–", "–", "600", "–")


def test_the_machine_and_the_sources_are_named(record):
    shown = str(environment_table(record))
    assert "WikiText-2 raw (from the hub, revision abc)" in shown
    assert "gpt2 (from the hub)" in shown
    assert "Some CPU, 2 threads, avx2" in shown


def test_a_stand_in_is_said_with_the_way_to_the_real_one(record, gpu_record):
    assert stand_in_notice(gpu_record) == "Nothing was replaced: the model and the text are the ones asked for, and FP16 runs on a GPU."
    model = {"name": "bundled", "origin": "package", "stand_in": True}
    notice = stand_in_notice(dataclasses.replace(record, sources={**record.sources, "model": model}))
    assert "GPT2OPT_MODEL" in notice
    assert "GPU: none" in notice


def test_the_audit_is_grouped_by_kind(record):
    assert audit_table(record).rows == (
        ("attn.c_attn", "2", "i8", "1 u8 × i8, 1 f32 × i8", "f32 × i8"),
        ("lm_head", "1", "i8", "f32 × i8", "f32 × i8"),
    )


def test_quality_is_shown_beside_the_parent_with_intervals(record):
    rows = {row[0]: row for row in quality_table(record).rows}
    assert list(rows) == ["Pruned", "Fine-tuned", "FP32", "INT8"]
    name, reference, ratio, kl, p99, same = rows["INT8"]
    assert (name, reference) == ("INT8", "FP32")
    assert ratio.startswith("1.0101 [")
    assert kl.startswith("0.00200 [0.00")
    assert p99 == "0.0100 [0.0050, 0.0200]"
    assert same == "96.67%"  # a single token that differs tells nothing of other documents


def test_models_that_took_turns_are_shown_with_their_ratio_or_with_none(record):
    first, second = speed_table(record).rows
    assert first[0] == "Pruned / Baseline"
    assert first[1:3] == ("110 / 110", "1.000 [1.000, 1.000]: no measurable difference")
    fast = Latency((0.1, 0.12), (0.01, 0.02, 0.02, 0.03), 1, 1, 8, 3, others_cpu_share=0.3)
    change(record, "Pruned", latency=Latency((0.2, 0.24), (0.02, 0.04, 0.04, 0.06), 1, 1, 8, 3), in_turns={"Baseline": fast})
    assert speed_table(record).rows[0][1:5] == ("220 / 110", "2.000 [2.000, 2.000]", "40 / 20", "2.000 [2.000, 2.000]")
    assert second[0] == "INT8 / FP32"


def test_what_each_model_wrote_stands_below_the_prompt_with_the_first_other_token_marked(record):
    rows = samples_table(record).rows
    assert rows[0] == ("prompt 1", "Once upon")
    assert [text for _, text in rows[1:7]] == ["the same"] * 6
    assert rows[7] == ("prompt 2", "In the")
    assert dict(rows[8:]) == {
        "Baseline": "then Baseline",
        "Pruned (‖ Baseline)": "then‖ Pruned",
        "Pruned, first heads": "then Pruned, first heads",
        "Fine-tuned (‖ Baseline)": "then‖ Fine-tuned",
        "FP32 (‖ Fine-tuned)": "then‖ FP32",
        "INT8 (‖ FP32)": "then‖ INT8",
    }
    assert samples_table(record, most=1).rows == rows[:7]


def test_a_dominated_model_is_said_to_be_and_by_which(record):
    change(record, "Fine-tuned", memory=Memory(200_000_000))
    rows = {row[0]: row[1:] for row in tradeoff_table(record).rows}
    assert rows["Fine-tuned"] == ("Some CPU", "15", "18.17", "200", "on the front")
    assert rows["FP32"][-1] == "dominated by Fine-tuned"
    assert rows["INT8"][-1] == "dominated by Fine-tuned, FP32"
    assert "Pruned, first heads" not in rows  # not timed


def test_provenance_follows_the_weights_and_sees_a_break(record):
    assert [row[:5] for row in provenance_table(record).rows] == [
        ("1-profile", "Baseline", "the source", "a", "b"),
        ("2-prune", "Pruned", "Baseline", "b", "c"),
        ("3-finetune", "Fine-tuned", "Pruned", "c", "d"),
        ("4-quantize", "INT8", "Fine-tuned", "d", "e"),
    ]
    change(record, "Fine-tuned", weights_in="x")
    assert provenance_table(record).rows[2][2] == "not what Pruned wrote"
    change(record, "Fine-tuned", weights_in=None)
    assert provenance_table(record).rows[2][2:4] == ("not known", "–")


def test_a_record_has_the_tables_that_its_stages_allow(record):
    every = [
        "Summary",
        "Timed in turns",
        "Distance from the reference model",
        "What each model writes",
        "Memory",
        "Memory at rest",
        "INT8 audit",
    ]
    assert list(record_tables(record))[2:] == [*every, "Trade-off", "Provenance"]
    change(record, "INT8", facts={})
    assert "INT8 audit" not in record_tables(record)
    keep(record, "Baseline")
    assert not {"Timed in turns", "Distance from the reference model"} & set(record_tables(record))
    keep(record)
    assert list(record_tables(record)) == ["Environment", "Settings"]


def test_a_difference_that_rounds_to_zero_has_no_sign():
    assert with_interval(-1e-9, (-2e-9, 0.5), ".2f") == "0.00 [0.00, 0.50]"
    assert with_interval(-0.25, None, ".2f") == "-0.25"


def test_float_inputs_of_the_decode_step_are_explained_where_prompts_have_int8_ones():
    int8, float_input = ("u8", "i8"), ("f32", "i8")
    assert "float32 inputs" in explain_products({"a": int8, "b": float_input}, {"a": float_input, "b": float_input})
    assert explain_products({"a": int8, "b": float_input}, {"a": int8, "b": float_input}) == ""
    assert explain_products({"a": float_input}, {"a": float_input}) == ""


def test_a_perplexity_whose_interval_contains_1_is_marked():
    base, other, lower = (
        Quality(nats, (10,) * 4, 25, 100, "p") for nats in ((30.0,) * 4, (28.0, 33.0, 29.0, 31.0), (28.0, 28.1, 28.2, 28.0))
    )
    assert perplexity_ratio(other, base).endswith("]: no measurable difference")
    assert perplexity_ratio(lower, base).endswith("]")


def test_throughput_stands_beside_latency(record):
    rows = {row[0]: row[3:] for row in throughput_table(record).rows}
    assert rows["INT8"] == ("110", "15", "73", "67")
    assert len(rows) == 5
    change(record, "INT8", latency=None)
    assert "INT8" not in {row[0] for row in throughput_table(record).rows}
