"""What weights that are safe for sums of 16 bits cost, measured where nothing saturates."""

import dataclasses
import json

import torch

from experiments.recipes import RecipeComparison, SafeSums, _agreement_in_floats, safe_sums_table
from gpt2opt.measure.quality import prepare_text
from gpt2opt.measure.results import Quality
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.storage import from_json
from gpt2opt.torch_model import logits_of
from tests.conftest import sample_text


def test_safe_steps_and_those_of_inc_are_compared_on_the_same_model(pruned, tokenizer, calibration):
    linear, scored = prepare_for_export(pruned), prepare_text(tokenizer, sample_text().split("\n\n")[:4], "test")
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    unsafe, safe = (_agreement_in_floats(linear, calibration, safe_sums, logits_of(pruned), scored) for safe_sums in (False, True))
    assert unsafe.mean_kl > 0
    assert safe.mean_kl > 0
    assert unsafe.mean_kl != safe.mean_kl
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items()), "the model was changed"

    comparison = RecipeComparison({}, "a model", Quality((1.0,), (1,), 1, 1, "p"), (), (SafeSums("as it comes", unsafe, safe),))
    assert from_json(RecipeComparison, json.loads(json.dumps(dataclasses.asdict(comparison)))) == comparison
    (row,) = safe_sums_table(comparison).rows
    assert row[1].startswith(f"{unsafe.mean_kl:.5f} [")
    assert row[2].startswith(f"{safe.mean_kl:.5f} [")
