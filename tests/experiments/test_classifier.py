"""The classifier experiment on a tiny DistilBERT: what is INT8, what is left out and why, and what the tables make of it."""

import copy
import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, DistilBertConfig, DistilBertForSequenceClassification

from experiments.__main__ import main
from experiments.classifier import qat, report, run, tasks, training, variants
from experiments.classifier.demo import ANOTHER_MACHINE, ANOTHER_MODEL, OPEN, demo_blocks, judge
from experiments.classifier.report import (
    answer_table,
    batch_table,
    caption,
    f1_difference,
    latency_table,
    macro_f1,
    mcnemar,
    plot_classifier,
    size_table,
)
from experiments.classifier.run import ClassifierResult, VariantResult, compare_variants, find_classifier, load_classifier
from experiments.classifier.tasks import Labelled, Task, find_task
from experiments.classifier.training import Recipe, train_small, train_tokenizer
from experiments.classifier.variants import VARIANTS, Int8Layers, OnnxFp32, Subject, TorchInt8
from experiments.contract import read_result_of, slug
from experiments.race.engines.base import loaded
from gpt2opt.environment import installed
from gpt2opt.measure.child import Child
from gpt2opt.measure.stats import Estimate
from gpt2opt.measure.turns import Here
from gpt2opt.quantize.fake_quant import QuantizedLinear
from gpt2opt.storage import from_json

GOOD, BAD = "a fine film , warm and wise number {}", "a dull film , cold and slow number {}"
LINEARS = 2 * 6 + 2
"""Of two blocks, four in attention and two behind it; and the two of the head."""


def sentences(first: int, last: int) -> Labelled:
    rows = [(text.format(number), label) for number in range(first, last) for label, text in enumerate((BAD, GOOD))]
    return Labelled(tuple(text for text, _ in rows), tuple(label for _, label in rows))


TASK = Task("films", "test", ("negative", "positive"), sentences(0, 100), sentences(100, 108), sentences(200, 220))


@pytest.fixture(scope="module")
def trained():
    return train_small(TASK, Recipe(vocab_size=150, width=32, row_tokens=24, batch_size=16, steps=60, learning_rate=3e-3))


@pytest.fixture(scope="module")
def classifier_dir(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    for part in trained:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sst2_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sst2")
    for name, part in (("train", TASK.train), ("validation", TASK.score)):
        pq.write_table(pa.table({"sentence": part.texts, "label": part.labels}), folder / f"{name}-00000.parquet")
    return folder


def in_this_process(variant, folder):
    """Eight new processes would import their libraries for most of the time."""
    return Here(loaded(variant, folder, 2))


@pytest.fixture(scope="module")
def measured(classifier_dir, sst2_dir) -> ClassifierResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "started", in_this_process)
        return compare_variants(str(classifier_dir), str(sst2_dir), runs=3, tokens=8)


# --- the variants


def test_every_variant_that_is_installed_answers_as_the_fp32_model_does(measured, trained):
    tokenizer, model = trained
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in TASK.score.texts]
    assert np.mean(np.equal(expected, TASK.score.labels)) > 0.9  # it has learnt something that quantization could spoil
    for variant in measured.measured:
        assert np.mean(np.equal(variant.answers, expected)) > 0.9, variant.name
        assert (len(variant.samples_s), variant.warmup_runs >= 2) == (3, True)
    assert list(measured.base.answers) == expected
    left_out = {variant.name: variant.left_out for variant in measured.variants if variant.left_out}
    assert set(left_out) <= {
        "torch INT8 dynamic", "ONNX Runtime FP32", "ONNX Runtime INT8", "torch FP32 on the GPU", "torch FP16 on the GPU",
    }  # fmt: skip
    assert len(measured.again_s) == 3
    assert latency_table(measured).rows[1][0] == batch_table(measured).rows[1][0] == "torch FP32 again"
    assert all(variant.peak_rss_bytes > 1e8 for variant in measured.measured)
    for batches in (measured.again_batches, *(variant.batches for variant in measured.measured)):
        assert {size: len(samples) for size, samples in batches.items()} == {"8": 2, "32": 2}
    assert from_json(ClassifierResult, json.loads(json.dumps(dataclasses.asdict(measured)))) == measured


