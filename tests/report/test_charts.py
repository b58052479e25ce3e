import dataclasses

import matplotlib
import matplotlib.pyplot as plt
import pytest

from gpt2opt.measure.results import Latency
from gpt2opt.report import charts
from gpt2opt.report.chart import describe
from tests.report.conftest import change, keep

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def widths(axes) -> list[float]:
    return [patch.get_width() for patch in axes.patches]


def texts(axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


def test_latency_bars_are_the_medians_in_ms_with_the_value_on_each_and_runtimes_apart(record):
    in_torch, in_torch_later, in_openvino, later = charts.plot_latency(record)
    assert widths(in_torch) == pytest.approx([110] * 3)
    assert widths(in_openvino) == pytest.approx([110] * 2)
    assert widths(later) == pytest.approx([15] * 2)
    assert texts(later).count("15 ms") == 2
    assert "torch" in in_torch_later.get_xlabel()
    assert "OpenVINO" in in_openvino.get_xlabel()


def test_a_model_that_took_turns_shows_the_ratio_and_to_which(record):
    first, _, openvino, _ = charts.plot_latency(record)
    assert [text.get_text() for text in first.texts] == ["110 ms", "110 ms\n1.000 [1.000, 1.000] × Baseline", "110 ms"]
    assert [text.get_text() for text in openvino.texts] == ["110 ms", "110 ms\n1.000 [1.000, 1.000] × FP32"]


def test_a_ratio_stands_only_beside_the_times_that_it_was_taken_from(record):
    slower = Latency((0.4, 0.48), (0.04, 0.08, 0.08, 0.12), 1, 1, 8, 3)
    change(record, "Fine-tuned", latency=slower, in_turns={"Baseline": slower})  # Baseline took part in these rounds too
    first, *_ = charts.plot_latency(record)
    assert [text.get_text() for text in first.texts] == ["440 ms", "110 ms", "440 ms\n1.000 [1.000, 1.000] × Baseline"]
    change(record, "Fine-tuned", in_turns={"Baseline": slower, "Pruned": record.models["Pruned"].latency})
    first, *_ = charts.plot_latency(record)
    assert first.texts[1].get_text() == "110 ms\n0.250 [0.250, 0.250] × Baseline"


def test_no_label_of_the_latency_chart_leaves_its_panel(record):
    panels = charts.plot_latency(record)
    panels.figure.draw_without_rendering()
    for axes in panels:
        assert all(text.get_window_extent().x1 <= axes.get_window_extent().x1 for text in axes.texts)


def test_gpu_and_cpu_never_share_an_axis(gpu_record):
    for draw in (charts.plot_latency, charts.plot_memory):
        gpu_left, gpu_right, cpu_left, cpu_right = draw(gpu_record)
        assert len([p for p in gpu_left.patches if p.get_hatch() is None]) == 3
        assert len([p for p in cpu_left.patches if p.get_hatch() is None]) == 2
        assert "Some GPU" in gpu_right.get_xlabel()
        assert "Some CPU" in cpu_right.get_xlabel()
    assert len(charts.plot_tradeoff(gpu_record)) == 2


def test_memory_shows_vram_on_a_gpu_and_rss_on_a_cpu(gpu_record):
    _, vram, _, rss = charts.plot_memory(gpu_record)
    assert "VRAM" in vram.get_title()
    assert widths(vram) == pytest.approx([500] * 3)
    assert "RSS" in rss.get_title()
    assert widths(rss) == pytest.approx([600, 600, 200, 200])


def test_perplexity_is_drawn_over_that_of_the_reference_with_the_paired_interval(record):
    _, stages, int8 = charts.plot_perplexity(record)
    assert [label.get_text() for label in stages.get_yticklabels()] == [
        "Pruned: 24.53", "Pruned, first heads (control): 29.96", "Fine-tuned: 18.17",
    ]  # fmt: skip
    (label,) = int8.get_yticklabels()
    assert label.get_text() == "INT8: 18.36"
    assert "FP32" in int8.get_xlabel()
    drawn, _, (bar,) = int8.containers[0].lines
    (low, _), (high, _) = bar.get_segments()[0]
    pair = record.measured("INT8").quality, record.measured("FP32").quality
    assert drawn.get_xdata() == pytest.approx([pair[0].ratio_to(pair[1])])
    assert (low, high) == pytest.approx(pair[0].ratio_interval(pair[1]))


def test_perplexity_of_each_stage_is_a_bar_and_the_references_are_lines(record):
    stages, *_ = charts.plot_perplexity(record)
    assert [label.get_text().split(",")[0] for label in stages.get_yticklabels()] == ["Baseline", "Pruned", "Fine-tuned", "FP32", "INT8"]
    expected = [record.measured(name).scored.perplexity for name in ("Baseline", "Pruned", "Fine-tuned", "FP32", "INT8")]
    assert widths(stages) == pytest.approx(expected)
    assert {line.get_label(): line.get_xdata()[0] for line in stages.lines} == {
        "Baseline: 20.09": pytest.approx(expected[0]), "FP32: 18.17": pytest.approx(expected[3]),
    }  # fmt: skip
    assert stages.texts[0].get_text().startswith("20.09 [")


def test_dominated_points_are_hollow_and_named(record):
    names, figures = ("Baseline", "Pruned", "Fine-tuned", "INT8"), [(0.01, 3.5, 250), (0.03, 2.5, 250), (0.03, 3.6, 250), (0.02, 3.6, 100)]
    keep(record, *names)
    for name, (tpot, nats, size) in zip(names, figures, strict=True):
        found = record.models[name]
        latency = dataclasses.replace(found.latency, tpot_samples_s=(tpot,))
        quality = dataclasses.replace(found.quality, document_nats=(nats * 10,) * 3)
        memory = dataclasses.replace(found.memory, weight_bytes=size * 1_000_000)
        change(record, name, latency=latency, quality=quality, memory=memory, in_turns={})
    (axes,) = charts.plot_tradeoff(record)
    hollow = [points.get_label() for points in axes.collections if not len(points.get_facecolor())]
    assert hollow == ["Fine-tuned, FP16 torch, 250 MB, dominated"]  # the small one at 20 ms is on the front for its size alone
    assert len(axes.collections) == 4
    assert not axes.lines


def test_only_the_charts_that_a_record_allows_are_drawn_and_each_is_closed(record):
    names = [name for name, _ in charts.draw_charts(record)]
    assert names == ["latency", "perplexity", "memory", "operators", "importance", "loss", "sensitivity", "tradeoff"]
    assert plt.get_fignums() == []
    keep(record, "Baseline")
    change(record, "Baseline", facts={})
    assert [name for name, _ in charts.draw_charts(record)] == ["latency", "memory", "tradeoff"]


def test_pruned_heads_are_crossed_out(record):
    (axes,) = charts.plot_importance(record)
    assert sorted(tuple(point) for marks in axes.collections for point in marks.get_offsets()) == [(0, 0), (2, 1)]


def test_loss_and_operators_show_the_record(record):
    (loss,) = charts.plot_loss(record)
    assert [line.get_label() for line in loss.lines] == ["Fine-tuned: training", "Fine-tuned: validation"]
    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0, 2.5], [3.5, 2.75]]
    (operators,) = charts.plot_operators(record)
    assert widths(operators) == pytest.approx([200, 100])


