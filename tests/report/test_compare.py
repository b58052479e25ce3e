import dataclasses

import pytest

from gpt2opt.measure.results import Latency
from gpt2opt.report.compare import compare_runs, comparison_tables, differences_table
from gpt2opt.run.record import Record
from tests.report.conftest import make_record


def with_baseline(record: Record, **parts) -> Record:
    """Return the record with another measurement of stage 1, and no other stage."""
    return dataclasses.replace(record, models={"Baseline": dataclasses.replace(record.models["Baseline"], **parts)})


def timed(*generations: tuple[float, ...], ttft: tuple[float, ...] = (0.1, 0.1)) -> Latency:
    samples = tuple(sample for generation in generations for sample in generation)
    return Latency(ttft, samples, 1, 1, 8, len(generations[0]) + 1)


def ratios(records: list[Record]) -> dict:
    return {(c.model, c.figure): c.ratios[0] for c in compare_runs(records)}


def test_ratios_are_the_later_run_over_the_first(record):
    slower = with_baseline(record, latency=timed((0.03, 0.03), (0.03, 0.03), ttft=(0.2, 0.2)))
    first = with_baseline(record, latency=timed((0.01, 0.01), (0.01, 0.01)))
    found = ratios([first, slower])
    assert found["Baseline", "TTFT, ms"].value == pytest.approx(2)
    assert found["Baseline", "TTFT, ms"].interval == pytest.approx((2, 2))
    assert found["Baseline", "TPOT, ms"].value == pytest.approx(3)
    assert found["Baseline", "file, MB"] == dataclasses.replace(found["Baseline", "peak RSS, MB"], value=1, interval=None)


def test_intervals_are_over_generations_since_their_tokens_are_not_independent(record):
    """Taken for 60 samples, the tokens would put the median between 2 and 2."""
    spread = with_baseline(record, latency=timed((1.0,) * 20, (2.0,) * 20, (3.0,) * 20))
    steady = with_baseline(record, latency=timed((1.0,) * 20, (1.0,) * 20, (1.0,) * 20))
    low, high = ratios([steady, spread])["Baseline", "TPOT, ms"].interval
    assert low < 1
    assert high > 3


def test_one_generation_gives_no_interval(record):
    one = with_baseline(record, latency=timed((0.01, 0.02), ttft=(0.1,)))
    found = ratios([one, one])
    assert found["Baseline", "TPOT, ms"].interval is found["Baseline", "TTFT, ms"].interval is None
    assert comparison_tables(compare_runs([one, one]))["1-profile"].rows[0] == ("Baseline", "TTFT, ms", "100", "100", "1.00")


def test_perplexity_is_compared_window_by_window(record):
    better = with_baseline(record, quality=record.stage("3-finetune").quality)
    base, other = record.models["Baseline"].quality, better.models["Baseline"].quality
    ratio = ratios([with_baseline(record), better])["Baseline", "perplexity"]
    assert (ratio.value, ratio.interval) == (other.ratio_to(base), other.ratio_interval(base))


@pytest.mark.parametrize(
    ("change", "reason", "figures"),
    [
        ("device", "device Some CPU in A, Other CPU here", {"TTFT, ms", "TPOT, ms", "perplexity", "peak RSS, MB"}),
        ("threads", "threads 2 in A, 4 here", {"TTFT, ms", "TPOT, ms", "peak RSS, MB"}),
        ("prompt", "prompt tokens 8 in A, 9 here", {"TTFT, ms", "TPOT, ms"}),
        ("settings", "prompt tokens 64 in A, 65 here", {"peak RSS, MB"}),
        ("protocol", "protocol differs", {"perplexity"}),
    ],
)
def test_what_was_taken_otherwise_is_not_divided_and_the_reason_is_given(record, change, reason, figures):
    first, measurement = with_baseline(record), record.models["Baseline"]
    latency, quality = measurement.latency, measurement.quality
    other = {
        "device": lambda: with_baseline(record, device="Other CPU"),
        "threads": lambda: dataclasses.replace(first, environment={**record.environment, "threads": 4}),
        "prompt": lambda: with_baseline(record, latency=dataclasses.replace(latency, prompt_tokens=9)),
        "settings": lambda: dataclasses.replace(first, settings=dataclasses.replace(record.settings, prompt_tokens=65)),
        "protocol": lambda: with_baseline(record, quality=dataclasses.replace(quality, protocol="other")),
    }[change]()
    comparisons = compare_runs([first, other])
    refused = {c.figure: c.ratios[0].not_comparable for c in comparisons if c.ratios[0].value is None}
    assert refused == dict.fromkeys(figures, reason)
    assert "file, MB" not in refused
    assert f"not comparable: {reason}" in str(comparison_tables(comparisons)["1-profile"])


def test_what_one_run_lacks_is_shown_as_not_measured(record):
    aborted = with_baseline(record)
    for runs in ([aborted, record], [record, aborted]):
        tables = comparison_tables(compare_runs(runs))
        assert list(tables) == ["1-profile", "2-prune", "3-finetune", "4-quantize"]
        assert {row[4] for row in tables["4-quantize"].rows} == {"not comparable: not measured in both"}
        assert "–" in tables["4-quantize"].rows[0]


def test_a_gpu_is_not_divided_by_a_cpu(record, gpu_record):
    baseline = [c for c in compare_runs([record, gpu_record]) if c.model == "Baseline"]
    assert {c.figure for c in baseline if c.ratios[0].value is not None} == {"file, MB"}


def test_every_further_run_is_held_against_the_first(record):
    table = comparison_tables(compare_runs([record, record, record]))["2-prune"]
    assert table.header == ("model", "figure", "A", "B", "C", "B ÷ A [95%]", "C ÷ A [95%]")
    assert table.rows[2] == ("Pruned", "perplexity", "24.53", "24.53", "24.53", *["1.0000 [1.0000, 1.0000]"] * 2)
    assert table.rows[-1][:2] == ("Pruned, first heads", "perplexity")  # a control without a timing has no row for one


def test_one_run_cannot_be_compared(record):
    with pytest.raises(ValueError, match="1 runs to compare, expected 2 to 26"):
        compare_runs([record])


def test_what_differs_is_listed_and_nothing_else(record):
    other = make_record()
    assert differences_table([record, other]).rows == ()
    other.settings = dataclasses.replace(other.settings, epochs=3)
    other.environment = {**other.environment, "versions": {"torch": "2.14.0"}}
    other.sources = {**other.sources, "text": {**other.sources["text"], "revision": "def"}}
    assert differences_table([record, other]).rows == (
        ("setting: epochs", "1", "3"),
        ("environment: versions: torch", "2.13.0", "2.14.0"),
        ("source: text: revision", "abc", "def"),
    )