def test_int8_layers_are_counted_where_they_are(measured):
    found = {variant.name: (variant.int8.stored, variant.int8.multiplied) for variant in measured.measured}
    expected = {variant.name: (0, 0) for variant in VARIANTS if variant.bits > 8}
    expected |= {
        "torch INT8 dynamic": (LINEARS, LINEARS),
        "OpenVINO INT8 static": (LINEARS, LINEARS),
        "OpenVINO INT8 QAT": (LINEARS, LINEARS),
        "OpenVINO INT8 weights": (LINEARS, 0),
    }
    expected["ONNX Runtime INT8"] = (LINEARS, LINEARS)
    assert measured.linears == LINEARS
    assert found == {name: expected[name] for name in found}


def test_sizes_are_those_of_the_files(measured, classifier_dir):
    sizes = {variant.name: variant.size_bytes for variant in measured.measured}
    assert sizes["torch FP32"] == (classifier_dir / "model.safetensors").stat().st_size
    assert sizes["torch FP16"] == pytest.approx(sizes["torch FP32"] / 2, rel=0.1)
    assert sizes["OpenVINO INT8 weights"] < 0.9 * sizes["OpenVINO FP32"]  # at this size the description of the graph is most of the file


def test_a_bert_is_calibrated_too(trained):
    """It has a pooler, embeddings of segments and names of its own."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=3)
    model = BertForSequenceClassification(config).eval()
    subject = Subject("bert", model, trained[0], ((1, 2, 3, 4), (5, 6, 7, 8, 9)))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        own, quantized = model(ids).logits, variants.fake_quantized(subject)(ids).logits
    assert not torch.equal(own, quantized)
    torch.testing.assert_close(quantized, own, atol=0.05, rtol=0.2)


def test_an_epoch_with_rounding_brings_the_answers_nearer_to_those_of_fp32(trained, monkeypatch):
    tokenizer, model = trained
    rows = tokenizer(list(TASK.train.texts)).input_ids
    coarse = {
        name: QuantizedLinear(module.weight.detach(), module.weight.detach().abs().amax(1, keepdim=True), 8, 0.5, 128)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    students = []
    for rate in (0.0, 1e-3):
        monkeypatch.setattr(qat, "LEARNING_RATE", rate)
        students.append(qat.train_rounded(model, coarse, rows))
    untrained, found = students

    def divergence(student) -> float:
        batch = qat.padded(rows)
        with torch.inference_mode():
            ours, own = (each(**batch).logits.log_softmax(-1) for each in (student, model))
        return F.kl_div(ours, own, log_target=True, reduction="batchmean").item()

    assert divergence(found) < 0.5 * divergence(untrained)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in before.items())
    changed = {name for name, weight in found.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed <= {f"{name}.{part}" for name in coarse for part in ("weight", "bias")}
    assert {f"{name}.weight" for name in coarse} <= changed


def test_short_texts_are_filled_up_and_that_is_masked(trained):
    tokenizer, model = trained
    rows = [tokenizer(text).input_ids for text in ("a fine film", "a dull film , cold and slow number 7")]
    with torch.inference_mode():
        together = model(**qat.padded(rows)).logits
        alone = torch.cat([model(torch.tensor([row])).logits for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_rows_of_a_gpu_run_where_torch_has_one(monkeypatch, classifier_dir, sst2_dir):
    """Here the CPU stands in for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert variants.TorchGpu().unavailable() == "there is no GPU"
    monkeypatch.setattr(variants.TorchGpu, "unavailable", lambda self: None)
    monkeypatch.setattr(variants.TorchGpu, "device", "cpu")
    monkeypatch.setattr(run, "started", in_this_process)
    found = compare_variants(str(classifier_dir), str(sst2_dir), runs=2, tokens=8, variants="torch-fp16-on-the-gpu")
    assert [variant.name for variant in found.measured] == ["torch FP32", "torch FP32 on the GPU", "torch FP16 on the GPU"]
    assert found.measured[2].size_bytes < 0.6 * found.measured[1].size_bytes
    assert variants.TorchGpuFp16.device == "cpu"


# --- the troubleshooting cases of the original demo


