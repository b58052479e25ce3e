"""Stage 4's own work: INC → IR by every recipe, the audit of what came out, and what bad input gets."""

import copy
import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from openvino import opset13
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2opt.environment import has_int8_dot_product
from gpt2opt.export.openvino import export_ir
from gpt2opt.prune import prune_attention_heads
from gpt2opt.quantize import int8
from gpt2opt.quantize.fake_quant import fake_quantize, quantized_linears
from gpt2opt.quantize.inc import calibrate
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.recipes import Recipe
from gpt2opt.run.pipeline import SMALL_MACHINE_BYTES, generate_within
from gpt2opt.runtime.audit import Int8Audit, audit_int8
from gpt2opt.runtime.compile import compile_ir
from gpt2opt.runtime.decode_step import load_step
from gpt2opt.runtime.graph import activation_quantizer, constant_data, matmuls, stored_constant, weight_scales
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import read_manifest
from gpt2opt.runtime.paged_attention import pick_rows
from gpt2opt.sources.models import load_model
from gpt2opt.storage import hash_weights
from tests.conftest import change_pass, greedy_tokens, relative_error, sample_text, torch_logits


@pytest.fixture(scope="module")
def layers(pruned, calibration):
    return calibrate(prepare_for_export(pruned), calibration, Recipe(smooth_alpha=None))


def test_linear_layers_compute_what_conv1d_did(pruned, ids):
    linear = prepare_for_export(pruned)
    assert not any(type(module).__name__ == "Conv1D" for module in linear.modules())
    np.testing.assert_allclose(torch_logits(linear, ids), torch_logits(pruned, ids), atol=1e-4)


def test_every_matmul_is_int8_in_the_file_and_in_what_runs(quantized):
    _, done = quantized
    audit = done.audit
    assert audit.passed
    assert len(audit.expected) == 9
    assert set(audit.in_file) == set(audit.prefill) == set(audit.decode) == set(audit.expected)
    assert set(audit.in_file.values()) == {"i8"}
    assert set(audit.float_inputs) == {*done.sensitivity.float_inputs, "lm_head"}
    quantized_inputs = set(audit.expected) - set(audit.float_inputs)
    moved_zero_points = {("i8", "i8")} if has_int8_dot_product() else set()  # as AMX's kernels have them in some matmuls
    assert {audit.prefill[name] for name in quantized_inputs} - moved_zero_points == {("u8", "i8")}
    assert {types for name, types in audit.prefill.items() if name in audit.float_inputs} == {("f32", "i8")}
    assert audit.decode == dict.fromkeys(audit.expected, ("f32", "i8"))  # of the decode step


def test_the_ir_computes_what_the_fake_quantized_graph_does(pruned, tokenizer, layers, ids, tmp_path):
    fake = fake_quantize(prepare_for_export(pruned), layers)
    export_ir(fake, tokenizer, tmp_path / "ir")
    ours, expected = load_ir(tmp_path / "ir").logits(ids), torch_logits(fake, ids)
    first = relative_error(ours[:, 0], expected[:, 0])
    assert first < 0.03  # a value on the edge of two steps falls either way, and its error grows from layer to layer
    assert 1e-3 < relative_error(ours, torch_logits(pruned, ids)) < 0.2  # it is quantized, and it still is this model
    for layer in quantized_linears(fake).values():
        layer.quantize_input = False
    export_ir(fake, tokenizer, tmp_path / "weights")
    assert relative_error(load_ir(tmp_path / "weights").logits(ids), torch_logits(fake, ids)) < 1e-3


def test_the_embedding_shares_the_heads_tensor_and_positions_are_halved(quantized, pruned):
    audit = quantized[1].audit
    vocabulary, width = pruned.transformer.wte.weight.shape
    others = sum(p.numel() for name, p in pruned.named_parameters() if p.dim() > 1 and ".h." in name)
    assert audit.bytes_by_type["i8"] == vocabulary * width + others
    assert audit.bytes_by_type["f16"] == 2 * pruned.transformer.wpe.weight.numel()


