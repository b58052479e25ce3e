"""The decode step: the answers of torch with the same rounded weights, the same bits in every use, and who decodes where it can't."""

import copy
import logging
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import openvino
import pytest
import torch
from openvino import opset13
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize.fake_quant import fake_quantize, quantized_linears
from gpt2opt.quantize.gate import CacheRounding
from gpt2opt.quantize.inc import calibrate
from gpt2opt.quantize.int8 import quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.recipes import Recipe
from gpt2opt.runtime import decode_step, kernels, object_code
from gpt2opt.runtime import step_layout as layout
from gpt2opt.runtime.decode_step import DecodeStep
from gpt2opt.runtime.graph import matmuls
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.ir_weights import PARTS, Gpt2Weights, Matmul, NotCoveredError, read_weights
from gpt2opt.runtime.kv_cache import BLOCK, KvCache, blocks
from gpt2opt.runtime.step_layout import MOST_TOKENS
from tests.conftest import ROOT, greedy_tokens, make_model, relative_error, torch_logits

CONTEXT, VOCABULARY = 96, 323
STORED_BYTES = {"f32": 4, "f16": 2, "u8": 1}


def odd_model(heads=(5, 3), width=8) -> GPT2LMHeadModel:
    """A GPT-2 whose layers have these numbers of heads, and none of whose sizes is a multiple of what the step works with."""
    torch.manual_seed(1)
    config = GPT2Config(
        n_layer=len(heads), n_head=max(heads), n_embd=max(heads) * width, n_inner=101, n_positions=CONTEXT, vocab_size=VOCABULARY,
        initializer_range=0.2,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for block, count in zip(model.transformer.h, heads, strict=True):
        block.attn.prune_heads(list(range(count, max(heads))))
    return model


def rounded(model: GPT2LMHeadModel) -> tuple[GPT2LMHeadModel, Gpt2Weights]:
    """Return a model with weights rounded to INT8 per output channel, and the same integers for a decode step."""
    model, parts, width = copy.deepcopy(model), [], model.config.n_embd // model.config.n_head
    none = np.zeros(0, np.float32)

    def add(name, parameter, transposed, bias, norm=None):
        rows = parameter.data.T if transposed else parameter.data
        scales = rows.abs().amax(1, keepdim=True) / 127
        integers = (rows / scales).round()
        parameter.data = ((integers * scales).T if transposed else integers * scales).contiguous()
        gains, shifts = (norm.weight.data.numpy(), norm.bias.data.numpy()) if norm else (none, none)
        parts.append(Matmul(name, integers.numpy().astype(np.int8), scales[:, 0].numpy(), bias, gains, shifts))

    for layer, block in enumerate(model.transformer.h):
        for part, norm in zip(PARTS, (block.ln_1, None, block.ln_2, None), strict=True):
            linear = block.get_submodule(part)
            add(f"h.{layer}.{part}", linear.weight, True, linear.bias.data.numpy(), norm)
    add("lm_head", model.lm_head.weight, False, np.zeros(VOCABULARY, np.float32), model.transformer.ln_f)
    heads = tuple(block.attn.num_heads for block in model.transformer.h)
    table, epsilon, positions = parts[-1], model.config.layer_norm_epsilon, model.transformer.wpe.weight.data.numpy()
    return model, Gpt2Weights(None, tuple(parts), heads, width, epsilon, table.rows, table.scales, positions)


def as_float(weights: Gpt2Weights) -> Gpt2Weights:
    def of(matmul):
        rows = matmul.rows * matmul.scales[:, None]
        return Matmul(matmul.name, rows, np.ones_like(matmul.scales), matmul.bias, matmul.gains, matmul.shifts)

    parts = tuple(map(of, weights.matmuls))
    return Gpt2Weights(None, parts, weights.heads, weights.width, weights.epsilon, parts[-1].rows, None, weights.positions)


def new_cache(weights: Gpt2Weights, kind: str, sequences: int) -> KvCache:
    """Return the memory that `new_kv_cache` would reserve for a graph with these heads."""
    row = layout.CACHE_HEADER[kind] + weights.width * STORED_BYTES[kind]
    names = [(f"{which}_cache.{layer}", heads) for layer, heads in enumerate(weights.heads) for which in ("key", "value")]
    return KvCache(sequences, {}, {name: np.zeros((sequences, blocks(CONTEXT), heads * BLOCK * row), np.uint8) for name, heads in names})


def step_of(weights: Gpt2Weights, kind: str, threads: int) -> DecodeStep:
    return DecodeStep(weights, Path("nothing is mapped"), kind, CONTEXT, threads)


def decode(step: DecodeStep, cache, ids, slot=0, past=0) -> np.ndarray:
    """Read tokens one by one; return their logits (T, V)."""
    return np.array([step(cache, ids[i : i + 1], slot, np.array([past + i]))[0].copy() for i in range(len(ids))])


def round_cache(model: GPT2LMHeadModel, kind: str, width: int) -> None:
    """Let a torch model round keys and values as a cache of this type does."""

    def to_half(_module, _inputs, projected):
        queries, keys, values = projected.chunk(3, -1)
        return torch.cat([queries, keys.half().float(), values.half().float()], -1)

    for block in model.transformer.h:
        if kind != "f32":
            block.attn.c_attn.register_forward_hook(to_half if kind == "f16" else CacheRounding(width))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)


