"""The course's functions, called as its notebook calls them, from loading to suggestions, and checked as its own cells check them."""

import inspect
import json
import re
import shutil
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import GPT2LMHeadModel, Trainer

from gpt2opt.apps import course
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.measure.trace import read_trace
from gpt2opt.runtime.audit import audit_int8
from gpt2opt.sources import hub, models, texts
from gpt2opt.sources.documentation import Document
from tests.conftest import ROOT, SENTENCE

PROMPT = "Node 7 of graph"
SIGNATURES = {
    "load_fp16_model": "(model_id='gpt2')",
    "load_wikitext_dataset": "(train_split='train[:100]', valid_split='validation[:200]')",
    "measure_latency_gpu": "(model, tokenizer, prompt, max_new_tokens=50)",
    "compute_perplexity": "(model, tokenizer, dataset)",
    "profile_model_for_tensorboard": "(model, tokenizer, prompt, device, log_dir='tb_logs', run_name='pruned_fp16')",
    "prune_attention_heads": "(model, prune_fraction=0.2)",
    "prepare_tokenizer_for_padding": "(tokenizer, model)",
    "tokenize_dataset": "(dataset, tokenizer)",
    "create_training_arguments": "(output_dir='gpt2_finetuned', learning_rate=1e-05)",
    "run_fine_tuning": "(model, training_args, tokenized_train, tokenizer)",
    "prepare_calibration_dataset": "(valid_ds, tokenizer)",
    "run_post_training_quantization": "(quantizer, calibration_dataset, output_dir)",
    "load_cpu_model": "(model_dir)",
    "measure_latency_cpu": "(model, tokenizer, prompt='The future of AI is', max_new_tokens=50)",
    "peak_ram_usage_gb": "()",
    "compute_ppl_cpu": "(model, tokenizer, dataset)",
    "plot_latency": "(metrics)",
    "plot_memory_usage": "(metrics)",
    "plot_perplexity": "(metrics)",
    "get_next_token_suggestions": "(model, tokenizer, prompt, top_k=5)",
}


def plain_signature(function) -> str:
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


def test_every_name_of_the_notebook_is_there_with_its_arguments_and_defaults():
    assert {name: plain_signature(getattr(course, name)) for name in course.__all__} == SIGNATURES
    assert all(inspect.getdoc(getattr(course, name)) for name in course.__all__)


