"""A run begins only where it can end, and `measure` is the one way into its record."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.decoding.text import window_length
from gpt2opt.measure.trace import read_trace, record_trace
from gpt2opt.prune import head_importance, prune_attention_heads
from gpt2opt.report.profile.page import hash_traces, page
from gpt2opt.run.pipeline import run_profile, run_prune
from gpt2opt.run.record import Settings, read_record
from gpt2opt.run.recorder import fit_to_context, start_run
from gpt2opt.sources.models import load_model
from gpt2opt.storage import hash_weights, new_folder
from tests.conftest import make_model, make_tokenizer


def saved(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_several_processes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were launched.*gpt2opt finetune"):
        start_run("bundled", "docs", tmp_path / "out", tmp_path / "traces")
    assert not list(tmp_path.iterdir())


def test_a_run_removes_the_stages_of_the_one_before_it_and_nothing_else(model_dir, text_file, tmp_path):
    out = tmp_path / "out"
    start_run(str(model_dir), str(text_file), out, out / "traces")
    with new_folder(out / "2-prune") as partial:
        (partial / "config.json").write_text("{}")
    mine = out / "1-introduction" / "chapter.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    (out / "notes.txt").write_text("mine")
    (out / "traces" / "2-prune").mkdir()
    for name in ("2-prune/profile.html", "profiles.html"):
        (out / "traces" / name).write_text(page([]))
    (out / "traces" / "2-prune" / "notes.txt").write_text("mine")
    start_run(str(model_dir), str(text_file), out, out / "traces")
    assert not (out / "2-prune").exists()
    assert not list((out / "traces").rglob("*.html"))
    assert (out / "traces" / "2-prune" / "notes.txt").read_text() == "mine"
    assert mine.read_text() == "years of work"
    assert (out / "notes.txt").read_text() == "mine"


@pytest.fixture
def in_one_process(monkeypatch):
    """Leave out the fresh processes for memory and times: each takes seconds to load torch, and both are tested elsewhere."""
    monkeypatch.setattr("gpt2opt.run.recorder.measure_memory", lambda *_: None)
    monkeypatch.setattr("gpt2opt.run.measurements.decoder_in_child", lambda make, *arguments, timer: make(*arguments))


HOLD = "import sys; from gpt2opt.storage import claim_folder, take_lock; take_lock(claim_folder(sys.argv[1])); print(flush=True); input()"


def test_a_log_of_training_carries_no_host_name_and_that_of_an_earlier_run_is_gone(model_dir, text_file, tmp_path):
    logs = tmp_path / "traces" / "3-finetune"
    logs.mkdir(parents=True)
    (logs / "events.out.tfevents.7.gpt2opt").write_text("of an earlier run")
    run = start_run(str(model_dir), str(text_file), tmp_path / "out", tmp_path / "traces")
    assert not list(logs.iterdir())
    (logs / f"events.out.tfevents.1.somebodys-laptop.{os.getpid()}.0").write_text("loss")
    run.write()
    assert [path.name for path in logs.iterdir()] == ["events.out.tfevents.0.gpt2opt"]


def test_a_page_of_somebody_else_among_the_traces_is_refused_before_any_work(model_dir, text_file, tmp_path):
    for name in ("profiles.html", "2-prune/profile.html"):
        mine = tmp_path / name.replace("/", "-") / "traces" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        with pytest.raises(ValueError, match=r"\.html is there and was not written by gpt2opt"):
            start_run(str(model_dir), str(text_file), tmp_path / "out", tmp_path / name.replace("/", "-") / "traces")
    assert not (tmp_path / "out").exists()


def test_two_runs_in_one_folder_are_refused_and_the_one_at_work_is_named(model_dir, text_file, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(ValueError, match=f"process {holder.pid} is writing to"):
            start_run(str(model_dir), str(text_file), tmp_path, tmp_path / "traces")
    finally:
        holder.kill()
        holder.communicate()
    start_run(str(model_dir), str(text_file), tmp_path, tmp_path / "traces")


@pytest.mark.slow
def test_a_model_with_a_small_context_runs_on_rows_and_prompts_that_fit(text_file, tmp_path, caplog, in_one_process):
    tokenizer = make_tokenizer(context=64)
    folder = saved(make_model(tokenizer), tokenizer, tmp_path / "small")
    run = start_run(folder, str(text_file), tmp_path / "out", tmp_path / "traces", score_bytes=4000)
    run_profile(run)
    run_prune(run)
    pruned = run.record.measured("Pruned")
    assert "reads 64 tokens at once" in caplog.text
    settings = read_record(tmp_path / "out" / "run.json").settings
    assert (settings.prompt_tokens, settings.new_tokens, settings.sequence_length) == (40, 24, 64)
    assert (pruned.latency.prompt_tokens, pruned.latency.new_tokens) == (40, 24)


@pytest.mark.parametrize(
    ("context", "prompt", "new", "row"), [(16, 8, 8, 16), (64, 40, 24, 64), (88, 64, 24, 88), (128, 64, 24, 128), (1024, 64, 24, 256)]
)
def test_lengths_are_cut_to_the_context_and_no_further(context, prompt, new, row):
    fitted = fit_to_context(Settings(), context)
    assert (fitted.prompt_tokens, fitted.new_tokens, fitted.sequence_length) == (prompt, new, row)
    assert window_length(make_tokenizer(context)) == context


def test_a_context_in_which_nothing_can_be_measured_is_refused(text_file, tmp_path):
    tokenizer = make_tokenizer(context=8)
    folder = saved(make_model(tokenizer), tokenizer, tmp_path / "small")
    with pytest.raises(ValueError, match="the model reads 8 tokens at once, at least 16 are needed"):
        start_run(folder, str(text_file), tmp_path / "out", tmp_path / "traces")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_layers_with_different_numbers_of_heads_are_refused_before_the_first_stage(model, tokenizer, text_file, tmp_path):
    model.prune_heads({0: [1, 5]})
    folder = saved(model, tokenizer, tmp_path / "unequal")
    with pytest.raises(ValueError, match=r"layers kept \[10, 12\] heads"):
        start_run(folder, str(text_file), tmp_path / "out", tmp_path / "traces")
    assert [path.name for path in tmp_path.iterdir()] == ["unequal"]
    with pytest.raises(ValueError, match=r"layers kept \[10, 12\] heads"):
        prune_attention_heads(model, 0.2)
    with pytest.raises(ValueError, match=r"layers kept \[10, 12\] heads"):
        head_importance(model, [])


@pytest.fixture(scope="module")
def run(model_dir, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return start_run(str(model_dir), str(text_file), folder / "out", folder / "traces", score_bytes=3000, prompt_tokens=8, new_tokens=2)


@pytest.fixture(scope="module")
def baseline(run):
    _, model = load_model(run.model.path, "float16")
    run.measure("Baseline", model, heads=np.array([1, 2]), where=Path("here"))
    return model


def test_what_is_measured_is_what_was_written_and_the_facts_are_as_json_gives_them_back(run, baseline):
    measured = read_record(run.out / "run.json").measured("Baseline")
    assert measured == run.record.measured("Baseline")
    assert measured.facts == {"heads": [1, 2], "where": "here"}
    assert measured.parameters == baseline.num_parameters()
    assert len(measured.continuations) == len(run.record.prompts) == len(run.workload.samples)
    assert run.record.models["Baseline"].weights == hash_weights(run.folder("Baseline"))
    assert read_record(run.traces / "run.json") == run.record


def test_a_name_that_no_stage_knows_is_a_control_and_is_not_timed(run, baseline):
    with pytest.raises(
        ValueError, match=r"'Prunned' is none of the models of the four stages \('Baseline', .*; for a control .*control=True"
    ):
        run.measure("Prunned", baseline)
    run.measure("Halved, by a friend", baseline, control=True)
    control = run.record.measured("Halved, by a friend")
    assert run.record.role("Halved, by a friend").stage == "1-profile"
    assert run.folder("Halved, by a friend").name == "1-control-by-a-friend"
    assert control.latency is control.memory is None
    assert control.quality == run.record.measured("Baseline").quality


def test_what_can_not_be_measured_is_refused_before_anything_is_written(run, baseline):
    with pytest.raises(ValueError, match=r"'Baseline' has parameters in torch\.float32, expected torch\.float16; cast it"):
        run.measure("Baseline", copy.deepcopy(baseline).float())
    with pytest.raises(ValueError, match="'Fine-tuned' needs 'Pruned', which has not been measured yet"):
        run.measure("Fine-tuned", baseline)
    with pytest.raises(ValueError, match=r"'Pruned' is .*, expected a torch model or run\.folder\('Pruned'\) with an IR in it"):
        run.measure("Pruned", run.folder("Pruned"))
    assert not run.folder("Fine-tuned").exists()
    with pytest.raises(ValueError, match="'Pruned' is not in this record"):
        run.load("Pruned")


@pytest.mark.slow
def test_a_control_before_any_stage_is_refused(model_dir, text_file, tmp_path):
    begun = start_run(str(model_dir), str(text_file), tmp_path / "out", tmp_path / "traces")
    with pytest.raises(
        ValueError, match="'Halved' would be a control of the last stage so far, and there is none; measure 'Baseline' first"
    ):
        begun.measure("Halved", load_model(model_dir, "float16")[1], control=True)


def test_the_scratch_folder_is_gone_with_the_run(model_dir, text_file, tmp_path):
    begun = start_run(str(model_dir), str(text_file), tmp_path / "out", tmp_path / "traces")
    (begun.scratch / "states").write_text("of a trainer")
    scratch = begun.scratch
    del begun
    assert not scratch.exists()


def test_what_came_later_no_longer_holds_when_an_earlier_stage_is_measured_again(run, baseline, in_one_process):
    first = record_trace(lambda: torch.ones(2) + 1, run.trace_folder("Baseline"))
    run.measure("Pruned", run.load("Baseline", "float16"))
    run.draw()
    assert read_trace(run.trace_folder("Baseline")) == first
    assert "aten::addmm" in read_trace(run.traces / "2-control-baseline").operators, "it is recorded again, in turns with the pruned model"
    assert "Pruned ÷ Baseline (median of the rounds" in (run.traces / "profiles.html").read_text()
    traced = run.trace_folder("Pruned")
    assert sorted(path.name for path in traced.iterdir()) == ["gpt2opt.pt.trace.json.gz", "profile.html"]
    assert "2-prune" in (run.traces / "profiles.html").read_text()
    written = {"2-prune/gpt2opt.pt.trace.json.gz", "2-prune/profile.html", "profiles.html"}
    assert written <= run.record.traces.keys()
    for folder in (run.out, run.traces):
        assert read_record(folder / "run.json").traces == hash_traces(run.traces)
    assert run.record.models["Pruned"].weights_in == run.record.models["Baseline"].weights
    run.measure("Pruned", baseline)  # it was not loaded from what stage 1 wrote
    assert run.record.models["Pruned"].weights_in == hash_weights(run.model.path)
    baseline.config.name_or_path = ""  # nor from any folder
    run.measure("Pruned", baseline)
    assert run.record.models["Pruned"].weights_in is None
    assert run.record.stages == ["1-profile", "2-prune"]
    assert "Baseline" in run.record.models["Pruned"].in_turns
    run.measure("Baseline", baseline)
    assert run.record.stages == ["1-profile"]
    assert not list(traced.iterdir())
    assert read_record(run.out / "run.json").traces == hash_traces(run.traces)
    assert not any(name.startswith("2-prune") for name in run.record.traces)


def test_all_models_of_a_runtime_take_turns_and_are_shown_with_the_times_of_these_rounds(run, baseline, in_one_process):
    for name in ("Baseline", "Pruned", "Fine-tuned"):
        measured = run.measure(name, baseline)
    pairs = {(pair.name, pair.base): pair for pair in run.record.models["Fine-tuned"].comparisons()}
    assert {("Fine-tuned", "Baseline"), ("Pruned", "Baseline")} <= pairs.keys()
    tuned, pruned = pairs["Fine-tuned", "Baseline"], pairs["Pruned", "Baseline"]
    assert tuned.base_latency == pruned.base_latency == run.record.measured("Baseline").latency
    assert run.record.measured("Pruned").latency == pruned.latency != run.record.models["Pruned"].latency
    assert run.record.measured("Fine-tuned").latency == measured.latency == tuned.latency
