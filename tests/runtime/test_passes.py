"""Graph passes: what each does to a graph, in both forms; which run where; leaving one out; what an export has to promise."""

import json
from collections import Counter

import numpy as np
import openvino
import pytest
import torch

from gpt2opt.environment import has_int8_dot_product
from gpt2opt.export.openvino import export_ir, has_centered_residual
from gpt2opt.quantize.calibration import calibrate
from gpt2opt.quantize.fake_quant import fake_quantize, linearize
from gpt2opt.quantize.int8 import quantize_int8
from gpt2opt.quantize.recipes import Recipe
from gpt2opt.runtime.compile import compile_ir
from gpt2opt.runtime.convolutions import as_convolutions, center_embeddings, multiply_parts
from gpt2opt.runtime.graph import activation_quantizer, matmuls
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import read_manifest
from gpt2opt.runtime.paged_attention import ROWS, cut
from gpt2opt.runtime.passes import CASES, DOT_PRODUCT, FLOAT_INPUTS, NO_DOT_PRODUCT, PASSES, SHARED, Plan
from gpt2opt.runtime.quantized_graph import GELU_FORMS_DIFFER, gelu_by_erf
from tests.conftest import change_pass, relative_error, torch_logits


def paged(folder) -> openvino.Model:
    """Return the graph of an IR after the passes that every graph gets on every CPU."""
    return Plan(FLOAT_INPUTS).apply(SHARED, openvino.Core().read_model(str(folder / "openvino_model.xml")))


def test_both_forms_of_the_prefill_graph_compute_the_same(either_cpu, quantized, pruned, ids):
    prefill = compile_ir(quantized[0]).prefill
    types = {node.get_rt_info()["layerType"].astype(str) for node in prefill.get_runtime_model().get_ops()}
    assert ("Convolution" in types) == (not either_cpu)
    assert relative_error(load_ir(quantized[0]).logits(ids), torch_logits(pruned, ids)) < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_tokens_at_once_give_the_bits_of_one_by_one(quantized, ids, threads, monkeypatch):
    """A quantizer makes a whole step of the smallest difference before it: lossless decoding has to have none before the head."""
    assert len(quantized[1].audit.float_inputs) > 1  # with a matmul among them whose input is float
    change_pass(monkeypatch, "fix_shapes", lambda fix_shapes: lambda graph: fix_shapes(cut(graph)[0]))  # to the hidden states
    model = load_ir(quantized[0], threads)
    decoder = model.decoder(ids[:1, :25])

    def hidden(graph, tokens, past):
        model._decode(decoder.cache, tokens, past, 0)
        return graph.request.get_output_tensor().data.copy()

    for count in (2, 3, 16):
        tokens = ids[1, :count]  # over the end of a block of the cache
        decoder.prefill()
        at_once = hidden(model.decode_graph, tokens, 25)
        decoder.prefill()
        one_by_one = [hidden(model.single_step_graph or model.decode_graph, tokens[i : i + 1], 25 + i)[0] for i in range(count)]
        np.testing.assert_array_equal(at_once, one_by_one)


@pytest.mark.skipif(
    has_int8_dot_product() is not False, reason="which layouts the plugin chooses was seen on CPUs without VNNI and AMX only"
)
def test_no_result_is_copied_into_the_layout_that_it_has(all_quantized_dir):
    """With every input quantized: a float matmul before a quantized one is rounded in a pass that keeps its layout."""
    nodes = compile_ir(all_quantized_dir).prefill.get_runtime_model().get_ordered_ops()
    copies = [node for node in nodes if node.get_rt_info()["layerType"].astype(str) == "Reorder"]
    layouts = [
        [of.get_rt_info()["outputLayouts"].astype(str).split(",")[0] for of in (node.input_value(0).get_node(), node)] for node in copies
    ]
    assert layouts
    assert all(before != after for before, after in layouts)


def test_embeddings_are_looked_up_as_integers(quantized):
    """As floats the table takes four times its bytes, in every graph that is compiled."""
    compiled = compile_ir(quantized[0])
    graphs_of = {id(graph): graph for graph in (compiled.prefill, compiled.decode, compiled.single_step) if graph}
    for graph in graphs_of.values():
        sizes = {
            node.get_output_partial_shape(0).get_min_shape()[0]: node.get_rt_info()["outputPrecisions"].astype(str)
            for node in graph.get_runtime_model().get_ops()
            if node.get_rt_info()["layerType"].astype(str) in ("Const", "Input") and node.get_output_size()
        }
        assert sizes[320].split(",")[0] == "i8"


