"""Reading and decoding from one directory: the same answers as torch, one KV cache, prompt lookup, and what bad input gets."""

import json
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from optimum.intel import OVModelForCausalLM

from gpt2opt.decoding import Greedy
from gpt2opt.environment import has_int8_dot_product
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.runtime import passes
from gpt2opt.runtime.bound_graph import BoundGraph
from gpt2opt.runtime.compile import PROPERTIES, compile_ir, cpu_properties
from gpt2opt.runtime.generate import continue_text
from gpt2opt.runtime.ir_model import MANY_SEQUENCES, load_ir
from gpt2opt.runtime.kv_cache import BLOCK
from gpt2opt.runtime.prompt_lookup import PromptLookup
from gpt2opt.stages.quantize import quantize_int8
from tests.conftest import relative_error, torch_logits


def test_float_ir_of_a_pruned_model_equals_torch(float_dir, pruned, ids):
    np.testing.assert_allclose(load_ir(float_dir).logits(ids), torch_logits(pruned, ids), atol=1e-3)


def test_decoding_gives_what_reading_the_whole_text_gives(float_dir, ids):
    model = load_ir(float_dir)
    new = model.generate(ids[:, :10], 40)  # over the end of a block of the cache
    whole = model.logits(np.concatenate([ids[:, :10], new], axis=1))
    np.testing.assert_array_equal(whole[:, 9:49].argmax(-1), new)


@pytest.fixture(params=[True, False], ids=["dot product", "no dot product"])
def either_cpu(request, monkeypatch):
    """Both forms of the graphs, whatever CPU this is; return whether it is the form for INT8 dot products."""
    monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda: request.param)
    return request.param


def test_tokens_are_decoded_on_the_cache_that_the_prompt_left(either_cpu, quantized, pruned, ids):
    model = load_ir(quantized[0])
    assert (model.prefill_graph is model.decode_graph) == (not either_cpu)
    assert (model.single_step_graph is None) == either_cpu
    expected = torch_logits(pruned, ids)[:, 20]
    for prompt, decode in (
        (ids[:, :20], lambda cache, past: model._prefill(model.decode_graph, cache, ids[:, 20:21], past)),
        (ids[:1, :20], lambda cache, past: model._decode(cache, ids[0, 20:21], past)),
    ):
        decoder = model.decoder(prompt)
        decoder.prefill()
        error = relative_error(decode(decoder.cache, 20), expected[: len(prompt)])
        assert error < 0.1
        assert (
            relative_error(decode(decoder.cache, 0), expected[: len(prompt)]) > 2 * error
        )  # without the prompt it would be another answer


def test_both_forms_of_the_reading_graph_compute_the_same(either_cpu, quantized, pruned, ids):
    prefill = compile_ir(quantized[0]).prefill
    types = {node.get_rt_info()["layerType"].astype(str) for node in prefill.get_runtime_model().get_ops()}
    assert ("Convolution" in types) == (not either_cpu)
    assert relative_error(load_ir(quantized[0]).logits(ids), torch_logits(pruned, ids)) < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_tokens_at_once_give_the_bits_of_one_by_one(quantized, ids, threads, monkeypatch):
    """A quantizer makes a whole step of the smallest difference before it: lossless decoding has to have none before the head."""
    assert len(quantized[1].audit.float_inputs) > 1  # with a matmul among them whose input is float
    one_step = passes.one_step
    monkeypatch.setattr(passes, "one_step", lambda graph: one_step(passes.cut(graph)[0]))  # to the hidden states
    model = load_ir(quantized[0], threads)
    decoder = model.decoder(ids[:1, :25])

    def hidden(graph, tokens, past):
        model._decode(decoder.cache, tokens, past)
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
    graph = passes.paged(openvino.Core().read_model(str(quantized[0] / "openvino_model.xml")))
    matmuls = {node.get_friendly_name(): passes.activation_quantizer(node) is not None for node in passes.matmuls(graph)}
    passes.as_convolutions(graph)
    convolutions = {node.get_friendly_name() for node in graph.get_ops() if node.get_type_name() == "Convolution"}
    assert {name for name, is_quantized in matmuls.items() if is_quantized} == convolutions & matmuls.keys()


@pytest.fixture(scope="session")
def all_quantized_dir(pruned, tokenizer, calibration, tmp_path_factory):
    """An IR in which every matmul has a quantized input."""
    folder = tmp_path_factory.mktemp("ir") / "naive"
    quantize_int8(pruned, tokenizer, calibration, folder, "w8a8-naive")  # no gate
    return folder


