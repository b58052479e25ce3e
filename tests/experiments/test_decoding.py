"""Metrics and findings by arithmetic, and the whole experiment on a tiny model."""

import dataclasses
import json
import math

import matplotlib as mpl
import pytest
import torch

from experiments.contract import CONFIRMED, OPEN, REFUTED, choose
from experiments.decoding import run, trial
from experiments.decoding.methods import CONTRASTIVE, GREEDY, METHODS, SAMPLING, ContrastiveModel, settings_of
from experiments.decoding.models import Candidate, find_candidates, random_model
from experiments.decoding.report import all_tables, caption, find_all, plot_decoding
from experiments.decoding.results import (
    ITSELF,
    Decoding,
    LoopTimes,
    MethodTexts,
    MethodTimes,
    ModelResult,
    Output,
    Trial,
    distinct,
    mean,
    repetition,
    share,
)
from experiments.decoding.run import Loop, Writer, judge, judge_by_others, write_texts
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.sources.models import load_model, save_model
from gpt2opt.storage import from_json
from tests.conftest import END_OF_TEXT, sample_text

PROMPTS = 10
MACHINE = {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}


@pytest.fixture(scope="module")
def long_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(sample_text(blocks=160))
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A model this small is not faster with two threads, and much slower where another process has one of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(run.environment, "threads", lambda: 1)
    yield
    torch.set_num_threads(before)


# --- metrics


def test_repetition_and_distinct_count_n_grams():
    assert repetition([1, 2, 3, 4, 5], 4) == 0
    assert repetition([7] * 8, 4) == pytest.approx(4 / 5)  # 5 of them, all the same
    assert distinct([[1, 2, 3], [1, 2, 3]], 2) == pytest.approx(2 / 4)
    assert distinct([[1, 2, 3], [4, 5, 6]], 1) == 1


def test_distinct_of_draws_is_that_of_one_draw_at_a_time():
    """Three draws of the same text are no less diverse than one."""
    outputs = tuple(Output(prompt, draw, f"{prompt + 7} 1 2", "", 1, 2) for prompt in range(2) for draw in range(3))
    assert model_of("a", {"top-k": outputs}, {}).distinct("top-k", 1) == pytest.approx(4 / 6)


def test_a_text_is_scored_behind_its_prompt_alone(model, tokenizer):
    prompt, written = [5, 6, 7], [[8, 9, 10, 11], [12, 13, 14, 15]]
    found = judge(model, tokenizer, 3, prompt, written)
    for output, ids in zip(found, written, strict=True):
        for nats, before in ((output.nats, prompt), (output.nats_alone, [tokenizer.eos_token_id])):
            with torch.inference_mode():
                logs = model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
            expected = -sum(float(logs[len(before) - 1 + place, token]) for place, token in enumerate(ids))
            assert nats == pytest.approx(expected, rel=1e-4)
        assert (output.prompt, output.tokens, output.text) == (3, ids, tokenizer.decode(ids))


def test_draws_differ_and_methods_without_draws_write_once(model):
    texts = {method: write_texts(model, method, [5, 6, 7], 3, 12, seed=4) for method in METHODS}
    assert {method: len(found) for method, found in texts.items()} == {m: 3 if m in SAMPLING else 1 for m in METHODS}
    assert len({tuple(ids) for ids in texts["top-k"]}) == 3
    assert all(len(ids) == 12 for found in texts.values() for ids in found)
    assert texts == {method: write_texts(model, method, [5, 6, 7], 3, 12, seed=4) for method in METHODS}
    assert texts["top-k"] != write_texts(model, "top-k", [5, 6, 7], 3, 12, seed=5)


def test_every_method_is_another():
    assert len({settings_of(method, 8) for method in METHODS if method != CONTRASTIVE}) == len(METHODS) - 1
    assert {settings_of(method, 8).method for method in METHODS} == {"greedy", "sampling", "beam search"}
    assert settings_of(CONTRASTIVE, 8) == settings_of(GREEDY, 8)  # it is a model of its own