def test_sensitivity_shows_every_input_and_hollows_what_stays_float(record):
    (axes,) = charts.plot_sensitivity(record)
    assert [bar.get_height() for bar in axes.patches] == [0.001, 0.004, 0.002, 0.003]
    hollow = [bar.get_facecolor()[:3] == (1, 1, 1) for bar in axes.patches]
    assert hollow == [False, True, False, True]


def test_a_notebook_gets_a_picture_with_its_words_and_draws_it_once(record):
    chart = charts.plot_latency(record)
    data, metadata = chart._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    words = metadata["image/png"]["alt"]
    assert words.startswith("Latency (bar: median, whisker: p95)")
    assert "Time to first token, prompt of 8 tokens: ms in torch on Some CPU; less is better; Baseline, FP16 torch: 110 ms;" in words
    assert "Time per output token, 3 tokens: ms in torch on Some CPU; less is better; Baseline, FP16 torch: 15 ms;" in words
    assert plt.get_fignums() == []


def test_words_of_a_chart_name_its_legend_where_the_values_have_no_rows(record):
    words = describe(charts.plot_loss(record).figure)
    assert "Fine-tuning, on text that is neither scored nor calibrated with: optimizer step: loss, nats per token" in words
    assert "Pruned" not in words.split("Fine-tuned: training")[0]
    assert "Fine-tuned: training" in words