TOLERANCE = {"f32": 1e-4, "f16": 2e-3, "u8": 2e-2}
"""A key that falls on the edge of two steps of the cache is rounded either way, and a step of it reaches the logits."""


@pytest.mark.parametrize("heads", [(5, 3), (4, 4)], ids=["unequal heads", "equal heads"])
@pytest.mark.parametrize(
    ("stored", "kind", "width"),
    [("f32", "f32", 8), ("i8", "f32", 8), ("i8", "f16", 8), ("i8", "u8", 8), ("i8", "u8", 24), ("f32", "f32", 16), ("i8", "u8", 32)],
)
def test_logits_are_those_of_torch_with_the_same_rounded_weights(stored, kind, width, heads, tokens):
    model, weights = rounded(odd_model(heads, width))
    round_cache(model, kind, width)
    expected = torch_logits(model, tokens[None])[0]
    used = weights if stored == "i8" else as_float(weights)
    found = decode(step_of(used, kind, 2), new_cache(used, kind, 1), tokens)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[kind] * np.abs(expected).max())
    assert np.median(np.abs(found - expected)) < 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def weight_only(pruned, calibration):
    """A torch model with INT8 weights and float inputs; embeddings of positions as the file has them."""
    linear = prepare_for_export(pruned)
    fake = fake_quantize(linear, calibrate(linear, calibration, Recipe(smooth_alpha=None)))
    for layer in quantized_linears(fake).values():
        layer.quantize_input = False
    fake.transformer.wpe.weight.data = fake.transformer.wpe.weight.data.half().float()
    return fake


@pytest.mark.parametrize("kind", ["f32", "f16", "u8"])
def test_it_goes_on_where_the_graph_that_reads_prompts_stopped(kind, weight_only, float_dir, pruned, tokenizer, ids, tmp_path):
    """So it finds keys and values where OpenVINO put them, and as it rounded them."""
    model = pruned if kind == "f32" else copy.deepcopy(weight_only)
    ir = load_ir(float_dir if kind == "f32" else export_ir(model, tokenizer, tmp_path / kind, kv_cache=kind))
    plain = torch_logits(model, ids)
    if kind != "f32":
        round_cache(model, kind, model.transformer.h[0].attn.head_dim)
    expected = torch_logits(model, ids)
    for past in (1, 20, 31):
        decoder = ir.decoder(ids[:, :past])
        decoder.prefill()
        for i in range(past, ids.shape[1]):
            found = decoder.decode(ids[:, i : i + 1])
            if kind == "f32":
                np.testing.assert_allclose(found, expected[:, i], atol=1e-4 * np.abs(expected).max())
            assert relative_error(found, expected[:, i]) < {"f32": 1e-5, "f16": 1e-3, "u8": 0.02}[kind]
    if kind == "u8":
        assert relative_error(found, expected[:, -1]) < 0.5 * relative_error(found, plain[:, -1])