def test_without_a_quantization_engine_int8_is_left_out_and_fp16_never_takes_its_name(monkeypatch, classifier_dir, sst2_dir):
    monkeypatch.setattr(torch.backends.quantized.__class__, "supported_engines", ["none"])
    assert "no quantization engine" in TorchInt8().unavailable()
    monkeypatch.setattr(run, "VARIANTS", VARIANTS[:3])
    monkeypatch.setattr(run, "started", in_this_process)
    result = compare_variants(str(classifier_dir), str(sst2_dir), runs=2, tokens=8)
    fp16, int8 = result.variants[1:]
    assert (int8.size_bytes, int8.answers, int8.int8) == (None, (), None)
    assert "torch FP16 is there instead, which is not INT8" in caption(result)
    assert size_table(result).rows[2][:3] == ("torch INT8 dynamic", "–", "–")
    assert (fp16.bits, fp16.int8) == (16, Int8Layers(0, 0))
    assert fp16.size_bytes
    with pytest.raises(ValueError, match=r"variant torch-int8-dynamic: this torch has no quantization engine.*choose among .*torch-fp16"):
        run.choose_variants("torch-int8-dynamic")


@pytest.fixture
def offline(monkeypatch):
    """No hub, short documentation, and nothing may be trained: the small classifier is there."""
    monkeypatch.setattr(run, "started", in_this_process)
    monkeypatch.setattr(tasks, "package_documents", lambda package: [documents(package, number) for number in range(60)])
    monkeypatch.setattr(run, "train_small", None)
    for module in (run, tasks):
        monkeypatch.setattr(module, "find_snapshot", lambda *_, **__: None)


def test_without_a_download_the_stand_ins_are_named_in_every_output(offline, monkeypatch, tmp_path, capsys):
    tiny = DistilBertConfig(vocab_size=300, n_layers=1, n_heads=2, dim=16, hidden_dim=32, num_labels=2)
    monkeypatch.setattr(run, "random_full_size", lambda: DistilBertForSequenceClassification(tiny).eval())
    assert main(["classifier", "--runs", "2", "--variants", "torch-fp16", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    result = read_result_of("classifier", tmp_path / "out")
    for text in (printed.out, caption(result)):
        assert "random weights (as a stand-in for distilbert-base-uncased-finetuned-sst-2-english" in text
        assert "trained on" in text
        assert "as a stand-in for SST-2" in text
    assert json.loads(printed.out.splitlines()[-1]) == {"result": str(tmp_path / "out" / "classifier.json")}
    assert (tmp_path / "out" / "classifier.png").exists()
    assert "timing 1 in turns" in printed.err
    assert [variant.name for variant in result.variants] == ["torch FP32", "torch FP16"]
    assert len(result.base.answers) == len(result.truth) > 0


def test_the_small_classifier_is_timed_and_answers_without_any_training_first(offline):
    found = compare_variants("small", runs=2, variants="torch-int8-dynamic")
    assert found.timed == found.scored == "a small DistilBERT, trained on other texts of this kind (from the repository)"
    assert found.classes == tasks.PACKAGES
    assert len(found.base.answers) == len(found.truth) > 0


@pytest.mark.slow
def test_the_small_classifier_is_small_and_knows_the_packages():
    _, model = load_classifier(training.SMALL)
    assert sum(path.stat().st_size for path in training.SMALL.iterdir()) < 1_300_000
    assert [model.config.id2label[number] for number in range(4)] == list(tasks.PACKAGES)
    found = compare_variants("small", runs=2, variants="torch-fp16")
    right = np.mean(np.equal(found.base.answers, found.truth))
    assert right > 0.1 + max(np.bincount(found.truth)) / len(found.truth)  # than the commonest class would be


def documents(package: str, number: int):
    text = f"The {package} function number {number} of {package} returns the value {number} of its argument. " * 5
    return tasks.Document(f"{package}/module{number}.py", text)


def test_with_little_memory_nothing_begins(monkeypatch, classifier_dir):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5e8))
    with pytest.raises(ValueError, match=r"0\.5 GB of memory are available, expected 1\.0 GB for a model of \d+ MB in FP32; end other"):
        compare_variants(str(classifier_dir))


