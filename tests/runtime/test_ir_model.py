"""Prefill and decoding from one directory: the same answers as torch, one KV cache, prompt lookup, and what is refused."""

import shutil
import sys
import weakref
from itertools import chain
from pathlib import Path

import numpy as np
import openvino
import pytest

from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.prompt_lookup import LONGEST_GUESS, lookup_steps, write_drafts
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.environment import has_bf16
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.runtime import compile
from gpt2opt.runtime.decode_step import HEAD, WHOLE, DecodeStep
from gpt2opt.runtime.ir_model import DECODE, IrDecoder, IrModel, load_ir
from gpt2opt.runtime.kv_cache import BLOCK
from gpt2opt.runtime.step_layout import MOST_TOKENS
from tests.conftest import greedy_tokens, relative_error, torch_logits


def read(model, cache, ids, past) -> np.ndarray:
    """Read further tokens (B, T) of texts that have `past` tokens each in the first slots of the cache."""
    return model._prefill(cache, ids, np.full(len(ids), past), np.arange(len(ids)))


def test_float_ir_of_a_pruned_model_equals_torch(float_dir, pruned, ids):
    np.testing.assert_allclose(load_ir(float_dir).logits(ids), torch_logits(pruned, ids), atol=1e-3)


def test_decoding_gives_what_prefill_of_the_whole_text_gives(float_dir, ids):
    model = load_ir(float_dir)
    new = greedy_tokens(model, ids[:, :10], 40)  # over the end of a block of the cache
    whole = model.logits(np.concatenate([ids[:, :10], new], axis=1))
    np.testing.assert_array_equal(whole[:, 9:49].argmax(-1), new)


@pytest.mark.parametrize("decoded_by", DECODE)
def test_tokens_are_decoded_on_the_cache_that_the_prompt_left(decoded_by, either_cpu, quantized, pruned, ids):
    model = load_ir(quantized[0], decode=decoded_by)
    assert (model.step is not None) == (decoded_by == "step")
    expected = torch_logits(pruned, ids)[:, 20]
    for prompt, decode in (
        (ids[:, :20], lambda cache, past: read(model, cache, ids[:, 20:21], past)),
        (ids[:1, :20], lambda cache, past: model._decode(cache, ids[0, 20:21], past, 0)),
    ):
        decoder = model.decoder(prompt)
        decoder.prefill()
        error = relative_error(decode(decoder.cache, 20), expected[: len(prompt)])
        assert error < 0.1
        assert (
            relative_error(decode(decoder.cache, 0), expected[: len(prompt)]) > 2 * error
        )  # without the prompt it would be another answer


def test_wanted_rows_alone_get_the_logits_that_they_get_with_all_rows(either_cpu, quantized, calibration):
    ids = np.array(calibration["input_ids"][:8]).reshape(2, 128)  # several blocks of the cache
    model = load_ir(quantized[0])
    last = read(model, model._take_cache(2), ids, 0).copy()
    assert relative_error(last, model.logits(ids)[:, -1]) < 1e-3


@pytest.mark.parametrize(("past", "length"), [(0, 2), (0, 32), (0, 33), (0, 100), (20, 30), (40, 70), (31, 1)])
def test_a_prompt_may_be_read_in_two_parts(past, length, float_dir, pruned, calibration):
    ids, end = np.array(calibration["input_ids"][:8]).reshape(2, 128), past + length
    expected = torch_logits(pruned, ids)
    model = load_ir(float_dir)
    cache = model._take_cache(2)
    if past:
        read(model, cache, ids[:, :past], 0)
    last = read(model, cache, ids[:, past:end], past)
    np.testing.assert_allclose(last, expected[:, end - 1], atol=1e-3)
    following = read(model, cache, ids[:, end : end + 1], end)  # finds all keys and values in the cache
    np.testing.assert_allclose(following, expected[:, end], atol=1e-3)
    np.testing.assert_allclose(model.logits(ids), expected, atol=1e-3)