@pytest.fixture
def all_quantized(all_quantized_dir):
    """Its body."""
    return passes.cut(passes.paged(openvino.Core().read_model(str(all_quantized_dir / "openvino_model.xml"))))[0]


def test_only_attention_leaves_the_layout_of_convolutions(all_quantized):
    matmuls = {node.get_friendly_name() for node in passes.matmuls(all_quantized)}
    before = Counter(node.get_type_name() for node in all_quantized.get_ops())
    passes.as_convolutions(all_quantized)
    after = Counter(node.get_type_name() for node in all_quantized.get_ops())
    assert matmuls <= {node.get_friendly_name() for node in all_quantized.get_ops() if node.get_type_name() == "Convolution"}
    assert (before["MVN"], after["MVN"]) == (2 * 2 + 1, 2)  # the embeddings are centered and the first LayerNorm is on rows, as they are
    # The embeddings and what is made of them go into the layout, and the end out of it. Each of the two blocks goes out of it and back for
    # its attention; the last one's residual goes out, is picked from, and back in.
    assert after["Transpose"] - before["Transpose"] == 2 + 1 + 2 * 2 + 2


def test_queries_keys_and_values_are_multiplied_apart_where_their_input_is_quantized(all_quantized):
    first, second = (node for node in passes.matmuls(all_quantized) if "attn.c_attn" in node.get_friendly_name())
    first.input(0).replace_source_output(passes.activation_quantizer(first).input_value(0))
    apart = passes.multiply_parts(all_quantized)
    names = [node.get_friendly_name() for node in passes.matmuls(apart) if "attn.c_attn" in node.get_friendly_name()]
    assert names == [first.get_friendly_name(), *(f"{second.get_friendly_name()}.{part}" for part in range(3))]
    assert sum(node.get_type_name() == "VariadicSplit" for node in apart.get_ops()) == 1


def test_layer_norms_may_do_without_the_mean(quantized, ids, monkeypatch):
    """As convolutions they do: their answers are those of the same graph as matmuls, whose LayerNorms subtract it."""
    found = []
    for by_matmuls in (True, False):
        monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda by_matmuls=by_matmuls: by_matmuls)
        found.append(load_ir(quantized[0]).logits(ids))
    assert relative_error(found[1], found[0]) < 0.02


def test_quantizers_read_normalized_tensors_before_gain_and_shift(all_quantized):
    """OpenVINO's own folding gives a graph of fixed shapes other bits, too seldom for a small model to show it."""
    passes.as_convolutions(all_quantized)
    normalized = [node for node in all_quantized.get_ordered_ops() if node.get_type_name() == "NormalizeL2"]
    consumers = [[port.get_node().get_type_name() for port in node.output(0).get_target_inputs()] for node in normalized]
    assert consumers == [["FakeQuantize"]] * 3 + [["Multiply"]]  # the last LayerNorm's output stays float


def test_what_a_float_matmul_adds_to_is_normalized_on_rows(all_quantized):
    """Laid out as the rows that it came from, it would be normalized otherwise for one token than for several."""
    node = next(node for node in passes.matmuls(all_quantized) if "h.0.mlp.c_proj" in node.get_friendly_name())
    node.input(0).replace_source_output(passes.activation_quantizer(node).input_value(0))
    passes.as_convolutions(all_quantized)
    assert sum(node.get_type_name() == "MVN" for node in all_quantized.get_ops()) == 3


def test_the_last_block_reads_only_the_wanted_rows_behind_its_attention(quantized, ids):
    graph = passes.paged(openvino.Core().read_model(str(quantized[0] / "openvino_model.xml")))
    rows = next(node for node in graph.get_parameters() if node.output(0).get_any_name() == passes.ROWS)
    picked = [port.get_node() for port in rows.output(0).get_target_inputs()]
    assert {node.input_value(0).get_node().get_type_name() for node in picked} == {"PagedAttentionExtension", "Add"}


def test_wanted_rows_alone_get_the_answers_that_they_get_among_all(either_cpu, quantized, calibration):
    ids = np.array(calibration["input_ids"][:8]).reshape(2, 128)  # several blocks of the cache
    model = load_ir(quantized[0])
    last = model._prefill(model.prefill_graph, model._take_cache(2), ids, 0).copy()
    assert relative_error(last, model.logits(ids)[:, -1]) < 1e-3