def test_matmuls_with_float_inputs_stay_matmuls(quantized):
    graph = paged(quantized[0])
    found = {node.get_friendly_name(): activation_quantizer(node) is not None for node in matmuls(graph)}
    as_convolutions(graph)
    convolutions = {node.get_friendly_name() for node in graph.get_ops() if node.get_type_name() == "Convolution"}
    assert {name for name, is_quantized in found.items() if is_quantized} == convolutions & found.keys()


@pytest.fixture(scope="session")
def all_quantized_dir(pruned, tokenizer, calibration, tmp_path_factory):
    """An IR in which every matmul has a quantized input."""
    folder = tmp_path_factory.mktemp("ir") / "naive"
    quantize_int8(pruned, tokenizer, calibration, folder, "w8a8-naive")  # no gate
    return folder


@pytest.fixture
def all_quantized(all_quantized_dir):
    """The body of that IR."""
    return cut(paged(all_quantized_dir))[0]


def test_only_attention_leaves_the_layout_of_convolutions(all_quantized):
    names = {node.get_friendly_name() for node in matmuls(all_quantized)}
    before = Counter(node.get_type_name() for node in all_quantized.get_ops())
    as_convolutions(center_embeddings(all_quantized))
    after = Counter(node.get_type_name() for node in all_quantized.get_ops())
    assert names <= {node.get_friendly_name() for node in all_quantized.get_ops() if node.get_type_name() == "Convolution"}
    assert (before["MVN"], after["MVN"]) == (2 * 2 + 1, 2)  # the embeddings are centered and the first LayerNorm is on rows, as they are
    # The embeddings and their LayerNorm go into the layout, and the result goes out of it. Each of the two blocks leaves it and comes back
    # for its attention; the residual of the last one leaves it, has its rows picked, and comes back.
    assert after["Transpose"] - before["Transpose"] == 2 + 1 + 2 * 2 + 2


def test_queries_keys_and_values_are_multiplied_apart_where_their_input_is_quantized(all_quantized):
    first, second = (node for node in matmuls(all_quantized) if "attn.c_attn" in node.get_friendly_name())
    first.input(0).replace_source_output(activation_quantizer(first).input_value(0))
    apart = multiply_parts(all_quantized)
    names = [node.get_friendly_name() for node in matmuls(apart) if "attn.c_attn" in node.get_friendly_name()]
    assert names == [first.get_friendly_name(), *(f"{second.get_friendly_name()}.{part}" for part in range(3))]
    assert sum(node.get_type_name() == "VariadicSplit" for node in apart.get_ops()) == 1


def test_layer_norms_may_do_without_the_mean(quantized, ids, monkeypatch):
    """In the layout of convolutions they do: the logits are those of the graph with matmuls, whose LayerNorms subtract the mean."""
    found = []
    for by_matmuls in (True, False):
        monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda by_matmuls=by_matmuls: by_matmuls)
        found.append(load_ir(quantized[0]).logits(ids))
    assert relative_error(found[1], found[0]) < 0.02


def test_quantizers_read_normalized_tensors_before_gain_and_shift(all_quantized):
    """OpenVINO's own folding gives a graph of fixed shapes other bits, too seldom for a small model to show it."""
    as_convolutions(center_embeddings(all_quantized))
    normalized = [node for node in all_quantized.get_ordered_ops() if node.get_type_name() == "NormalizeL2"]
    consumers = [[port.get_node().get_type_name() for port in node.output(0).get_target_inputs()] for node in normalized]
    assert consumers == [["FakeQuantize"]] * 3 + [["Multiply"]]  # the last LayerNorm's output stays float


def test_what_a_float_matmul_adds_to_is_normalized_on_rows(all_quantized):
    """Laid out as the rows that it came from, it would be normalized otherwise for one token than for several."""
    node = next(node for node in matmuls(all_quantized) if "h.0.mlp.c_proj" in node.get_friendly_name())
    node.input(0).replace_source_output(activation_quantizer(node).input_value(0))
    as_convolutions(center_embeddings(all_quantized))
    assert sum(node.get_type_name() == "MVN" for node in all_quantized.get_ops()) == 3


def test_the_last_block_reads_only_the_wanted_rows_behind_its_attention(quantized, ids):
    graph = paged(quantized[0])
    rows = next(node for node in graph.get_parameters() if node.output(0).get_any_name() == ROWS)
    picked = [port.get_node() for port in rows.output(0).get_target_inputs()]
    assert {node.input_value(0).get_node().get_type_name() for node in picked} == {"PagedAttentionExtension", "Add"}


