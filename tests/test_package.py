"""The package that people install: what is in a wheel, and what works without OpenVINO."""

import importlib
import re
import subprocess
import sys
import zipfile

import pytest

import gpt2opt
from gpt2opt import environment
from gpt2opt.moved import RENAMED
from tests.conftest import ROOT


def test_a_wheel_holds_the_library_with_its_data_and_no_experiment(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "gpt2opt", "experiments", "tests"):
        (source / name).symlink_to(ROOT / name)  # setuptools leaves a folder beside the sources
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("gpt2opt-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if not name.startswith("gpt2opt-")} == {"gpt2opt"}
    tracked = subprocess.run(["git", "ls-files", "gpt2opt"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(tracked) <= set(names)


def test_without_openvino_a_model_is_pruned_and_fine_tuned_all_the_same(model_dir, tmp_path):
    code = f"""
import sys
for name in ("openvino", "optimum.intel", "neural_compressor", "nncf"):
    sys.modules[name] = None
import gpt2opt
from datasets import Dataset
tokenizer, model = gpt2opt.load_fp16_model({str(model_dir)!r})
gpt2opt.prune_attention_heads(model, 0.2)
gpt2opt.prepare_tokenizer_for_padding(tokenizer, model)
rows = gpt2opt.tokenize_dataset(Dataset.from_dict({{"text": ["Node 1 of graph 2 has 3 edges."] * 4}}), tokenizer)
from gpt2opt.finetune import create_training_arguments, run_fine_tuning
trainer = run_fine_tuning(model, create_training_arguments({str(tmp_path)!r}), rows, tokenizer)
print(trainer.state.global_step, {{block.attn.num_heads for block in model.transformer.h}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["1 {10}"], done.stderr[-2000:]


@pytest.mark.parametrize(("name", "now"), sorted(RENAMED.items()))
def test_an_old_name_leads_to_the_new_one(name, now):
    home, _, listed = now.partition(": ")
    module, _, new = (home, "", "") if listed else home.rpartition(".")
    for one in listed.split(", ") if listed else [new]:
        found = importlib.import_module(module)
        assert hasattr(found, one) or importlib.import_module(f"{module}.{one}")
    with pytest.raises(ImportError, match=re.escape(f"gpt2opt.{name} is now {now}")):
        importlib.import_module(f"gpt2opt.{name}")
    if "." not in name:
        with pytest.raises(ImportError, match=re.escape(f"gpt2opt.{name} is now {now}")):
            exec(f"from gpt2opt import {name}")
        with pytest.raises(AttributeError, match=re.escape(f"gpt2opt.{name} is now {now}")):
            getattr(gpt2opt, name)


def test_the_public_names_are_few_and_each_is_used_by_the_notebook_or_the_documents():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "project.ipynb", ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    unused = [
        name for name in gpt2opt.__all__ if not any(re.search(rf"gpt2opt\.{name}\b|from gpt2opt import .*{name}", text) for text in texts)
    ]
    assert unused == []
    assert len(gpt2opt.__all__) <= 45


def test_the_badges_of_the_first_page_say_what_the_package_does():
    low, high = environment.PYTHON
    versions = " ".join(f"{low[0]}.{minor}" for minor in range(low[1], high[1]))
    license = re.search(r'^license = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for name, said in (("python", versions), ("license", license)):
        svg = (ROOT / "docs" / f"badge-{name}.svg").read_text()
        assert f">{said}</text>" in svg
        assert not re.search(r"href|url\(|<script", svg)
        assert f"(docs/badge-{name}.svg)" in (ROOT / "README.md").read_text()