def test_the_page_lists_the_functions_that_are_there():
    page = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| \w+ \| `(\w+)(\(.*?\))` \|", page, re.MULTILINE))
    assert shown == {name: signature.replace("'", '"').replace("1e-05", "1e-5") for name, signature in SIGNATURES.items()}


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> tuple[Dataset, Dataset]:
    """A train slice and a valid slice, of a text with paragraphs of three sentences."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    blocks = ["".join(SENTENCE.format(7 * b + s, b, s, 11 * b + s) for s in range(3)) for b in range(900)]
    path.write_text("\n".join(blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(texts.VARIABLE, str(path))
        return course.load_wikitext_dataset("train[:20]", "validation[:40]")


@pytest.fixture(scope="module")
def loaded(model_dir):
    return course.load_fp16_model(str(model_dir))


@pytest.fixture(scope="module")
def tuned(model_dir, slices, tmp_path_factory):
    """A tokenizer, and a model that was pruned and fine-tuned."""
    tokenizer, model = course.load_fp16_model(model_dir)
    before = torch.cat([parameter.flatten() for parameter in model.parameters()])
    pruned = course.prune_attention_heads(model, prune_fraction=0.2)
    assert pruned is model
    course.prepare_tokenizer_for_padding(tokenizer, model)
    arguments = course.create_training_arguments(tmp_path_factory.mktemp("tuned"), learning_rate=1e-3)
    trainer = course.run_fine_tuning(model, arguments, course.tokenize_dataset(slices[0], tokenizer), tokenizer)
    assert isinstance(trainer, Trainer)
    assert trainer.state.global_step == 10
    assert len(torch.cat([parameter.flatten() for parameter in model.parameters()])) < len(before)
    return tokenizer, model


@pytest.fixture(scope="module")
def on_cpu(tuned, slices, tmp_path_factory):
    """The folder that quantization wrote, and the model in it."""
    from optimum.intel import INCQuantizer

    tokenizer, model = tuned
    folder = tmp_path_factory.mktemp("course") / "gpt2_pruned_int8"
    calibration = course.prepare_calibration_dataset(slices[1], tokenizer)
    assert course.run_post_training_quantization(INCQuantizer.from_pretrained(model.to("cpu")), calibration, output_dir=folder) is None
    return folder, course.load_cpu_model(model_dir=folder)


def test_a_model_is_loaded_in_fp16_and_continues_a_prompt(loaded):
    tokenizer, model = loaded
    inputs = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    with torch.no_grad():
        outputs = model.generate(inputs["input_ids"], max_length=20, do_sample=False)
    assert model.dtype == torch.float16
    assert model.device == inputs["input_ids"].device
    assert PROMPT in tokenizer.decode(outputs[0], skip_special_tokens=True)
    assert model.generate(**inputs, max_new_tokens=5).shape[1] > inputs["input_ids"].shape[1]


def test_without_a_hub_a_stand_in_is_named(monkeypatch, model_dir, capsys):
    for module in (models, texts):
        monkeypatch.setattr(module, "find_snapshot", lambda *_, **__: None)
    documents = [Document(f"module {m}", "\n\n".join(f"{SENTENCE.format(m, p, 1, 2)}{SENTENCE}" for p in range(30))) for m in range(200)]
    monkeypatch.setattr(texts, "unique_package_documents", lambda *_: documents)
    monkeypatch.delenv(texts.VARIABLE, raising=False)
    monkeypatch.chdir(model_dir)
    _, model = course.load_fp16_model()
    assert model.dtype == torch.float16
    assert "as a stand-in for gpt2" in capsys.readouterr().out
    train, valid = course.load_wikitext_dataset()
    assert "as a stand-in for WikiText-2" in capsys.readouterr().out
    assert (len(train), len(valid)) == (100, 200)
    assert isinstance(train[0]["text"], str)
    assert isinstance(valid[0]["text"], str)
    assert all(row.strip() and "\n" not in row for row in valid["text"])
    assert not {row for row in train["text"] if len(row) >= 100} & set(valid["text"])


def test_wikitext_is_sliced_row_by_row_as_it_is_published(monkeypatch, tmp_path):
    folder = tmp_path / texts.WIKITEXT_FOLDER
    folder.mkdir()
    for split in ("train", "validation", "test"):
        table = pyarrow.table({"text": ["", f" = {split} = \n", "", *(f" Row {row} . \n" for row in range(97))]})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(hub, "cached_snapshot", lambda *_, **__: tmp_path)
    monkeypatch.delenv(texts.VARIABLE, raising=False)
    train, valid = course.load_wikitext_dataset("train[1:3]", "validation[:10%]")
    assert list(train["text"]) == [" = train = \n", ""]
    assert len(valid) == 10
    assert valid[9]["text"] == " Row 6 . \n"


@pytest.mark.parametrize("spec", ["", "valid[:3]", "train[:x]", "train[0:0]", 3])
def test_a_split_that_is_none_is_refused(spec):
    with pytest.raises(
        ValueError, match=rf"^split {re.escape(repr(spec))} .*; (expected one such as 'train\[:100\]'|ask for at least one)"
    ):
        texts.Texts("a text", "test", (), (), (), published={"train": ["row"]}).take(spec)


def test_latency_is_time_per_new_token_of_one_generation_after_a_short_warm_up(loaded, monkeypatch):
    """The course's cells time the whole call and divide it by the new tokens, so a call may not generate much more than these."""
    tokenizer, model = loaded
    generated, timed = [], []
    for step in ("start", "step"):
        done = getattr(Greedy, step)
        monkeypatch.setattr(Greedy, step, lambda self, done=done: (generated.append(1), done(self)))

    def timer(work):
        before = len(generated)
        work()
        timed.append(len(generated) - before)
        return 0.5

    monkeypatch.setattr(course, "wall_time", timer)
    monkeypatch.setattr(course, "cuda_time", timer)
    for measured, count in ((course.measure_latency_gpu, 12), (course.measure_latency_cpu, 12), (course.measure_latency_gpu, 3)):
        generated.clear(), timed.clear()
        assert measured(model, tokenizer, PROMPT, max_new_tokens=count) == pytest.approx(1e3 * 0.5 / count)
        assert timed == [count]
        assert 0 < len(generated) - count <= 10