def test_gelu_is_computed_by_erf_where_a_quantizer_rounds_the_difference_away(quantized, float_dir):
    x = np.linspace(-10, 10, 20_001)
    forms = [torch.nn.functional.gelu(torch.from_numpy(x), approximate=form).numpy() for form in ("none", "tanh")]
    assert 0.9 * GELU_FORMS_DIFFER < np.abs(forms[0] - forms[1]).max() < GELU_FORMS_DIFFER
    for folder, expected in ((quantized[0], "ERF"), (float_dir, "TANH")):
        graph = gelu_by_erf(openvino.Core().read_model(str(folder / "openvino_model.xml")))
        gelus = [node for node in graph.get_ops() if node.get_type_name() == "Gelu"]
        quantized_next = [node.output(0).get_target_inputs().pop().get_node().get_type_name() == "FakeQuantize" for node in gelus]
        assert [node.get_attributes()["approximation_mode"] for node in gelus] == [expected if q else "TANH" for q in quantized_next]
        assert any(quantized_next) == (expected == "ERF")


OPTIONAL = [each.name for each in PASSES if each.required is None]
REQUIRED = [each.name for each in PASSES if each.required]


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_pass_may_be_left_out_and_the_answers_stay_right(name, either_cpu, quantized, pruned, ids, monkeypatch):
    ran = []
    change_pass(monkeypatch, name, lambda function: lambda graph: ran.append(name) or function(graph))
    model = load_ir(quantized[0], leave_out=(name,))
    assert not ran
    assert relative_error(model.logits(ids), torch_logits(pruned, ids)) < 0.1
    for batch in (1, 2):
        decoder = model.decoder(ids[:batch, :20])
        decoder.prefill()
        assert relative_error(decoder.decode(ids[:batch, 20:21]), torch_logits(pruned, ids)[:batch, 20]) < 0.1
    load_ir(quantized[0])
    (entry,) = (each for each in PASSES if each.name == name)
    assert bool(ran) == ((DOT_PRODUCT if either_cpu else NO_DOT_PRODUCT) in entry.cases)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_pass_that_the_others_rely_on_is_not_left_out(name, float_dir):
    with pytest.raises(ValueError, match=f"the graph pass '{name}' can't be left out: "):
        load_ir(float_dir, leave_out=(name,))


def test_a_pass_that_nobody_knows_is_refused_with_those_that_are_known(float_dir):
    with pytest.raises(ValueError, match=r"no graph pass is called 'gelu'; expected one of look_up_integers, .*, weight_only$"):
        load_ir(float_dir, leave_out=("gelu",))


def test_every_pass_has_the_name_of_its_function_and_applies_somewhere():
    for each in PASSES:
        assert each.name == each.function.__name__
        assert set(each.cases) <= set(CASES)
        assert each.cases
        assert each.graphs
    assert len({each.name for each in PASSES}) == len(PASSES)


@pytest.fixture
def off_center(pruned, tokenizer, calibration, tmp_path):
    """An IR of the same function whose first block adds a mean to the residual stream: every LayerNorm subtracts it."""
    linear = linearize(pruned)
    linear.transformer.h[0].mlp.c_proj.bias.data += 3.0
    return export_ir(fake_quantize(linear, calibrate(linear, calibration, Recipe(smooth_alpha=None))), tokenizer, tmp_path / "ir", "u8")


def test_without_a_promise_the_pass_that_needs_it_stays_away_and_the_answers_are_right(off_center, pruned, ids, monkeypatch):
    monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda: False)
    assert not read_manifest(off_center).centered_residual
    right = relative_error(load_ir(off_center).logits(ids), torch_logits(pruned, ids))
    assert right < 0.1
    manifest = off_center / "gpt2opt.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"centered_residual": True}))
    assert relative_error(load_ir(off_center).logits(ids), torch_logits(pruned, ids)) > 3 * right  # what the promise is good for


def test_an_export_promises_a_centered_residual_stream_only_if_the_weights_have_it(quantized, float_dir, pruned, calibration):
    assert read_manifest(quantized[0]).centered_residual
    assert read_manifest(float_dir).centered_residual
    assert not has_centered_residual(pruned)
    linear = linearize(pruned)
    rounded = fake_quantize(linear, calibrate(linear, calibration, Recipe(smooth_alpha=None)))
    assert has_centered_residual(rounded)
    weight = rounded.transformer.h[1].attn.c_proj.weight
    weight.data += 0.1 * weight.std()
    assert not has_centered_residual(rounded)