def test_contrastive_search_chooses_by_probability_and_likeness(pruned, calibration):
    """Against the formula of the paper, computed again over the whole text for every candidate."""
    alpha, k, count = 0.6, 4, 8
    rows = calibration["input_ids"]
    prompts = [rows[0][:20], rows[1][:3], rows[2][:32], rows[3][:1]]

    @torch.inference_mode()
    def read(ids):
        out = pruned(torch.tensor([ids]), output_hidden_states=True)
        return out.logits[0, -1].softmax(-1), torch.nn.functional.normalize(out.hidden_states[-1][0], dim=-1)

    expected = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(count):
            probabilities, _ = read(text)
            scores = {}
            for token in probabilities.topk(k).indices.tolist():
                states = read([*text, token])[1]
                scores[token] = (1 - alpha) * probabilities[token] - alpha * (states[:-1] @ states[-1]).max()
            text.append(max(scores, key=scores.get))
        expected.append(tuple(text[len(prompt) :]))
    model = ContrastiveModel(pruned, alpha, k)
    assert [each.ids for each in generate(model, prompts, DecodingSettings(max_new_tokens=count))] == expected
    end = expected[0][2]  # a sequence that has ended leaves, and the others go on
    ended = [ids[: ids.index(end) + 1] if end in ids else ids for ids in expected]
    assert len({len(ids) for ids in ended}) > 1
    assert [each.ids for each in generate(model, prompts, DecodingSettings(max_new_tokens=count, eos_token_id=end))] == ended


def test_random_weights_have_a_distribution_like_that_of_a_trained_model():
    model = random_model(2, 4, 128)
    with torch.inference_mode():
        logs = model(torch.randint(0, 50257, (1, 32), generator=torch.Generator().manual_seed(0))).logits.log_softmax(-1)
    entropy = float(-(logs.exp() * logs).sum(-1).mean())
    assert 2 < entropy < 6
    assert model.lm_head.weight is model.transformer.wte.weight


def test_both_loops_are_timed_on_an_ir(float_dir):
    assert all(0 < Loop(float_dir, [5, 6, 7], way).tpot(4) < 1 for way in ("plain", "loop"))


# --- findings, tables, charts


def trial_of(int8=0.5, more=0.02) -> Trial:
    slow = (1.0, 1.01, 1.02, 1.03, 1.04)
    costs = tuple(more + 0.001 * (number % 3) for number in range(PROMPTS))
    return Trial(slow, slow, tuple(int8 * s for s in slow), ("a\n| `text`",) * 5, costs)


def model_of(name, outputs, seconds, stand_in=False, weights="trained"):
    times = tuple(MethodTimes(method, tuple(taken)) for method, taken in seconds.items())
    return ModelResult(name, weights, stand_in, 1_000_000, times, tuple(MethodTexts(m, tuple(found)) for m, found in outputs.items()))


def outputs_of(nats: float, explained: float, repeated: int, draws: int = 1) -> tuple[Output, ...]:
    """Return texts of 8 tokens, of whose five 4-grams `repeated` repeat. A prompt's number changes the NLL a little."""
    found = []
    for prompt in range(PROMPTS):
        ids = [0] * (4 + repeated) + list(range(1, 5 - repeated))
        total = 8 * (nats + 0.01 * prompt)
        scores = (total, total + 8 * explained) * 2
        found += [Output(prompt, draw, " ".join(map(str, ids)), "a | `text`", *scores) for draw in range(draws)]
    return tuple(found)


def written(greedy=(2.0, 0.5, 1), sampled=(3.0, 0.6, 0), itself=(3.5, 0.7, 0)):
    return {ITSELF: outputs_of(*itself), GREEDY: outputs_of(*greedy), "top-k": outputs_of(*sampled, draws=3)}


def times(base: float) -> dict[str, tuple[float, ...]]:
    return {GREEDY: (base, 1.01 * base, 0.99 * base), "top-k": (1.1 * base, 1.111 * base, 1.089 * base)}


@pytest.fixture
def result() -> Decoding:
    models = (
        model_of("bundled", written(), times(0.1), stand_in=True, weights="bundled (a stand-in for gpt2)"),
        model_of("gpt2", {}, times(1.0), stand_in=True, weights="random weights"),
        model_of("gpt2-large", {}, times(5.0), stand_in=True, weights="random weights"),
    )
    loop = LoopTimes((0.010, 0.011, 0.012), (0.0101, 0.01111, 0.01212))
    prompts = tuple(f"prompt {number}" for number in range(PROMPTS))
    return Decoding("2026", MACHINE, "a text", prompts, 3, 4, 8, 4, 8, models, "gpt2: random weights", loop)


def verdicts(result: Decoding) -> dict[str, tuple[str, str]]:
    return {finding.claim: (finding.verdict, finding.figure) for finding in find_all(result)}