def test_perplexity_is_that_of_the_course(loaded, slices):
    tokenizer, model = loaded
    model.train()
    lines = ["", " = A title = \n", *slices[1]["text"][:3], "   "]
    weighted = scored = 0.0
    with torch.no_grad():
        for line in lines:
            ids = tokenizer(line, return_tensors="pt", truncation=True).input_ids.to(model.device)
            if line.strip():
                logits = model.eval()(ids).logits[0, :-1].float()
                weighted += F.cross_entropy(logits, ids[0, 1:]).item() * ids.shape[1]
                scored += ids.shape[1]
    model.train()
    found = course.compute_perplexity(model, tokenizer, Dataset.from_dict({"text": lines}))
    assert found == pytest.approx(np.exp(weighted / scored), rel=2e-3)
    assert not model.training
    assert model.dtype == torch.float16


def test_a_trace_is_written_where_it_is_expected(loaded, tmp_path, capsys):
    course.profile_model_for_tensorboard(*loaded[::-1], PROMPT, "cuda", log_dir=tmp_path / "logs", run_name="baseline_fp16")
    assert read_trace(tmp_path / "logs" / "baseline_fp16").operators
    assert ("There is no GPU" in capsys.readouterr().out) == (not torch.cuda.is_available())


def test_heads_leave_by_index_and_parameters_stay_fp16(model_dir):
    model = GPT2LMHeadModel.from_pretrained(model_dir).half()
    heads = model.config.n_head
    pruned = course.prune_attention_heads(model, prune_fraction=0.2)
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float16}
    for block in pruned.transformer.h:
        assert block.attn.num_heads == heads - int(heads * 0.2)
        assert block.attn.pruned_heads == set(range(int(heads * 0.2)))


def test_padding_and_rows_are_ready_to_train_on(tuned, slices):
    tokenizer, model = tuned
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.pad_token_id
    tokenized = course.tokenize_dataset(slices[0], tokenizer)
    assert set(tokenized.column_names) == {"input_ids", "attention_mask", "labels"}
    assert {len(row) for row in tokenized["input_ids"]} == {256}


def test_a_text_becomes_one_row_that_is_cut(tuned):
    texts = ["", "Node 1 of graph 2", SENTENCE * 90]
    tokenized = course.tokenize_dataset(Dataset.from_dict({"text": texts}), tuned[0])
    whole = tuned[0](texts[2]).input_ids
    assert len(whole) > 512
    assert [sum(mask) for mask in tokenized["attention_mask"]] == [len(tuned[0](texts[1]).input_ids) + 1, 256]
    assert tokenized["input_ids"][1] == whole[:256]


def test_training_arguments_are_those_of_one_quiet_epoch(tmp_path):
    arguments = course.create_training_arguments(tmp_path)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.report_to) == (1e-5, 1, [])
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps, arguments.save_strategy) == (2, 1, "no")
    assert arguments.remove_unused_columns is False


def test_a_tuned_model_is_fp16_again_and_measures_like_the_first(tuned, slices):
    tokenizer, model = tuned
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert course.measure_latency_gpu(model, tokenizer, PROMPT, max_new_tokens=3) > 0
    assert course.compute_perplexity(model, tokenizer, slices[1].select(range(4))) > 1


def test_calibration_rows_are_whole(slices, tuned):
    calibration = course.prepare_calibration_dataset(slices[1], tuned[0])
    assert calibration.column_names == ["input_ids"]
    assert {len(row) for row in calibration["input_ids"]} == {256}


@pytest.mark.slow
def test_the_quantizers_model_becomes_int8_ir_and_is_not_changed(on_cpu, tuned, capsys):
    folder, model = on_cpu
    audit = audit_int8(folder)
    assert audit.passed
    assert len(audit.expected) == 9
    assert model.dtype == torch.int8
    assert tuned[1].dtype == torch.float16
    assert type(tuned[1].transformer.h[0].mlp.c_fc).__name__ == "Conv1D"