def test_a_variant_whose_memory_ends_leaves_and_the_others_go_on(monkeypatch, classifier_dir, sst2_dir):
    def limited(variant, folder):
        if variant is variants.TorchFp32:
            return in_this_process(variant, folder)
        return partial(Child, loaded, variant, folder, 1, address_space_bytes=300_000_000)

    monkeypatch.setattr("gpt2opt.measure.child.LIMITED_S", 20)
    monkeypatch.setattr(run, "started", limited)
    result = compare_variants(str(classifier_dir), str(sst2_dir), runs=2, tokens=8, variants="torch-fp16")
    assert [variant.name for variant in result.measured] == ["torch FP32"]
    assert result.variants[1].left_out.startswith("failed: ")


# --- what is missing or wrong


def test_a_runtime_that_is_not_installed_is_left_out_or_refused_by_name(monkeypatch):
    monkeypatch.setattr(variants, "installed", lambda package: None if package == "onnxruntime" else installed(package))
    assert OnnxFp32().unavailable() == "onnxruntime is not installed; pip install -e '.[bench]' brings it"
    assert run.choose_variants("") == VARIANTS
    with pytest.raises(ValueError, match=r"variant onnx-runtime-int8: onnxruntime is not installed"):
        run.choose_variants("onnx-runtime-int8")


def test_a_variant_brings_what_it_is_compared_with():
    assert [slug(variant.name) for variant in run.choose_variants("openvino-int8-static")] == [
        "torch-fp32",
        "openvino-fp32",
        "openvino-int8-static",
    ]


WRONG = {
    "unknown model": (["--model", "no/such-model"], "model 'no/such-model' is no directory, is not in the local cache and the hub did not"),
    "folder without weights": (
        ["--model", "empty"],
        "no model.safetensors in empty; name a directory with a sequence classifier, a hub id",
    ),
    "unknown variant": (["--variants", "int4"], "variant 'int4' is not known; expected some of torch-fp32, torch-fp16,"),
    "unknown data": (["--model", "random", "--data", "imdb"], "no folder 'imdb'; name one that holds train.tsv and dev.tsv"),
    "data without parts": (["--model", "random", "--data", "empty"], "no data/train-*.parquet or train*.parquet or train.tsv in empty"),
    "no SST-2": (["--model", "random", "--data", "sst2"], "SST-2 is not in the local cache and the hub did not give it"),
    "one run": (["--runs", "1"], "runs=1, tokens=16; expected at least 2 runs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_with_the_choices_and_leaves_nothing(case, offline, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    assert main(["classifier", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("gpt2opt:")]) == 1
    assert captured.out == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_model_without_a_trained_head_is_refused(tmp_path, trained):
    folder = tmp_path / "headless"
    trained[1].distilbert.save_pretrained(folder)
    assert AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, .*it is no trained sequence classifier"):
        load_classifier(folder)


def test_a_damaged_model_is_refused(tmp_path, classifier_dir):
    for path in classifier_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 100 if path.name == "model.safetensors" else None])
    assert find_classifier(str(tmp_path)).path == tmp_path
    with pytest.raises(ValueError, match="can't load the classifier in"):
        load_classifier(tmp_path)


def test_classes_and_length_must_fit_the_model(classifier_dir, trained):
    found = find_classifier(str(classifier_dir))
    with pytest.raises(ValueError, match="tokens=25, expected at most 24"):
        run._subjects(found, "auto", TASK, 25)
    with pytest.raises(ValueError, match="tells 2 classes apart, films has 3"):
        run._subjects(found, "auto", dataclasses.replace(TASK, classes=("a", "b", "c")), 8)


NAMES = {
    "in order": ({0: "negative", 1: "positive"}, (0, 1)),
    "reversed": ({0: "POSITIVE", 1: "NEGATIVE"}, (1, 0)),
    "of two kinds of letters": ({0: " Positive", 1: "Negative "}, (1, 0)),
    "transformers' own": ({0: "LABEL_0", 1: "LABEL_1"}, (0, 1)),
    "transformers' own, reversed": ({0: "LABEL_1", 1: "LABEL_0"}, (1, 0)),
    "in another language": ({0: "negativ", 1: "positiv"}, "calls its classes negativ, positiv, expected negative, positive; name them so"),
    "stars": ({0: "1 star", 1: "5 stars"}, "calls its classes 1 star, 5 stars, expected"),
    "twice the same": ({0: "POSITIVE", 1: "POSITIVE"}, "calls its classes POSITIVE, POSITIVE, expected"),
    "three": ({0: "negative", 1: "neutral", 2: "positive"}, "calls its classes negative, neutral, positive, expected"),
}


