"""The notebook as a whole: once on the tiny model, and the committed outputs as they stand."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from experiments.docs import ROOT
from gpt2opt.notebook import execute_notebook
from gpt2opt.record import read_record
from gpt2opt.settings import STAGES

NOTEBOOK = ROOT / "project.ipynb"


@pytest.fixture(scope="module")
def executed(model_dir, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(NOTEBOOK, folder)
    environment = {**os.environ, "GPT2OPT_MODEL": str(model_dir), "GPT2OPT_TEXT": str(text_file)}
    command = [sys.executable, "-m", "gpt2opt.notebook", str(folder / NOTEBOOK.name)]
    return folder, subprocess.run(command, env=environment, capture_output=True, text=True)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def charts(cells) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(executed):
    folder, done = executed
    assert done.returncode == 0, done.stderr
    cells = code_cells(folder / NOTEBOOK.name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert charts(cells) >= 5
    record = read_record(folder / "artifacts" / "run.json")
    assert [stage.name for stage in record.stages] == list(STAGES)
    for part in ("Part 1", "Part 2", "Part 3", "Part 4"):
        assert part in done.stderr
    assert all(re.match(r"\d+:\d\d  ", line) for line in done.stderr.splitlines()), done.stderr  # progress and nothing else


def test_each_stage_starts_from_the_weights_of_the_one_before(executed):
    stages = read_record(executed[0] / "artifacts" / "run.json").stages
    for before, after in itertools.pairwise(stages):
        assert after.weights_in == before.weights_out != after.weights_out


def test_every_stage_measured_everything_on_the_same_tokens(executed):
    record = read_record(executed[0] / "artifacts" / "run.json")
    measured = [m for m, _ in record.measurements()]
    assert len({m.quality.protocol for m in measured}) == 1
    for stage in record.stages:
        m = stage.measurement
        assert m.latency.tpot_s > 0
        assert m.memory.weight_bytes > 0
        assert (m.memory.peak_vram_bytes or m.memory.peak_rss_bytes) > 0
        assert 0 < m.memory.start.rss_bytes < m.memory.loaded.rss_bytes <= m.memory.peak_rss_bytes
        assert m.memory.steady.file_bytes < m.memory.steady.rss_bytes
    assert record.stage("4-quantize").facts["runs_in_4_gb"]["done"] is True
    assert {c.name for stage in record.stages for c in stage.controls} == {
        "Pruned, first heads",
        "Fine-tuned, unpruned",
        "FP32",
        "INT8, naive",
    }


def test_a_cell_that_fails_leaves_the_file_as_it_was(tmp_path, capsys):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    path = tmp_path / "bad.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert execute_notebook(path) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't read the notebook"):
        execute_notebook(tmp_path / "missing.ipynb")
    head = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}'
    for content in (b"{", b"{}", b"[]", b"null", b"\xff", b'{"nbformat": 9}', f'{head}, "cells": [1]}}'.encode(), f"{head}}}".encode()):
        (tmp_path / "no.ipynb").write_bytes(content)
        with pytest.raises(ValueError, match=r"can't read the notebook .*no\.ipynb \(\w+\); name an \.ipynb file"):
            execute_notebook(tmp_path / "no.ipynb")
    (tmp_path / "empty.ipynb").write_text(f'{head}, "cells": []}}')
    with pytest.raises(ValueError, match=r"empty\.ipynb has no cell to run"):
        execute_notebook(tmp_path / "empty.ipynb")


def test_the_notebook_was_run_and_gives_nothing_away():
    cells = code_cells(NOTEBOOK)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert charts(cells) >= 5
    assert max(len(cell.source.splitlines()) for cell in cells) <= 15
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    content = NOTEBOOK.read_text()
    assert not re.search(r"/(?:home|root|tmp|Users)/\w", content)
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}", content)


def test_the_notebook_shows_the_record_beside_its_traces():
    content = "".join(json.dumps(cell.outputs) for cell in code_cells(NOTEBOOK))
    for measurement, _ in read_record(ROOT / "traces" / "run.json").measurements():
        assert f"{measurement.quality.perplexity:.2f}" in content


@pytest.mark.parametrize(
    "name",
    [
        "load_fp16_model", "with profile(", "gpt2opt.perplexity(", "peak_vram(", "peak_ram(", "prune_attention_heads(", "tokenize_dataset(",
        "TrainingArguments(", " Trainer(student", "INCQuantizer.from_pretrained", "export_ir(", "plot_latency(",
        "plot_perplexity(", "plot_memory(",
    ],
)  # fmt: skip
def test_the_cells_show_each_step_of_the_assignment(name):
    assert any(name in cell.source for cell in code_cells(NOTEBOOK))


def test_every_part_ends_in_a_conclusion_and_in_an_assertion():
    sources = [cell.source for cell in code_cells(NOTEBOOK)]
    for part in ("profile", "prune", "finetune", "quantize"):
        (cell,) = (source for source in sources if f"conclude_{part}(" in source)
        assert "\nassert " in cell