def test_the_graph_reads_what_the_step_wrote(quantized, float_dir, pruned, ids):
    expected = torch_logits(pruned, ids)[:, -1]
    for folder, tolerance in ((float_dir, 1e-5), (quantized[0], 0.1)):
        model = load_ir(folder)
        decoder = model.decoder(ids[:, :1])
        decoder.prefill()
        for i in range(1, 25):
            decoder.decode(ids[:, i : i + 1])
        found = model._prefill(decoder.cache, ids[:, 25:], decoder.pasts, decoder.slots)
        assert relative_error(found, expected) < tolerance


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions that are left out are those of x86")
def test_code_for_a_cpu_with_shorter_vectors_gives_the_same_logits(tokens, monkeypatch, tmp_path):
    """As AVX2 has them: what is 16 numbers wide in the source becomes two of its vectors."""
    model, weights = rounded(odd_model((4, 4), 16))
    with monkeypatch.context() as other:
        other.setattr(object_code, "FOLDERS", (tmp_path,))
        other.setenv("NUMBA_CPU_NAME", "haswell")
        other.setenv("NUMBA_CPU_FEATURES", "+avx2,+fma,+f16c")
        object_code.compiled_function.cache_clear()
        step = step_of(weights, "f32", 2)
    object_code.compiled_function.cache_clear()
    expected = torch_logits(model, tokens[None])[0]
    np.testing.assert_allclose(decode(step, new_cache(weights, "f32", 1), tokens), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("stored", "kind", "width"), [("i8", "u8", 8), ("f32", "f32", 16)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_token_has_the_same_bits_alone_among_guesses_and_in_a_batch(stored, kind, width, threads, tokens):
    _, weights = rounded(odd_model((5, 3), width))
    weights = weights if stored == "i8" else as_float(weights)
    alone = decode(step_of(weights, kind, 1), new_cache(weights, kind, 1), tokens[:80])
    step = step_of(weights, kind, threads)
    for count in range(2, MOST_TOKENS + 1):
        cache = new_cache(weights, kind, MOST_TOKENS)
        for past in range(0, 64, count):  # over the end of a block of the cache
            found = step(cache, tokens[past : past + count], 1, past + np.arange(count))
            np.testing.assert_array_equal(found, alone[past : past + count])
    cache, pasts = new_cache(weights, kind, MOST_TOKENS), np.arange(MOST_TOKENS) * 5 % 37
    for slot, past in enumerate(pasts):
        decode(step, cache, tokens[:past], slot)
    for count in range(2, MOST_TOKENS + 1):
        slots = np.roll(np.arange(MOST_TOKENS), count)[:count]  # in another order than the cache
        np.testing.assert_array_equal(step(cache, tokens[pasts[slots]], slots, pasts[slots]), alone[pasts[slots]])


@pytest.mark.parametrize("shape", [(1, 1), (4, 32), (5, 33), (101, 40), (4 * 1024 + 3, 64)])
@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_panels_hold_exactly_the_weights(shape, kind):
    rows = np.random.default_rng(0).integers(-128, 128, shape).astype(kind)
    padded = [decode_step._up(size, multiple) for size, multiple in zip(shape, (layout.PANEL, layout.COLUMNS), strict=True)]
    target = np.full(padded[0] * padded[1], 99, kind)
    assert_panels_hold(decode_step._write_panels(target, rows), rows)
    assert np.count_nonzero(target) == np.count_nonzero(rows)  # what is padded is zero


def assert_panels_hold(panels, rows) -> None:
    plain = panels.transpose(0, 2, 1, 3).reshape(panels.shape[0] * layout.PANEL, -1)
    np.testing.assert_array_equal(plain[: rows.shape[0], : rows.shape[1]], rows)
    assert panels.dtype == rows.dtype


def test_the_step_holds_the_integers_of_the_file(quantized):
    step = load_ir(quantized[0]).step
    file = openvino.Core().read_model(quantized[0] / "openvino_model.xml")
    in_file = {name: next(node for node in matmuls(file) if name in node.get_friendly_name()) for name in step.stored}
    assert len(in_file) == 9
    for name, node in in_file.items():
        constant = node.input_value(1).get_node().input_value(0).get_node().input_value(0).get_node()
        assert constant.get_element_type().get_type_name() == "i8"
        assert_panels_hold(step.stored[name], constant.data)


@numba.njit
def exp_of(x, out):
    for i in range(len(x)):
        out[i] = kernels.exp(x[i])


@numba.njit
def gelu_of(y, scales, biases, count):
    kernels.finish_gelu(kernels.floats(y), kernels.floats(scales), kernels.floats(biases), count)


def test_exp_is_accurate():
    x = np.linspace(-87, 88, 1_000_001, dtype=np.float32)
    found = np.empty_like(x)
    exp_of(x, found)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(found / expected - 1).max() < 1e-6


def test_gelu_is_accurate():
    x = np.linspace(-30, 30, 1_000_001, dtype=np.float32)
    y, ones, zeros = x.copy(), np.ones_like(x), np.zeros_like(x)
    gelu_of(*(array.ctypes.data for array in (y, ones, zeros)), len(x))
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double(), approximate="tanh").numpy()
    assert (np.abs(y - expected) <= 1e-6 * np.abs(x)).all()
    near = np.abs(x) < 3
    assert np.abs(y - expected)[near & (x != 0)].max() < 1e-6


def test_every_phase_is_named_and_their_times_add_up_to_that_of_the_step(tokens):
    _, weights = rounded(odd_model())
    step = step_of(weights, "u8", 2)
    decode(step, new_cache(weights, "u8", 1), tokens[:5])
    names, seconds, norms = zip(*step.seconds(), strict=True)
    layers = [f"h.{layer}.{part}" for layer in range(2) for part in (PARTS[0], "attention", *PARTS[1:])]
    assert names == (*layers, "lm_head")
    assert sum(seconds) == pytest.approx(step._seconds, rel=0.05)
    assert all(0 <= norm <= whole for norm, whole in zip(norms, seconds, strict=True))
    assert [name for name, norm in zip(names, norms, strict=True) if norm and name.endswith("c_proj")] == []


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_that_are_called_before_the_first_step_find_no_work(threads, tokens):
    _, weights = rounded(odd_model())
    step = step_of(weights, "u8", threads)
    for _ in range(20):
        step._wake.set()
        time.sleep(0.01)
    assert step._state[layout.DONE] == 0
    np.testing.assert_array_equal(
        decode(step, new_cache(weights, "u8", 1), tokens[:9]),
        decode(step_of(weights, "u8", 1), new_cache(weights, "u8", 1), tokens[:9]),
    )


# Where OpenVINO decodes.


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("gpt2opt.") and record.levelno >= logging.WARNING]


