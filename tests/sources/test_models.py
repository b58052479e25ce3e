import copy
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt2opt.cli import main
from gpt2opt.export.openvino import export_ir
from gpt2opt.prune import prune_attention_heads
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.sources import models
from gpt2opt.sources.gpt2 import source_weights
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.storage import hash_weights, weight_files
from tests.conftest import make_model, relative_error, torch_logits


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(models.VARIABLE, raising=False)


def test_the_argument_comes_first(model_dir, monkeypatch):
    monkeypatch.setenv(models.VARIABLE, "bundled")
    found = find_model(str(model_dir))
    assert (found.path, found.origin, found.stand_in) == (model_dir, "argument", False)


def test_then_the_variable(model_dir, monkeypatch):
    monkeypatch.setenv(models.VARIABLE, str(model_dir))
    assert find_model().origin == "variable GPT2OPT_MODEL"


def test_at_last_the_bundled_model_named_as_a_stand_in(monkeypatch):
    monkeypatch.setattr(models, "find_snapshot", lambda *_: None)
    found = find_model()
    assert found.stand_in
    assert "stand-in for gpt2" in str(found)


def test_a_model_asked_for_has_no_stand_in(monkeypatch):
    monkeypatch.setattr(models, "find_snapshot", lambda *_: None)
    with pytest.raises(ValueError, match="'gpt2-medium' is no directory"):
        find_model("gpt2-medium")
    with pytest.raises(ValueError, match=r"no directory '\./missing/model'"):
        find_model("./missing/model")


def test_another_architecture_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is 'bert', expected 'gpt2'"):
        find_model(str(tmp_path))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        find_model(str(tmp_path))


def test_a_damaged_model_is_refused(model_dir, tmp_path):
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"can't load the model in .* damaged"):
        load_model(tmp_path)


def test_a_model_that_lacks_tensors_is_refused_and_not_filled_with_random_numbers(model_dir, tmp_path):
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(ValueError, match=r"lacks 1\d tensors \(transformer\.h\.2"):
        load_model(tmp_path)


