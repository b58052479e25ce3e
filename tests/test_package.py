"""The package that people install: what is in a wheel, and what works without OpenVINO."""

import subprocess
import sys
import zipfile

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
trainer = gpt2opt.run_fine_tuning(model, gpt2opt.create_training_arguments({str(tmp_path)!r}), rows, tokenizer)
print(trainer.state.global_step, {{block.attn.num_heads for block in model.transformer.h}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["1 {10}"], done.stderr[-2000:]