@pytest.mark.parametrize(("past", "length"), [(0, 2), (0, 32), (0, 33), (0, 100), (20, 30), (40, 70), (31, 1)])
def test_the_last_attention_reads_only_for_the_wanted_rows(past, length, float_dir, pruned, calibration):
    ids, end = np.array(calibration["input_ids"][:8]).reshape(2, 128), past + length
    expected = torch_logits(pruned, ids)
    model = load_ir(float_dir)
    cache = model._take_cache(2)
    if past:
        model._prefill(model.prefill_graph, cache, ids[:, :past], 0)
    last = model._prefill(model.prefill_graph, cache, ids[:, past:end], past)
    np.testing.assert_allclose(last, expected[:, end - 1], atol=1e-3)
    begins, pasts = (model.prefill_graph.inputs[passes.LAST + name] for name in ("subsequence_begins", "past_lens"))
    assert begins[-1] == 2 * length
    within = (pasts % BLOCK + np.diff(begins)).reshape(2, -1)
    assert (within <= BLOCK).all()  # of its block of the cache
    following = model._prefill(model.prefill_graph, cache, ids[:, end : end + 1], end)  # finds all keys and values in the cache
    np.testing.assert_allclose(following, expected[:, end], atol=1e-3)
    np.testing.assert_allclose(model.logits(ids), expected, atol=1e-3)


def test_gelu_is_computed_by_erf_where_a_quantizer_rounds_the_difference_away(quantized, float_dir):
    x = np.linspace(-10, 10, 20_001)
    forms = [torch.nn.functional.gelu(torch.from_numpy(x), approximate=form).numpy() for form in ("none", "tanh")]
    assert 0.9 * passes.GELU_FORMS_DIFFER < np.abs(forms[0] - forms[1]).max() < passes.GELU_FORMS_DIFFER
    for folder, expected in ((quantized[0], "ERF"), (float_dir, "TANH")):
        graph = passes.gelu_by_erf(openvino.Core().read_model(str(folder / "openvino_model.xml")))
        gelus = [node for node in graph.get_ops() if node.get_type_name() == "Gelu"]
        quantized_next = [node.output(0).get_target_inputs().pop().get_node().get_type_name() == "FakeQuantize" for node in gelus]
        assert [node.get_attributes()["approximation_mode"] for node in gelus] == [expected if q else "TANH" for q in quantized_next]
        assert any(quantized_next) == (expected == "ERF")


def test_prompt_lookup_gives_the_same_tokens_in_fewer_steps(quantized, ids):
    model = load_ir(quantized[0])
    prompt = ids[:1, :24]
    plain = model.generate(prompt, 120)
    lookup = PromptLookup(model.decoder(prompt))
    assert lookup.generate(120) == plain[0].tolist()
    assert sum(lookup.accepted) == 119
    assert len(lookup.accepted) < 119
    np.testing.assert_array_equal(model.generate(prompt, 120, prompt_lookup=True), plain)


def test_prompt_lookup_takes_one_prompt(quantized, ids):
    with pytest.raises(ValueError, match="2 prompts, prompt lookup takes one"):
        load_ir(quantized[0]).generate(ids[:, :24], 8, prompt_lookup=True)


@pytest.mark.parametrize("sequences", [1, 2, 15, 16])
def test_many_sequences_are_decoded_by_the_prefill_graph(either_cpu, quantized, ids, sequences, monkeypatch):
    model = load_ir(quantized[0])
    used = []
    run = BoundGraph.run
    monkeypatch.setattr(BoundGraph, "run", lambda graph, *rest: used.append(graph) or run(graph, *rest))
    out = model.generate(np.tile(ids[:1, :9], (sequences, 1)), 5)
    assert (out == out[0]).all()
    few = (model.single_step_graph or model.decode_graph) if sequences == 1 else model.decode_graph
    assert used == [model.prefill_graph, *[few if sequences < MANY_SEQUENCES else model.prefill_graph] * 4]


def test_a_second_generation_knows_nothing_of_the_first(quantized, ids):
    model = load_ir(quantized[0])
    first = model.generate(ids[:1, :16], 8)
    model.generate(ids[:, 4:30], 20)
    np.testing.assert_array_equal(model.generate(ids[:1, :16], 8), first)


def test_optimum_loads_a_float_directory_and_generates_the_same(float_dir, ids):
    prompt = torch.from_numpy(ids[:1, :8])
    model = OVModelForCausalLM.from_pretrained(float_dir, ov_config=cpu_properties())
    model.generation_config.eos_token_id = None
    theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert theirs[0, 8:].tolist() == load_ir(float_dir).generate(prompt.numpy(), 12)[0].tolist()