def assert_openvino_decodes(folder, ids, **options) -> None:
    model = load_ir(folder, **options)
    assert model.step is None
    np.testing.assert_array_equal(greedy_tokens(model, ids[:, :20], 20), greedy_tokens(load_ir(folder, decode="openvino"), ids[:, :20], 20))


@pytest.mark.parametrize("form", ["GELU by erf", "heads 12 wide"])
def test_another_form_of_gpt2_is_decoded_by_openvino(form, tokenizer, ids, tmp_path, caplog):
    model = odd_model((8, 8), 12) if form == "heads 12 wide" else make_model(tokenizer, activation_function="gelu")
    export_ir(prepare_for_export(model), tokenizer, tmp_path / "ir")
    assert_openvino_decodes(tmp_path / "ir", ids)
    assert warned(caplog) == []  # nothing is wrong
    decoder = load_ir(tmp_path / "ir").decoder(ids[:, :20])
    decoder.prefill()
    np.testing.assert_allclose(decoder.decode(ids[:, 20:21]), torch_logits(model, ids)[:, 20], atol=1e-3)


def test_int4_weights_are_decoded_by_openvino(pruned, tokenizer, calibration, ids, tmp_path):
    quantize_int8(pruned, tokenizer, calibration, tmp_path / "w4", "w4")
    assert_openvino_decodes(tmp_path / "w4", ids)


