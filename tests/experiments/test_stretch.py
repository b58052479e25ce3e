"""The stretched model: the same function where it is only wider, the shape of a larger one, and text that it predicts."""

import math

import pytest
import torch

from experiments.race.stretch import stretch_model, stretch_tokenizer
from gpt2opt.measure.quality import perplexity, prepare_text
from gpt2opt.sources.models import BUNDLED, load_model
from gpt2opt.sources.texts import find_texts, take_bytes
from gpt2opt.torch_model import logits_of


@pytest.fixture(scope="module")
def bundled():
    return load_model(BUNDLED)


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in take_bytes(find_texts("docs").score, 4000)]


def same_width(model, heads, width, **more):
    config = model.config
    return stretch_model(model, config.n_layer, heads, width, config.vocab_size, config.n_positions, **more)


@pytest.mark.parametrize(("heads", "width"), [(12, 576), (12, 768), (16, 1024)])
def test_a_wider_model_gives_the_same_logits(bundled, texts, heads, width):
    """Channels with two and three copies, or three and four; heads of 48 and 64 where there were 24; more heads, some copied."""
    tokenizer, model = bundled
    ids = torch.tensor([tokenizer(texts[0], verbose=False).input_ids[:200]])
    with torch.inference_mode():
        found, expected = (each(ids).logits for each in (same_width(model, heads, width, noise=0), model))
    assert expected.abs().max() > 5
    assert (found - expected).abs().max() < 1e-3


def test_outliers_among_the_channels_stay(bundled, texts):
    tokenizer, model = bundled
    ids = torch.tensor([tokenizer(texts[0], verbose=False).input_ids[:200]])

    def peak_over_typical(of):
        seen = []
        hook = of.transformer.h[3].mlp.c_fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.inference_mode():
            of(ids)
        hook.remove()
        return (seen[0].abs().max() / seen[0].std()).item()

    assert peak_over_typical(same_width(model, 12, 768)) > 0.9 * peak_over_typical(model)


def test_it_has_the_shape_of_gpt2_and_predicts_text(bundled, texts):
    tokenizer, model = bundled
    stretched = stretch_model(model, 12, 12, 768)
    assert stretched.num_parameters() == 124_439_808
    assert stretched.lm_head.weight is stretched.transformer.wte.weight
    vocab_size, positions = stretched.config.vocab_size, stretched.config.n_positions
    larger = stretch_tokenizer(tokenizer, vocab_size, positions)
    assert (len(larger), larger.model_max_length) == (50257, 1024)
    assert larger(texts[0], verbose=False).input_ids == tokenizer(texts[0], verbose=False).input_ids
    assert larger.eos_token_id == tokenizer.eos_token_id
    scored = prepare_text(larger, texts, "held-out text")
    quality = perplexity(logits_of(stretched), scored)
    assert quality.perplexity < vocab_size / 20
    # Beside the bundled model, each of whose tokens is now six or seven.
    base = perplexity(logits_of(model), prepare_text(tokenizer, texts, "held-out text"))
    assert math.log(quality.perplexity / base.perplexity) < math.log(vocab_size / model.config.vocab_size) + 1


def test_no_two_weights_are_copies(bundled):
    _, model = bundled
    stretched = same_width(model, 12, 768)
    wte = stretched.transformer.wte.weight[:512]
    assert len(torch.unique(wte.abs().T, dim=0)) == 768
    longer = stretch_model(model, 6, 12, 576, vocab_size=2 * model.config.vocab_size).transformer
    for embedding in (longer.wte.weight, longer.wpe.weight):
        assert len(torch.unique(embedding, dim=0)) == len(embedding)
