"""The gains of the graph passes: the variants of a tiny INT8 model in their own processes, and ratios by arithmetic."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import matplotlib as mpl
import pytest

from experiments import passes as experiment
from experiments.passes import ALL, PassGains, Variant, measure_passes, passes_caption, passes_table, plot_passes, time_passes
from experiments.race.engines.base import Case, Timing
from gpt2opt.measure.turns import again
from gpt2opt.runtime.compile import NO_DOT_PRODUCT, PASSES
from gpt2opt.storage import from_json


def test_each_pass_that_can_be_left_out_here_is_left_out_once(quantized, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "ONE", Case(8, 3))
    monkeypatch.setattr(experiment, "SEVERAL", Case(4, 3, 2))
    case, variants = time_passes(quantized[0], 320, 2)
    assert [variant.name for variant in variants] == [ALL, again(ALL), *(each.__name__ for each in PASSES[case])]
    assert {(len(variant.one), len(variant.several), len(variant.one[0].later_s)) for variant in variants} == {(2, 2, 2)}


def test_the_bar_is_full_at_the_end(quantized, monkeypatch, bars):
    monkeypatch.setattr(experiment, "ONE", Case(8, 3))
    monkeypatch.setattr(experiment, "SEVERAL", Case(4, 3, 2))
    monkeypatch.setattr(experiment, "prepare_models", lambda *_: SimpleNamespace(vocab_size=320, weights="random"))
    monkeypatch.setattr(experiment, "in_fresh_process", lambda _, source, folder, recipe: shutil.copytree(quantized[0], folder))
    measure_passes(rounds=2)
    assert bars == [("timing", 3, 3)]


def timings(first_s: float, later_s: float) -> tuple[Timing, ...]:
    return tuple(Timing(first_s * slow, (later_s * slow,) * 3) for slow in (1, 1.1, 2, 1, 1.3, 1.2, 1, 1))


@pytest.fixture
def gains() -> PassGains:
    variants = (
        Variant(ALL, 500_000_000, timings(0.1, 0.01), timings(0.2, 0.02)),
        Variant("look_up_integers", 650_000_000, timings(0.1, 0.01), timings(0.2, 0.02)),
        Variant("as_convolutions", None, timings(0.1, 0.015), timings(0.2, 0.02)),
    )
    return PassGains("2026", {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}, "gpt2, weights: random", NO_DOT_PRODUCT, variants)


def test_rows_tell_how_many_times_as_long_it_takes_without_a_pass(gains):
    first, lookup, convolutions = passes_table(gains).rows
    assert first == (ALL, "105 ms", "10.5 ms", "21 ms", "500")
    assert lookup == ("without `look_up_integers`", *["1.000 [1.000, 1.000]"] * 3, "+150")
    same = dataclasses.replace(gains.variants[0], name=again(ALL))
    twice = dataclasses.replace(gains, variants=(gains.variants[0], same, *gains.variants[1:]))
    assert passes_table(twice).rows[1] == (again(ALL), *["1.000 [1.000, 1.000]"] * 3, "+0")
    assert convolutions[2:] == ("1.500 [1.500, 1.500]", "1.000 [1.000, 1.000]", "–")


def test_the_chart_draws_a_row_per_pass_and_the_caption_says_what_was_timed(gains):
    axes = plot_passes(gains)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["look_up_integers", "as_convolutions"]
    assert "8 rounds in turns" in passes_caption(gains)
    assert NO_DOT_PRODUCT in passes_caption(gains)
    mpl.pyplot.close(axes.figure)


def test_a_result_is_read_back_as_it_was_written(gains):
    assert from_json(PassGains, json.loads(json.dumps(dataclasses.asdict(gains)))) == gains
