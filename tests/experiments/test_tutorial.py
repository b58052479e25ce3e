"""The tutorial of the grid: once on the tiny model, and the committed outputs as they stand."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from tests.conftest import ROOT, sample_text

TUTORIAL = ROOT / "tutorials" / "grid.ipynb"


def code_cells(path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def printed(cells) -> str:
    return "".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.outputs)


def check_outputs(cells) -> None:
    """Every cell ran in its order, without an error and without a word on stderr, and there is a table and a chart."""
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert printed(cells).count("| dense, FP32 again | –") == 1
    assert "nn.Linear: lm_head, 1 of" in printed(cells)
    assert all(f"| {name} | " in printed(cells) for name in ("nn.Linear 50%, FP32", "magnitude 50%, INT8", "heads 33%, INT8"))


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(model_dir, tmp_path):
    shutil.copy(TUTORIAL, tmp_path)
    text_file = tmp_path / "text.txt"
    text_file.write_text(sample_text(160))  # documents are cut, and INT8 wants eight rows to calibrate with
    environment = {**os.environ, "GPT2OPT_MODEL": str(model_dir), "GPT2OPT_TEXT": str(text_file), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "gpt2opt.notebook", str(tmp_path / TUTORIAL.name)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    check_outputs(code_cells(tmp_path / TUTORIAL.name))


def test_it_was_run_and_gives_nothing_away():
    cells = code_cells(TUTORIAL)
    check_outputs(cells)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 15
    content = TUTORIAL.read_text()
    assert not re.search(r"/(?:home|root|tmp|work|Users)/\w", content)
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}", content)