def spoil_gelu(graph) -> None:
    node = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "Gelu")
    for port in node.output(0).get_target_inputs():
        port.replace_source_output(opset13.gelu(node.input_value(0), "ERF").output(0))


def spoil_type(graph) -> None:
    node = matmuls(graph)[1]
    rows, columns = (size.get_length() for size in node.get_input_partial_shape(1))
    node.input(1).replace_source_output(opset13.constant(np.ones((rows, columns), np.float32)).output(0))


def spoil_epsilon(graph) -> None:
    node = next(node for node in graph.get_ordered_ops() if node.get_type_name() == "MVN")
    other = opset13.mvn(node.input_value(0), node.input_value(1), True, 0.5, "INSIDE_SQRT")
    for port in node.output(0).get_target_inputs():
        port.replace_source_output(other.output(0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_gelu, "Gelu {'approximation_mode': 'ERF'}, expected Gelu {'approximation_mode': 'TANH'}"),
        (spoil_type, "some weights are INT8 and some float"),
        (spoil_epsilon, "and 2 epsilons are no GPT-2"),
    ],
)
def test_what_the_step_does_not_compute_is_named(spoil, message, quantized):
    graph = openvino.Core().read_model(quantized[0] / "openvino_model.xml")
    read_weights(graph)
    spoil(graph)
    with pytest.raises(NotCoveredError) as refused:
        read_weights(graph)
    assert message in str(refused.value)


class UnusableLlvmlite:
    @property
    def binding(self):
        raise OSError("could not load libllvmlite.so")


@pytest.mark.parametrize(
    ("found", "why"),
    [(None, "numba is not installed"), (UnusableLlvmlite(), "numba's compiler can't be loaded: could not load libllvmlite.so")],
)
def test_without_numba_openvino_decodes_and_a_line_says_so(found, why, quantized, ids, monkeypatch, caplog):
    object_code.compiled_function.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite", found)
    assert_openvino_decodes(quantized[0], ids)
    assert warned(caplog) == [f"OpenVINO decodes, which takes longer: {why}"]


def test_without_huge_pages_the_weights_lie_on_small_ones(tokens, monkeypatch):
    """As in a Linux that was built without them: `madvise` is refused."""
    _, weights = rounded(odd_model())
    expected = decode(step_of(weights, "u8", 2), new_cache(weights, "u8", 1), tokens)
    monkeypatch.setattr(decode_step.mmap, "MADV_HUGEPAGE", 12345)
    np.testing.assert_array_equal(decode(step_of(weights, "u8", 2), new_cache(weights, "u8", 1), tokens), expected)
    monkeypatch.setattr(decode_step, "_padded_bytes", lambda _: 1 << 50)
    with pytest.raises(MemoryError):
        step_of(weights, "u8", 2)


def test_a_cpu_without_fma_is_decoded_on_by_openvino(quantized, ids, monkeypatch, caplog, tmp_path):
    """LLVM would call a function of its own library in the place of each such instruction."""
    object_code.compiled_function.cache_clear()
    monkeypatch.setattr(object_code, "FOLDERS", (tmp_path,))
    monkeypatch.setenv("NUMBA_CPU_NAME", "nehalem")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse4.2,-avx,-fma,-f16c")
    assert_openvino_decodes(quantized[0], ids)
    told = warned(caplog)
    assert told[0].startswith("the decode step is compiled for this CPU, once")
    assert told[1:] == ["OpenVINO decodes, which takes longer: this CPU has no FMA or F16C"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ["numba is broken\n", ""])
