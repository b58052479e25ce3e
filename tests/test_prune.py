import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.prune import head_importance, heads_to_prune, importance_batches, prune_attention_heads
from gpt2opt.sources.models import load_model, save_model
from gpt2opt.torch_model import logits_from_torch

HEAD_DIM = 8


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))


def silence_heads(model: GPT2LMHeadModel, heads: dict[int, list[int]]) -> GPT2LMHeadModel:
    """Zero the rows of c_proj that read the given heads: they then add nothing."""
    silenced = copy.deepcopy(model)
    for layer, gone in heads.items():
        for head in gone:
            silenced.transformer.h[layer].attn.c_proj.weight.data[head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
    return silenced


@torch.inference_mode()
def logits(model, ids):
    return model(ids, use_cache=False).logits


def test_a_pruned_model_equals_the_full_one_with_those_heads_silenced(model, ids):
    importance = np.random.default_rng(0).random((2, 12))
    gone = {layer: np.argsort(row)[:2].tolist() for layer, row in enumerate(importance)}
    expected = logits(silence_heads(model, gone), ids)
    assert not torch.allclose(logits(model, ids), expected, atol=1e-3)
    pruned = prune_attention_heads(model, 0.2, importance)
    torch.testing.assert_close(logits(pruned, ids), expected, atol=1e-4, rtol=1e-4)
    assert {layer: sorted(heads) for layer, heads in pruned.config.pruned_heads.items()} == {k: sorted(v) for k, v in gone.items()}


def test_without_importance_the_first_heads_leave(model):
    pruned = prune_attention_heads(model, 0.2)
    assert all(block.attn.num_heads == 10 for block in pruned.transformer.h)
    assert all(block.attn.pruned_heads == {0, 1} for block in pruned.transformer.h)


def test_dtype_is_kept(model):
    pruned = prune_attention_heads(model.half(), 0.2)
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float16}


def test_parameters_of_gpt2_and_of_its_heads():
    model = GPT2LMHeadModel(GPT2Config())
    assert model.num_parameters() == 124_439_808
    prune_attention_heads(model, 0.2)
    assert model.num_parameters() == 119_716_608 == 124_439_808 - 12 * 2 * 196_800


def test_pruning_twice_takes_the_heads_that_importance_means(model, ids):
    once = prune_attention_heads(model, 0.2)  # heads 0 and 1 leave
    importance = np.ones((2, 10))
    importance[:, 3] = 0  # the fourth of those left: head 5
    expected = logits(silence_heads(once, {0: [3], 1: [3]}), ids)
    twice = prune_attention_heads(once, 0.1, importance)
    assert all(block.attn.pruned_heads == {0, 1, 5} for block in twice.transformer.h)
    torch.testing.assert_close(logits(twice, ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("heads", "fraction", "count"), [(12, 0.2, 2), (12, 0.25, 3), (10, 0.7, 7), (12, 0.0, 0), (12, 0.999, 11), (1, 0.5, 0)]
)
def test_only_whole_heads_leave(heads, fraction, count):
    assert heads_to_prune(heads, fraction) == count


@pytest.mark.parametrize("fraction", [1.0, 1.2, -0.1, float("nan")])
def test_a_fraction_that_leaves_no_head_is_refused(model, fraction):
    before = model.num_parameters()
    with pytest.raises(ValueError, match=r"prune_fraction=.* is outside \[0, 1\); at least one head"):
        prune_attention_heads(model, fraction)
    assert model.num_parameters() == before


def test_another_architecture_is_refused():
    bert = BertModel(BertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2, intermediate_size=24, vocab_size=50))
    with pytest.raises(ValueError, match="got a 'bert' model, expected a GPT-2"):
        prune_attention_heads(bert, 0.2)


def test_importance_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match=r"importance has shape \(3, 12\), expected \(2, 12\)"):
        prune_attention_heads(model, 0.2, np.ones((3, 12)))


def test_save_then_load_in_a_fresh_process_gives_the_same_logits(model, tokenizer, ids, tmp_path):
    prune_attention_heads(model, 0.2, np.random.default_rng(0).random((2, 12)))
    save_model(tmp_path / "pruned", tokenizer, model)
    there = in_fresh_process(logits_from_torch, str(tmp_path / "pruned"), ids.tolist()).value
    np.testing.assert_allclose(there, logits(model, ids).numpy(), atol=1e-4)
    _, reloaded = load_model(tmp_path / "pruned")
    assert all(block.attn.num_heads == 10 for block in reloaded.transformer.h)


def test_importance_is_the_gradient_of_a_gate_on_each_head(model, ids):
    """A head's output scaled by 1 + e changes the loss by e × importance: checked by finite differences, one sequence, one head."""
    row, layer, head, step = ids[:1], 1, 3, 1e-3
    importance = head_importance(model, [row])

    def loss(scale: float) -> float:
        scaled = copy.deepcopy(model).double()
        scaled.transformer.h[layer].attn.c_proj.weight.data[head * HEAD_DIM : (head + 1) * HEAD_DIM] *= scale
        return F.cross_entropy(logits(scaled, row)[0, :-1], row[0, 1:]).item()

    slope = (loss(1 + step) - loss(1 - step)) / (2 * step)
    assert importance[layer, head] == pytest.approx(abs(slope), rel=1e-3)


def test_a_silent_head_has_no_importance_and_a_mean_over_batches_is_taken(model, ids):
    silent = silence_heads(model, {0: [4]})
    importance = head_importance(silent, [ids])
    assert importance[0, 4] == 0
    assert (importance > 0).sum() == importance.size - 1
    np.testing.assert_allclose(head_importance(silent, ids.split(1)), importance, rtol=1e-4)


def test_importance_is_taken_on_whole_rows(tokenizer):
    batches = importance_batches(["Node 1 of graph 2 has 3 edges. " * 40, "short"], tokenizer, 16)
    assert {tuple(batch.shape) for batch in batches[:-1]} == {(4, 16)}
    with pytest.raises(ValueError, match="none of the 1 texts has 16 tokens"):
        importance_batches(["short"], tokenizer, 16)


def test_importance_without_batches_is_refused(model):
    with pytest.raises(ValueError, match="no batches"):
        head_importance(model, [])