def test_prompt_lookup_gives_the_same_tokens_in_fewer_steps(quantized, ids):
    model = load_ir(quantized[0])
    prompt = ids[:1, :24]
    plain = greedy_tokens(model, prompt, 120)
    steps = list(lookup_steps(model.decoder(prompt), 120))
    assert list(chain(*steps)) == plain[0].tolist()
    assert len(steps) < 120
    settings = DecodingSettings(max_new_tokens=120, prompt_lookup_num_tokens=LONGEST_GUESS)
    assert generate(model, prompt, settings)[0].ids == tuple(plain[0])


def test_the_table_beside_an_ir_is_used_without_being_asked_for(quantized, ids, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(quantized[0], tmp_path / "ir"))
    assert write_drafts(folder, load_ir(folder), ids[:, :16]) > 0
    model, guessed = load_ir(folder), []
    verify = IrDecoder.verify
    monkeypatch.setattr(IrDecoder, "verify", lambda decoder, last, guesses: guessed.append(guesses) or verify(decoder, last, guesses))
    prompt = ids[1:, :16]
    plain = greedy_tokens(model, prompt, 60)[0]
    assert generate(model, prompt, DecodingSettings(max_new_tokens=60))[0].ids == tuple(plain)
    assert any(guessed)
    guessed.clear()
    for settings in (
        {"prompt_lookup_num_tokens": 0},
        {"do_sample": True},
        {"top_logprobs": 0},
        {"repetition_penalty": 1.1},
        {"num_beams": 2},
    ):
        generate(model, prompt, DecodingSettings(max_new_tokens=9, **settings))
    generate(model, ids[:, :16], DecodingSettings(max_new_tokens=9))
    generate(load_ir(quantized[0]), prompt, DecodingSettings(max_new_tokens=9))
    assert guessed == []


def test_prompt_lookup_takes_one_prompt(quantized, ids):
    with pytest.raises(ValueError, match="2 prompts, prompt lookup takes one"):
        list(lookup_steps(load_ir(quantized[0]).decoder(ids[:, :24]), 8))


def ran(monkeypatch) -> list[str]:
    """Collect what runs: the `graph` that reads prompts, the `step`, or its `head` alone."""
    used, read_tokens, step = [], IrModel._read, DecodeStep.run
    monkeypatch.setattr(IrModel, "_read", lambda self, *rest: used.append("graph") or read_tokens(self, *rest))
    names = {WHOLE: "step", HEAD: "head"}
    monkeypatch.setattr(DecodeStep, "run", lambda self, x, what: used.append(names[what]) or step(self, x, what))
    return used


@pytest.mark.parametrize("sequences", [1, 2, MOST_TOKENS, MOST_TOKENS + 1])
def test_more_sequences_than_fit_into_a_step_are_decoded_by_the_prefill_graph(either_cpu, quantized, ids, sequences, monkeypatch):
    model, used = load_ir(quantized[0]), ran(monkeypatch)
    out = greedy_tokens(model, np.tile(ids[:1, :9], (sequences, 1)), 5)
    assert (out == out[0]).all()
    assert used == (["graph", "head", *["step"] * 4] if sequences <= MOST_TOKENS else ["graph"] * 5)


@pytest.mark.parametrize("sequences", [1, 2])
def test_without_the_step_openvino_reads_every_token(either_cpu, quantized, ids, sequences, monkeypatch):
    model, used = load_ir(quantized[0], decode="openvino"), ran(monkeypatch)
    greedy_tokens(model, ids[:sequences, :9], 5)
    assert used == ["graph"] * 5


@pytest.mark.skipif(not has_bf16(), reason="this CPU does not compute in bf16")
def test_in_bf16_openvino_decodes(quantized):
    assert load_ir(quantized[0], precision="bf16").step is None


def test_what_decodes_is_one_of_two(float_dir):
    with pytest.raises(ValueError, match="decode='torch', expected one of step, openvino"):
        load_ir(float_dir, decode="torch")


@pytest.mark.parametrize("decoded_by", DECODE)
def test_more_guesses_than_fit_into_a_step_are_checked_too(decoded_by, quantized, ids):
    model, prompt = load_ir(quantized[0], decode=decoded_by), ids[:1, :24]
    plain = greedy_tokens(model, prompt, 40)[0].tolist()
    decoder = model.decoder(prompt)
    chosen = int(decoder.prefill().argmax())
    assert [chosen, *decoder.verify(chosen, plain[1:36])] == plain[:37]