@pytest.mark.parametrize("case", NAMES)
def test_classes_go_by_the_models_own_names(case):
    names, expected = NAMES[case]
    config = DistilBertConfig(
        id2label=names, label2id={name: number for number, name in names.items()} if len({*names.values()}) > 1 else None
    )
    if isinstance(expected, tuple):
        assert run.class_numbers("m", config, TASK.classes) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            run.class_numbers("m", config, TASK.classes)


def test_a_model_with_reversed_classes_scores_as_the_other_in_every_variant(trained, sst2_dir, measured, tmp_path, monkeypatch):
    tokenizer, model = trained
    reversed_model = copy.deepcopy(model)
    head = reversed_model.classifier
    head.weight.data, head.bias.data = head.weight.data.flip(0), head.bias.data.flip(0)
    reversed_model.config.id2label, reversed_model.config.label2id = {0: "POSITIVE", 1: "NEGATIVE"}, {"POSITIVE": 0, "NEGATIVE": 1}
    for part in (reversed_model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(run, "started", in_this_process)
    found = compare_variants(str(tmp_path / "model"), str(sst2_dir), runs=2, tokens=8)
    assert found.base.answers == measured.base.answers
    for variant in found.measured:
        assert np.mean(np.equal(variant.answers, found.truth)) > 0.9, variant.name


# --- the texts


def test_sst2_is_read_as_the_hub_and_as_glue_keep_it(sst2_dir, tmp_path):
    for name, part in (("train", TASK.train), ("dev", TASK.score)):
        lines = [f"{text}\t{label}" for text, label in zip(part.texts, part.labels, strict=True)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    hub, glue = find_task(str(sst2_dir)), find_task(str(tmp_path))
    assert (hub.train, hub.calibration, hub.score) == (glue.train, glue.calibration, glue.score)
    assert hub.score == TASK.score
    assert hub.classes == ("negative", "positive")
    assert not set(hub.calibration.texts) & {*hub.train.texts, *hub.score.texts}
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t7\n")
    with pytest.raises(ValueError, match=r"dev\.tsv has 1 rows with the labels \[7\]; expected 0 \(negative\) and 1"):
        find_task(str(tmp_path))
    (tmp_path / "dev.tsv").write_text("text\n")
    (tmp_path / "train.tsv").write_text("text\nfine\n")
    with pytest.raises(ValueError, match=r"can't read .*train\.tsv .*expected parquet or UTF-8 text with the columns sentence and label"):
        find_task(str(tmp_path))


def test_passages_do_not_name_their_package_and_no_part_shares_a_module(monkeypatch):
    texts = {"networkx": "a path of a networkx.DiGraph, nx for short", "pandas": "rows of a pandas DataFrame, or pd.Series"}
    monkeypatch.setattr(tasks, "PACKAGES", tuple(texts))
    made = {
        name: [tasks.Document(f"{name}/{n}", f"{text} in module number {n} of them, and so on. " * 12) for n in range(40)]
        for name, text in texts.items()
    }
    monkeypatch.setattr(tasks, "package_documents", made.get)
    task = find_task("docstrings")
    parts = [task.train, task.calibration, task.score]
    assert {text.split(" in module")[0] for part in parts for text in part.texts} == {
        "a path of a _._, _ for short",
        "rows of a _ _, or _.Series",
    }
    assert all(("path" in text) == (label == 0) for part in parts for text, label in zip(part.texts, part.labels, strict=True))
    assert len({text for part in parts for text in part.texts}) == sum(len(part.texts) for part in parts) == 80


def test_tokenizer_has_berts_form(trained):
    tokenizer = train_tokenizer(TASK.train.texts, Recipe(vocab_size=150, row_tokens=24))
    ids = tokenizer("A FINE film").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "fine", "film", "[SEP]"]


# --- the report


def a_variant(name: str, seconds, answers, **changed) -> VariantResult:
    known = {"version": "1", "note": "", "bits": 8, "fp32": "torch FP32", "size_bytes": 100, "int8": Int8Layers(3, 1), "warmup_runs": 2}
    return VariantResult(name, "torch", samples_s=tuple(seconds), answers=tuple(answers), **{**known, **changed})


TRUTH = (0, 0, 1, 1, 1, 0, 1, 0)


@pytest.fixture
def result() -> ClassifierResult:
    base = a_variant("torch FP32", (0.010, 0.020, 0.040), TRUTH, bits=32, size_bytes=400, int8=Int8Layers(0, 0))
    runtime = a_variant("OpenVINO FP32", (0.005, 0.010, 0.020), TRUTH, bits=32, fp32="OpenVINO FP32", size_bytes=400, int8=Int8Layers(0, 0))
    int8 = a_variant("OpenVINO INT8 static", (0.002, 0.004, 0.008), (1, 1, *TRUTH[2:]), fp32="OpenVINO FP32")
    left = VariantResult("ONNX Runtime INT8", "onnxruntime", None, "", 8, "ONNX Runtime FP32", "onnxruntime is not installed")
    facts = {"cpu": "a CPU", "cpu_flags": ["avx2"], "threads": 2}
    return ClassifierResult(facts, "a model", "a model", 3, 16, 3, "texts", ("no", "yes"), TRUTH, (base, runtime, int8, left))


def test_speed_up_is_split_into_the_runtimes_and_the_precisions(result):
    rows = latency_table(result).rows
    assert [row[0] for row in rows] == ["torch FP32", "OpenVINO FP32", "OpenVINO INT8 static"]
    assert rows[0][4:] == ("1", "1", "1")
    assert rows[2][4:] == ("5.00 [5.00, 5.00]", "2.00 [2.00, 2.00]", "2.50 [2.50, 2.50]")
    assert rows[0][1:4] == ("20", "38", "39.6")


def test_sizes_and_layers_are_shown_with_what_was_left_out(result):
    rows = size_table(result).rows
    assert rows[2][2:6] == ("4.00", "–", "3 of 3", "1 of 3")  # an older result has no peak RSS
    assert rows[3] == ("ONNX Runtime INT8", *["–"] * 6, "left out: onnxruntime is not installed")
    taken = [dataclasses.replace(each, peak_rss_bytes=200_000_000) for each in result.variants]
    assert size_table(dataclasses.replace(result, variants=tuple(taken))).rows[0][3] == "200"


def test_batches_stand_beside_one_text_and_devices_are_not_divided(result):
    base, *others = result.variants
    older = batch_table(result).rows
    assert older[0] == ("torch FP32", "20; 1", "–", "–")
    assert older[2] == ("OpenVINO INT8 static", "4; 5.00 [5.00, 5.00]", "–", "–")
    base = dataclasses.replace(base, batches={"8": (0.08, 0.1, 0.1), "32": (0.4, 0.4, 0.4)})
    fast = dataclasses.replace(others[1], batches={"8": (0.02, 0.025, 0.025), "32": (0.4, 0.3, 0.5)})
    gpu = dataclasses.replace(others[0], name="torch FP32 on the GPU", device="cuda", fp32="torch FP32 on the GPU", batches=fast.batches)
    found = dataclasses.replace(result, variants=(base, fast, gpu), again_s=base.samples_s, again_batches=base.batches)
    rows = {row[0]: row[1:] for row in batch_table(found).rows}
    assert list(rows) == ["torch FP32", "torch FP32 again", "OpenVINO INT8 static", "torch FP32 on the GPU"]
    assert rows["OpenVINO INT8 static"][1] == "25; 4.00 [4.00, 4.00]"
    assert rows["OpenVINO INT8 static"][2].endswith("no measurable difference")
    assert rows["torch FP32 again"] == tuple(f"{ms}; 1.00 [1.00, 1.00], no measurable difference" for ms in (20, 100, 400))
    assert rows["torch FP32 on the GPU"] == ("10; –", "25; –", "400; –")
    assert latency_table(found).rows[3][4:] == ("–", "–", "1")


MIB = 2**20


def test_the_demos_block_is_judged_line_by_line(result):
    """FP16 keeps the size and not the speed, and INT8 is a little larger and faster than claimed."""
    base = dataclasses.replace(result.base, size_bytes=round(255.4 * MIB), samples_s=(0.040, 0.041, 0.039, 0.04, 0.042, 0.04, 0.041))
    fp16 = dataclasses.replace(base, name="torch FP16", size_bytes=round(127.7 * MIB), samples_s=tuple(2 * s for s in base.samples_s))
    int8 = dataclasses.replace(
        base, name="torch INT8 dynamic", size_bytes=round(132.4 * MIB), samples_s=tuple(s / 4 for s in base.samples_s)
    )
    blocks = demo_blocks(dataclasses.replace(result, variants=(base, fp16, int8)))
    assert {name: [line.verdict for line in block] for name, block in blocks.items()} == {
        "torch FP16": [
            "confirmed", ANOTHER_MACHINE, "confirmed", ANOTHER_MACHINE, "confirmed", "refuted: less", "confirmed", "refuted: less",
        ],
        "torch INT8 dynamic": [
            "confirmed", ANOTHER_MACHINE, "refuted: more", ANOTHER_MACHINE,
            "refuted: less", "refuted: more", "refuted: less", "refuted: more",
        ],
    }  # fmt: skip
    assert [line.figure for line in blocks["torch FP16"]] == [
        "255.4 MiB", "40 ms", "127.7 MiB", "80 ms", "2.00 ×", "0.50 [0.50, 0.50] ×", "127.7 MiB, 50.0%", "-40 ms, -100% [-100%, -100%]",
    ]  # fmt: skip
    other = demo_blocks(dataclasses.replace(result, variants=(dataclasses.replace(base, size_bytes=4 * MIB), fp16)))
    assert [line.verdict for line in other["torch FP16"]][::2][:2] == [ANOTHER_MODEL, ANOTHER_MODEL]
    assert demo_blocks(result) == {}


def test_a_wide_interval_confirms_nothing():
    verdicts = {ends: judge(Estimate(2.1, *ends), 1.95, 2.25) for ends in ((2.0, 2.2), (0.2, 3.9), (2.0, 2.3), (1.0, 1.9), (2.3, 4.0))}
    assert list(verdicts.values()) == ["confirmed", OPEN, OPEN, "refuted: less", "refuted: more"]


def test_answers_are_paired_with_those_of_fp32(result):
    _, same, row = answer_table(result).rows
    assert same[4:] == ("none: the same answers", "0 (0 gained, 0 lost)", "1.000")
    assert row[1] == "0.7500 [0.4093, 0.9285]"  # Wilson's, of 6 of 8
    assert answer_table(result).rows[0][1] == "1.0000 [0.6756, 1.0000]"  # all right, and yet it has a width
    assert row[2] == f"{(2 * 2 / (2 + 4) + 2 * 4 / (6 + 4)) / 2:.4f}"  # class 0: two of four found; class 1: six named, four right
    assert row[3].startswith("-0.2500 [")
    assert row[5:] == ("2 (0 gained, 2 lost)", "0.500")
    difference = f1_difference(result, result.variants[2])
    assert difference.value == pytest.approx(macro_f1(result, result.variants[2]) - 1)
    assert difference.low < difference.value < difference.high


def test_mcnemar_is_the_binomial_test_of_the_cases_in_which_one_hits():
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(0, 0) == 1


def test_caption_names_what_loses_answers(result):
    assert "No variant loses a measurable share of answers" in caption(result)
    truth, wrong = TRUTH * 20, tuple(1 - label for label in TRUTH) * 20
    bad = [dataclasses.replace(each, answers=wrong if each.bits == 8 else truth) if not each.left_out else each for each in result.variants]
    spoiled = caption(dataclasses.replace(result, truth=truth, variants=tuple(bad)))
    assert "Measurably fewer right answers than torch FP32: OpenVINO INT8 static." in spoiled
    assert "Left out: ONNX Runtime INT8 (onnxruntime is not installed)." in spoiled


def test_chart_has_a_row_for_each_variant(result):
    mpl.use("Agg")
    size, latency, answers = plot_classifier(result)
    assert [bar.get_width() for bar in size.patches] == pytest.approx([400e-6, 400e-6, 100e-6])
    assert [bar.get_width() for bar in latency.patches] == pytest.approx([20, 10, 4])
    assert [label.get_text() for label in size.get_yticklabels()] == [variant.name for variant in result.measured]
    assert answers.containers[1][0].get_xdata() == pytest.approx([-25])
    assert report.PRECISION_COLORS[8] == mpl.colors.to_hex(size.patches[2].get_facecolor())


def test_the_random_stand_in_has_distilberts_size():
    with torch.device("meta"):
        model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=2))
    assert 4 * sum(parameter.numel() for parameter in model.parameters()) == run.FULL_SIZE_BYTES