def judged(result: Decoding) -> Decoding:
    return dataclasses.replace(result, models=tuple(dataclasses.replace(model, judge="gpt2-xl") for model in result.models))


def changed(result: Decoding, name: str, **of) -> Decoding:
    models = tuple(
        dataclasses.replace(m, texts=tuple(MethodTexts(k, v) for k, v in written(**of).items())) if m.name == name else m
        for m in result.models
    )
    return dataclasses.replace(result, models=models)


def test_sampling_is_held_against_greedy_by_repetition_and_by_what_the_prompt_explains(result):
    found = verdicts(result)
    assert found["sampling repeats itself less (bundled)"] == (
        CONFIRMED,
        "rep-4 of 1 sampling methods − greedy: -20.0 [-20.0, -20.0] points",
    )
    verdict, figure = verdicts(judged(result))["sampling is more coherent (bundled)"]
    assert verdict == CONFIRMED
    assert "to gpt2-xl the prompt explains +0.10 [+0.10, +0.10] nats per token more" in figure
    assert "of the text itself it explains 0.70" in figure
    assert "cost +1.00 [+1.00, +1.00]" in figure
    worse = verdicts(judged(changed(result, "bundled", sampled=(3.0, 0.4, 3))))
    assert worse["sampling repeats itself less (bundled)"][0] == REFUTED
    assert worse["sampling is more coherent (bundled)"][0] == REFUTED
    same = verdicts(changed(result, "bundled", sampled=(3.0, 0.5, 1)))
    assert same["sampling repeats itself less (bundled)"][0] == OPEN


def test_the_model_that_wrote_the_texts_does_not_judge_them(result):
    verdict, figure = verdicts(result)["sampling is more coherent (bundled)"]
    assert verdict == "not judged here: needs a second model that writes, with the same vocabulary"
    assert "explains" not in figure
    assert "says nothing about coherence" in caption(result)


def test_random_weights_tell_the_speed_of_sizes_and_nothing_of_their_quality(result):
    found = verdicts(result)
    verdict, figure = found["larger models are slower"]
    assert verdict == CONFIRMED
    assert "gpt2-large 5.00" in figure
    assert "random weights instead of gpt2, gpt2-large" in figure
    assert found["larger models are not much better"][0] == "not measured here: needs the real gpt2-medium and gpt2-large"
    assert found["gpt2-medium is the best balance of speed and quality"][0].startswith("not measured here: needs the real gpt2-medium")


def test_dynamic_int8_behind_the_fixed_prompt_is_judged_by_its_time_and_by_its_cost(result):
    first, *others = result.models
    assert not [claim for claim in verdicts(result) if "dynamic INT8" in claim]  # an older result has no trial
    timed = dataclasses.replace(trial_of(int8=1.2), texts=(), more_nats=())
    tried = dataclasses.replace(first, trial=trial_of()), dataclasses.replace(others[0], trial=timed), others[1]
    found = verdicts(dataclasses.replace(result, models=tried))
    faster, good = (f"dynamic INT8 {claim} (" for claim in ("with sampling is faster than FP32", "does not drastically impact quality"))
    assert found[f"{faster}bundled)"] == (
        CONFIRMED, "time ÷ that of FP32 with the same seeds: 0.50 [0.50, 0.50]; of FP32 again: 1.00 [1.00, 1.00]",
    )  # fmt: skip
    assert found[f"{faster}gpt2)"][0] == REFUTED
    assert found[f"{good}less than 0.1 nats, bundled)"] == (
        CONFIRMED,
        "the text itself costs it +0.021 [+0.020, +0.022] nats per token more than FP32",
    )
    assert not any("nats, gpt2)" in claim for claim in found)
    worse = dataclasses.replace(result, models=(dataclasses.replace(first, trial=trial_of(more=0.3)), *others))
    assert verdicts(worse)[f"{good}less than 0.1 nats, bundled)"][0] == REFUTED
    near = dataclasses.replace(result, models=(dataclasses.replace(first, trial=trial_of(more=0.0991)), *others))
    assert verdicts(near)[f"{good}less than 0.1 nats, bundled)"][0] == "neither confirmed nor refuted: the interval reaches beyond 0.1 nats"
    tables = all_tables(dataclasses.replace(result, models=tried))
    (seconds,) = (table for title, table in tables.items() if title.endswith("top-k sampling, seconds"))
    assert seconds.rows[0] == ("bundled (stand-in)", "1.02", "0.51", "0.5, 0.52", "0.50 [0.50, 0.50]", "1.00 [1.00, 1.00]", "5")
    assert [row[0] for row in seconds.rows] == ["bundled (stand-in)", "gpt2 (stand-in)"]
    (texts,) = (table for title, table in tables.items() if title.endswith("top-k sampling: bundled (stand-in)"))
    assert texts.rows[1] == ("2", "0.505", "`a | 'text'`")


