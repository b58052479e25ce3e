import json
import shutil
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from gpt2opt.cli import main
from gpt2opt.export.onnx import export_onnx
from gpt2opt.export.openvino import export_ir
from gpt2opt.measure.quality import measure_agreement, perplexity, prepare_text
from gpt2opt.prune import head_importance, importance_batches
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.run.record import read_record
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.onnx_model import OnnxDecoder, load_onnx
from gpt2opt.settings import Settings
from gpt2opt.sources.gpt2 import heads_per_layer
from gpt2opt.sources.models import load_model
from gpt2opt.sources.texts import find_texts, read_documents, take_bytes
from gpt2opt.storage import claim_folder
from gpt2opt.torch_model import logits_of
from tests.conftest import continue_text, sample_text, torch_logits
from tests.report.conftest import make_record


@pytest.fixture(scope="module")
def int8_dir(model_dir, tmp_path_factory):
    tokenizer, model = load_model(model_dir)
    rows = prepare_calibration_dataset(sample_text().split("\n\n"), tokenizer, length=32, limit=8)
    folder = tmp_path_factory.mktemp("cli") / "int8"
    quantize_int8(model, tokenizer, Dataset.from_dict({"input_ids": rows["input_ids"]}), folder, "w8")  # made in a second
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


@pytest.fixture(scope="module")
def onnx_dir(model_dir, tmp_path_factory):
    tokenizer, model = load_model(model_dir)
    return export_onnx(model, tokenizer, tmp_path_factory.mktemp("cli") / "onnx")


def test_prune_and_quantize_write_folders_that_the_other_commands_take(model_dir, text_file, tmp_path, capsys, caplog):
    pruned, int8 = str(tmp_path / "pruned"), str(tmp_path / "int8")
    assert main(["prune", str(model_dir), "--text", str(text_file), "--heads", "2", "--out", pruned]) == 0
    told = last_json(capsys)
    assert {layer: len(heads) for layer, heads in told["pruned_heads"].items()} == {"0": 2, "1": 2}
    kept = load_model(pruned)[1]
    assert (heads_per_layer(kept), told["heads"]) == (10, "10 of 12 are left in each layer")
    assert main(["quantize", pruned, "--text", str(text_file), "--recipe", "w8", "--out", int8]) == 0
    told = last_json(capsys)
    assert (told["recipe"], told["inputs"], len(told["float_inputs"]), told["kv_cache"]) == ("w8", 9, 9, "f16")
    assert "quantizing by INC, on 24 rows of the calibration text" in caplog.text
    assert main(["audit", int8]) == 0
    assert main(["compare", pruned, int8, "--text", str(text_file)]) == 0
    assert last_json(capsys)["same_top"]["value"] > 0.9


def test_prune_takes_the_heads_that_matter_least_or_the_first_ones(model_dir, text_file, tmp_path, capsys):
    options = {"least": ["--text", str(text_file)], "first": ["--first-heads"]}
    told = {}
    for name, more in options.items():
        assert main(["prune", str(model_dir), "--prune-fraction", "0.1", *more, "--out", str(tmp_path / name)]) == 0
        told[name] = last_json(capsys)
    tokenizer, model = load_model(model_dir)
    texts = [document.text for document in take_bytes(find_texts(str(text_file)).fine_tune, Settings.fine_tune_bytes)]
    least = head_importance(model, importance_batches(texts, tokenizer, 256)).argmin(1).tolist()
    assert list(told["least"]["pruned_heads"].values()) == [[head] for head in least]
    assert told["first"]["pruned_heads"] == {"0": [0], "1": [0]}
    assert told["first"]["text"] is None


def test_every_command_takes_the_folder_of_a_run(model_dir, int8_dir, text_file, tmp_path, capsys):
    run = tmp_path / "run"
    for stage, source in (("1-profile", model_dir), ("4-quantize", int8_dir)):
        shutil.copytree(source, run / stage)
    make_record().write(run / "run.json")
    assert main(["prune", str(run), "--first-heads", "--out", str(run / "2-prune")]) == 0
    assert last_json(capsys)["model"].startswith("1-profile")
    assert main(["prune", str(run), "--first-heads", "--heads", "0", "--out", str(tmp_path / "same")]) == 0
    assert last_json(capsys)["model"].startswith("2-prune")
    assert main(["audit", str(run)]) == 0
    assert main(["generate", str(run), "--prompt", "Node 1 of", "--max-new-tokens", "4"]) == 0
    assert last_json(capsys)["text"] == continue_text(int8_dir, "Node 1 of", 4)
    assert main(["perplexity", str(run), "--text", str(text_file)]) == 0
    assert last_json(capsys)["model"] == "4-quantize (OpenVINO IR)"


