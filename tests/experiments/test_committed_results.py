"""What the README claims, held against the record and the model in this repository."""

import json

import pytest

from experiments import docs
from experiments.attribution.run import PERPLEXITY, TPOT, Attribution
from experiments.bundled_model import score_held_out
from experiments.pruning.run import IMPORTANCE, RANDOM, PruningControls
from experiments.race.results import RaceResult
from experiments.recipes import RecipeComparison
from experiments.scoring import ScoringComparison
from gpt2opt.environment import cpu_kind
from gpt2opt.measure.trace import check_trace
from gpt2opt.record import read_record
from gpt2opt.sources.models import BUNDLED, load_model
from gpt2opt.stages.quantize import NO_DOT_PRODUCT
from gpt2opt.storage import from_json
from tests.conftest import committed, committed_kinds


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "run.json"
    path.write_bytes(committed("traces/run.json"))
    return read_record(path)


def test_every_table_of_the_readme_is_what_the_committed_results_give(committed_tree):
    readme = (committed_tree / "README.md").read_text()
    assert docs.fill(readme, committed_tree) == readme


def test_the_readme_shows_the_race_of_every_kind():
    readme = committed("README.md").decode()
    assert [kind for kind in committed_kinds("race.json") if f"<!-- bench-{kind} -->" not in readme] == []


def test_a_block_without_a_result_is_refused(committed_tree):
    with pytest.raises(ValueError, match="block 'no-such' is not known"):
        docs.fill("<!-- no-such -->\n<!-- /no-such -->", committed_tree)


def of_every_kind(name: str):
    """Run a test for each kind of CPU of which there is such a file; the test gets the kind, and reads that kind's file."""
    return pytest.mark.parametrize("kind", committed_kinds(name))


def read(result: type, kind: str, name: str):
    return from_json(result, json.loads(committed(f"experiments/results/{kind}/{name}")))


RESULTS = {
    "race.json": RaceResult, "recipes.json": RecipeComparison, "attribution.json": Attribution, "pruning.json": PruningControls,
    "scoring.json": ScoringComparison,
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in RESULTS for kind in committed_kinds(name)])
def test_a_result_lies_with_the_kind_of_cpu_that_it_names(name, kind):
    assert cpu_kind(read(RESULTS[name], kind, name).environment["cpu_flags"]) == kind


@of_every_kind("race.json")
def test_our_file_is_small_in_the_committed_race(kind):
    race = read(RaceResult, kind, "race.json")
    if race.size == "gpt2":
        assert race.ours.disk_bytes <= 125e6  # with its .xml


def test_ours_takes_little_memory_where_that_was_measured():
    """How weights are packed is up to the kernels of a kind of CPU."""
    for kind in ("avx2", "avx512_vnni"):
        assert read(RaceResult, kind, "race.json").ours.peak_rss_bytes <= 600e6


@pytest.mark.parametrize("model", ["as it comes", "injected outliers"])
@of_every_kind("recipes.json")
def test_the_default_recipe_loses_almost_nothing(kind, model):
    recipes = read(RecipeComparison, kind, "recipes.json")
    default = next(result for result in recipes.results if (result.model, result.recipe) == (model, "w8a8 (default)"))
    assert default.quality.ratio_to(recipes.reference) <= 1.005
    assert default.agreement.mean_kl <= 0.01
    assert default.agreement.top1 >= 0.97


def test_the_naive_recipe_fails_on_the_hard_model_on_avx2():
    recipes = read(RecipeComparison, "avx2", "recipes.json")
    naive = next(result for result in recipes.results if (result.model, result.recipe) == ("injected outliers", "min-max"))
    assert naive.quality.ratio_to(recipes.reference) > 1.5
    assert naive.agreement.mean_kl > 0.1


def test_the_loss_that_is_announced_is_the_one_that_was_measured_on_that_kind_of_cpu():
    recipes = read(RecipeComparison, "avx2", "recipes.json")
    default = next(result for result in recipes.results if result.recipe == "w8a8 (default)")
    assert f"{default.agreement.mean_kl:.4f} nats per token of KL with AVX2 alone" in NO_DOT_PRODUCT


@of_every_kind("attribution.json")
def test_every_step_is_in_the_committed_attribution_or_says_why_not(kind):
    attribution = read(Attribution, kind, "attribution.json")
    assert (attribution.steps[0].name, attribution.steps[-1].name) == ("torch FP32", "INT8")
    assert all(len(step.timings) == attribution.rounds for step in attribution.chain)
    first, last = attribution.chain[0], attribution.chain[-1]
    assert TPOT.ratio(last, first, attribution.case).high < 1
    (runtime, before), *_ = attribution.pairs
    assert not PERPLEXITY.measurable(runtime, before, attribution.case)


@of_every_kind("pruning.json")
def test_importance_beats_the_first_heads_and_random_ones_in_the_committed_controls(kind):
    controls = read(PruningControls, kind, "pruning.json")
    assert len(controls.of(RANDOM, controls.recovery.pruned_heads)) >= 5
    for count in controls.counts:
        for rule in ("first heads", RANDOM):
            assert controls.mean(IMPORTANCE, count).ratio_interval(controls.mean(rule, count))[1] < 1


def test_pruning_costs_fine_tuning_pays_back_and_int8_keeps_it(record):
    baseline, pruned, tuned, int8 = (stage.measurement.quality for stage in record.stages)
    fp32 = record.stage("4-quantize").control("FP32").quality
    assert pruned.ratio_to(baseline) > 1
    assert tuned.ratio_to(baseline) <= 1
    assert int8.ratio_to(fp32) <= 1.01


def test_every_matmul_of_the_committed_run_was_int8(record):
    facts = record.stage("4-quantize").facts
    assert facts["int8_matmuls"] == facts["expected_matmuls"] == 25
    assert facts["optimum_generates_the_same"] is True


def test_the_trace_is_there_small_and_holds_operators(record, tmp_path):
    trace = tmp_path / "trace.json.gz"
    trace.write_bytes(committed(record.stage("1-profile").facts["trace"]))
    assert check_trace(trace) > 100
    assert trace.stat().st_size < 5_000_000


def test_the_bundled_model_codes_unseen_text_in_a_tenth_less_than_xz():
    """200 kB of packages it never saw. xz sees all that came before; the model sees at most its context."""
    quality, xz_bits_per_byte = score_held_out(BUNDLED)
    assert quality.num_bytes >= 199_990
    assert quality.bits_per_byte <= 0.9 * xz_bits_per_byte


def test_the_model_card_states_what_training_recorded():
    training = json.loads((BUNDLED / "training.json").read_text())
    card = (BUNDLED / "README.md").read_text()
    assert f"{training['tokens_seen']:,} tokens" in card
    assert f"{training['validation_bits_per_byte']:.3f}" in card
    assert (BUNDLED / "model.safetensors").stat().st_size <= 32e6
    assert {str(tensor.dtype) for tensor in load_model(BUNDLED, "float16")[1].parameters()} == {"torch.float16"}
