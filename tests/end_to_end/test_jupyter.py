"""The notebook's life in JupyterLab and Notebook 7: run from top to bottom, interrupted in the fine-tuning, cells run again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from experiments.docs import ROOT
from gpt2opt.environment import installed
from gpt2opt.run.record import read_record
from gpt2opt.settings import STAGES
from tests.apps.ui.browser import why_no_browser
from tests.end_to_end.jupyter import APPLICATIONS, Notebook, served

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.slow,
    pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser())),
    pytest.mark.skipif(None in map(installed, APPLICATIONS), reason="JupyterLab is not installed; `make test-end-to-end` brings it"),
]
NOTEBOOK = ROOT / "project.ipynb"
CELLS = nbformat.read(NOTEBOOK, as_version=4).cells
CODE = [cell for cell in CELLS if cell.cell_type == "code"]


def cell_with(text: str) -> int:
    (found,) = [number for number, cell in enumerate(CELLS) if cell.cell_type == "code" and text in cell.source]
    return found


@pytest.fixture
def folder(model_dir, text_file, tmp_path, monkeypatch) -> Path:
    """Return a folder that holds the notebook without outputs, for a user whose model and text are tiny."""
    monkeypatch.setenv("GPT2OPT_MODEL", str(model_dir))
    monkeypatch.setenv("GPT2OPT_TEXT", str(text_file))
    folder = tmp_path / "a folder"
    folder.mkdir()
    empty = nbformat.read(NOTEBOOK, as_version=4)
    for cell in empty.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(empty, folder / NOTEBOOK.name)
    return folder


@contextmanager
def opened_in(module: str, folder: Path) -> Iterator[Notebook]:
    with served(folder, folder.parent / "settings", module) as address:
        opened = Notebook(f"{address}/{NOTEBOOK.name}", folder.parent / "profile")
        try:
            yield opened
        finally:
            opened.close()


def test_in_jupyterlab_it_is_interrupted_in_stage_3_and_goes_on_to_the_end(folder):
    training = cell_with("trainer = fine_tune(")
    number = [cell.source for cell in CODE].index(CELLS[training].source)
    with opened_in("jupyterlab", folder) as opened:
        opened.do("notebook:run-all-cells")
        opened.wait(lambda: "[*]:" not in opened.prompts()[:number] and "Step" in (opened.text_below(training) or ""), 600)
        opened.do("notebook:interrupt-kernel")
        opened.wait(lambda: not opened.running(), 60)
        assert "KeyboardInterrupt" in opened.text_below(training)
        assert read_record(folder / "artifacts" / "run.json").stages == list(STAGES[:2])

        opened.select(training)
        opened.do("notebook:run-all-below")  # the selected cell too
        it_ran_to_the_end(opened, folder)
        opened.do("docmanager:save")
        opened.wait(lambda: pictures(folder / NOTEBOOK.name), 30)
    words = [output.metadata["image/png"].get("alt", "") for output in pictures(folder / NOTEBOOK.name)]
    assert all(len(each) > 40 for each in words)


def test_in_notebook_7_it_runs_to_the_end(folder):
    with opened_in("notebook", folder) as opened:
        opened.do("notebook:run-all-cells")
        it_ran_to_the_end(opened, folder)


def it_ran_to_the_end(opened: Notebook, folder: Path) -> None:
    opened.wait(opened.running, 30)
    opened.wait(lambda: not opened.running(), 900)
    assert opened.errors() == []
    assert all(prompt.strip("[]:").isdigit() for prompt in opened.prompts())
    assert len(opened.charts()) >= 7
    assert all(width > 300 for width in opened.charts())
    record = read_record(folder / "artifacts" / "run.json")
    assert record.stages == list(STAGES)


def pictures(path: Path) -> list:
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_every_cell_can_be_run_twice_in_a_row(folder):
    from gpt2opt.notebook import execute_notebook

    twice = nbformat.read(NOTEBOOK, as_version=4)
    twice.cells = [copied for cell in twice.cells for copied in _copies(cell)]
    nbformat.write(twice, folder / NOTEBOOK.name)
    assert execute_notebook(folder / NOTEBOOK.name) == 0
    record = read_record(folder / "artifacts" / "run.json")
    assert record.stages == list(STAGES)
    tuned, control = (
        [point["loss_nats"] for point in record.measured(name).facts["loss"]] for name in ("Fine-tuned", "Fine-tuned, unpruned")
    )
    assert tuned[0] > (control[0] + control[-1]) / 2  # the second training began from the same weights, as the control's did


def _copies(cell) -> list:
    if cell.cell_type != "code":
        return [cell]
    again = nbformat.v4.new_code_cell(cell.source)
    return [cell, again]
