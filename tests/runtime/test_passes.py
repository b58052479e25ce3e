"""Graph passes: what each does to a graph; which run on which CPU; leaving one out; the same bits however many tokens are read at once."""

from collections import Counter

import numpy as np
import openvino
import pytest
import torch

from gpt2opt.quantize.int8 import quantize_int8
from gpt2opt.runtime.compile import ANY, NO_DOT_PRODUCT, PASSES, compile_ir
from gpt2opt.runtime.graph import GELU_FORMS_DIFFER, activation_quantizer, as_convolutions, gelu_by_erf, matmuls
from gpt2opt.runtime.ir_model import DECODE, load_ir
from gpt2opt.runtime.paged_attention import ROWS, cut, page_kv_cache, pick_rows
from gpt2opt.runtime.step_layout import MOST_TOKENS
from tests.conftest import change_pass, relative_error, torch_logits


def paged(folder) -> openvino.Model:
    """Return the graph of an IR as it is before it is cut."""
    return pick_rows(page_kv_cache(openvino.Core().read_model(folder / "openvino_model.xml")))


def test_both_forms_of_the_prefill_graph_compute_the_same(either_cpu, quantized, pruned, ids):
    prefill = compile_ir(quantized[0]).prefill
    types = {node.get_rt_info()["layerType"].astype(str) for node in prefill.get_runtime_model().get_ops()}
    assert ("Convolution" in types) == (not either_cpu)
    assert relative_error(load_ir(quantized[0]).logits(ids), torch_logits(pruned, ids)) < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("decoded_by", DECODE)
def test_several_tokens_at_once_give_the_bits_of_one_by_one(quantized, ids, decoded_by, threads):
    """Lossless decoding has to have no difference. OpenVINO: before the head, whose matmul may sum in another order for more rows."""
    assert len(quantized[1].audit.float_inputs) > 1  # with a matmul among them whose input is float
    model = load_ir(quantized[0], threads, decode=decoded_by)
    decoder = model.decoder(ids[:1, :25])

    def read(tokens, past):
        logits = model._decode(decoder.cache, tokens, past, 0).copy()
        return logits if model.step else model.request.get_output_tensor().data.copy()

    for count in range(2, MOST_TOKENS + 1) if decoded_by == "step" else (2, 3, 16):
        tokens = ids[1, :count]  # over the end of a block of the cache
        decoder.prefill()
        at_once = read(tokens, 25)
        decoder.prefill()
        one_by_one = [read(tokens[i : i + 1], 25 + i)[0] for i in range(count)]
        np.testing.assert_array_equal(at_once, one_by_one)


def test_embeddings_are_looked_up_as_integers(quantized):
    """As floats the table takes four times its bytes."""
    sizes = {
        node.get_output_partial_shape(0).get_min_shape()[0]: node.get_rt_info()["outputPrecisions"].astype(str)
        for node in compile_ir(quantized[0]).prefill.get_runtime_model().get_ops()
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


def test_attention_and_layer_norms_alone_leave_the_layout_of_convolutions(all_quantized):
    names = {node.get_friendly_name() for node in matmuls(all_quantized)}
    before = Counter(node.get_type_name() for node in all_quantized.get_ops())
    as_convolutions(all_quantized)
    after = Counter(node.get_type_name() for node in all_quantized.get_ops())
    assert names <= {node.get_friendly_name() for node in all_quantized.get_ops() if node.get_type_name() == "Convolution"}
    assert after["MVN"] == before["MVN"] == 2 * 2
    # Each of the two blocks goes into the layout after each LayerNorm and after attention, and out of it before attention and before the
    # next two LayerNorms. The residual goes into it once in each: as the embeddings, and as the rows that are picked in the last block.
    assert after["Transpose"] - before["Transpose"] == 2 * (3 + 3 + 1)


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


@pytest.mark.parametrize("name", [each.__name__ for each in PASSES[NO_DOT_PRODUCT]])
def test_a_pass_may_be_left_out_and_the_answers_stay_right(name, either_cpu, quantized, pruned, ids, monkeypatch):
    ran = []
    change_pass(monkeypatch, name, lambda function: lambda graph: ran.append(name) or function(graph))
    model, expected = load_ir(quantized[0], leave_out=(name,), decode="openvino"), torch_logits(pruned, ids)
    assert not ran
    assert relative_error(model.logits(ids), expected) < 0.1
    for batch in (1, 2):
        decoder = model.decoder(ids[:batch, :20])
        decoder.prefill()
        assert relative_error(decoder.decode(ids[:batch, 20:21]), expected[:batch, 20]) < 0.1
    load_ir(quantized[0])
    assert bool(ran) == (name in [each.__name__ for each in PASSES[ANY if either_cpu else NO_DOT_PRODUCT]])


def test_a_pass_that_nobody_knows_is_refused_with_those_that_are_known(float_dir):
    with pytest.raises(ValueError, match=r"no graph pass is called 'gelu'; expected one of look_up_integers, .*, as_convolutions$"):
        load_ir(float_dir, leave_out=("gelu",))