def test_optimum_and_genai_load_an_int8_directory_and_generate(quantized, ids):
    prompt = torch.from_numpy(ids[:1, :8])
    theirs = OVModelForCausalLM.from_pretrained(quantized[0], ov_config=PROPERTIES)
    theirs.generation_config.eos_token_id = None
    out = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 14)
    for backend in ("SDPA", "PA"):
        pipeline = openvino_genai.LLMPipeline(str(quantized[0]), "CPU", ATTENTION_BACKEND=backend)
        config = openvino_genai.GenerationConfig(max_new_tokens=6, ignore_eos=True, do_sample=False)
        result = pipeline.generate(openvino.Tensor(prompt.numpy()), config)
        assert len(result.tokens[0]) == 6


def test_generating_from_the_ir_loads_no_torch(quantized):
    """What the RAM of INT8 is measured on: a process with openvino and numpy alone."""
    code = (
        "import json, sys; from gpt2opt.runtime.generate import generate_from_ir; list(generate_from_ir(sys.argv[1], [1, 2, 3], 2));"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(quantized[0])], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "openvino" in modules
    assert "torch" not in modules


def decode(greedy: Greedy, count: int) -> np.ndarray:
    """Take so many steps that have started; return the tokens (B, count) that are chosen on the way."""
    tokens = []
    for _ in range(count):
        tokens.append(greedy.next_ids)
        greedy.step()
    return np.concatenate(tokens, axis=1)


def test_decoders_of_one_model_do_not_disturb_each_other(either_cpu, quantized, ids):
    model, prompts = load_ir(quantized[0]), (ids[:1, :20], ids[1:, :9], ids[:, 3:15], np.tile(ids[:, 5:30], (8, 1)))
    alone = [load_ir(quantized[0]).generate(prompt, 30) for prompt in prompts]
    decoders = [Greedy(model.decoder(prompt)) for prompt in prompts]
    for decoder in decoders:
        decoder.start()
        model.logits(ids)
    found = [[decode(decoder, count) for decoder in decoders] for count in (1, 2, 1, 20, 6)]  # in turns
    for tokens, expected in zip(zip(*found, strict=True), alone, strict=True):
        np.testing.assert_array_equal(np.concatenate(tokens, axis=1), expected)


def test_prompt_lookups_of_one_model_do_not_disturb_each_other(quantized, ids):
    model = load_ir(quantized[0])
    first, second = (model.decoder(ids[row : row + 1, :24]) for row in range(2))
    expected = [model.generate(decoder.prompt_ids, 40).tolist()[0] for decoder in (first, second)]
    chosen = [int(first.prefill().argmax())]
    assert PromptLookup(second).generate(40) == expected[1]
    while len(chosen) < 40:
        chosen += first.verify(chosen[-1], [expected[0][len(chosen)], 0])[: 40 - len(chosen)]
        model.logits(ids)
    assert chosen == expected[0]


def test_the_memory_of_decoders_that_are_gone_is_used_again_or_given_back(quantized, ids):
    model = load_ir(quantized[0])
    decoders = [model.decoder(ids) for _ in range(5)]
    for decoder in decoders:
        decoder.decode(decoder.prefill().argmax(-1)[:, None])
    caches = [weakref.ref(decoder.cache) for decoder in decoders]
    assert len({id(cache()) for cache in caches}) == 5
    del decoder, decoders
    model.generate(ids, 2)
    assert sum(cache() is not None for cache in caches) == 1


