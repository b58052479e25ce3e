import dataclasses

from gpt2opt.report.results import Memory
from gpt2opt.report.tables import (
    audit_table,
    environment_table,
    memory_table,
    quality_table,
    stage_table,
    stand_in_notice,
    summary_table,
    table,
)


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
        "INT8",
        "FP32 (control)",
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
    assert names == ["Baseline", "Pruned", "Fine-tuned", "INT8", "FP32 (control)"]
    assert memory_table(record).rows[0][1:] == ("250", "200", "450", "500", "600", "490", "470", "150", "–")
    assert memory_table(gpu_record).rows[0][1:] == ("250", *["–"] * 7, "500 / 600 / 900")


def test_a_record_from_before_the_steps_is_still_shown(record):
    old = dataclasses.replace(record.stages[0].measurement, memory=Memory(250_000_000, 600_000_000, 200_000_000))
    record.stages[0] = dataclasses.replace(record.stages[0], measurement=old)
    assert memory_table(record).rows[0][1:] == ("250", "200", "–", "–", "600", "–", "–", "–", "–")


def test_the_machine_and_the_sources_are_named(record):
    shown = str(environment_table(record))
    assert "gpt2 (from the hub)" in shown
    assert "Some CPU, 2 threads, avx2" in shown


def test_a_stand_in_is_said_with_the_way_to_the_real_one(record, gpu_record):
    assert stand_in_notice(gpu_record) == "Nothing stands in: the model and the text are the ones asked for, and FP16 runs on a GPU."
    model = {"name": "bundled", "origin": "package", "stand_in": True}
    notice = stand_in_notice(dataclasses.replace(record, sources={**record.sources, "model": model}))
    assert "GPT2OPT_MODEL" in notice
    assert "GPU: none" in notice


def test_the_audit_is_grouped_by_kind(record):
    assert audit_table(record).rows == (
        ("attn.c_attn", "2", "i8", "1 u8 × i8, 1 f32 × i8", "f32 × i8"),
        ("lm_head", "1", "i8", "f32 × i8", "f32 × i8"),
    )


def test_quality_is_shown_with_intervals(record):
    ((name, ratio, kl, p99, same),) = quality_table(record).rows
    assert name == "INT8"
    assert ratio.startswith("1.0101 [")
    assert kl.startswith("0.00200 [0.00")
    assert p99 == "0.0100"
    assert same.startswith("96.67% [9")
