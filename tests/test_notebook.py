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
from gpt2opt.apps.submission.evidence import read_submission
from gpt2opt.apps.submission.points import check_points
from gpt2opt.notebook import execute_notebook, notebook_text, read_notebook
from gpt2opt.run.record import read_record
from gpt2opt.settings import STAGES

NOTEBOOK = ROOT / "project.ipynb"
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))


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
    assert record.stages == list(STAGES)
    for part in ("Part 1", "Part 2", "Part 3", "Part 4"):
        assert part in done.stderr
    assert all(re.match(r"\d+:\d\d  ", line) for line in done.stderr.splitlines()), done.stderr  # progress and nothing else
    answers = {answer.point: answer for answer in check_points(read_submission(folder / NOTEBOOK.name))}
    for point in ("traces are those of the record", "figures are those of the record"):
        assert answers[point].passed is True, answers[point].found


def test_each_stage_starts_from_the_weights_of_the_one_before(executed):
    record = read_record(executed[0] / "artifacts" / "run.json")
    for before, after in itertools.pairwise(map(record.stage, record.stages)):
        assert after.weights_in == before.weights != after.weights


def test_every_stage_measured_everything_on_the_same_tokens(executed):
    record = read_record(executed[0] / "artifacts" / "run.json")
    assert len({m.quality.protocol for m in record.measurements()}) == 1
    for m in map(record.stage, record.stages):
        assert m.latency.tpot_s > 0
        assert m.memory.weight_bytes > 0
        assert (m.memory.peak_vram_bytes or m.memory.peak_rss_bytes) > 0
        assert 0 < m.memory.start.rss_bytes < m.memory.loaded.rss_bytes <= m.memory.peak_rss_bytes
        assert m.memory.steady.file_bytes < m.memory.steady.rss_bytes
    assert record.stage("4-quantize").facts["runs_in_4_gb"]["done"] is True
    assert {name for name in record.models if record.role(name).control} == {
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


HEAD = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}'
REFUSED = {
    "half of it": ("{", "it is not JSON (Expecting property name"),
    "bytes": (b"\xff", "it is not JSON ("),
    "a list": ("[]", "its JSON is not that of a notebook (AttributeError: 'list' object"),
    "another format": ('{"nbformat": 9}', "Unsupported nbformat version 9"),
    "no format": ("{}", "from version 1 to version 2 because it's missing a key: cells"),
    "no cells": (f"{HEAD}}}", "KeyError: 'cells'"),
    "a cell that is a number": (f'{HEAD}, "cells": [1]}}', "'int' is not iterable"),
    "a cell of no kind": (f'{HEAD}, "cells": [{{"source": "x"}}]}}', "KeyError: 'cell_type'"),
    "a source that is a number": (f'{HEAD}, "cells": [{{"cell_type": "code", "source": 5}}]}}', "cell 1: 5 is not valid under any"),
    "outputs that are a number": (f'{HEAD}, "cells": [{{"cell_type": "code", "outputs": 5}}]}}', "cell 1: 5 is not of type 'array'"),
    "metadata that are text": (f'{HEAD}, "cells": [{{"cell_type": "raw", "metadata": "x"}}]}}', "'str' object has no attribute"),
    "an output of no kind": (f'{HEAD}, "cells": [{{"cell_type": "code", "outputs": [{{}}]}}]}}', "cell 1: {} is not valid under any"),
    "an output without metadata": (
        f'{HEAD}, "cells": [{{"cell_type": "code", "outputs": [{{"output_type": "display_data", "data": {{}}}}]}}]}}',
        "cell 1: 'metadata' is a required property",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_notebook_is_refused_with_the_reason(case, tmp_path):
    content, reason = REFUSED[case]
    (tmp_path / "no.ipynb").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"^can't read the notebook .*no\.ipynb: .+; name an \.ipynb file$") as refused:
        execute_notebook(tmp_path / "no.ipynb")
    assert reason in str(refused.value)


def test_a_notebook_that_is_not_there_or_has_no_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"can't read the notebook .*missing\.ipynb: No such file"):
        execute_notebook(tmp_path / "missing.ipynb")
    (tmp_path / "empty.ipynb").write_text(f'{HEAD}, "cells": []}}')
    with pytest.raises(ValueError, match=r"empty\.ipynb has no cell to run"):
        execute_notebook(tmp_path / "empty.ipynb")