def test_a_model_without_a_tokenizer_is_refused(model_dir, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    with pytest.raises(ValueError, match="can't load the tokenizer"):
        load_model(tmp_path)


def with_config(model_dir, folder, **changed):
    """Return a copy of a model whose config is changed; a value of None takes the setting away."""
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def test_a_model_in_shards_is_the_model(model_dir, tokenizer, tmp_path):
    _, whole = load_model(model_dir)
    whole.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    _, loaded = load_model(find_model(str(tmp_path)).path)
    assert all(a.equal(b) for a, b in zip(whole.parameters(), loaded.parameters(), strict=True))
    (tmp_path / "training_args.bin").write_bytes(b"of a Trainer")
    assert {path.suffix for path in weight_files(tmp_path)} == {".safetensors"}
    assert sum(path.stat().st_size for path in weight_files(tmp_path)) > sum(p.nbytes for p in loaded.parameters())
    before, shard = hash_weights(tmp_path), sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert hash_weights(tmp_path) != before
    assert models.is_complete(tmp_path)
    shard.unlink()
    assert not models.is_complete(tmp_path)
    with pytest.raises(ValueError, match=rf"lacks 1 of \d+ shards of its weights \({shard.name}"):
        find_model(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json does not name the files"):
        load_model(tmp_path)


INSTEAD = {
    "pickled weights": ("pytorch_model.bin", "a pickle, which can run code when it is read"),
    "pickled shards": ("pytorch_model.bin.index.json", "a pickle, which can run code when it is read"),
    "a checkpoint of torch": ("model.pt", "a pickle"),
    "an ONNX": ("model.onnx", "an export; name the torch model"),
    "an IR": ("openvino_model.xml", "an IR, which generate, perplexity, audit and export take"),
    "TensorFlow's weights": ("tf_model.h5", "from_tf=True"),
}


@pytest.mark.parametrize("case", INSTEAD)
def test_what_is_there_in_place_of_weights_is_named(case, model_dir, tmp_path):
    name, message = INSTEAD[case]
    for path in model_dir.glob("*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / name).write_bytes(b"anything")
    for load in (lambda: find_model(str(tmp_path)), lambda: load_model(tmp_path)):
        with pytest.raises(ValueError, match=re.escape(f"no model.safetensors in {tmp_path}, but {name}, ") + ".*" + re.escape(message)):
            load()


def test_an_adapter_is_named_as_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no config\.json in .*, but adapter_config\.json, an adapter \(LoRA\).* merge"):
        find_model(str(tmp_path))


def test_a_pointer_of_git_lfs_is_no_weights(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of Git LFS .*`git lfs pull`"):
        find_model(str(tmp_path / "model"))


CONFIGS = {
    "cross attention": ({"add_cross_attention": True}, "has cross attention"),
    "no model_type": ({"model_type": None}, "has no model_type, expected 'gpt2'; add it"),
    "another architecture": ({"model_type": "gpt_neo"}, "is 'gpt_neo', expected 'gpt2'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_no_gpt2_is_refused_at_loading(case, model_dir, tmp_path):
    changed, message = CONFIGS[case]
    folder = with_config(model_dir, tmp_path / "model", **changed)
    for load in (lambda: find_model(str(folder)), lambda: load_model(folder)):
        with pytest.raises(ValueError, match=message):
            load()


def test_cross_attention_of_a_model_in_memory_is_refused(tokenizer):
    with pytest.raises(ValueError, match="has cross attention"):
        prepare_for_export(make_model(tokenizer, add_cross_attention=True))


def test_every_token_needs_an_embedding_and_may_be_fewer(model_dir, float_dir, tokenizer, tmp_path):
    """An added token that no text holds, in a torch model, in an IR that the commands take, and in memory."""
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<never>"])
    message = re.escape(f"the tokenizer has {len(larger)} tokens and the model {len(tokenizer)} embeddings, none for '<never>'")
    for source, load in ((model_dir, load_model), (float_dir, models.load_tokenizer)):
        folder = tmp_path / load.__name__
        shutil.copytree(source, folder)
        larger.save_pretrained(folder)
        with pytest.raises(ValueError, match=message + rf".*resize_token_embeddings\({len(larger)}\)"):
            load(folder)
    with pytest.raises(ValueError, match=message):
        export_ir(prepare_for_export(make_model(tokenizer)), larger, tmp_path / "ir")
    assert not (tmp_path / "ir").exists()
    padded = make_model(larger)  # one embedding more than the tokenizer has tokens
    padded.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    assert load_model(tmp_path / "padded")[1].config.vocab_size == len(tokenizer) + 1


def test_export_refuses_a_tokenizer_beyond_the_embeddings(float_dir, model_dir, tokenizer, tmp_path, capsys):
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"pad_token": "[PAD]"})
    for source in (float_dir, model_dir):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        larger.save_pretrained(folder)
        assert main(["export", str(folder), "--openvino-server", str(tmp_path / "server")]) == 2
        assert "none for '[PAD]'" in capsys.readouterr().err
        assert not (tmp_path / "server").exists()


def test_dtype_is_as_asked(model_dir):
    tokenizer, model = load_model(model_dir, "float16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert tokenizer.model_max_length == model.config.n_positions


@pytest.mark.parametrize(
    "flags", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}, {"reorder_and_upcast_attn": True}]
)
def test_attention_is_scaled_as_the_config_says(flags, tokenizer, ids, tmp_path):
    """transformers' eager attention reads these settings and its SDPA does not: logits would be off by a quarter and more."""
    made = prune_attention_heads(make_model(tokenizer, **flags), 0.2)
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    eager = GPT2LMHeadModel.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    expected = torch_logits(eager, ids)

    _, model = load_model(tmp_path / "model")
    assert relative_error(torch_logits(model, ids), expected) < 1e-5
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert relative_error(torch_logits(load_model(tmp_path / "again")[1], ids), expected) < 1e-5
    export_ir(prepare_for_export(eager), tokenizer, tmp_path / "ir")
    assert relative_error(load_ir(tmp_path / "ir").logits(ids), expected) < 1e-4


FIND_AND_LOAD = """
import json, sys
from gpt2opt.sources.gpt2 import source_weights
from gpt2opt.sources.models import find_model, load_model
found = find_model(sys.argv[1])
_, model = load_model(found.path)
print(json.dumps([found.origin, found.stand_in, model.num_parameters()]))
"""


def find_in_a_fresh_process(endpoint: str, cache, model_id: str) -> tuple[list, float]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", FIND_AND_LOAD, model_id], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start


@pytest.fixture
def stub_hub(model_dir):
    """Serve `model_dir` as the hub serves the repository gpt2."""
    commit = "0" * 40

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            if self.path == "/":
                content = b"hub"
            elif self.path.startswith("/api/models/gpt2"):
                files = [{"rfilename": path.name} for path in model_dir.iterdir()]
                content = json.dumps({"id": "gpt2", "modelId": "gpt2", "sha": commit, "siblings": files}).encode()
            elif (path := model_dir / self.path.rsplit("/", 1)[-1]).exists():
                content = path.read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{abs(hash(content))}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_the_hub_is_asked_and_then_its_cache_serves(stub_hub, model_dir, tmp_path):
    _, model = load_model(model_dir)
    (origin, stand_in, parameters), _ = find_in_a_fresh_process(stub_hub, tmp_path, "auto")
    assert (origin, stand_in, parameters) == ("hub", False, model.num_parameters())
    (origin, _, _), _ = find_in_a_fresh_process("http://127.0.0.1:9", tmp_path, "auto")
    assert origin == "local cache"


@pytest.mark.slow
def test_a_hub_that_never_answers_costs_seconds(tmp_path):
    silent = socket.create_server(("127.0.0.1", 0))
    (_, stand_in, _), spent = find_in_a_fresh_process(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, "auto")
    assert stand_in
    assert spent < 90  # a download client with its retries takes minutes; a busy machine takes half a minute for the rest
    silent.close()


@pytest.mark.parametrize("name", ["", "gpt2", "openai-community/gpt2", "{file}", "{empty}"])
def test_where_nobody_can_tell_what_a_model_was_loaded_from_its_weights_have_no_hash(name, model, tmp_path, monkeypatch):
    """`from_pretrained("gpt2")` notes the hub id, and a model made from a config notes nothing."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"of another model, in the working folder")
    monkeypatch.chdir(tmp_path)
    model.config.name_or_path = name.format(file=tmp_path / "file", empty=tmp_path / "empty")
    assert source_weights(model) is None


def test_a_model_from_a_folder_has_the_hash_of_that_folders_weights_and_so_has_its_copy(model_dir):
    _, loaded = load_model(model_dir)
    assert source_weights(copy.deepcopy(loaded)) == hash_weights(model_dir)