@pytest.mark.parametrize(("recipe", "stored"), [("w8", "i8"), ("w4", "i4")])
def test_weight_only_recipes_store_integers_and_decode_with_them(recipe, stored, pruned, tokenizer, calibration, ids, tmp_path):
    done = quantize_int8(pruned, tokenizer, calibration, tmp_path / recipe, recipe)
    assert done.sensitivity is None
    assert len(done.audit.float_inputs) == 9
    assert {kind for name, kind in done.audit.in_file.items() if name != "lm_head"} == {stored}
    assert {types[1] for name, types in done.audit.decode.items() if name != "lm_head"} <= {"i4", "u4", "i8"}
    model = load_ir(tmp_path / recipe)
    assert (model.step is None) == (stored == "i4")
    assert relative_error(model.logits(ids), torch_logits(pruned, ids)) < {"i8": 0.05, "i4": 0.5}[stored]


def test_the_naive_recipe_neither_smooths_nor_gates(pruned, model_dir, tokenizer, calibration, tmp_path):
    model = copy.deepcopy(pruned)
    model.config._name_or_path = str(model_dir)
    done = quantize_int8(model, tokenizer, calibration, tmp_path / "naive", "w8a8-naive")
    assert read_manifest(tmp_path / "naive").made_from == hash_weights(model_dir)
    assert done.sensitivity is None
    assert done.audit.float_inputs == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(value, model, tokenizer, calibration, tmp_path):
    model.transformer.h[1].mlp.c_fc.weight.data[2, 3] = value
    message = r"transformer\.h\.1\.mlp\.c_fc\.weight"
    for recipe in ("w8", "w8a8"):
        with pytest.raises(ValueError, match=message):
            quantize_int8(model, tokenizer, calibration, tmp_path / "out", recipe)
    with pytest.raises(ValueError, match=message):
        export_ir(prepare_for_export(model), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    model.half().save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "saved")


def test_what_fails_the_audit_is_kept_under_a_name_that_says_so(pruned, tokenizer, calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "fake_quantize", lambda model, layers: fake_quantize(model, {"lm_head": layers["lm_head"]}))
    for _ in range(2):  # a later failure replaces what an earlier one left
        with pytest.raises(RuntimeError, match=r"8 of 9 matmuls are not INT8.* is kept in \S+out-failed-audit: "):
            quantize_int8(pruned, tokenizer, calibration, tmp_path / "out", "w8")
        assert [path.name for path in tmp_path.iterdir()] == ["out-failed-audit"]
    assert audit_int8(tmp_path / "out-failed-audit", must_pass=False).in_file["lm_head"] == "i8"