def plain_notebook(**more) -> dict:
    output = {"output_type": "stream", "name": "stdout", "text": "1\n"}
    cells = [
        {"cell_type": "markdown", "id": "a1", "metadata": {}, "source": "# Notes"},
        {"cell_type": "code", "id": "b2", "metadata": {}, "source": "print(1)", "execution_count": 1, "outputs": [output]},
    ]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells} | more


def changed(cell: int, *dropped: str, **added) -> dict:
    notebook = plain_notebook()
    notebook["cells"][cell] = {name: value for name, value in notebook["cells"][cell].items() if name not in dropped} | added
    return notebook


V3 = {"cell_type": "code", "collapsed": False, "input": "print(1)", "language": "python", "metadata": {}, "outputs": [], "prompt_number": 1}
WARNED = {
    "outputs in a text cell": (changed(0, outputs=[], execution_count=None), "Additional properties are not allowed"),
    "ids before they were known": (plain_notebook(nbformat_minor=4), "'id' was unexpected"),
    "a kernel without a name": (plain_notebook(metadata={"kernelspec": {"name": "python3"}}), "'display_name' is a required property"),
    "no execution_count": (changed(1, "execution_count"), "'execution_count' is a required property"),
    "no metadata in a cell": (changed(1, "metadata"), "'metadata' is a required property"),
    "no metadata at all": ({name: value for name, value in plain_notebook().items() if name != "metadata"}, "'metadata' is a required"),
    "no outputs": (changed(1, "outputs"), "'outputs' is a required property"),
    "an id twice": (changed(1, id="a1"), "a cell has no id of its own"),
    "no id": (changed(1, "id"), "a cell has no id of its own"),
}
SILENT = {
    "format 3": {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": [V3], "metadata": {}}]},
    "widgets as Colab writes them": plain_notebook(
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"a": {"state": {}}}}}
    ),
    "a byte order mark": plain_notebook(),
}


@pytest.mark.parametrize("case", [*WARNED, *SILENT])
def test_what_jupyter_opens_with_a_warning_is_read_and_can_be_written(case, tmp_path, caplog):
    content, warning = WARNED[case] if case in WARNED else (SILENT[case], None)
    path = tmp_path / "strange.ipynb"
    path.write_text(json.dumps(content), encoding="utf-8-sig" if "byte order" in case else "utf-8")
    notebook = read_notebook(path)
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert (cell.source, cell.execution_count) == ("print(1)", None if "no execution" in case else 1)
    assert isinstance(cell.outputs, list)
    ids = [cell.id for cell in notebook.cells if "id" in cell]
    assert len(set(ids)) == len(ids)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (warning is not None)
    assert all(warning in line and "read all the same" in line and "\n" not in line for line in said)
    path.write_text(notebook_text(notebook))
    assert read_notebook(path).cells == notebook.cells


@pytest.mark.slow
def test_compile_and_generate_runs_from_top_to_bottom(model_dir, tmp_path):
    (path,) = (tutorial for tutorial in TUTORIALS if tutorial.stem == "compile_and_generate")
    (tmp_path / "tutorials").mkdir()
    shutil.copy(path, tmp_path / "tutorials")
    command = [sys.executable, "-m", "gpt2opt.notebook", str(tmp_path / "tutorials" / path.name)]
    done = subprocess.run(command, env={**os.environ, "GPT2OPT_MODEL": str(model_dir)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = code_cells(tmp_path / "tutorials" / path.name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert charts(cells) == 1
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert {path.name for path in (tmp_path / "artifacts" / path.stem).iterdir() if path.is_dir()} == {"openvino", "onnxruntime", "qaic"}


@pytest.mark.parametrize("path", [NOTEBOOK, *TUTORIALS], ids=lambda path: path.stem)
def test_the_notebook_was_run_and_gives_nothing_away(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert charts(cells) >= (5 if path == NOTEBOOK else 1)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 15
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    content = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|Users)/\w", content)
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}", content)


def test_the_notebook_shows_the_record_beside_its_traces():
    content = "".join(json.dumps(cell.outputs) for cell in code_cells(NOTEBOOK))
    for measurement in read_record(ROOT / "traces" / "run.json").measurements():
        assert f"{measurement.quality.perplexity:.2f}" in content


@pytest.mark.parametrize(
    "name",
    [
        "load_fp16_model", "with profile(", "gpt2opt.perplexity(", "peak_vram(", "peak_ram(", "prune_attention_heads(", "tokenize_dataset(",
        "TrainingArguments(", " Trainer(model", "INCQuantizer.from_pretrained", "export_ir(", "plot_latency(",
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
