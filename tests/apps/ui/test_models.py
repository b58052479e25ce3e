"""From a choice to an IR: a run's own as it is, another one made on first use and measured."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2opt.apps.ui import models
from gpt2opt.apps.ui.choices import Choice
from gpt2opt.apps.ui.models import Cost, cache_folder, known, prepare, taken_as_it_is
from gpt2opt.runtime.manifest import read_manifest


def silent(step, steps, text):
    pass


def test_a_run_is_taken_as_it_is(run_dir, tmp_path):
    for precision, inside in (("fp32", "4-control-fp32"), ("w8a8", "4-quantize")):
        prepared = prepare(Choice(str(run_dir), precision), tmp_path / "ui", silent)
        assert prepared.folder == run_dir / inside
    assert not (tmp_path / "ui").exists()


def test_the_cost_in_a_run_is_that_of_its_record(run_dir):
    cost = taken_as_it_is(Choice(str(run_dir), "w8a8")).cost
    assert (cost.kl_nats, cost.tokens, cost.same_top) == (pytest.approx(0.002), 30, pytest.approx(29 / 30))
    assert cost.peak_rss_bytes == 600_000_000
    assert taken_as_it_is(Choice(str(run_dir), "fp32")).cost.kl_nats is None


def test_an_ir_is_taken_in_the_precision_that_it_has(float_dir, quantized):
    assert prepare(Choice(str(float_dir), "fp32"), float_dir, silent).folder == float_dir
    assert taken_as_it_is(Choice(str(quantized[0]), "w8a8")).cost == Cost()
    for precision in ("w8a8", "w8"):  # both are INT8 weights: the name does not claim to know which it is
        assert taken_as_it_is(Choice(str(quantized[0]), precision)).name == f"{quantized[0].name}, an IR of i8 weights as it is"
    with pytest.raises(ValueError, match="holds an IR in fp32, not in w4; choose that precision"):
        prepare(Choice(str(float_dir), "w4"), float_dir, silent)


def test_what_a_folder_lacks_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json in") as refused:
        prepare(Choice(str(tmp_path / "empty"), "fp32"), tmp_path / "ui", silent)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ui").exists()


def test_other_weights_are_another_folder(model_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    before = cache_folder(Choice(str(copy), "w8"), tmp_path)
    assert before == cache_folder(Choice(str(copy), "w8"), tmp_path)
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert cache_folder(Choice(str(copy), "w8"), tmp_path) != before


@pytest.mark.slow
def test_a_model_is_quantized_and_measured_on_first_use(model_dir, tmp_path):
    choice, told = Choice(str(model_dir), "w8"), []
    assert known(choice, tmp_path / "ui") is None
    prepared = prepare(choice, tmp_path / "ui", lambda *step: told.append(step))
    assert [step for step, _, _ in told] == [1, 2, 3]
    assert read_manifest(prepared.folder).weights == "i8"
    cost = prepared.cost
    assert 0 < cost.kl_interval[0] < cost.kl_nats < cost.kl_interval[1] < 0.1
    assert cost.peak_rss_bytes > cost.weight_bytes > 0
    assert json.loads(prepared.folder.with_name("w8.json").read_text())["cost"]["tokens"] == cost.tokens
    told.clear()
    assert prepare(choice, tmp_path / "ui", lambda *step: told.append(step)) == prepared
    assert known(choice, tmp_path / "ui") == prepared
    assert not told


def test_a_tokenizer_is_not_read_by_two_threads_at_once(run_dir, tmp_path, monkeypatch):
    """The page counts the prompt's tokens while the model is loaded; two threads that import transformers at once fail."""
    reading, load = [], models.load_tokenizer

    def load_slowly(folder, serving):
        reading.append(folder)
        assert len(reading) == 1
        time.sleep(0.2)
        reading.pop()
        return load(folder, serving=serving)

    monkeypatch.setattr(models, "load_tokenizer", load_slowly)
    library, choice = models.Library(tmp_path), Choice(str(run_dir), "fp32")
    with ThreadPoolExecutor(1) as other:
        counted = other.submit(library.count, choice, "Node")
        assert library.ask(choice, lambda _: None).result(60)
        assert counted.result(60)