@pytest.mark.parametrize(("large", "verdict"), [(2.79, CONFIRMED), (2.0, REFUTED)])
def test_with_the_real_models_the_balance_is_what_a_doubling_of_the_time_gains(result, large, verdict):
    models = [
        model_of(name, written(itself=(nats, 0.7, 0)), times(seconds))
        for name, nats, seconds in (("gpt2", 3.3, 1.0), ("gpt2-medium", 2.8, 2.0), ("gpt2-large", large, 4.0))
    ]
    found = verdicts(dataclasses.replace(result, models=tuple(models)))
    assert found["gpt2-medium is the best balance of speed and quality"][0] == verdict
    assert found["larger models are not much better"][0] == REFUTED


def test_tables_name_the_stand_ins_and_pair_what_was_measured_together(result):
    tables = all_tables(result)
    texts = tables["What the methods write: bundled (stand-in)"]
    assert [row[0] for row in texts.rows] == [ITSELF, GREEDY, "top-k"]
    assert texts.rows[1][2] == "20.0% [20.0%, 20.0%]"
    assert texts.rows[1][5].startswith(f"{math.exp(2.045):.2f} [")
    (paired,) = tables["Each method against greedy, paired: bundled (stand-in)"].rows
    assert paired == ("top-k", "-20.0% [-20.0%, -20.0%]", "2.72 [2.72, 2.72]", "+0.10 [+0.10, +0.10]", "1.10 [1.10, 1.10]")
    speed = tables["Speed of every method on every model"]
    assert speed.header[1:] == ("bundled (stand-in)", "gpt2 (stand-in)", "gpt2-large (stand-in)")
    assert speed.rows[1][2] == "7.3 tokens/s; 1.10 [1.10, 1.10]"
    assert tables["What our generation loop costs: gpt2: random weights"].rows[1][2] == "1.010 [1.010, 1.010]"
    said = caption(result)
    assert "bundled (a stand-in for gpt2)" in said
    assert "random weights" in said
    assert "1.010 [1.010, 1.010] times as long per token as the plain loop: within the 3%" in said


def test_the_chart_shows_every_method(result):
    mpl.use("Agg")
    repeats, spent = plot_decoding(result)
    assert [label.get_text() for label in repeats.get_legend().get_texts()] == [ITSELF, GREEDY, "top-k"]
    greedy = repeats.containers[1].lines[0]
    assert (greedy.get_xdata()[0], greedy.get_ydata()[0]) == pytest.approx((20, math.exp(2.045)))
    assert spent.containers[0].lines[0].get_xdata()[0] == pytest.approx(1e3 * 0.1 / 8)


# --- the whole


