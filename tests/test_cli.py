import json
import shutil
import subprocess
import sys

import pytest
from datasets import Dataset

from gpt2opt.cli import main
from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.run.record import read_record
from gpt2opt.runtime.generate import continue_text
from gpt2opt.sources.models import load_model
from gpt2opt.storage import claim_folder
from tests.conftest import sample_text
from tests.report.conftest import make_record


@pytest.fixture(scope="module")
def int8_dir(model_dir, tmp_path_factory):
    tokenizer, model = load_model(model_dir)
    rows = prepare_calibration_dataset(sample_text().split("\n\n"), tokenizer, length=32, limit=8)
    folder = tmp_path_factory.mktemp("cli") / "int8"
    quantize_int8(model, tokenizer, Dataset.from_dict({"input_ids": rows["input_ids"]}), folder)
    return folder


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_run_stops_where_asked_and_writes_a_record(model_dir, text_file, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", "--model", str(model_dir), "--text", str(text_file), "--out", str(out), "--until", "profile"]) == 0
    stages = last_json(capsys)["stages"]
    assert [stage["name"] for stage in stages] == ["1-profile"]
    assert stages[0]["tpot_s"] > 0
    record = read_record(out / "run.json")
    assert record.measured("Baseline").quality.perplexity == stages[0]["quality"]["perplexity"]
    assert sorted(path.name for path in (out / "traces" / "1-profile").iterdir()) == ["gpt2opt.pt.trace.json.gz", "profile.html"]
    assert (out / "traces" / "profiles.html").exists()
    logs = sorted(path.relative_to(out / "traces" / "report").as_posix() for path in (out / "traces" / "report").rglob("*.gpt2opt"))
    assert logs == ["Baseline/events.out.tfevents.0.gpt2opt", "events.out.tfevents.0.gpt2opt"]


def test_audit_says_yes_with_exit_code_0(int8_dir, capsys):
    assert main(["audit", str(int8_dir)]) == 0
    assert last_json(capsys)["passed"] is True


def test_audit_says_no_with_exit_code_1(model_dir, tmp_path, capsys):
    tokenizer, model = load_model(model_dir)
    export_ir(prepare_for_export(model), tokenizer, tmp_path / "fp32")
    assert main(["audit", str(tmp_path / "fp32")]) == 1
    answer = last_json(capsys)
    assert answer["passed"] is False
    assert len(answer["failures"]) == 9


def test_perplexity_of_torch_and_int8_is_close(model_dir, int8_dir, text_file, capsys):
    found = []
    for model in (model_dir, int8_dir):
        assert main(["perplexity", str(model), "--text", str(text_file)]) == 0
        found.append(last_json(capsys))
    assert found[0]["protocol"] == found[1]["protocol"]
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=0.1)
    assert found[0]["perplexity"] != found[1]["perplexity"]


def test_generate_cuts_a_long_prompt_when_asked_and_says_so(int8_dir):
    arguments = ["generate", str(int8_dir), "--prompt", "Node 1 of graph 2", "--max-new-tokens", "255", "--truncate"]
    done = subprocess.run([sys.executable, "-m", "gpt2opt", *arguments], capture_output=True, text=True)
    assert done.returncode == 0
    assert "its last 1 are kept, and new ones fill the rest of the context" in done.stderr


def test_generate_continues_the_prompt(int8_dir, capsys):
    assert main(["generate", str(int8_dir), "--prompt", "Node 1 of", "--max-new-tokens", "4"]) == 0
    answer = last_json(capsys)
    assert answer["prompt"] == "Node 1 of"
    assert answer["text"] == continue_text(int8_dir, "Node 1 of", 4)


def test_report_shows_a_run_and_writes_a_page_beside_it(tmp_path, capsys):
    make_record().write(tmp_path / "run.json")
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Summary\n\nstage " in shown
    assert json.loads(shown.splitlines()[-1])["report"] == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_report_holds_runs_against_the_first(tmp_path, capsys):
    record = make_record()
    record.models = {"Baseline": record.models["Baseline"]}
    for name in ("a", "b"):
        record.write(tmp_path / name / "run.json")
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b" / "run.json"), "--out", str(tmp_path / "both.html")]) == 0
    shown = capsys.readouterr().out
    assert "B ÷ A [95%]" in shown
    comparison = json.loads(shown.splitlines()[-1])["comparison"]
    assert {one["ratios"][0]["value"] for one in comparison} == {1.0}
    assert (tmp_path / "both.html").exists()
    assert not (tmp_path / "a" / "report.html").exists()


