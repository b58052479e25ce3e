"""A repository that the cache holds under another of its names."""

import shutil

import pyarrow
import pyarrow.parquet
import pytest

from experiments.classifier.run import find_classifier
from experiments.classifier.tasks import find_task
from experiments.grid.reviews import find_reviews
from gpt2opt.apps.ui.choices import default_model
from gpt2opt.sources import hub
from gpt2opt.sources.hub import RENAMED, cached_snapshot, names_of
from gpt2opt.sources.models import PATTERNS, find_model, find_model_or_stand_in
from gpt2opt.sources.texts import find_texts

BOTH_WAYS = [*RENAMED.items(), *((new, old) for old, new in RENAMED.items())]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("GPT2OPT_MODEL", "GPT2OPT_TEXT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cached(tmp_path):
    """Return a function that puts a folder into the cache under a name, as a download does."""

    def put(repo_id, source, kind="models"):
        base = tmp_path / "hub" / f"{kind}--{repo_id.replace('/', '--')}"
        (base / "refs").mkdir(parents=True)
        (base / "refs" / "main").write_text("0" * 40)
        return shutil.copytree(source, base / "snapshots" / ("0" * 40))

    return put


@pytest.mark.parametrize(("held", "asked"), BOTH_WAYS)
def test_each_name_finds_what_the_other_was_downloaded_by(held, asked, cached, model_dir):
    folder = cached(held, model_dir)
    assert cached_snapshot(asked, PATTERNS) == folder
    assert cached_snapshot(f"someone/{asked.split('/')[-1]}", PATTERNS) is None


def test_a_model_says_under_which_name_it_was_found(cached, model_dir):
    cached("openai-community/gpt2", model_dir)
    cached("distilgpt2", model_dir)
    assert str(find_model("gpt2")) == str(find_model()) == "gpt2 (from the local cache, as openai-community/gpt2)"
    assert find_model("openai-community/gpt2").origin == "local cache"
    assert find_model("distilbert/distilgpt2").origin == "local cache, as distilgpt2"
    assert default_model() == "gpt2"


def test_a_download_that_was_killed_under_one_name_does_not_hide_the_other(cached, model_dir):
    whole, cut = cached("openai-community/gpt2", model_dir), cached("gpt2", model_dir)
    (cut / "model.safetensors").unlink()
    assert find_model("gpt2").path == whole


def test_the_stand_in_serves_both_names():
    assert find_model_or_stand_in("openai-community/gpt2").stand_in
    with pytest.raises(ValueError, match="is not in the local cache"):
        find_model_or_stand_in("distilgpt2")


def test_texts_are_found_by_their_first_names_too(cached, tmp_path):
    rows = {
        "wikitext": {f"wikitext-2-raw-v1/{split}-0.parquet": {"text": [" = Title = \n", f" A line of {split} . \n"]}
                     for split in ("train", "validation", "test")},
        "imdb": {f"plain_text/{split}-0.parquet": {"text": [f"Review {split} {n}, a film." for n in range(40)]}
                 for split in ("train", "test")},
        "sst2": {f"data/{split}-0.parquet": {"sentence": [f"film {split} {n}" for n in range(80)], "label": [0, 1] * 40}
                 for split in ("train", "validation")},
    }  # fmt: skip
    for name, files in rows.items():
        for path, columns in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name / path)
        cached(name, tmp_path / name, "datasets")
    assert find_texts().origin == "local cache, as wikitext"
    assert find_reviews("imdb").origin == "local cache, as imdb"
    assert find_task("sst2").origin == "local cache, as sst2"


def test_a_classifier_is_found_by_its_new_name(cached, model_dir):
    cached("distilbert/distilbert-base-uncased-finetuned-sst-2-english", model_dir)
    found = find_classifier("auto")
    assert found.origin == "local cache, as distilbert/distilbert-base-uncased-finetuned-sst-2-english"


def test_every_name_of_the_table_has_one_other():
    assert all(len(names_of(name)) == 2 for pair in hub.RENAMED.items() for name in pair)
