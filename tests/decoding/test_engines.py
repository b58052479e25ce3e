"""The loop on real decoders: torch and the IR choose the tokens that transformers' `generate` chooses, alone and in a batch."""

import numpy as np
import pytest
import torch

from gpt2opt.decoding import generation
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.torch_model import TorchModel
from tests.decoding.conftest import transformers_process


@pytest.fixture
def prompts(calibration) -> list[list[int]]:
    rows = calibration["input_ids"]
    return [rows[0][:20], rows[1][:3], rows[2][:32], rows[3][:1]]


@pytest.fixture(scope="module")
def float_ir(float_dir):
    return load_ir(float_dir)


def by_transformers(model, prompt: list[int], **settings) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
    return out[0, len(prompt) :].tolist()


def frequent_token(pruned, prompt) -> int:
    """Return a token that greedy decoding chooses on its way, to end the text with."""
    return by_transformers(pruned, prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)[7]


def test_greedy_is_that_of_transformers(pruned, float_ir, prompts):
    end = frequent_token(pruned, prompts[0])
    settings = DecodingSettings(max_new_tokens=40, eos_token_id=end, repetition_penalty=1.1)
    expected = [
        by_transformers(pruned, prompt, max_new_tokens=40, do_sample=False, eos_token_id=end, repetition_penalty=1.1) for prompt in prompts
    ]
    assert len({len(each) for each in expected}) > 1  # one of them ends earlier than another
    for model in (TorchModel(pruned), float_ir):
        assert [list(found.ids) for found in generate(model, prompts, settings)] == expected


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"length_penalty": 2.0},
        {"length_penalty": -1.0},
        {"early_stopping": True},
        {"early_stopping": "never"},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_beams_are_those_of_transformers(changed, pruned, float_ir, prompts):
    end = frequent_token(pruned, prompts[0])
    settings = DecodingSettings(max_new_tokens=12, num_beams=4, eos_token_id=end, **changed)
    expected = [by_transformers(pruned, p, max_new_tokens=12, do_sample=False, num_beams=4, eos_token_id=end, **changed) for p in prompts]
    for model in (TorchModel(pruned), float_ir):
        assert [list(found.ids) for found in generate(model, prompts, settings)] == expected


def test_sampling_draws_the_same_tokens_with_processors_of_numpy_and_of_transformers(pruned, prompts, monkeypatch):
    settings = DecodingSettings(max_new_tokens=30, do_sample=True, temperature=1.2, top_k=30, top_p=0.9, repetition_penalty=1.1, seed=5)
    ours = generate(TorchModel(pruned), prompts, settings)
    monkeypatch.setattr(generation, "make_process", transformers_process)
    theirs = generate(TorchModel(pruned), prompts, settings)
    assert [found.ids for found in ours] == [found.ids for found in theirs]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_batch_of_unequal_prompts_changes_no_token(either_cpu, quantized, pruned, prompts, sampled):
    model = load_ir(quantized[0])
    settings = DecodingSettings(max_new_tokens=40, do_sample=sampled, eos_token_id=frequent_token(pruned, prompts[0]), seed=2)
    together = [found.ids for found in generate(model, prompts, settings)]
    alone = [generate(model, [prompt], settings)[0].ids for prompt in prompts]
    assert together == alone
    assert len({len(ids) for ids in together}) > 1


def test_copied_sequences_go_on_as_their_original_does(float_ir, pruned, prompts):
    """Over the end of a block, with sequences that left before: their slots are used again, and a larger cache is taken in the end."""
    decoder = float_ir.decoder(prompts)
    decoder.prefill()
    texts = [list(prompt) for prompt in prompts]
    for kept in ([2, 0, 3], [0, 0, 1], [2, 1, 1, 0, 2, 2], [5, 4, 3], [0, 0, 0, 0, 0, 0, 0, 1]):
        decoder.keep(kept)
        texts = [list(texts[row]) for row in kept]
        for _ in range(5):
            next_ids = np.arange(len(texts)) + len(texts[0])
            for text, token in zip(texts, next_ids, strict=True):
                text.append(int(token))
            logits = decoder.decode(next_ids[:, None])
            for row, text in enumerate(texts):
                with torch.inference_mode():
                    expected = pruned(torch.tensor([text])).logits[0, -1].numpy()
                np.testing.assert_allclose(logits[row], expected, atol=1e-3)


def test_what_does_not_fit_into_the_context_is_refused_at_once(float_ir, prompts):
    with pytest.raises(ValueError, match="the prompt has 32 tokens; with 230 new ones"):
        float_ir.decoder(prompts, 230)
    with pytest.raises(ValueError, match="the prompt has 0 tokens"):
        float_ir.decoder([[1], []])