@pytest.mark.slow
def test_the_cpu_model_serves_the_cells(on_cpu, tuned, slices):
    (_, model), (tokenizer, torch_model) = on_cpu, tuned
    inputs = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    assert model.eval() is model
    out = model(**inputs, labels=inputs["input_ids"])
    expected = torch_model.float()(**inputs, labels=inputs["input_ids"])
    torch_model.half()
    assert out.logits.shape == expected.logits.shape
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)
    ids = model.generate(**inputs, max_new_tokens=4)
    assert ids[:, :-4].equal(inputs["input_ids"]) or tokenizer.eos_token_id in ids
    assert model.generate(**inputs, max_length=ids.shape[1]).equal(ids)
    assert course.measure_latency_cpu(model, tokenizer, max_new_tokens=3) > 0
    few = slices[1].select(range(4))
    assert course.compute_ppl_cpu(model, tokenizer, few) == pytest.approx(course.compute_perplexity(torch_model, tokenizer, few), rel=0.1)


@pytest.mark.slow
def test_the_cpu_model_continues_padded_prompts_as_it_continues_each_alone(on_cpu, tuned):
    (_, model), (tokenizer, _) = on_cpu, tuned
    prompts = [PROMPT, "An edge"]
    alone = [model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=4) for prompt in prompts]
    tokenizer.padding_side = "left"
    both = model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), max_new_tokens=4)
    tokenizer.padding_side = "right"
    assert [row[-4:].tolist() for row in both] == [each[0, -4:].tolist() for each in alone]


