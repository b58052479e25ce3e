import dataclasses
import math

import matplotlib
import matplotlib.pyplot as plt
import pytest

from gpt2opt.report import charts

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def widths(axes) -> list[float]:
    return [patch.get_width() for patch in axes.patches]


def texts(axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


def test_latency_bars_are_the_medians_in_ms_with_the_value_on_each(record):
    first, later = charts.plot_latency(record)
    assert widths(first) == pytest.approx([110] * 5)
    assert widths(later) == pytest.approx([15] * 5)
    assert texts(later).count("15 ms") == 5
    assert "ms" in later.get_xlabel()


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


def test_perplexity_shows_every_model_with_its_interval(record):
    (axes,) = charts.plot_perplexity(record)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == len(axes.containers) == 6
    assert sum("(control)" in label for label in labels) == 2
    assert f"{record.stages[0].measurement.quality.perplexity:.2f}" in texts(axes)


def test_the_front_is_drawn_and_dominated_points_are_pale_and_named(record):
    for number, (tpot, nats, size) in enumerate([(0.01, 3.5, 250), (0.03, 2.5, 250), (0.03, 3.6, 250), (0.02, 3.6, 100)]):
        stage = record.stages[number]
        latency = dataclasses.replace(stage.measurement.latency, tpot_samples_s=(tpot,))
        quality = dataclasses.replace(stage.measurement.quality, document_nats=(nats * 10,) * 3)
        memory = dataclasses.replace(stage.measurement.memory, weight_bytes=size * 1_000_000)
        measurement = dataclasses.replace(stage.measurement, latency=latency, quality=quality, memory=memory)
        record.stages[number] = dataclasses.replace(stage, measurement=measurement, controls=())
    (axes,) = charts.plot_tradeoff(record)
    pale = [points.get_label() for points in axes.collections if points.get_alpha() < 0.5]
    assert pale == ["Fine-tuned, FP16 torch, 250 MB, dominated"]
    (front,) = axes.lines
    assert front.get_xdata().tolist() == pytest.approx([10, 30])  # the small one at 20 is on the front for its size alone
    assert front.get_ydata().tolist() == pytest.approx([math.exp(3.5), math.exp(2.5)])


def test_only_the_charts_that_a_record_allows_are_drawn_and_each_is_closed(record):
    names = [name for name, _ in charts.draw_charts(record)]
    assert names == ["latency", "perplexity", "memory", "operators", "importance", "loss", "sensitivity", "tradeoff"]
    assert plt.get_fignums() == []
    record.stages = [dataclasses.replace(record.stages[0], facts={})]
    assert [name for name, _ in charts.draw_charts(record)] == ["latency", "perplexity", "memory", "tradeoff"]


def test_pruned_heads_are_crossed_out(record):
    (axes,) = charts.plot_importance(record)
    assert sorted(tuple(point) for marks in axes.collections for point in marks.get_offsets()) == [(0, 0), (2, 1)]


def test_loss_and_operators_show_the_record(record):
    (loss,) = charts.plot_loss(record)
    assert loss.lines[0].get_ydata().tolist() == [3.0, 2.5]
    (operators,) = charts.plot_operators(record)
    assert widths(operators) == pytest.approx([200, 100])


def test_sensitivity_shows_every_input_and_hollows_what_stays_float(record):
    (axes,) = charts.plot_sensitivity(record)
    assert [bar.get_height() for bar in axes.patches] == [0.001, 0.004, 0.002, 0.003]
    hollow = [bar.get_facecolor()[:3] == (1, 1, 1) for bar in axes.patches]
    assert hollow == [False, True, False, True]