@pytest.fixture
def short_text(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(sample_text(blocks=3, sentences=6))
    return path


def test_compare_takes_torch_an_ir_and_onnx(model_dir, int8_dir, onnx_dir, short_text, capsys):
    found = {}
    for name, model in (("torch", model_dir), ("int8", int8_dir), ("onnx", onnx_dir), ("onnx file", onnx_dir / "model.onnx")):
        assert main(["compare", str(model_dir), str(model), "--text", str(short_text)]) == 0
        found[name] = last_json(capsys)
    for name in ("torch", "onnx", "onnx file"):
        assert found[name]["kl_nats"]["value"] == pytest.approx(0, abs=1e-6)
        assert found[name]["same_top"]["value"] > 0.999
        assert found[name]["perplexity_ratio"]["value"] == pytest.approx(1, rel=1e-4)
    tokenizer, model = load_model(model_dir)
    documents, _ = read_documents(short_text)
    text = prepare_text(tokenizer, [document.text for document in documents], "a text")
    quality, agreement = measure_agreement(logits_of(load_ir(int8_dir)), logits_of(model), text, reference_name="torch")
    base = perplexity(logits_of(model), text)
    assert found["int8"]["kl_nats"] == {"value": pytest.approx(agreement.mean_kl), "interval": pytest.approx(agreement.mean_kl_interval())}
    assert found["int8"]["same_top"]["value"] == pytest.approx(agreement.top1)
    ratio = {"value": pytest.approx(quality.ratio_to(base)), "interval": pytest.approx(quality.ratio_interval(base))}
    assert found["int8"]["perplexity_ratio"] == ratio


def test_a_graph_with_the_logits_of_every_token_is_run_once_for_a_text(onnx_dir, monkeypatch):
    model, ids = load_onnx(onnx_dir), np.arange(12).reshape(2, 6)
    token_by_token, calls = model.logits(ids), []

    def every(decoder, ids):
        calls.append(ids.shape)
        return token_by_token

    monkeypatch.setattr(OnnxDecoder, "_run", every)
    assert model.logits(ids) is token_by_token
    assert calls == [(2, 6)]


class Llama:
    """Stands in for llama-cpp-python's class: it answers as a torch model does."""

    def __init__(self, path, **_):
        self.model = load_model(Path(path).parent)[1]

    def reset(self) -> None:
        self.scores = None

    def eval(self, tokens) -> None:
        self.scores = np.vstack([torch_logits(self.model, np.array([tokens]))[0], np.full((3, self.model.config.vocab_size), np.nan)])


def test_compare_takes_a_gguf_file_where_llama_cpp_is_there(model_dir, short_text, tmp_path, monkeypatch, capsys):
    shutil.copytree(model_dir, tmp_path / "gguf")
    (tmp_path / "gguf" / "model.gguf").write_text("GGUF")
    arguments = ["compare", str(model_dir), str(tmp_path / "gguf" / "model.gguf"), "--text", str(short_text)]
    monkeypatch.setattr("gpt2opt.apps.commands.cpu_flags", lambda: {"avx2"})
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert main(arguments) == 2
    assert "`pip install 'gpt2opt[llama]'` brings it" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=Llama))
    assert main(arguments) == 0
    assert last_json(capsys)["kl_nats"]["value"] == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr("gpt2opt.apps.commands.cpu_flags", lambda: {"amx_int8"})
    assert main(arguments) == 2
    assert "llama.cpp is known to crash on CPUs with AMX" in capsys.readouterr().err


def test_a_text_that_takes_long_to_score_has_a_bar(model_dir, text_file, monkeypatch, capsys):
    monkeypatch.setattr("gpt2opt.measure.quality.SHOWN_AFTER_S", 0.0)
    assert main(["perplexity", str(model_dir), "--text", str(text_file)]) == 0
    assert "scoring:" in capsys.readouterr().err


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
    "heads of which none would stay": (
        ["prune", "{model}", "--heads", "12", "--first-heads", "--out", "new"],
        "heads=12, expected at least 0",
    ),
    "fraction to prune": (["prune", "{model}", "--prune-fraction", "1", "--out", "new"], "prune_fraction=1.0 is outside [0, 1)"),
    "folder of a user's to prune into": (["prune", "{model}", "--first-heads", "--out", "thesis"], "thesis is not empty"),
    "folder of a user's to quantize into": (["quantize", "{model}", "--text", "{text}", "--out", "thesis"], "thesis is not empty"),
    "too little to calibrate on": (["quantize", "{model}", "--text", "{short}", "--out", "new"], "at least 8 are needed; give more text"),
    "an IR to quantize": (["quantize", "{int8}", "--text", "{text}", "--out", "new"], "but openvino_model.xml, an IR, which"),
    "no GGUF file": (["compare", "{model}", "none.gguf", "--text", "{text}"], "no file none.gguf; name a GGUF file"),
    "no ONNX file": (["compare", "{model}", "{model}/none.onnx", "--text", "{text}"], "no none.onnx in"),
    "two vocabularies": (["compare", "{model}", "bundled", "--text", "{text}"], "cut the text into different tokens; only models of one"),
    "a model within the run's own folder": (
        ["run", "--model", "mine-run", "--text", "{text}", "--out", "mine-run"],
        "the model mine-run/3-finetune is in mine-run, the folder of a run, and a new run would remove it",
    ),
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
    shutil.copytree(model_dir, claim_folder(tmp_path / "mine-run") / "3-finetune")
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
    for command in ("run", "prune", "finetune", "quantize", "audit", "perplexity", "compare", "generate", "report"):
        assert command in done.stdout


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gpt2opt {version('gpt2opt')}\n"


def test_help_loads_no_heavy_library():
    code = "import sys; from gpt2opt.cli import _parser; _parser().format_help(); print({'torch', 'openvino', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
