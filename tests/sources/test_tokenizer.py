"""The tokenizer of a serving process: the ids and texts of transformers' fast one, without transformers."""

import json
import shutil
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from gpt2opt.decoding.text import decoder_of, encode, token_text
from gpt2opt.sources.models import load_tokenizer
from gpt2opt.sources.tokenizer import FastTokenizer
from tests.conftest import END_OF_TEXT, make_tokenizer
from tests.other_tokenizers import BERT, OTHERS, WORDS

TEXTS = [
    "Node 1 of graph 2 has 3 edges.", "river stone, bright quiet engine.", "light 😀 small 👩‍👧 city", "今天天气 letter number",
    "  two  spaces \n\n", "one<|endoftext|>two </s> three <pad> [SEP]four <new> [NEW] <s>", "Grüße, ÉTÉ don't", "\u200b\ufeff\x00a",
]  # fmt: skip


def uncased(folder):
    (folder / "words.txt").write_text("\n".join([*BERT.values(), *WORDS.split(), *"abcdefghijklmnopqrstuvwxyz.,"]))
    return BertTokenizerFast(str(folder / "words.txt"), do_lower_case=True)


KINDS = {"byte-level": lambda _: make_tokenizer(), **{name: lambda _, make=make: make() for name, make in OTHERS.items()}, "BERT": uncased}


def same(folder) -> FastTokenizer:
    """Return the tokenizer in a folder, after it has given the same as transformers'."""
    light, theirs = load_tokenizer(folder, serving=True), AutoTokenizer.from_pretrained(folder)
    assert isinstance(light, FastTokenizer)
    assert light.eos_token_id == theirs.eos_token_id
    assert light.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        ids = encode(theirs, text).input_ids
        assert encode(light, text).input_ids == ids
        assert decoder_of(light)(ids) == decoder_of(theirs)(ids)
    assert [token_text(light, token) for token in range(60)] == [token_text(theirs, token) for token in range(60)]
    return light


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_gives_the_same(kind, tmp_path):
    KINDS[kind](tmp_path).save_pretrained(tmp_path / "saved")
    assert same(tmp_path / "saved").eos_token_id == KINDS[kind](tmp_path).eos_token_id


@pytest.mark.parametrize(
    "config", [{}, {"add_prefix_space": True}, {"eos_token": None, "tokenizer_class": "GPT2TokenizerFast"}, {"eos_token": ...}], ids=str
)
@pytest.mark.parametrize("gone", [["vocab.json", "merges.txt"], ["tokenizer.json"]], ids=str)
def test_a_gpt2_in_one_file_or_in_its_vocabulary_and_merges_gives_the_same(gone, config, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    changed(tmp_path, "tokenizer_config.json", **config)
    same(tmp_path)


def changed(folder, name: str, **values) -> None:
    """Change values of a file; `...` takes one away."""
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({each: value for each, value in content.items() if value is not ...}))


@pytest.mark.parametrize("gone", ["vocab.json", "tokenizer.json"])
def test_what_the_config_adds_to_the_file_is_there_too(gone, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / gone).unlink()
    listed = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    new = {"content": "<new>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    changed(tmp_path, "tokenizer_config.json", added_tokens_decoder=listed | {"320": new}, additional_special_tokens=["<new>"])
    assert encode(same(tmp_path), "one <new>").input_ids[-1] == 320


def test_padding_and_truncation_that_were_saved_are_undone(tmp_path):
    inner = make_tokenizer().backend_tokenizer
    inner.enable_truncation(3)
    inner.enable_padding(length=500, pad_token=END_OF_TEXT)
    make_tokenizer().save_pretrained(tmp_path)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert 3 < len(encode(same(tmp_path), TEXTS[0]).input_ids) < 500


def test_what_only_transformers_can_read_is_left_to_it(tmp_path):
    uncased(tmp_path).save_pretrained(tmp_path / "slow")
    (tmp_path / "slow" / "tokenizer.json").unlink()  # a vocabulary of words is left
    OTHERS["SentencePiece"]().save_pretrained(tmp_path / "other")
    changed(tmp_path / "other", "tokenizer_config.json", tokenizer_class="T5Tokenizer")
    for name, config in (("more", {"pad_token": "[PAD]"}), ("others", {"additional_special_tokens": ["[NEW]"]})):
        make_tokenizer().save_pretrained(tmp_path / name)
        changed(tmp_path / name, "tokenizer_config.json", **config)  # transformers adds a token
    (tmp_path / "bare").mkdir()  # as on the hub in 2019
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "more" / name, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "gpt2"}')
    for name in ("slow", "other", "more", "others", "bare"):
        assert isinstance(load_tokenizer(tmp_path / name, serving=True), PreTrainedTokenizerBase), name


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.json", '{"version": "9"}'), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")],
)
def test_a_damaged_tokenizer_is_one_line(name, content, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"can't load the tokenizer in .*; save it there") as refused:
        load_tokenizer(tmp_path, serving=True)
    assert "\n" not in str(refused.value)


GENERATE = "import sys; from gpt2opt.__main__ import main; sys.argv[0] = 'gpt2opt'; assert main() == 0"
SERVE = """
import sys; from pathlib import Path
from gpt2opt.apps.ui.choices import Choice
from gpt2opt.apps.ui.models import Library
from gpt2opt.apps.ui.server import Server
choice = Choice(sys.argv[1], "fp32")
loaded = Server(Library(Path(sys.argv[2])), [], choice).library.ask(choice, print).result()
assert loaded.tokenizer("Node", add_special_tokens=False, verbose=False).input_ids
"""


@pytest.mark.parametrize(
    ("code", "arguments"), [(GENERATE, ["generate", "{ir}", "--prompt", "Node"]), (SERVE, ["{ir}", "{out}"])], ids=["command", "page"]
)
def test_an_ir_that_is_there_generates_without_torch_and_transformers(code, arguments, float_dir, tmp_path):
    code += "\nprint(sorted({'openvino', 'tokenizers', 'torch', 'transformers', 'numba'} & set(sys.modules)))"
    given = [argument.format(ir=float_dir, out=tmp_path / "out") for argument in arguments]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['openvino', 'tokenizers']"