def test_a_second_generation_knows_nothing_of_the_first(quantized, ids):
    model = load_ir(quantized[0])
    first = greedy_tokens(model, ids[:1, :16], 8)
    greedy_tokens(model, ids[:, 4:30], 20)
    np.testing.assert_array_equal(greedy_tokens(model, ids[:1, :16], 8), first)


def decode(greedy: Greedy, count: int) -> np.ndarray:
    """Take so many steps that have started; return the tokens (B, count) that are chosen on the way."""
    tokens = []
    for _ in range(count):
        tokens.append(greedy.next_ids)
        greedy.step()
    return np.concatenate(tokens, axis=1)


def test_decoders_of_one_model_do_not_disturb_each_other(either_cpu, quantized, ids):
    model, prompts = load_ir(quantized[0]), (ids[:1, :20], ids[1:, :9], ids[:, 3:15], np.tile(ids[:, 5:30], (8, 1)))
    alone = [greedy_tokens(load_ir(quantized[0]), prompt, 30) for prompt in prompts]
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
    expected = [greedy_tokens(model, decoder.prompts, 40).tolist()[0] for decoder in (first, second)]
    chosen = [int(first.prefill().argmax())]
    assert list(chain(*lookup_steps(second, 40))) == expected[1]
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
    greedy_tokens(model, ids, 2)
    assert sum(cache() is not None for cache in caches) == 1


def retry_with_half_the_batch(directory: str) -> tuple[int, list[str]]:
    """Decode more sequences than there is memory for, then half as many until they fit; return how many those are, and what was said."""
    import resource

    model, sequences, said = load_ir(directory), 8192, []
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 400_000_000,) * 2)
    while True:
        try:
            greedy_tokens(model, np.ones((sequences, 1), np.int64), 2)
            return sequences, said
        except (MemoryError, RuntimeError) as error:  # the cache finds no memory, or what the plugin computes with
            sequences //= 2
            said.append(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may map")
def test_a_batch_that_finds_no_memory_may_be_halved(quantized):
    sequences, said = in_fresh_process(retry_with_half_the_batch, str(quantized[0])).value
    assert 1 <= sequences < 8192
    assert said[0] == "no memory for the KV cache of 8192 sequences; decode fewer at once"


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
    for act in (model.logits, lambda ids: greedy_tokens(model, ids, 2), lambda ids: model.decoder(ids).prefill()):
        with pytest.raises(ValueError, match=message):
            act(ids)


def test_a_full_context_stops_decoding(quantized):
    decoder = load_ir(quantized[0]).decoder(np.ones((1, 256), dtype=np.int64))
    decoder.prefill()
    with pytest.raises(ValueError, match="257 tokens"):
        decoder.decode(np.ones((1, 1), dtype=np.int64))


def test_a_block_of_the_cache_holds_as_many_tokens_as_the_plugin_puts_there(quantized):
    ports = load_ir(quantized[0])._cache_ports
    assert len(ports) == 4  # keys and values of two layers
    assert {port.get_partial_shape()[2].get_length() for port in ports.values()} == {BLOCK}


@pytest.mark.parametrize("precision", ["f16", "i8", "", "F32"])
def test_a_precision_that_is_not_known_is_refused(precision, float_dir):
    """The plugin itself takes f16, and computes in bf16."""
    with pytest.raises(ValueError, match=rf"precision='{precision}', expected one of f32, bf16"):
        load_ir(float_dir, precision=precision)


@pytest.mark.parametrize(("name", "asked"), [("INFERENCE_PRECISION_HINT", "bf16"), ("KV_CACHE_PRECISION", "f16")])
def test_a_type_that_the_plugin_does_not_give_is_refused(name, asked, float_dir, monkeypatch):
    """As on a CPU without bf16, which computes in f32 without a word."""
    monkeypatch.setattr(compile, "cpu_properties", lambda *_: {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", name: asked})
    compile_model = openvino.Core.compile_model

    def other(core, graph, device, properties):
        return compile_model(core, graph, device, {**properties, name: "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", other)
    with pytest.raises(ValueError, match=f"{name} is f32 on this CPU, not {asked} as asked"):
        load_ir(float_dir)
