"""What the documents claim, compared with the results and the model in this repository."""

import json

import matplotlib.pyplot as plt
import pytest

from experiments import docs
from experiments.attribution import PERPLEXITY, TPOT
from experiments.bundled_model import score_held_out
from experiments.contract import EXPERIMENTS, hash_of, read_result_of
from experiments.pruning import IMPORTANCE, RANDOM
from gpt2opt.environment import cpu_kind
from gpt2opt.measure.trace import check_trace
from gpt2opt.run.record import PROFILE, QUANTIZE, read_record
from gpt2opt.sources.models import BUNDLED, load_model


def kinds(name: str) -> list[str]:
    """Return the kinds of CPU of which there is such a result."""
    return sorted(path.parent.name for path in docs.RESULTS.glob(f"*/{name}.json"))


def of_every_kind(name: str):
    """Run a test for each kind of CPU of which there is such a result; the test gets the kind, and reads that kind's result."""
    return pytest.mark.parametrize("kind", kinds(name))


def read(kind: str, name: str):
    return read_result_of(name, docs.RESULTS / kind)


def test_every_block_of_the_documents_is_what_the_results_give():
    for path in docs.documents():
        text = path.read_text()
        assert docs.fill(text, path.parent) == text, f"{path.name} is not what `python -m experiments docs` writes"


def test_the_readme_is_a_first_page():
    assert len((docs.ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_result_of_every_kind_is_shown_in_a_document():
    shown = "\n".join(path.read_text() for path in docs.documents())
    assert [f"{name}-{kind}" for name in (*EXPERIMENTS, "run") for kind in kinds(name) if f"<!-- {name}-{kind} -->" not in shown] == []


def test_every_chart_was_drawn_from_the_result_beside_it():
    results = [source for folder in docs.RESULTS.iterdir() for source in docs.results_in(folder)]
    for source in results:
        drawn = docs.drawn_from(source)
        assert all(hash_of(source).encode() in path.read_bytes() for path in drawn), source
    assert sum(len(docs.drawn_from(source)) for source in results) == len(list(docs.RESULTS.glob("*/*.png")))


def test_a_block_without_a_result_is_refused():
    with pytest.raises(ValueError, match="block 'no-such' is not known"):
        docs.fill("<!-- no-such -->\n<!-- /no-such -->", docs.ROOT)
    with pytest.raises(ValueError, match=r"can't read .*no_kind/race\.json"):
        docs.fill("<!-- race-no_kind -->\n<!-- /race-no_kind -->", docs.ROOT)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in EXPERIMENTS for kind in kinds(name)])
def test_a_result_lies_with_the_kind_of_cpu_that_it_names_and_keeps_the_contract(name, kind):
    result, experiment = read(kind, name), EXPERIMENTS[name].load()
    assert cpu_kind(result.environment["cpu_flags"]) == kind
    assert all(table.rows for table in experiment.tables(result).values())
    assert experiment.caption(result)
    figures = experiment.charts(result)
    assert set(figures) <= set(EXPERIMENTS[name].charts)
    assert all(figure.axes for figure in figures.values())
    plt.close("all")


@of_every_kind("race")
def test_our_file_is_small_in_the_committed_race(kind):
    race = read(kind, "race")
    if race.size == "gpt2":
        assert race.ours.disk_bytes <= 125e6  # with its .xml


def test_ours_takes_little_memory_where_that_was_measured():
    """How weights are packed is up to the kernels of a kind of CPU."""
    for kind in ("avx2", "avx512_vnni"):
        assert read(kind, "race").ours.peak_rss_bytes <= 600e6


@pytest.mark.parametrize("model", ["as it comes", "injected outliers"])
@of_every_kind("recipes")
def test_the_default_recipe_loses_almost_nothing(kind, model):
    recipes = read(kind, "recipes")
    default = next(result for result in recipes.results if (result.model, result.recipe) == (model, "w8a8 (default)"))
    assert default.quality.ratio_to(recipes.reference) <= 1.005
    assert default.agreement.mean_kl <= 0.01
    assert default.agreement.top1 >= 0.97