def test_a_compiler_that_fails_is_told_in_a_line(error, quantized, ids, monkeypatch, caplog, tmp_path):
    object_code.compiled_function.cache_clear()
    monkeypatch.setattr(object_code, "FOLDERS", (tmp_path,))
    failed = subprocess.CompletedProcess([], -9, b"", f"Traceback\n{error}".encode() if error else b"")
    monkeypatch.setattr(object_code.subprocess, "run", lambda *_, **__: failed)
    assert_openvino_decodes(quantized[0], ids)
    assert warned(caplog)[-1] == f"OpenVINO decodes, which takes longer: {error.strip() or 'exit code -9'}"


NAME = "step i8 u8 8"


@pytest.fixture
def compiling(monkeypatch, tmp_path) -> list[str]:
    """Keep object code in an empty folder; return the names of what is compiled, for which the code at hand is taken."""
    names, code = [], object_code._object_code(NAME)
    monkeypatch.setattr(object_code, "_compile", lambda name: names.append(name) or code)
    monkeypatch.setattr(object_code, "FOLDERS", (tmp_path / "cache",))
    return names


def test_object_code_is_kept_and_compiled_again_if_it_is_damaged(compiling, tmp_path):
    code = object_code._object_code(NAME)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for content, compiled in ((whole, 1), (whole[:-9], 2), (b"", 3), (whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:], 4), (whole, 4)):
        file.write_bytes(content)
        assert object_code._object_code(NAME) == code
        assert len(compiling) == compiled
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.name]
        assert file.read_bytes() == whole


def test_other_sources_instructions_or_versions_need_other_code(compiling, monkeypatch):
    object_code._object_code(NAME)
    for change in (
        lambda: monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2,+fma,+f16c"),
        lambda: monkeypatch.setattr(object_code, "installed", lambda name: "1.0"),
    ):
        before = len(compiling)
        change()
        object_code._object_code(NAME)
        object_code._object_code(NAME)
        assert len(compiling) == before + 1


