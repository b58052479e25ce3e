"""`GPT2Deployed`: the lines of its page as they stand, the tokens of torch from every back-end, and one line for what is wrong."""

import dataclasses
import json
import re
import shutil
import statistics
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from gpt2opt.apps.deployed import model as deployed
from gpt2opt.apps.deployed.model import GPT2Deployed
from gpt2opt.apps.deployed.report import plot_scaling, scaling_table, statistics_caption, statistics_table
from gpt2opt.apps.deployed.statistics import CorePoint, Scaling, ServingStatistics, TimedRun, Work, core_counts, timed_run
from gpt2opt.decoding.generation import Token, generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.environment import threads
from gpt2opt.export import qaic
from gpt2opt.measure.limits import Limits
from gpt2opt.measure.results import Latency
from gpt2opt.sources import models
from gpt2opt.sources.models import BUNDLED, load_model, save_model
from gpt2opt.torch_model import TorchModel
from tests.conftest import ROOT, SENTENCE

LIMITS = Limits(read_bytes_per_s=1e9, int8_ops_per_s=1e12, fp32_ops_per_s=1e10)
WORK = Work(block_weights=1_000_000, head_weights=250_000, kv_bytes=1000)
PROMPTS = ["Node 3 of graph", "Hi there!!", SENTENCE.format(1, 2, 3, 4)]


@pytest.fixture
def known_limits(monkeypatch) -> None:
    monkeypatch.setattr(deployed, "measure_limits", lambda num_cores: LIMITS)