@pytest.mark.parametrize("error", [ValueError("can't compile"), MemoryError()])
def test_what_could_not_be_audited_is_kept_too(error, pruned, tokenizer, calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "audit_int8", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(type(error), match="out-failed-audit"):
        quantize_int8(pruned, tokenizer, calibration, tmp_path / "out", "w8")
    assert load_ir(tmp_path / "out-failed-audit").context == 256


def test_a_users_folder_of_that_name_is_left_alone(pruned, tokenizer, calibration, tmp_path, monkeypatch):
    (tmp_path / "out-failed-audit").mkdir()
    (tmp_path / "out-failed-audit" / "mine").write_text("mine")
    monkeypatch.setattr(int8, "fake_quantize", lambda model, layers: fake_quantize(model, {"lm_head": layers["lm_head"]}))
    with pytest.raises(RuntimeError, match=r"8 of 9 matmuls are not INT8.* could not be kept: .* is not empty"):
        quantize_int8(pruned, tokenizer, calibration, tmp_path / "out", "w8")
    assert [path.name for path in tmp_path.rglob("*")] == ["out-failed-audit", "mine"]


def test_biases_of_zero_pass_the_audit(tokenizer, calibration, either_cpu, tmp_path):
    """As transformers initializes them: the plugin merges matmuls with what follows, and then drops their names."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=12, n_embd=96, n_positions=tokenizer.model_max_length, vocab_size=len(tokenizer))
    model = prune_attention_heads(GPT2LMHeadModel(config).eval(), 0.2)
    assert quantize_int8(model, tokenizer, calibration, tmp_path / "out", "w8a8-naive").audit.float_inputs == ()


class Renamed:
    """A compiled graph in which the plugin gave names of its own to the matmuls that `dropped` names, part by part."""

    def __init__(self, compiled, dropped):
        self.compiled, self.dropped = compiled, dropped

    def get_runtime_model(self):
        graph = self.compiled.get_runtime_model()
        for number, node in enumerate(graph.get_ordered_ops()):
            if any(name in node.get_friendly_name() for name in self.dropped):
                node.set_friendly_name(f"Multiply_{number}")
        return graph


def rename(monkeypatch, *dropped: str) -> None:
    """Let the audit see every compiled graph without these names."""

    def compiled(directory):
        found = compile_ir(directory)
        head = found.compile_head
        return dataclasses.replace(found, prefill=Renamed(found.prefill, dropped), compile_head=lambda: Renamed(head(), dropped))

    monkeypatch.setattr("gpt2opt.runtime.audit.compile_ir", compiled)


@pytest.mark.parametrize("dropped", [("h.0.attn.c_proj",), ("h.1.mlp.c_fc", "h.1.mlp.c_proj"), ("lm_head",), ("attn.c_proj", "mlp.")])
def test_a_matmul_is_known_without_its_name(dropped, quantized, either_cpu, monkeypatch):
    before = audit_int8(quantized[0])
    rename(monkeypatch, *dropped)
    after = audit_int8(quantized[0])
    assert (after.prefill, after.decode) == (before.prefill, before.decode)


def test_a_float_matmul_without_a_name_fails(pruned, tokenizer, layers, monkeypatch, tmp_path):
    monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda: True)  # else it would have to become a convolution
    export_ir(fake_quantize(prepare_for_export(pruned), layers), tokenizer, tmp_path / "ir")

    def as_float(graph):
        matmul = next(node for node in matmuls(graph) if "h.0.attn.c_proj" in node.get_friendly_name())
        weight = constant_data(stored_constant(matmul.input_value(1)).output(0)) * weight_scales(matmul)
        matmul.input(1).replace_source_output(opset13.constant(weight.astype(np.float32)).output(0))
        return graph

    monkeypatch.setattr("gpt2opt.runtime.compile.pick_rows", lambda graph: as_float(pick_rows(graph)))
    rename(monkeypatch, "h.0.attn.c_proj")
    with pytest.raises(RuntimeError, match=r"h\.0\.attn\.c_proj: weight f32 in the prefill graph"):
        audit_int8(tmp_path / "ir")


def test_an_unknown_recipe_is_refused(pruned, tokenizer, calibration, tmp_path):
    with pytest.raises(ValueError, match="recipe 'w2' is not known; expected one of w8a8"):
        quantize_int8(pruned, tokenizer, calibration, tmp_path / "out", "w2")


@pytest.mark.parametrize(
    ("dot_product", "notice"), [(True, ""), (False, "this CPU has neither VNNI nor AMX"), (None, "whether it has VNNI or AMX is not known")]
)
def test_a_cpu_without_int8_dot_products_is_named_up_front(
    dot_product, notice, pruned, tokenizer, calibration, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(int8, "has_int8_dot_product", lambda: dot_product)
    monkeypatch.setattr(int8, "calibrate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quantize_int8(pruned, tokenizer, calibration, tmp_path / "out")
    assert notice in caplog.text
    assert bool(notice) == any(record.levelno >= logging.WARNING for record in caplog.records)


def test_the_audit_fails_when_only_the_head_was_converted(pruned, tokenizer, layers, tmp_path):
    half = fake_quantize(prepare_for_export(pruned), {"lm_head": layers["lm_head"]})
    export_ir(half, tokenizer, tmp_path / "head")
    with pytest.raises(RuntimeError, match=r"8 of 9 matmuls are not INT8: h\.0\.attn\.c_attn: weight f32 in the file"):
        audit_int8(tmp_path / "head")
    audit = audit_int8(tmp_path / "head", must_pass=False)
    assert audit.in_file["lm_head"] == "i8"
    assert not audit.passed


@pytest.mark.parametrize("missing", ["h.1.attn.c_proj", "h.0.mlp.c_proj"])
def test_the_audit_fails_when_one_matmul_was_left_out(pruned, tokenizer, layers, missing, tmp_path):
    export_ir(
        fake_quantize(prepare_for_export(pruned), {k: v for k, v in layers.items() if not k.endswith(missing)}), tokenizer, tmp_path / "one"
    )
    assert [line.split(":")[0] for line in audit_int8(tmp_path / "one", must_pass=False).failures] == [missing]


def test_the_audit_misses_a_layer_that_is_not_in_the_graph(quantized, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(quantized[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    assert len(audit_int8(folder, must_pass=False).failures) == 4


def test_the_audit_sees_one_float_input(quantized, monkeypatch):
    def one_float(graph):
        node = next(node for node in matmuls(graph) if "h.1.attn.c_attn" in node.get_friendly_name())
        node.input(0).replace_source_output(activation_quantizer(node).input_value(0))
        return graph

    monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda: False)
    change_pass(monkeypatch, "as_convolutions", lambda as_convolutions: lambda graph: as_convolutions(one_float(graph)))
    with pytest.raises(RuntimeError, match=r"1 of 9 matmuls are not INT8: h\.1\.attn\.c_attn: input f32 in the prefill graph"):
        audit_int8(quantized[0])


@pytest.mark.parametrize(
    ("weight", "problem"), [(None, "not found in the decode step"), (np.zeros(1, np.float32), "weight f32 in the decode step")]
)
def test_the_audit_looks_at_what_the_decode_step_holds(weight, problem, quantized, monkeypatch):
    """Not at the file that it was made from: its buffer could lack a matmul, or hold it as float."""

    def spoiled(*arguments):
        step = load_step(*arguments)
        step.stored = {name: held for name, held in (step.stored | {"lm_head": weight}).items() if held is not None}
        return step

    monkeypatch.setattr("gpt2opt.runtime.audit.load_step", spoiled)
    with pytest.raises(RuntimeError, match=f"1 of 9 matmuls are not INT8: lm_head: {problem}"):
        audit_int8(quantized[0])


def test_where_openvino_decodes_the_audit_looks_at_its_graph_for_that_too(quantized, monkeypatch):
    monkeypatch.setattr("gpt2opt.runtime.audit.load_step", lambda *_: None)
    audit = audit_int8(quantized[0])
    assert audit.decode == audit.prefill


def test_each_way_of_not_being_int8_fails():
    good = Int8Audit("i8", {"lm_head": "i8"}, {"lm_head": ("u8", "i8")}, {"lm_head": ("f32", "i8")}, (), {"i8": 1}, 0)
    assert good.passed
    cases = {
        "lm_head: weight f32 in the file": {"in_file": {"lm_head": "f32"}},
        "lm_head: weight not found in the file": {"in_file": {}},
        "lm_head: not found in the prefill graph": {"prefill": {}},
        "lm_head: weight f32 in the decode step": {"decode": {"lm_head": ("f32", "f32")}},
        "lm_head: input f32 in the prefill graph": {"prefill": {"lm_head": ("f32", "i8")}},
    }
    for failure, change in cases.items():
        assert dataclasses.replace(good, **change).failures == [failure]
    assert dataclasses.replace(good, prefill={"lm_head": ("f32", "i8")}, float_inputs=("lm_head",)).passed
    assert len(dataclasses.replace(good, num_layers=1).failures) == 4
    stray = dataclasses.replace(good, prefill=good.prefill | {"Multiply_1": ("f32", "f32")})
    assert stray.failures == ["Multiply_1: weight f32 in the prefill graph, and it is none of the model's matmuls"]


@pytest.mark.slow
def test_a_file_as_wide_as_gpt2s_is_small_and_generates(tokenizer, tmp_path):
    """GPT-2's shape with 2 of its 12 layers, random weights, pruned: the embedding and the head share one INT8 tensor."""
    torch.manual_seed(0)
    model = prune_attention_heads(GPT2LMHeadModel(GPT2Config(n_layer=2)), 0.2)
    rows = Dataset.from_dict({"input_ids": torch.randint(0, 50257, (8, 32)).tolist()})
    done = quantize_int8(model, tokenizer, rows, tmp_path / "gpt2", "w8a8-naive")
    assert len(done.audit.expected) == 9
    bytes_per_weight = (tmp_path / "gpt2" / "openvino_model.bin").stat().st_size / model.num_parameters()
    assert bytes_per_weight < 1.05  # positions are FP32, and so are scales and biases
    assert greedy_tokens(load_ir(tmp_path / "gpt2"), np.array([[1, 2, 3]]), 4).shape == (1, 4)


def test_int8_generates_where_4_gb_can_be_mapped(quantized):
    facts = generate_within(SMALL_MACHINE_BYTES, quantized[0], [1, 2, 3], 4)
    assert facts["done"] is True
    assert 0 < facts["peak_rss_bytes"] < facts["peak_address_space_bytes"] <= facts["limit_bytes"] == 4_000_000_000


def test_a_limit_that_is_too_small_is_told_with_what_failed(quantized):
    facts = generate_within(300_000_000, quantized[0], [1, 2, 3], 4)
    assert facts["done"] is False
    assert facts["error"].startswith("MemoryError")  # how far it got depends on what Python and the libraries take


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
        export_ir(prepare_for_export(model), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