def test_without_a_folder_that_can_be_written_it_works(compiling, quantized, ids, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(object_code, "FOLDERS", (tmp_path / "file" / "cache", tmp_path / "file"))
    object_code.compiled_function.cache_clear()
    model = load_ir(quantized[0])
    assert model.step
    assert len(compiling) == 1
    assert greedy_tokens(model, ids[:, :20], 20).shape == (2, 20)
    monkeypatch.setattr(object_code, "FOLDERS", (tmp_path / "file", tmp_path / "second"))
    object_code._object_code(NAME)
    assert len(list((tmp_path / "second").iterdir())) == 1


# Threads, forks and interrupts.


def test_two_models_decode_in_two_threads(quantized, float_dir, ids):
    folders = (quantized[0], float_dir)
    expected = [greedy_tokens(load_ir(folder, 1), ids[:, :20], 60) for folder in folders]
    found, models = {}, [load_ir(folder, 2) for folder in folders]

    def generate(number):
        found[number] = greedy_tokens(models[number], ids[:, :20], 60)

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(2):
        np.testing.assert_array_equal(found[number], expected[number])


def test_a_second_thread_on_one_model_is_refused_and_spoils_nothing(tokens):
    _, weights = rounded(odd_model())
    step = step_of(weights, "u8", 2)
    expected = decode(step, new_cache(weights, "u8", 1), tokens)
    inside, go_on, refused = threading.Event(), threading.Event(), []
    run, mine, others = step._step, new_cache(weights, "u8", 1), new_cache(weights, "u8", 1)

    def held_up(*arguments):
        inside.set()
        go_on.wait(5)
        run(*arguments)

    def read_another_text():
        inside.wait(60)
        for act in (lambda: step(others, tokens[50:60], 0, np.arange(10)), lambda: step.head(np.ones((2, weights.width), np.float32))):
            try:
                act()
            except RuntimeError as error:
                refused.append(str(error))
        go_on.set()

    decode(step, mine, tokens[:40])
    step._step = held_up
    other = threading.Thread(target=read_another_text)
    other.start()
    np.testing.assert_array_equal(step(mine, tokens[40:41], 0, np.array([40]))[0], expected[40])
    other.join(60)
    assert refused == ["this model is decoding in another thread; load it once for each thread that uses it"] * 2
    step._step = run
    np.testing.assert_array_equal(decode(step, mine, tokens[41:], 0, 41), expected[41:])


FORKED = """
import os, sys, warnings
import numpy as np
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.runtime.ir_model import load_ir
warnings.simplefilter("ignore")
model = load_ir(sys.argv[1], 3)
assert model.step
prompt = np.array([[5, 6, 7, 8, 9]])
expected = Greedy(model.decoder(prompt)).generate(60)
greedy = Greedy(model.decoder(prompt))
greedy.start()
child = os.fork()
tokens = []
for _ in range(60):
    tokens.append(int(greedy.next_ids[0, 0]))
    greedy.step()
if not child:
    os._exit(0 if tokens == expected[0] else 3)
assert tokens == expected[0]
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

INTERRUPTED = """
import _thread, sys, threading, time
import numpy as np
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.runtime.ir_model import load_ir
model = load_ir(sys.argv[1], 2)
assert model.step
prompt = np.array([[5, 6, 7, 8, 9]])
expected = Greedy(model.decoder(prompt)).generate(60)
interrupts = 0
for number in range(40):
    timer = threading.Timer(0.002 + 0.0007 * number, _thread.interrupt_main)
    greedy = Greedy(model.decoder(prompt))
    try:
        greedy.start()
        timer.start()
        while timer.is_alive():
            greedy.step()
            if greedy.decoder.pasts[0] > 200:
                greedy = Greedy(model.decoder(prompt))
                greedy.start()
        timer.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        interrupts += 1
    assert Greedy(model.decoder(prompt)).generate(60) == expected
assert interrupts > 30, interrupts
refused = []
def use():
    try:
        assert Greedy(model.decoder(prompt)).generate(60) == expected
    except BaseException as error:
        refused.append(error)
other = threading.Thread(target=use)
other.start()
other.join()
assert not refused, refused
"""


def run_python(code: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a fork beside threads is safe nowhere else")
def test_a_forked_process_decodes_without_the_threads_that_it_lacks(quantized):
    run_python(FORKED, str(quantized[0]))


def test_an_interrupt_leaves_the_model_usable(quantized):
    run_python(INTERRUPTED, str(quantized[0]))


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if getattr(thread, "_target", None) is decode_step._help]


def still_alive(own: set[threading.Thread]) -> list[threading.Thread]:
    deadline = time.monotonic() + 10
    for thread in own:
        thread.join(max(deadline - time.monotonic(), 0))
    return [thread for thread in own if thread.is_alive()]


def test_the_threads_of_a_model_end_with_it_and_sleep_while_it_is_idle(tokens):
    _, weights = rounded(odd_model())
    before = set(helpers())
    steps = [step_of(weights, "u8", 4) for _ in range(3)]
    for step in steps:
        decode(step, new_cache(weights, "u8", 1), tokens[:20])
    own = set(helpers()) - before
    assert len(own) == 3 * 3
    time.sleep(0.2)
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.05
    del step, steps
    assert still_alive(own) == []


def test_steps_that_are_closed_at_once_leave_no_thread():
    _, weights = rounded(odd_model())
    before = set(helpers())
    for _ in range(100):
        step = step_of(weights, "u8", 4)
        step._wake.set()
        del step
    own = set(helpers()) - before
    assert still_alive(own) == []