def test_the_experiment_on_a_tiny_model(model_dir, long_text, monkeypatch):
    monkeypatch.setattr(run, "time_loop", lambda *_: LoopTimes((0.01,) * 2, (0.01,) * 2))
    monkeypatch.setattr(run, "NEW_TOKENS", 16)
    monkeypatch.setattr(trial, "ROUNDS_S", 0)
    found = run.compare_decoding(str(model_dir), str(long_text))
    (model,) = found.writers
    assert model.methods == list(METHODS)
    assert [len(model.outputs(method)) for method in METHODS] == [3 * PROMPTS if method in SAMPLING else PROMPTS for method in METHODS]
    assert {len(model.seconds(method)) for method in METHODS} == {trial.LEAST_ROUNDS}
    assert len(found.prompts) == len(set(found.prompts)) == PROMPTS
    tried = model.trial
    assert {len(taken) for taken in (tried.fp32_s, tried.again_s, tried.int8_s, tried.texts)} == {trial.LEAST_ROUNDS}
    assert len(set(tried.texts)) > 1  # another seed each
    assert 0 < max(map(abs, tried.more_nats)) < 0.5
    assert len(tried.more_nats) == PROMPTS
    lowest = min(METHODS, key=lambda method: model.by_prompt(method, "nll").mean())
    assert lowest in (GREEDY, "beam search")
    assert from_json(Decoding, json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert all(table.rows for table in all_tables(found).values())
    assert END_OF_TEXT not in caption(found)


@pytest.mark.parametrize("judges", [0, 1])
def test_random_weights_are_not_confirmed_to_write_coherently(judges, model_dir, long_text, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "time_loop", lambda *_: LoopTimes((0.01,) * 2, (0.01,) * 2))
    monkeypatch.setattr(run, "NEW_TOKENS", 32)
    monkeypatch.setattr(trial, "ROUNDS_S", 0)
    tokenizer, other = load_model(model_dir)
    torch.manual_seed(7)
    for parameter in other.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    save_model(tmp_path / "other", tokenizer, other)
    found = run.compare_decoding(",".join(map(str, (model_dir, tmp_path / "other")[: 1 + judges])), str(long_text), "temperature,top-p")
    writer = found.models[0]
    assert writer.judge == (None, "other")[judges]
    assert mean(writer.by_prompt("temperature", "explained")).low > 0  # to itself its prompts explain what it draws
    for name, (verdict, _) in verdicts(found).items():
        assert verdict != CONFIRMED or "coherent" not in name
    if judges:
        output = writer.outputs("top-p")[4]
        prompt = tokenizer(found.prompts[output.prompt]).input_ids
        (again,) = judge(other, tokenizer, output.prompt, prompt, [output.tokens])
        assert (output.judged, output.judged_alone) == pytest.approx((again.nats, again.nats_alone), rel=1e-4)


def test_a_judge_has_the_writers_vocabulary(model_dir, tokenizer):
    candidate, texts = Candidate("a", "trained", model_dir), written()
    result = model_of("a", texts, times(1))
    own, strange = Writer(candidate, {"a": 0}, [[5]] * PROMPTS), Writer(candidate, {"b": 0}, [[5]] * PROMPTS)
    assert [each.judge for each in judge_by_others([result, result], [own, strange])] == [None, None]
    silent = Writer(candidate, {"a": 0}, [])
    assert [each.judge for each in judge_by_others([result, result], [own, silent])] == [None, None]


def test_a_size_that_can_not_be_had_gets_random_weights_and_is_named(monkeypatch):
    monkeypatch.setattr("gpt2opt.sources.models.find_snapshot", lambda *_: None)
    monkeypatch.delenv("GPT2OPT_MODEL", raising=False)
    found = find_candidates("auto")
    assert [candidate.name for candidate in found] == ["bundled", "gpt2", "gpt2-medium", "gpt2-large"]
    assert all(candidate.stand_in for candidate in found)
    assert [run.writes(candidate) for candidate in found] == [True, False, False, False]
    assert "gpt2-medium itself could not be had" in found[2].weights
    with pytest.raises(ValueError, match=r"'gpt2-medium' is no directory.*Expected some of auto, bundled, gpt2, gpt2-medium, gpt2-large"):
        find_candidates("bundled,gpt2-medium")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"methods": "beam"}, "method 'beam' is not known; expected some of greedy, temperature, top-k, .*beam-search, contrastive-search"),
        ({"models": "bundled,./nowhere"}, "no directory './nowhere'.*Expected some of auto, bundled, gpt2, gpt2-medium, gpt2-large"),
        ({"models": "bundled", "text": "short.txt"}, "held-out documents of 80 tokens, 10 prompts are asked for"),
    ],
)
def test_wrong_input_is_said_at_once(wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text(sample_text(blocks=20))
    with pytest.raises(ValueError, match=message):
        run.compare_decoding(**wrong)


def test_methods_are_chosen_in_their_order_whatever_way_they_are_typed():
    assert choose("method", "Beam-Search, top-p", METHODS) == ("top-p", "beam search")
    assert choose("method", "", METHODS) == tuple(METHODS)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.01, 0.3], [0.2, 0.9, 1.0, 1.0], [0.4, 0.5, 0.6, 0.5]])
def test_the_interval_of_a_share_lies_around_it_and_between_0_and_1(values):
    found, (low, high) = share(values)
    assert found == pytest.approx(sum(values) / 4)
    assert 0 < low < found < high < 1


@pytest.mark.parametrize("values", [[0.2], [0.0, 0.0, 0.3], [1.0, 1.0, 0.7]])
def test_one_prompt_alone_gives_no_interval_of_a_share(values):
    assert share(values)[1] is None
