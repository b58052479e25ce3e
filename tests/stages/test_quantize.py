"""The INC → IR path and its audit, on a pruned model; and INC's own trap, shown on the model as it comes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from optimum.intel import OVModelForCausalLM
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2opt.deploy.audit import audit_int8
from gpt2opt.deploy.ir import LinearCalibration, export_ir, fake_quantize, linearize
from gpt2opt.deploy.runtime import PROPERTIES, continue_text, load_ir
from gpt2opt.report.results import Int8Audit
from gpt2opt.stages.prune import prune_attention_heads
from gpt2opt.stages.quantize import (
    calibrate,
    keep_sums_in_16_bits,
    prepare_calibration_dataset,
    quantize_int8,
    read_calibration,
)
from tests.conftest import make_model, sample_text


@pytest.fixture(scope="module")
def pruned(tokenizer) -> GPT2LMHeadModel:
    return prune_attention_heads(make_model(tokenizer), 0.2)


@pytest.fixture(scope="module")
def calibration(tokenizer) -> Dataset:
    return prepare_calibration_dataset(sample_text().split("\n\n"), tokenizer, length=32, limit=16)


@pytest.fixture(scope="module")
def quantized(pruned, tokenizer, calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ir") / "int8"
    return folder, quantize_int8(pruned, tokenizer, calibration, folder)


@pytest.fixture(scope="module")
def ranges(pruned, calibration):
    return calibrate(linearize(pruned), calibration)


@pytest.fixture
def ids(calibration) -> np.ndarray:
    return np.array(calibration["input_ids"][:2])


@torch.inference_mode()
def torch_logits(model, ids):
    return model(torch.from_numpy(ids), use_cache=False).logits.numpy()


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_linear_layers_compute_what_conv1d_did(pruned, ids):
    linear = linearize(pruned)
    assert not any(type(module).__name__ == "Conv1D" for module in linear.modules())
    np.testing.assert_allclose(torch_logits(linear, ids), torch_logits(pruned, ids), atol=1e-4)


def test_inc_calibrates_every_block_matmul_and_the_head(ranges):
    blocks = [f"transformer.h.{n}.{part}" for n in range(2) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert set(ranges) == {*blocks, "lm_head"}
    for found in ranges.values():
        assert found.weight_scale.shape == (found.weight.shape[0],)
        assert found.input_scale > 0
        assert 0 <= found.input_zero_point <= 255


def test_a_calibrated_weight_lies_within_half_a_step_of_the_models(pruned, ranges):
    linear = linearize(pruned)
    for name, found in ranges.items():
        error = (linear.get_submodule(name).weight - found.weight).abs()
        assert (error <= 0.5001 * found.weight_scale.float()[:, None]).all()


def test_a_7_bit_weight_keeps_two_products_in_16_bits():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1).double() / 127.5
    eight = LinearCalibration((torch.round(weight / scale[:, None]) * scale[:, None]).float(), scale, 0.1, 128)
    seven = keep_sums_in_16_bits(eight, weight)
    steps = seven.weight.double() / seven.weight_scale[:, None]
    assert 2 * 255 * steps.abs().max() <= 2**15 - 1 < 2 * 255 * (eight.weight.double() / scale[:, None]).abs().max()
    assert (seven.weight - weight).abs().max() <= seven.weight_scale.max() * 1.01
    assert (seven.input_scale, seven.input_zero_point) == (eight.input_scale, eight.input_zero_point)


def test_the_same_range_is_read_whether_inc_took_128_steps_or_256():
    weight = torch.quantize_per_channel(torch.ones(2, 3), torch.tensor([0.1, 0.1]), torch.tensor([0, 0]), 0, torch.qint8)

    def read(scale: float, zero_point: int, reduced: bool) -> LinearCalibration:
        state = {
            "x.module._packed_params._packed_params": (weight, None),
            "x.module_input_scale_0": torch.tensor(scale),
            "x.module_input_zero_point_0": torch.tensor(zero_point),
            "best_configure": {"reduce_range": reduced},
        }
        return read_calibration(state)["x"]

    halved, full = read(0.255, 64, True), read(0.127, 128, False)
    assert halved.input_scale == pytest.approx(full.input_scale)
    assert abs(halved.input_zero_point - full.input_zero_point) <= 1


def test_every_matmul_is_int8_in_the_file_and_at_run_time(quantized):
    _, audit = quantized
    assert audit.passed
    assert len(audit.expected) == 9
    assert set(audit.in_file) == set(audit.at_run_time) == set(audit.expected)
    assert set(audit.in_file.values()) == {"i8"}


def test_the_ir_computes_what_the_fake_quantized_graph_does(quantized, pruned, ranges, ids):
    folder, _ = quantized
    ours = load_ir(folder).logits(ids)
    assert relative_error(ours, torch_logits(fake_quantize(linearize(pruned), ranges), ids)) < 0.01
    error = relative_error(ours, torch_logits(pruned, ids))
    assert 1e-4 < error < 0.2  # it is quantized, and it still is this model


def test_the_embedding_shares_the_heads_tensor(quantized, pruned):
    _, audit = quantized
    vocabulary, width = pruned.transformer.wte.weight.shape
    others = sum(p.numel() for name, p in pruned.named_parameters() if p.dim() > 1 and ".h." in name)
    assert audit.bytes_by_type["i8"] == vocabulary * width + others


def test_optimum_loads_the_directory_and_generates_the_same(quantized, ids):
    folder, _ = quantized
    prompt = torch.from_numpy(ids[:1, :8])
    model = OVModelForCausalLM.from_pretrained(folder, ov_config=PROPERTIES)
    model.generation_config.eos_token_id = None
    theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert theirs[0, 8:].tolist() == load_ir(folder).generate(prompt.numpy(), 12)[0].tolist()


def test_generating_from_the_ir_loads_no_torch(quantized):
    """What the RAM of INT8 is measured on: a process with openvino and numpy alone."""
    code = (
        "import json, sys; from gpt2opt.deploy.runtime import generate_from_ir; generate_from_ir(sys.argv[1], [1, 2, 3], 2);"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(quantized[0])], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "openvino" in modules
    assert "torch" not in modules


def test_the_cache_gives_what_reading_the_whole_text_gives(quantized, ids):
    model = load_ir(quantized[0])
    new = model.generate(ids[:, :10], 5)
    whole = model.logits(np.concatenate([ids[:, :10], new], axis=1))
    np.testing.assert_array_equal(whole[:, 9:14].argmax(-1), new)


def test_float_ir_of_a_pruned_model_equals_torch(pruned, tokenizer, ids, tmp_path):
    export_ir(linearize(pruned), tokenizer, tmp_path / "fp32")
    np.testing.assert_allclose(load_ir(tmp_path / "fp32").logits(ids), torch_logits(pruned, ids), atol=1e-3)


def test_the_audit_fails_when_only_the_head_was_converted(pruned, tokenizer, ranges, tmp_path):
    half = fake_quantize(linearize(pruned), {"lm_head": ranges["lm_head"]})
    export_ir(half, tokenizer, tmp_path / "head")
    with pytest.raises(RuntimeError, match=r"8 of 9 matmuls are not INT8: h\.0\.attn\.c_attn: f32 in the file, f32 at run time"):
        audit_int8(tmp_path / "head")
    audit = audit_int8(tmp_path / "head", must_pass=False)
    assert audit.in_file["lm_head"] == "i8"
    assert not audit.passed


@pytest.mark.parametrize("missing", ["h.1.attn.c_proj", "h.0.mlp.c_proj"])
def test_the_audit_fails_when_one_matmul_was_left_out(pruned, tokenizer, ranges, missing, tmp_path):
    export_ir(fake_quantize(linearize(pruned), {k: v for k, v in ranges.items() if not k.endswith(missing)}), tokenizer, tmp_path / "one")
    assert [line.split(":")[0] for line in audit_int8(tmp_path / "one", must_pass=False).failures] == [missing]


def test_the_audit_misses_a_layer_that_is_not_in_the_graph(quantized, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(quantized[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    assert len(audit_int8(folder, must_pass=False).failures) == 4


def test_a_matmul_that_is_not_found_fails():
    audit = Int8Audit(in_file={"lm_head": "i8"}, at_run_time={"lm_head": "u8"}, bytes_by_type={"i8": 1}, num_layers=1)
    assert len(audit.failures) == 4
    assert "h.0.attn.c_attn: not found in the file" in audit.failures[0]


def test_inc_alone_skips_the_conv1d_layers_of_gpt2(tokenizer, calibration):
    """The trap that `linearize` is for: on the model as it comes, INC reports success with the head alone in INT8."""
    assert set(calibrate(make_model(tokenizer), calibration)) == {"lm_head"}


def test_gpt2_sized_file_is_small_and_generates(tokenizer, tmp_path):
    """124M shape, random weights, 2 of 12 heads pruned in each layer: the embedding and the head share one INT8 tensor."""
    torch.manual_seed(0)
    model = prune_attention_heads(GPT2LMHeadModel(GPT2Config()), 0.2)
    rows = Dataset.from_dict({"input_ids": torch.randint(0, 50257, (8, 32)).tolist()})
    audit = quantize_int8(model, tokenizer, rows, tmp_path / "gpt2")
    assert len(audit.expected) == 49
    assert (tmp_path / "gpt2" / "openvino_model.bin").stat().st_size <= 126e6
    assert load_ir(tmp_path / "gpt2").generate(np.array([[1, 2, 3]]), 4).shape == (1, 4)


def test_calibration_is_filtered_and_has_whole_rows(tokenizer):
    rows = prepare_calibration_dataset(["", "  ", *sample_text().split("\n\n")], tokenizer, length=32, limit=10)
    assert {len(row) for row in rows["input_ids"]} == {32}
    assert len(rows) == 10


def test_too_little_calibration_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"gives 0 rows of 32 tokens, at least 8"):
        prepare_calibration_dataset(["", "short"], tokenizer, length=32)
    with pytest.raises(ValueError, match="3 calibration rows, at least 8"):
        quantize_int8(model, tokenizer, Dataset.from_dict({"input_ids": [[1, 2]] * 3}), tmp_path / "out")
    with pytest.raises(ValueError, match="8 calibration ids lie outside the model's"):
        quantize_int8(model, tokenizer, Dataset.from_dict({"input_ids": [[1, 99999]] * 8}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_half_written_is_left_when_the_export_fails(model, tokenizer, tmp_path):
    model.transformer.h[0].attn.prune_heads([0])  # one layer alone: the exporter can't shape the cache
    with pytest.raises(ValueError, match=r"layers kept \[11, 12\] heads"):
        export_ir(linearize(model), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_ir_is_refused(quantized, tmp_path):
    with pytest.raises(ValueError, match=r"no openvino_model\.xml in"):
        load_ir(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(quantized[0], damaged)
    (damaged / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load_ir(damaged)


def test_text_is_continued(quantized):
    assert isinstance(continue_text(quantized[0], "Node 1 of", 5), str)
    with pytest.raises(ValueError, match="the prompt has 0 tokens"):
        continue_text(quantized[0], "", 5)
    with pytest.raises(ValueError, match="from 1 to 6 fit into the context of 256"):
        continue_text(quantized[0], "Node 1 of graph 2 has 3 edges", 250)