def test_the_naive_recipe_fails_with_injected_outliers_on_avx2():
    recipes = read("avx2", "recipes")
    naive = next(result for result in recipes.results if (result.model, result.recipe) == ("injected outliers", "min-max"))
    assert naive.quality.ratio_to(recipes.reference) > 1.5
    assert naive.agreement.mean_kl > 0.1


@of_every_kind("attribution")
def test_every_step_is_in_the_committed_attribution_or_says_why_not(kind):
    attribution = read(kind, "attribution")
    assert (attribution.steps[0].name, attribution.steps[-1].name) == ("torch FP32", "INT8")
    assert all(len(step.timings) == attribution.rounds for step in attribution.chain)
    first, last = attribution.chain[0], attribution.chain[-1]
    assert TPOT.ratio(last, first).high < 1
    (runtime, before), *_ = attribution.pairs
    assert not PERPLEXITY.measurable(runtime, before)


@of_every_kind("pruning")
def test_importance_beats_the_first_heads_and_random_ones_in_the_committed_controls(kind):
    controls = read(kind, "pruning")
    assert len(controls.of(RANDOM, controls.recovery.pruned_heads)) >= 5
    for count in controls.counts:
        for rule in ("first heads", RANDOM):
            assert controls.mean(IMPORTANCE, count).ratio_interval(controls.mean(rule, count))[1] < 1


RUNS = {kind: read_record(docs.RESULTS / kind / "run.json") for kind in kinds("run")}


@pytest.fixture(params=[kind for kind, run in RUNS.items() if run.stages[-1] == QUANTIZE])
def record(request):
    return RUNS[request.param]


def test_a_run_with_a_gpu_chose_the_same_heads_and_found_the_same_losses_as_one_without():
    cpu, gpu = RUNS["avx2"], RUNS["nvidia_h200"]
    assert gpu.measured("Pruned").facts["pruned_heads"] == cpu.measured("Pruned").facts["pruned_heads"]
    for name in ("Baseline", "Pruned", "Fine-tuned"):
        assert gpu.measured(name).device == "NVIDIA H200"
        assert gpu.measured(name).scored.perplexity == pytest.approx(cpu.measured(name).scored.perplexity, rel=1e-3)


def test_pruning_costs_fine_tuning_pays_back_and_int8_keeps_it(record):
    baseline, pruned, tuned, fp32, int8 = (record.measured(name).scored for name in ("Baseline", "Pruned", "Fine-tuned", "FP32", "INT8"))
    assert pruned.ratio_to(baseline) > 1
    assert tuned.ratio_to(baseline) <= 1
    assert int8.ratio_to(fp32) <= 1.01


def test_every_matmul_of_the_run_was_int8(record):
    audit = record.measured("INT8").facts["audit"]
    assert list(audit["in_file"].values()) == ["i8"] * 25
    assert {graph: [weight for _, weight in audit[graph].values()] for graph in ("prefill", "decode")} == {
        "prefill": ["i8"] * 25, "decode": ["i8"] * 25,
    }  # fmt: skip
    assert record.measured("FP32").facts["optimum_generates_the_same"] is True


def test_the_trace_that_is_handed_in_is_small_and_holds_operators():
    """That of the latest run of the notebook, whoever ran it."""
    (trace,) = (docs.ROOT / "traces" / PROFILE).glob("*.pt.trace.json.gz")
    assert len(check_trace(trace)) > 100
    assert trace.stat().st_size < 5_000_000


@pytest.mark.slow
def test_the_bundled_model_codes_unseen_text_in_a_tenth_less_than_xz():
    """50 kB of packages it never saw. xz codes four times as much and sees all that came before; the model sees at most its context."""
    quality, xz_bits_per_byte = score_held_out(BUNDLED, 50_000)
    assert quality.num_bytes >= 49_990
    assert quality.bits_per_byte <= 0.9 * xz_bits_per_byte


def test_the_model_card_states_what_training_recorded():
    training = json.loads((BUNDLED / "training.json").read_text())
    card = (BUNDLED / "README.md").read_text()
    assert f"{training['tokens_seen']:,} tokens" in card
    assert f"{training['validation_bits_per_byte']:.3f}" in card
    assert (BUNDLED / "model.safetensors").stat().st_size <= 32e6
    assert {str(tensor.dtype) for tensor in load_model(BUNDLED, "float16")[1].parameters()} == {"torch.float16"}
