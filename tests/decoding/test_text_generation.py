"""From text to text: which prompts are refused, what ends a text, and the command line."""

import json

import pytest

from gpt2opt.decoding.generation import generate, stream
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.torch_model import TorchModel

PROMPTS = ["Node 1 of", "Node 12 of graph 3 has 4 edges, and", "a"]


@pytest.fixture(scope="module")
def model(float_dir):
    return load_ir(float_dir)


def test_prompts_of_any_length_are_continued_as_torch_continues_them(model, pruned, tokenizer):
    settings = DecodingSettings(max_new_tokens=20)
    found = generate(model, PROMPTS, settings, tokenizer)
    assert found == generate(TorchModel(pruned), PROMPTS, settings, tokenizer)
    for prompt, result in zip(PROMPTS, found, strict=True):
        assert tokenizer.decode(tokenizer(prompt).input_ids + list(result.ids)) == prompt + result.text


def test_end_of_text_is_the_tokenizers(model, tokenizer):
    (free,) = generate(model, PROMPTS[:1], DecodingSettings(max_new_tokens=10), tokenizer)
    (ended,) = generate(model, PROMPTS[:1], DecodingSettings(max_new_tokens=10, eos_token_id=free.ids[4]), tokenizer)
    assert free.finish == "length"
    assert (ended.ids, ended.finish) == (free.ids[: free.ids.index(free.ids[4]) + 1], "end of text")


def test_lookup_changes_no_text(model, tokenizer):
    plain = generate(model, PROMPTS[1:2], DecodingSettings(max_new_tokens=60), tokenizer)
    looked_up = generate(model, PROMPTS[1:2], DecodingSettings(max_new_tokens=60, prompt_lookup_num_tokens=10), tokenizer)
    assert looked_up == plain
    with pytest.raises(ValueError, match="with 3 prompts"):
        generate(model, PROMPTS, DecodingSettings(prompt_lookup_num_tokens=10), tokenizer)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (b"bytes", "type bytes, expected text"),
        ("a \udcff", "character 2 of the prompt"),
        ("a " * 300, "fit into"),
    ],
)
def test_a_prompt_that_can_not_be_continued_is_refused_before_anything_is_generated(prompt, message, model, tokenizer):
    with pytest.raises(ValueError, match=message):
        stream(model, ["fine", prompt], DecodingSettings(), tokenizer)


def test_the_command_line_streams_and_says_how_it_ended(float_dir, capsys):
    from gpt2opt.cli import main

    command = ["generate", str(float_dir), "--prompt", PROMPTS[0], "--max-new-tokens", "6", "--do-sample", "--seed", "3"]
    assert main(command) == 0
    *text, line = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert answer == {"prompt": PROMPTS[0], "text": "\n".join(text), "tokens": 6, "finish": "length", "method": "sampling"}
    assert main([*command, "--prompt", PROMPTS[2], "--stop", "zzz"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["prompt"] for line in lines] == [PROMPTS[0], PROMPTS[2]]
    assert lines[0]["text"] == answer["text"]  # the same seed, alone and in a batch
    assert main([*command, "--top-p", "1.5"]) == 2
    assert "top_p=1.5, expected a number above 0 and at most 1" in capsys.readouterr().err
