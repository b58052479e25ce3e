"""The directory for OpenVINO Model Server: its layout, and what the continuous batching inside the server makes of it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
import pytest

from gpt2opt.cli import main
from gpt2opt.decoding.text import encode_prompt
from gpt2opt.export import model_server
from gpt2opt.export.model_server import export_for_server
from gpt2opt.runtime.generate import continue_text
from gpt2opt.runtime.ir_model import load_ir
from tests.conftest import CONTEXT, greedy_tokens, make_model
from tests.other_tokenizers import sentence_piece

LOADED_BY_THE_SERVER = {
    "openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml",
    "openvino_detokenizer.bin", "config.json", "generation_config.json", "tokenizer_config.json", "graph.pbtxt",
}  # fmt: skip


@pytest.fixture(scope="module")
def float_server(float_dir, tmp_path_factory) -> Path:
    return Path(export_for_server(str(float_dir), tmp_path_factory.mktemp("server") / "fp32").folder)


@pytest.fixture(scope="module")
def int8_server(quantized, tmp_path_factory) -> Path:
    """Made from the folder of a run, whose INT8 model is taken."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(quantized[0], run / "4-quantize")
    (run / "run.json").write_text("{}")
    return Path(export_for_server(str(run), tmp_path_factory.mktemp("server") / "int8").folder)


def plugin_config(folder: Path) -> dict[str, str]:
    return json.loads(re.search("plugin_config: '(.*)'", (folder / "graph.pbtxt").read_text())[1])


def serve(folder: Path) -> openvino_genai.ContinuousBatchingPipeline:
    """Load a directory as the server does."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    return openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", plugin_config(folder))


def greedy(new_tokens: int) -> openvino_genai.GenerationConfig:
    return openvino_genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)


def test_the_directory_has_what_the_server_loads(float_server, int8_server):
    for folder, kv_cache in ((float_server, "f32"), (int8_server, json.loads((int8_server / "gpt2opt.json").read_text())["kv_cache"])):
        names = {path.name for path in folder.iterdir()}
        assert names >= LOADED_BY_THE_SERVER
        assert all((folder / name).stat().st_size for name in names)
        assert plugin_config(folder) == {**plugin_config(folder), "KV_CACHE_PRECISION": kv_cache, "INFERENCE_PRECISION_HINT": "f32"}
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["n_positions"]) == ("gpt2", CONTEXT)
        assert "eos_token_id" in json.loads((folder / "generation_config.json").read_text())


def test_the_graph_names_the_servers_calculator_and_closes_what_it_opens(float_server):
    graph = (float_server / "graph.pbtxt").read_text()
    assert (graph.count("{"), graph.count('"') % 2) == (graph.count("}"), 0)
    for line in (
        'input_stream: "HTTP_REQUEST_PAYLOAD:input"', 'output_stream: "HTTP_RESPONSE_PAYLOAD:output"', 'calculator: "HttpLLMCalculator"',
        'input_side_packet: "LLM_NODE_RESOURCES:llm"', 'models_path: "./"', 'device: "CPU"',
    ):  # fmt: skip
        assert line in graph


def both_runtimes(folder: Path, ids: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens of continuous batching and those of our runtime, for prompts of several lengths at once."""
    prompts = [ids[:1, :length] for length in (3, 20, 8)]
    results = serve(folder).generate([openvino.Tensor(prompt) for prompt in prompts], [greedy(12)] * len(prompts))
    model = load_ir(folder)
    return [result.m_generation_ids[0] for result in results], [greedy_tokens(model, prompt, 12)[0].tolist() for prompt in prompts]


def test_continuous_batching_gives_the_tokens_of_our_runtime_for_a_pruned_model(float_server, ids):
    theirs, ours = both_runtimes(float_server, ids)
    assert theirs == ours


def test_continuous_batching_runs_a_pruned_model_in_int8(int8_server, ids):
    """Other kernels compute it there, and a quantizer makes a step of any difference, so that later tokens may differ."""
    theirs, ours = both_runtimes(int8_server, ids)
    assert [len(tokens) for tokens in theirs] == [12] * 3
    assert sum(a[0] == b[0] for a, b in zip(theirs, ours, strict=True)) >= 2


def test_text_goes_in_and_comes_out_by_the_tokenizers_that_were_written(float_server):
    prompt = "Node 1 of graph 2"
    results = serve(float_server).generate([prompt], [greedy(8)])
    assert results[0].m_generation_ids[0] == continue_text(float_server, prompt, 8)


def test_a_torch_model_is_exported_in_fp32_by_the_command(model_dir, tmp_path, capsys, ids):
    assert main(["export", str(model_dir), "--openvino-server", str(tmp_path / "server")]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["weights"], answer["kv_cache"]) == ("f32", "f32")
    assert set(answer["files"]) >= LOADED_BY_THE_SERVER
    assert answer["command"].startswith(f"ovms --model_path {tmp_path / 'server'} ")
    assert len(greedy_tokens(load_ir(tmp_path / "server"), np.array(ids[:1, :4]), 2)[0]) == 2


def test_the_server_adds_no_token_to_a_prompt_either(tmp_path):
    tokenizer = sentence_piece()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_for_server(str(tmp_path / "model"), tmp_path / "server")
    ids = openvino_genai.Tokenizer(str(tmp_path / "server")).encode("river stone").input_ids.data[0].tolist()
    assert ids == encode_prompt(tokenizer, "river stone", 0)


WRONG = {
    "no such model": ("./missing", "server", "no directory './missing'"),
    "a run without INT8": ("{run}", "server", "has no INT8 model in 4-quantize"),
    "a damaged IR": ("{damaged}", "server", "damaged/openvino_model.bin is not the file that was exported: it was changed or cut short"),
    "folder of a user's": ("{ir}", "{mine}", "is not empty and was not written by gpt2opt"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_nothing_is_written(case, float_dir, tmp_path, monkeypatch, capsys):
    places = {name: tmp_path / name for name in ("run", "damaged", "mine")}
    for name, file in (("run", "run.json"), ("mine", "chapter.txt")):
        places[name].mkdir()
        (places[name] / file).write_text("{}")
    shutil.copytree(float_dir, places["damaged"])
    (places["damaged"] / "openvino_model.bin").write_bytes(b"cut")
    monkeypatch.chdir(tmp_path)
    model, out, message = (text.format(ir=float_dir, **places) for text in WRONG[case])
    assert main(["export", model, "--openvino-server", out]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpt2opt:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "server").exists()
    assert [path.name for path in places["mine"].iterdir()] == ["chapter.txt"]


def test_without_openvino_tokenizers_the_message_says_what_to_install(float_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(model_server, "installed", {"openvino": "2026.4.1"}.get)
    with pytest.raises(ImportError, match=r"`pip install openvino-tokenizers==2026\.4\.\*`"):
        export_for_server(str(float_dir), tmp_path / "server")