def test_a_cpu_model_without_end_of_text_goes_on_to_its_limit(float_dir, tmp_path):
    shutil.copytree(float_dir, tmp_path / "ir")
    config = json.loads((tmp_path / "ir" / "config.json").read_text())
    (tmp_path / "ir" / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    model = course.load_cpu_model(tmp_path / "ir")
    assert model.eos_token_id is None
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape == (1, 5)


@pytest.mark.slow
def test_suggestions_are_the_most_probable_tokens(on_cpu, tuned):
    (_, model), (tokenizer, torch_model) = on_cpu, tuned
    for one in (model, torch_model):
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        probabilities = torch.softmax(one(ids).logits[0, -1].float(), -1)
        best = probabilities.topk(3)
        found = course.get_next_token_suggestions(one, tokenizer, PROMPT, top_k=3)
        assert [text for text, _ in found] == [tokenizer.decode([token]) for token in best.indices]
        assert [probability for _, probability in found] == pytest.approx(best.values.tolist(), rel=2e-2)


def test_the_peak_of_this_process_does_not_fall():
    before = course.peak_ram_usage_gb()
    block = np.ones(10**8 // 8)
    assert course.peak_ram_usage_gb() >= before
    del block
    assert course.peak_ram_usage_gb() >= before > 0.05


def lengths(axes, of: str) -> list[float]:
    return [getattr(bar, f"get_{of}")() for bar in axes.patches]


def test_the_charts_draw_what_the_dictionary_says(capsys):
    metrics = {
        "Baseline (FP16 GPU)": {"latency": 8.0, "ppl": 40.0, "vram": 0.4},
        "Pruned (FP16 GPU)": {"latency": 9.0, "ppl": 37.0, "vram": 0.3},
        "Quant (INT8 CPU)": {"latency": 5.0, "ppl": 38.0, "ram": 0.9},
    }
    for plot, of, drawn in (
        (course.plot_latency, "width", [[8, 9, 5]]),
        (course.plot_perplexity, "height", [[40, 37, 38]]),
        (course.plot_memory_usage, "width", [[0.4, 0.3], [0.9]]),
    ):
        assert plot(metrics) is None
        assert [lengths(axes, of) for axes in plt.gcf().axes] == drawn
    assert "Baseline (FP16 GPU): latency, ppl, vram\nPruned" in capsys.readouterr().out
    course.plot_memory_usage({"Baseline": {"vram": 0.0}, "Quant": {"ram": 0.9}})  # a 0 of a machine without a GPU
    assert [lengths(axes, "width") for axes in plt.gcf().axes] == [[0.9]]
    plt.close("all")


def cells_of_the_courses_shape() -> list[str]:
    """Return cells that call the functions as the course's do, in their order, with the lines of docs/course.md where it puts them."""
    page = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    imports, without_gpu, load_model, load_texts, load_quantized = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    profiled = """
with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof, record_function("inference"):
    model.generate(**tokenizer(prompt, return_tensors="pt").to(device), max_new_tokens=50)
prof.export_chrome_trace("{}_trace.json")
"""
    measured = """
start_time = time.time()
{0}_latency = measure_latency_gpu(model, tokenizer, prompt)
torch.cuda.synchronize()
elapsed = time.time() - start_time
{0}_ppl = compute_perplexity(model, tokenizer, valid_ds)
model.generate(**tokenizer("warm up", return_tensors="pt").to(device), max_new_tokens=5)
{0}_vram = torch.cuda.max_memory_allocated() / 1024**3
profile_model_for_tensorboard(model, tokenizer, prompt="The future of AI is", device="cuda", run_name="{0}_fp16")
"""
    return [
        f"{imports}{without_gpu}",
        "from transformers import GPT2LMHeadModel, GPT2Tokenizer",
        load_model,
        "with torch.no_grad():\n    outputs = model.generate(**tokenizer('A', return_tensors='pt'), max_length=20)",
        f"from datasets import load_dataset\n{load_texts}assert (len(train_ds), len(valid_ds)) == (100, 200)",
        "import time\nfrom torch.profiler import ProfilerActivity, profile, record_function",
        "prompt, max_new_tokens, device = 'The future of AI is', 50, torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        measured.format("baseline"),
        profiled.format("baseline"),
        "model = prune_attention_heads(model)",
        "fresh = prune_attention_heads(GPT2LMHeadModel.from_pretrained('gpt2').half().to('cpu'), prune_fraction=0.2)",
        "prepare_tokenizer_for_padding(tokenizer, model)\ntokenized_train = tokenize_dataset(train_ds, tokenizer)",
        "tokenized_valid = tokenize_dataset(valid_ds, tokenizer)\ntraining_args = create_training_arguments()",
        "trainer = run_fine_tuning(model, training_args, tokenized_train, tokenizer)",
        measured.format("pruned"),
        profiled.format("pruned"),
        "from optimum.intel import INCQuantizer\nmodel.to('cpu')\nquantizer = INCQuantizer.from_pretrained(model)",
        "calibration_dataset = prepare_calibration_dataset(valid_ds, tokenizer)",
        "run_post_training_quantization(quantizer, calibration_dataset, output_dir='gpt2_pruned_int8')",
        load_quantized,
        "cpu_latency, cpu_ram = measure_latency_cpu(quant_model_cpu, tokenizer), peak_ram_usage_gb()",
        "cpu_ppl = compute_ppl_cpu(quant_model_cpu, tokenizer, valid_ds)",
        "metrics = {"
        "'Baseline (FP16 GPU)': {'latency': baseline_latency, 'ppl': baseline_ppl, 'vram': baseline_vram},"
        "'Pruned (FP16 GPU)': {'latency': pruned_latency, 'ppl': pruned_ppl, 'vram': pruned_vram},"
        "'Quant (INT8 CPU)': {'latency': cpu_latency, 'ppl': cpu_ppl, 'ram': cpu_ram}}",
        "plot_latency(metrics)",
        "plot_memory_usage(metrics)",
        "plot_perplexity(metrics)",
        "suggestions = get_next_token_suggestions(quant_model_cpu, tokenizer, 'Chelsea Football Club will', top_k=3)",
    ]


@pytest.mark.slow
def test_cells_of_the_courses_shape_run_in_order_to_the_charts(model_dir, tmp_path, monkeypatch):
    shutil.copytree(model_dir, tmp_path / "gpt2")  # a folder of that name takes the place of the hub's
    rows = [SENTENCE.format(n, n % 7, n % 5, 3 * n) for n in range(6000)]
    (tmp_path / "text.txt").write_text("\n\n".join(rows))
    monkeypatch.setenv(texts.VARIABLE, str(tmp_path / "text.txt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "synchronize", torch.cuda.synchronize)  # which a cell replaces
    notebook: dict = {}
    for cell in cells_of_the_courses_shape():
        exec(cell, notebook)
    assert {path.name for path in (tmp_path / "tb_logs").iterdir()} == {"baseline_fp16", "pruned_fp16"}
    assert all((tmp_path / f"{name}_trace.json").stat().st_size for name in ("baseline", "pruned"))
    assert audit_int8(tmp_path / "gpt2_pruned_int8").passed
    latency, memory, perplexity = (plt.figure(number) for number in plt.get_fignums())
    metrics = list(notebook["metrics"].values())
    assert lengths(latency.axes[0], "width") == [stage["latency"] for stage in metrics]
    assert lengths(memory.axes[-1], "width") == [notebook["cpu_ram"]]
    assert lengths(perplexity.axes[0], "height") == [stage["ppl"] for stage in metrics]
    assert len(notebook["suggestions"]) == 3
    plt.close("all")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.load_fp16_model("no/such/folder"), "no directory 'no/such/folder'"),
        (lambda c: c.measure_latency_gpu(c.model, c.tokenizer, ""), "the prompt is empty"),
        (lambda c: c.measure_latency_gpu(c.model, c.tokenizer, PROMPT, 10_000), "don't fit into the context"),
        (lambda c: c.measure_latency_cpu(c.model, c.tokenizer, PROMPT, 1), "at least 2 tokens"),
        (lambda c: c.compute_perplexity("gpt2", c.tokenizer, c.rows), "a model of type str, expected a GPT-2"),
        (
            lambda c: c.compute_perplexity(c.model, c.tokenizer, c.rows.rename_column("text", "line")),
            r"columns \['line'\], expected 'text'",
        ),
        (lambda c: c.compute_ppl_cpu(c.model, c.tokenizer, Dataset.from_dict({"text": ["", " "]})), "no two tokens in a row"),
        (lambda c: c.prune_attention_heads(c.model, 1.2), "prune_fraction"),
        (lambda c: c.tokenize_dataset(c.rows, c.tokenizer), "no padding token"),
        (lambda c: c.prepare_calibration_dataset(c.rows.select(range(2)), c.tokenizer), "at least 8 are needed"),
        (lambda c: c.run_post_training_quantization("quantizer", c.rows, "out"), "a quantizer of type str, expected INCQuantizer"),
        (lambda c: c.load_cpu_model("nowhere"), r"no openvino_model\.xml in nowhere"),
        (lambda c: c.plot_latency({"Baseline": {"ppl": 3}}), r"no stage of \['Baseline'\] has 'latency'"),
        (lambda c: c.get_next_token_suggestions(c.model, c.tokenizer, PROMPT, -1), "top_k=-1, expected"),
    ],
)
def test_wrong_input_gets_one_line(call, message, loaded, slices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = SimpleNamespace(
        **{name: getattr(course, name) for name in course.__all__}, tokenizer=loaded[0], model=loaded[1], rows=slices[1]
    )
    with pytest.raises(ValueError, match=message) as error:
        call(given)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_cpu_model_refuses_what_it_cannot_follow(on_cpu, tuned):
    (_, model), (tokenizer, _) = on_cpu, tuned
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with pytest.raises(ValueError, match=r"generate\(\) got streamer, expected some of"):
        model.generate(**inputs, streamer=None)
    with pytest.raises(ValueError, match="padded on the left"):
        model(inputs["input_ids"], 1 - inputs["attention_mask"])
    with pytest.raises(ValueError, match=r"torch\.profiler sees nothing"):
        course.profile_model_for_tensorboard(model, tokenizer, PROMPT, "cpu")


def test_a_model_that_lies_nowhere_has_no_tokenizer_to_write(model, calibration, tmp_path):
    from optimum.intel import INCQuantizer

    with pytest.raises(ValueError, match="was made in memory"):
        course.run_post_training_quantization(INCQuantizer.from_pretrained(model), calibration, tmp_path / "out")
    assert not (tmp_path / "out").exists()