def retry_with_half_the_batch(directory: str) -> tuple[int, list[str]]:
    """Decode more sequences than there is memory for, then half as many until they fit; return how many those are, and what was said."""
    import resource

    model, sequences, said = load_ir(directory), 8192, []
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 400_000_000,) * 2)
    while True:
        try:
            model.generate(np.ones((sequences, 1), np.int64), 2)
            return sequences, said
        except (MemoryError, RuntimeError) as error:  # the cache finds no memory, or what the plugin computes with
            sequences //= 2
            said.append(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may map")
def test_a_batch_that_finds_no_memory_may_be_halved(quantized):
    sequences, said = in_fresh_process(retry_with_half_the_batch, str(quantized[0])).value
    assert 1 <= sequences < 8192
    assert said[0] == "no memory for the KV cache of 8192 sequences; decode fewer at once"


def test_a_prompt_beyond_the_context_is_refused_or_cut_and_said_so(quantized, caplog):
    model = load_ir(quantized[0])
    with pytest.raises(ValueError, match="257 tokens; with 0 new ones, from 1 to 256 fit"):
        model.logits(np.ones((1, 257), dtype=np.int64))
    with pytest.raises(ValueError, match="250 tokens; with 7 new ones, from 1 to 249 fit"):
        model.generate(np.ones((1, 250), dtype=np.int64), 7)
    with pytest.raises(ValueError, match="256 new tokens don't fit into the context of 256; ask for at most 255"):
        model.generate(np.ones((1, 1), dtype=np.int64), 256)
    prompt = "Node 1 of graph 2 has 3 edges"
    with pytest.raises(ValueError, match="from 1 to 6 fit into the context of 256"):
        continue_text(quantized[0], prompt, 250)
    assert isinstance(continue_text(quantized[0], prompt, 250, truncate=True), str)
    assert "its last 6 are kept" in caplog.text


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, -1]], "token ids from -1 to 1, expected from 0 to 319"),
        ([[1, 320]], "token ids from 1 to 320, expected from 0 to 319"),
        (np.zeros((0, 5), np.int64), r"ids of shape \(0, 5\), expected \(prompts, tokens\)"),
        ([1, 2], r"ids of shape \(2,\), expected \(prompts, tokens\)"),
        ([[1.5, 2.0]], "ids of type float64, expected integers"),
        (np.zeros((1, 0), np.int64), "the prompt has 0 tokens"),
    ],
)
def test_ids_that_are_no_prompts_are_refused(ids, message, quantized):
    model = load_ir(quantized[0])
    for act in (model.logits, lambda ids: model.generate(ids, 2), lambda ids: model.decoder(ids).prefill()):
        with pytest.raises(ValueError, match=message):
            act(ids)


@pytest.mark.parametrize("count", [0, -1, 2.0, "5", None])
def test_a_number_of_new_tokens_below_1_or_no_integer_is_refused(count, quantized, ids):
    for prompt_lookup in (False, True):
        with pytest.raises(ValueError, match=f"max_new_tokens={count!r}, expected an integer of at least 1"):
            load_ir(quantized[0]).generate(ids[:1], count, prompt_lookup)


def test_a_numpy_integer_of_new_tokens_is_taken(quantized, ids):
    assert load_ir(quantized[0]).generate(ids, np.int64(3)).shape == (2, 3)


def test_a_full_context_stops_decoding(quantized):
    decoder = load_ir(quantized[0]).decoder(np.ones((1, 256), dtype=np.int64))
    decoder.prefill()
    with pytest.raises(ValueError, match="257 tokens"):
        decoder.decode(np.ones((1, 1), dtype=np.int64))


def test_text_is_continued(quantized):
    assert isinstance(continue_text(quantized[0], "Node 1 of", 5), str)
    with pytest.raises(ValueError, match="the prompt has 0 tokens"):
        continue_text(quantized[0], "", 5)
    with pytest.raises(ValueError, match="character 2 of the prompt is no text"):
        continue_text(quantized[0], "a \udcff", 5)  # what a shell makes of a byte that is not UTF-8


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "gpt2opt.json"])
def test_a_missing_changed_or_cut_file_is_refused_by_name(name, quantized, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(quantized[0], folder)
    content = (folder / name).read_bytes()
    for damaged in (content[:-100], content[:500] + b"?" + content[501:] if name != "gpt2opt.json" else b"{}"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_ir(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no {name} in".replace(".", r"\.")):
        load_ir(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": ["a", "b"]}, r"sha256 \['a', 'b'\], expected a hash for each of openvino_model.xml, openvino_model.bin"),
        ({"sha256": {"openvino_model.xml": ["a"]}}, "sha256 {.*}, expected a hash for each of .*"),
        ({"weights": 8}, "weights 8, expected one of f32, i8, i4"),
        ({"kv_cache": ["u8"]}, r"kv_cache \['u8'\], expected one of f32, f16, u8"),
        ({"schema": "gpt2opt.ir/1"}, "schema 'gpt2opt.ir/1', expected 'gpt2opt.ir/3'"),
        ({"schema": None}, "schema None, expected 'gpt2opt.ir/3'"),
        (None, "a JSON list, expected an object"),
    ],
)
def test_a_manifest_of_other_types_is_refused_in_one_line(change, message, quantized, tmp_path):
    shutil.copytree(quantized[0], tmp_path / "ir")
    path = tmp_path / "ir" / "gpt2opt.json"
    path.write_text(json.dumps([] if change is None else json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"gpt2opt.json is damaged .{message}.; export the model again"):
        load_ir(tmp_path / "ir")