@pytest.fixture(scope="module")
def pruned_dir(pruned, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "model"
    save_model(folder, tokenizer, pruned)
    return folder


@pytest.fixture(scope="module", params=["model_dir", "pruned_dir"])
def model(request):
    """A tiny model, whole or pruned, exported for both back-ends."""
    found = GPT2Deployed.from_pretrained(request.getfixturevalue(request.param))
    found.export()
    return found


@pytest.fixture(scope="module")
def compiled(model_dir) -> GPT2Deployed:
    found = GPT2Deployed.from_pretrained(model_dir)
    found.compile(num_cores=1)
    return found


# --- the way from weights to tokens


@pytest.mark.parametrize("backend", deployed.HERE)
def test_unequal_prompts_get_the_tokens_that_torch_chooses(model, backend, known_limits, capsys):
    model.compile(num_cores=1, backend=backend)
    found = model.generate(PROMPTS, model.tokenizer, runs=2)
    ids = [model.tokenizer(prompt).input_ids for prompt in PROMPTS]
    assert len({len(prompt) for prompt in ids}) == 3
    settings = DecodingSettings(max_new_tokens=32, eos_token_id=model.tokenizer.eos_token_id)
    expected = generate(TorchModel(load_model(model.source.path)[1]), ids, settings)
    assert [each.ids for each in found.generated] == [each.ids for each in expected]
    assert found.statistics.prompt_tokens == tuple(len(prompt) for prompt in ids)
    assert [sum(run.tokens) for run in found.statistics.runs] == [sum(len(each.ids) for each in expected)] * 2
    printed = capsys.readouterr().out
    assert all(prompt + text in printed for prompt, text in zip(PROMPTS, found.texts, strict=True))
    assert str(statistics_table(found.statistics)) in printed


def test_the_logits_of_the_ir_are_those_of_torch(model):
    model.compile(num_cores=1, backend="openvino")
    ids = np.arange(3 * 24).reshape(3, 24)
    with torch.inference_mode():
        expected = load_model(model.source.path)[1](torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(model.compiled.model.logits(ids), expected, atol=1e-3)  # without the cache
    decoder = model.compiled.model.decoder(ids[:, :1])
    decoder.prefill()
    for place in range(1, 24):  # with it
        np.testing.assert_allclose(decoder.decode(ids[:, place : place + 1]), expected[:, place], atol=1e-3)


def test_one_prompt_is_streamed(compiled, monkeypatch):
    """Each token is printed before the next one is chosen."""
    seen, printed = [], []
    decoder_of = compiled.compiled.model.decoder

    def noting(*arguments):
        decoder = decoder_of(*arguments)
        decode = decoder.decode
        decoder.decode = lambda ids: (seen.append(len(printed)), decode(ids))[1]
        return decoder

    monkeypatch.setattr(compiled.compiled.model, "decoder", noting)
    monkeypatch.setattr(deployed, "_print_token", printed.append)
    compiled.generate("Node 3", settings=DecodingSettings(max_new_tokens=6), runs=0)
    assert seen == [1, 2, 3, 4, 5]


# --- an exported folder is taken back


def content_of(folder) -> dict[str, tuple[bytes, int]]:
    """Return the content and the time of every file but the marker of the folder itself."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*") if path.is_file()
    }


@pytest.fixture
def exported(model, tmp_path):
    """A folder of its own that both back-ends were exported to."""
    folder = tmp_path / "exported"
    shutil.copytree(model._scratch.name, folder)
    return folder


@pytest.mark.parametrize("backend", deployed.HERE)
def test_an_exported_folder_gives_the_same_tokens_and_nothing_is_exported_anew(model, exported, backend, monkeypatch, capsys):
    model.compile(num_cores=1, backend=backend)
    expected = [each.ids for each in model.generate(PROMPTS, runs=0).generated]
    model.compile(num_cores=1, backend="openvino")
    before = content_of(exported)
    monkeypatch.setattr(deployed, "load_model", lambda _: pytest.fail("the weights were read"))
    monkeypatch.setattr(deployed, "BACKENDS", {name: dataclasses.replace(each, export=None) for name, each in deployed.BACKENDS.items()})
    again = GPT2Deployed.from_pretrained(exported)
    assert (str(again.source), again.work, again.context, again.vocab_size) == (
        str(model.source), model.work, model.context, model.vocab_size,
    )  # fmt: skip
    again.compile(num_cores=1, backend=backend)
    assert [each.ids for each in again.generate(PROMPTS, runs=0).generated] == expected
    changed = {name for name, found in content_of(exported).items() if found != before[name]}
    assert changed == ({"deployed.json"} if backend != "openvino" else set())
    third = GPT2Deployed.from_pretrained(str(exported))
    third.generate("Hi", runs=0)
    assert third.compiled.backend == backend  # the one that was chosen is remembered
    assert capsys.readouterr().err == ""


def test_a_folder_that_can_not_be_written_to_is_used_all_the_same(exported, monkeypatch, capsys):
    model = GPT2Deployed.from_pretrained(exported)

    def refuse(path, _):
        raise ValueError(f"can't write {path}")

    monkeypatch.setattr(deployed, "write_result", refuse)
    model.compile(num_cores=1, backend="onnxruntime")
    assert model.generate("Hi", runs=0).texts
    assert "that onnxruntime was chosen is not remembered: can't write" in capsys.readouterr().err


def test_what_was_exported_in_part_is_not_taken_back_and_an_export_holds_no_weights(model_dir, tmp_path, monkeypatch):
    model, out = GPT2Deployed.from_pretrained(model_dir), tmp_path / "out"
    model.export(out, backends=["openvino"])
    again = GPT2Deployed.from_pretrained(out)
    with pytest.raises(ValueError, match=r"out is an export for openvino and holds no weights that onnxruntime could be made from; call"):
        again.compile(backend="onnxruntime")
    monkeypatch.setattr(deployed, "BACKENDS", {"openvino": dataclasses.replace(deployed.BACKENDS["openvino"], export=lambda *_: 1 / 0)})
    with pytest.raises(ZeroDivisionError):
        model.export(out, backends=["openvino"])
    with pytest.raises(ValueError, match=r"no config.json in .*out; name a directory"):
        GPT2Deployed.from_pretrained(out)


def test_a_damaged_description_is_one_line_and_a_users_file_of_its_name_stays(model_dir, exported):
    path = exported / "deployed.json"
    whole = json.loads(path.read_text())
    for content, message in (
        ("{", "is not JSON"), ("{}", "has schema None"), (json.dumps(whole | {"backends": []}), "is not whole (IndexError"),
        (json.dumps({name: value for name, value in whole.items() if name != "work"}), "is not whole (TypeError"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            GPT2Deployed.from_pretrained(exported)
        assert "\n" not in str(raised.value)
    path.write_text("my notes")
    before = content_of(exported)
    with pytest.raises(ValueError, match=r"deployed\.json is there and was not written by gpt2opt, so it is left alone"):
        GPT2Deployed.from_pretrained(model_dir).export(exported)
    assert content_of(exported) == before
    with pytest.raises(ValueError, match=r"but deployed\.json, an export that GPT2Deployed.from_pretrained takes back"):
        models.check_gpt2(exported)


@pytest.mark.slow
def test_the_five_lines_of_the_page_run_as_they_stand(tmp_path):
    """In a folder that has a model called gpt2, which transformers and this project find before the hub; more cores than there are."""
    save_model(tmp_path / "gpt2", *load_model(BUNDLED))
    code = """
from transformers import AutoTokenizer

from gpt2opt import GPT2Deployed
model = GPT2Deployed.from_pretrained("gpt2")
model.compile(num_cores=16)
tokenizer = AutoTokenizer.from_pretrained("gpt2")
model.generate(prompts=["Hi there!!"], tokenizer=tokenizer)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hi there!!")
    for name in ("time to first token, ms", "decode, tokens/s", "total, tokens/s", "end to end, ms"):
        assert name in done.stdout
    if threads() < 16:
        assert f"num_cores=16, but this process may use {threads()}" in done.stderr


def test_where_gpt2_cannot_be_had_the_stand_in_is_named_and_others_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(models, "find_snapshot", lambda *_: None)
    model = GPT2Deployed.from_pretrained("gpt2")
    assert model.source.path == BUNDLED
    (line,) = capsys.readouterr().err.splitlines()
    assert "the bundled GPT-2 is used instead of gpt2" in line
    assert "stand-in" in str(model.source)  # and so in the statistics
    with pytest.raises(ValueError, match="model 'gpt2-large' is no directory"):
        GPT2Deployed.from_pretrained("gpt2-large")


# --- what is wrong


@pytest.fixture(scope="module")
def uncompiled(model_dir) -> GPT2Deployed:
    return GPT2Deployed.from_pretrained(model_dir)


WRONG = {
    "back-end": (lambda m: m.compile(backend="tpu"), "backend='tpu' is not known; expected one of openvino, onnxruntime, qaic"),
    "back-end of an export": (lambda m: m.export(backends=["tpu"]), "backend='tpu' is not known"),
    "no cores": (lambda m: m.compile(num_cores=0), "num_cores=0, expected a whole number of at least 1"),
    "half a core": (lambda m: m.compile(num_cores=0.5), "num_cores=0.5, expected a whole number"),
    "no prompts": (lambda m: m.generate([]), "no prompt was given"),
    "empty prompt": (lambda m: m.generate(["Hi", ""]), "the prompt is empty"),
    "no text": (lambda m: m.generate([b"Hi"]), "a prompt of type bytes, expected text"),
    "a number": (lambda m: m.generate(7), "a prompt of type int, expected text"),
    "long prompt": (lambda m: m.generate(["word " * 999]), "from 1 to 224 fit into the context of 256"),
    "no tokenizer": (lambda m: m.generate("Hi", "gpt2"), "tokenizer of type str"),
    "another model's tokenizer": (lambda m: m.generate("Hi", load_model(BUNDLED)[0]), "the tokenizer has 8192 tokens and the model"),
    "beams": (lambda m: m.generate("Hi", settings=DecodingSettings(num_beams=2)), "settings ask for beam search"),
    "runs": (lambda m: m.generate("Hi", runs=-1), "runs=-1, expected"),
    "long curve": (lambda m: m.scaling(prompt_tokens=250), "the prompt has 250 tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_before_any_work(case, uncompiled, monkeypatch):
    act, message = WRONG[case]
    monkeypatch.setattr(deployed, "load_model", lambda _: pytest.fail("it was exported first"))
    with pytest.raises(ValueError, match=r"\w") as raised:
        act(uncompiled)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert uncompiled.exported == {}


def test_a_folder_of_a_users_is_left_alone(uncompiled, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and was not written by gpt2opt"):
        uncompiled.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_runtime_is_said_before_the_export(uncompiled, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'gpt2opt\[onnx\]'"):
        uncompiled.compile(backend="onnxruntime")
    assert uncompiled.exported == {}


# --- Cloud AI 100


def test_the_graph_for_the_card_computes_what_torch_computes(model, tmp_path):
    """In ONNX Runtime: two prompts in pieces with padding, then token by token; the state has a fixed length."""
    source = load_model(model.source.path)[1]
    folder = model.export(tmp_path / "card", backends=["qaic"]) / "qaic"
    shapes = json.loads((folder / qaic.SPECIALIZATIONS).read_text())["specializations"]
    assert shapes == [{"batch_size": "1", "seq_len": tokens, "ctx_len": "256"} for tokens in ("32", "1")]
    session = onnxruntime.InferenceSession(folder / qaic.ONNX_NAME)
    state = {port.name: np.zeros((2, port.shape[1], 256, port.shape[3]), np.float32) for port in session.get_inputs()[2:]}
    assert {f"{name}_RetainedState" for name in state} == {port.name for port in session.get_outputs()[1:]}
    norms = [node for node in onnx.load(folder / qaic.ONNX_NAME).graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * source.config.n_layer + 1
    assert not any(attribute.name == "stash_type" for node in norms for attribute in node.attribute)  # by default its sums are in FP32
    declared = (folder / qaic.CUSTOM_IO).read_text()
    assert all(f"IOName: {name}\n" in declared for name in (*state, *(f"{name}_RetainedState" for name in state)))

    def run(ids, positions):
        nonlocal state
        logits, *states = session.run(None, {"input_ids": np.array(ids), "position_ids": np.array(positions), **state})
        state = dict(zip(state, states, strict=True))
        return logits[:, 0]

    texts = [list(range(40)), list(range(100, 135))]  # the second has 3 tokens in its second piece, and the first 8
    run([text[:32] for text in texts], [list(range(32))] * 2)
    pieces = [text[32:] + [0] * (32 - len(text[32:])) for text in texts]
    positions = [list(range(32, len(text))) + [-1] * (64 - len(text)) for text in texts]
    logits = run(pieces, positions)
    for step in range(3):
        for row, text in enumerate(texts):
            with torch.inference_mode():
                np.testing.assert_allclose(logits[row], source(torch.tensor([text])).logits[0, -1].numpy(), atol=1e-3)
            text.append(7 + step)
        logits = run([[text[-1]] for text in texts], [[len(text) - 1] for text in texts])


def test_without_the_sdk_one_line_says_what_is_missing(uncompiled, tmp_path, monkeypatch):
    monkeypatch.setattr(qaic, "SDK_FOLDER", str(tmp_path / "sdk"))
    with pytest.raises(ImportError, match=r"qaic-compile of Qualcomm's Cloud AI Apps SDK is neither in .* nor on PATH"):
        uncompiled.compile(backend="qaic")
    assert uncompiled.exported == {}


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Put a script into the place of Qualcomm's compiler, which writes its options down as the program."""
    monkeypatch.setattr(qaic, "SDK_FOLDER", str(tmp_path / "sdk"))
    compiler = tmp_path / "sdk" / "qaic-compile"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$0.py" "$@"\n')  # a path in the first line may hold no space
    compiler.with_name("qaic-compile.py").write_text("""import json, pathlib, sys
options = dict(option.partition("=")[::2] for option in sys.argv[1:])
folder = pathlib.Path(options["-aic-binary-dir"])
folder.mkdir()
(folder / "programqpc.bin").write_text(json.dumps(options))
""")
    compiler.chmod(0o755)
    return compiler


def test_the_compiler_of_the_card_is_called(model_dir, compiler, tmp_path, capsys):
    model = GPT2Deployed.from_pretrained(model_dir)
    out = model.export(tmp_path / "out", backends=["qaic"])
    model.compile(num_cores=8, backend="qaic")
    options = json.loads((out / "program" / "qpc" / "programqpc.bin").read_text())
    assert options["-aic-num-cores"] == "8"
    assert {"-retained-state", "-convert-to-fp16", "-aic-hw"} <= set(options)
    for name in ("-m", "-network-specialization-config", "-custom-IO-list-file"):
        assert str(out / "qaic") in options[name]
    assert "the program for Cloud AI 100 is in" in capsys.readouterr().err
    again = GPT2Deployed.from_pretrained(out)
    with pytest.raises(ValueError, match="the model was compiled for Cloud AI 100"):
        again.generate("Hi")  # what was chosen is remembered, and not compiled anew
    compiler.write_text("#!/bin/sh\necho 'no such operator' >&2; exit 3\n")
    with pytest.raises(RuntimeError, match="exit code 3: no such operator"):
        model.compile(backend="qaic")
    assert (out / "program" / "qpc" / "programqpc.bin").exists()  # the program before it stays


@pytest.mark.parametrize("before", [None, "openvino", "onnxruntime"])
def test_a_model_that_was_compiled_for_the_card_writes_nothing_on_the_cpu(before, model_dir, compiler, tmp_path, known_limits, monkeypatch):
    model = GPT2Deployed.from_pretrained(model_dir)
    if before:
        model.compile(backend=before)
    model.export(tmp_path / "out", backends=["qaic"])
    model.compile(backend="qaic")
    program = tmp_path / "out" / "program"
    with monkeypatch.context() as changed:
        changed.setattr(GPT2Deployed, "compile", lambda *_, **__: pytest.fail("it was compiled for this machine"))
        for act in (lambda: model.generate("Hi there!!"), lambda: model.scaling(8, 2)):
            with pytest.raises(ValueError, match=r"\w") as refused:
                act()
            for part in (
                f"for Cloud AI 100, into {program}: ",
                f"`qaic-runner -t {program}/qpc`",
                "compile(backend=…) takes openvino or onnxruntime",
            ):
                assert part in str(refused.value)
            assert "\n" not in str(refused.value)
    model.compile(backend="openvino")
    assert model.generate("Hi there!!", runs=0).texts
    assert program.is_dir()


@pytest.mark.parametrize("exported", [False, True])
def test_a_program_is_not_compiled_into_a_folder_that_vanishes(exported, model_dir, compiler, monkeypatch):
    model = GPT2Deployed.from_pretrained(model_dir)
    if exported:
        model.export(backends=["qaic"])  # into a temporary folder
    monkeypatch.setattr(deployed, "compile_program", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(ValueError, match=r"call export\('FOLDER', backends=\['qaic'\]\) first, with a folder of your own"):
        model.compile(backend="qaic")
    assert model.program is None


# --- statistics


def test_the_least_time_is_that_of_bytes_or_of_operations():
    assert WORK.least_s(LIMITS, 1, 1, 0) == pytest.approx(1.25e6 * 4 / 1e9)  # a step reads 5 MB at 1 GB/s
    assert WORK.least_s(LIMITS, 1, 1, 2000) == pytest.approx((5e6 + 2e6) / 1e9)
    assert WORK.least_s(LIMITS, 2, 1000, 0) == pytest.approx(2 * (1e6 * 1000 + 2.5e5 * 2) / 1e10)  # a long prompt multiplies


def test_a_sequence_that_has_ended_is_not_read_any_more():
    both = [Token(0, 5), Token(1, 6)]
    run = timed_run([both, both, both[1:]], [0.1, 0.2, 0.3], [10, 20], WORK, LIMITS)
    assert run.tokens == (2, 2, 1)
    assert run.least_s[1:] == pytest.approx([(5e6 + 30_000) / 1e9, (5e6 + 21_000) / 1e9])


@pytest.fixture
def served() -> ServingStatistics:
    runs = tuple(TimedRun((0.1 * slow, 0.01 * slow, 0.03 * slow), (2, 2, 1), (0.05, 0.005, 0.005)) for slow in (1, 2, 3))
    return ServingStatistics("a model", "openvino", 2, (10, 20), WORK, LIMITS, runs)


def test_statistics_of_known_runs(served):
    first, decode, total, whole = served.figures
    assert (first.p50, whole.p50) == pytest.approx((0.2, 0.28))
    assert first.samples == pytest.approx((0.1, 0.2, 0.3))
    assert decode.samples == pytest.approx((200, 1 / 0.03, 100, 1 / 0.06, 2 / 0.03, 1 / 0.09))
    assert total.samples == pytest.approx([5 / seconds for seconds in whole.samples])
    assert [figure.distance.value for figure in served.figures] == pytest.approx([4, 8, 0.28 / 0.06, 0.28 / 0.06])
    assert first.p95 > first.p50  # the slow end, of times as of rates
    assert decode.p95 < decode.p50
    table = statistics_table(served)
    assert [row[0] for row in table.rows] == ["time to first token, ms", "decode, tokens/s", "total, tokens/s", "end to end, ms"]
    assert table.rows[0][1:4] == ("200", "290", "3")
    caption = statistics_caption(served)
    assert "2 prompts of 10 to 20 tokens, 5 new ones, 3 runs" in caption
    assert "caches" not in caption
    short = ServingStatistics("a model", "openvino", 2, (10,), WORK, LIMITS, (TimedRun((0.001,), (1,), (0.05,)),))
    assert [figure.name for figure in short.figures] == ["time to first token", "total", "end to end"]  # nothing was decoded
    assert "A ratio below 1" in statistics_caption(short)


def test_times_are_those_of_steps_without_the_printing(compiled, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(deployed.time, "perf_counter", lambda: float(next(clock)))

    def slow(_):
        for _ in range(10):
            next(clock)

    stream = deployed.stream
    settings = DecodingSettings(max_new_tokens=4)
    steps, seconds = deployed._timed(lambda: stream(compiled.compiled.model, ["Hi", "Node 3"], settings, compiled.tokenizer), slow)
    assert seconds == [2.0] * 4  # two tokens a step, and the clock was read once before and once after each
    assert [[token.sequence for token in tokens] for tokens in steps] == [[0, 1]] * 4


def test_core_counts_double_up_to_all():
    assert [core_counts(most) for most in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


@pytest.fixture
def scaling() -> Scaling:
    def point(cores: int, speed: float) -> CorePoint:
        slow = (1.0, 1.1, 1.2, 1.0, 1.1, 1.3)
        first, later = tuple(0.2 * s / speed for s in slow), tuple(0.01 * s / speed for s in slow for _ in range(3))
        return CorePoint(cores, Latency(first, later, 2, 1, 64, 4), LIMITS)

    return Scaling("a model", "openvino", WORK, (point(1, 1), point(2, 1.8), point(4, 3)))


def test_table_and_chart_of_a_known_scaling(scaling):
    rows = scaling_table(scaling).rows
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert [row[2] for row in rows] == ["1.00 [1.00, 1.00]", "1.80 [1.80, 1.80]", "3.00 [3.00, 3.00]"]
    assert rows[0][5] == "1.00 [1.00, 1.00]"
    assert rows[0][6] == f"{0.011 / scaling.least_tpot_s(scaling.points[0]):.2f}"
    mpl.use("Agg")
    first, later = plot_scaling([scaling])
    (line, limit), (_, memory) = first.lines[:1] + first.lines[-1:], later.lines[:1] + later.lines[-1:]
    assert line.get_ydata() == pytest.approx([220 / speed for speed in (1, 1.8, 3)], rel=0.01)
    assert limit.get_ydata() == pytest.approx([scaling.least_ttft_s(scaling.points[0]) * 1e3] * 3)
    assert memory.get_ydata() == pytest.approx([1 / scaling.least_tpot_s(scaling.points[0])] * 3)


def test_scaling_times_every_number_of_cores_in_turns(compiled, known_limits, capsys):
    found = compiled.scaling(prompt_tokens=8, new_tokens=4, runs=3)
    assert [point.num_cores for point in found.points] == core_counts(threads())
    assert all(len(point.latency.tpot_samples_s) == 9 for point in found.points)
    assert statistics.median(found.points[0].latency.ttft_samples_s) > 0
    assert str(scaling_table(found)) in capsys.readouterr().out