WRONG = {
    "not a GPT-2": (["run", "--model", "{bert}"], "is 'bert', expected 'gpt2'"),
    "fraction": (["run", "--model", "{model}", "--prune-fraction", "1.0"], "prune_fraction=1.0 is outside [0, 1)"),
    "epochs": (["run", "--model", "{model}", "--epochs", "0"], "epochs=0.0, expected more than 0"),
    "epochs of fine-tuning": (["finetune", "{model}", "--epochs", "0"], "epochs=0.0, expected more than 0"),
    "epochs without end": (["finetune", "{model}", "--epochs", "inf"], "epochs=inf, expected more than 0 and at most 1000"),
    "epochs by the exponent": (["finetune", "{model}", "--epochs", "1e308"], "epochs=1e+308, expected more than 0 and at most 1000"),
    "epochs of a run": (["run", "--model", "{model}", "--epochs", "nan"], "epochs=nan, expected more than 0 and at most 1000"),
    "negative epochs": (["run", "--model", "{model}", "--epochs", "-1"], "epochs=-1.0, expected more than 0"),
    "fraction that is no number": (["run", "--model", "{model}", "--prune-fraction", "nan"], "prune_fraction=nan is outside [0, 1)"),
    "no stride": (["perplexity", "{model}", "--text", "{text}", "--stride", "0"], "stride=0, expected at least 1: the window would not"),
    "no window": (["perplexity", "./missing", "--window", "0"], "window=0, expected at least 1"),
    "negative window": (["perplexity", "./missing", "--window", "-5"], "window=-5, expected at least 1"),
    "stride beyond the window": (["perplexity", "{model}", "--text", "{text}", "--stride", "300"], "stride=300, window=256"),
    "model without a name": (["run", "--model", ""], "the model has no name"),
    "model to score without a name": (["perplexity", ""], "the model has no name"),
    "model to tune without a name": (["finetune", ""], "the model has no name"),
    "text without a name": (["finetune", "{model}", "--text", ""], "the text has no name"),
    "text to score without a name": (["perplexity", "{model}", "--text", ""], "the text has no name"),
    "length penalty": (
        ["generate", "./missing", "--prompt", "a", "--length-penalty", "1e308"],
        "length_penalty=1e+308",
    ),
    "length penalty without end": (["generate", "./missing", "--prompt", "a", "--length-penalty", "inf"], "length_penalty=inf, expected"),
    "temperature near 0": (["generate", "./missing", "--prompt", "a", "--do-sample", "--temperature", "1e-320"], "temperature=1e-320"),
    "top-p that is no number": (["generate", "./missing", "--prompt", "a", "--do-sample", "--top-p", "nan"], "top_p=nan, expected"),
    "repetition penalty": (["generate", "./missing", "--prompt", "a", "--repetition-penalty", "1e308"], "repetition_penalty=1e+308"),
    "seed": (
        ["generate", "./missing", "--prompt", "a", "--seed", "18446744073709551616"],
        "expected a whole number of at least 0",
    ),
    "beams without end": (["generate", "./missing", "--prompt", "a", "--num-beams", "1000000000000"], "num_beams=1000000000000"),
    "tokens without end": (["generate", "{int8}", "--prompt", "Node", "--max-new-tokens", "1000000000000"], "don't fit into the context"),
    "port": (["ui", "bundled", "--port", "70000"], "port 70000, expected one from 1 to 65535"),
    "unwritable model": (["finetune", "{model}", "--text", "{text}", "--out", "{file}/out"], "name a writable place"),
    "empty text": (["perplexity", "{model}", "--text", "{empty}"], "holds no text"),
    "one token": (["perplexity", "{model}", "--text", "{short}"], "has no two tokens in a row"),
    "missing model": (["perplexity", "./missing"], "no directory './missing'"),
    "damaged model": (["run", "--model", "{cut}", "--text", "{text}"], "the directory is damaged"),
    "text too short to divide": (["run", "--model", "{model}", "--text", "{short}"], "too few documents"),
    "text too short to calibrate": (["run", "--model", "{model}", "--text", "{few}"], "is too short; expected"),
    "missing directory": (["audit", "./missing"], "no openvino_model.xml in missing"),
    "damaged directory": (["generate", "{damaged}", "--prompt", "a"], "was changed or cut short"),
    "prompt too long": (
        ["generate", "{int8}", "--prompt", "Node 1 of graph 2", "--max-new-tokens", "255"],
        "from 1 to 1 fit into the context",
    ),
    "more new tokens than the context": (
        ["generate", "{int8}", "--prompt", "Node", "--max-new-tokens", "600"],
        "600 new tokens don't fit into the context of 256",
    ),
    "a prompt that is no text": (["generate", "{int8}", "--prompt", "\udcff"], "character 0 of the prompt is not text"),
    "no record": (["report", "./missing"], "can't read missing: No such file"),
    "folder without a record": (["report", "{model}"], "run.json: No such file"),
    "no folder": (["report", "{file}/run"], "Not a directory"),
    "not a record": (["report", "{bert}/config.json"], "has schema None, expected 'gpt2opt.run/4'"),
    "file of a user's for the report": (["report", "{record}", "--out", "{text}"], "was not written by gpt2opt"),
    "folder of a user's": (["run", "--model", "{model}", "--text", "{text}", "--out", "thesis"], "thesis is not empty"),
    "record of a user's": (["run", "--model", "{model}", "--text", "{text}", "--out", "mine"], "mine/traces/run.json is there and was not"),
    "folder of a user's for a model": (["finetune", "{model}", "--text", "{text}", "--out", "thesis"], "thesis is not empty"),
    "unwritable output": (["run", "--model", "{model}", "--text", "{text}", "--out", "{file}/out"], "name a writable place"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(case, model_dir, int8_dir, text_file, tmp_path, monkeypatch, capsys):
    places = {"model": model_dir, "text": text_file, "int8": int8_dir, "bert": tmp_path / "bert", "damaged": tmp_path / "damaged"}
    places["bert"].mkdir()
    (places["bert"] / "config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(int8_dir, places["damaged"])
    (places["damaged"] / "openvino_model.bin").write_bytes(b"cut")
    for name, content in (("empty", " \n"), ("short", "a"), ("file", "x")):
        places[name] = tmp_path / name
        places[name].write_text(content)
    shutil.copytree(model_dir, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    places |= {"cut": tmp_path / "cut", "few": tmp_path / "few", "record": tmp_path / "recorded" / "run.json"}
    places["few"].write_text("\n\n".join(f"{n}{' graph' * 340}" for n in range(30)))  # about a row of tokens a block
    claim_folder(tmp_path / "artifacts" / "1-profile")  # an earlier run's results
    claim_folder(tmp_path / "mine" / "traces")
    (tmp_path / "mine" / "traces" / "run.json").write_text("mine")
    for chapter in ("1-introduction", "2-background"):
        (tmp_path / "thesis" / chapter).mkdir(parents=True)
        (tmp_path / "thesis" / chapter / "chapter.txt").write_text("years of work")
    make_record().write(places["record"])
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)

    arguments, message = WRONG[case]
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("gpt2opt:")]) == 1
    assert captured.out == ""
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before, "something was deleted, changed or left half-written"


@pytest.mark.parametrize("arguments", [["run", "--out", ""], ["audit", ""], ["export", "bundled", "--openvino-server", ""], ["report", ""]])
def test_an_empty_path_is_not_the_current_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "an empty name came, expected that of a file or a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "message"), [(1e5, "above 65504"), (float("nan"), "hold NaN or infinity")])
def test_weights_that_training_spoiled_are_not_written(value, message, model_dir, text_file, tmp_path, monkeypatch, capsys):
    def spoil(model, *_):
        model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = value
        return {}

    monkeypatch.setattr("gpt2opt.apps.commands.train_model", spoil)
    assert main(["finetune", str(model_dir), "--text", str(text_file), "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpt2opt:")]
    assert "1 tensors of the model" in line
    assert message in line
    assert not list(tmp_path.iterdir())


def test_the_command_exists():
    done = subprocess.run([sys.executable, "-m", "gpt2opt", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("run", "finetune", "audit", "perplexity", "generate", "report"):
        assert command in done.stdout
