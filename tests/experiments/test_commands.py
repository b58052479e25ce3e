"""`python -m experiments`: what is wrong is said before the work, and nothing of a user's is touched."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import docs
from experiments.__main__ import main
from experiments.contract import EXPERIMENTS, Entry, Option, hash_of, read_result_of, write_charts
from experiments.docs import ROOT
from gpt2opt.storage import claim_folder
from tests.experiments.stub_experiment import StubResult


def test_the_library_imports_nothing_of_the_experiments():
    for path in (ROOT / "gpt2opt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in getattr(node, "names", []) if isinstance(node, ast.Import)]
            )
            assert not [name for name in names if name.split(".")[0] == "experiments"], path


def test_help_names_every_experiment_and_loads_neither_torch_nor_openvino():
    code = (
        "import sys; from experiments.__main__ import _parser; print(_parser().format_help()); "
        "print('torch' in sys.modules, 'openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False False", done.stderr
    assert all(name in done.stdout for name in (*EXPERIMENTS, "docs"))


@pytest.mark.parametrize("option", [option for entry in EXPERIMENTS.values() for option in entry.options if option.least])
def test_a_number_that_is_too_small_is_refused_before_anything_is_imported(option, capsys, monkeypatch):
    monkeypatch.setattr(Entry, "load", lambda entry: pytest.fail("its libraries were imported"))
    (name,) = [name for name, entry in EXPERIMENTS.items() if option in entry.options]
    least, why = option.least
    assert main([name, f"--{option.name}", str(least - 1)]) == 2
    assert f"{option.name}={least - 1}, expected at least {least}: {why}" in capsys.readouterr().err


@pytest.fixture
def stub(monkeypatch) -> None:
    """An experiment more in the registry."""
    entry = Entry("tests.experiments.stub_experiment", "measure nothing", (Option("rounds", 3, "rounds"),), ("stub",))
    monkeypatch.setitem(EXPERIMENTS, "stub", entry)


def test_an_experiment_leaves_its_result_and_its_charts_in_one_folder_and_json_as_the_last_line(stub, tmp_path, capsys):
    for rounds in (2, 4):  # the second replaces what the first wrote
        assert main(["stub", "--rounds", str(rounds), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert json.loads(lines[-1]) == {"result": str(tmp_path / "out" / "stub.json")}
    assert "A stub of 4 rounds." in lines
    assert "a library says hello" not in captured.out
    assert "a library says hello" in captured.err
    assert read_result_of("stub", tmp_path / "out") == StubResult(4, {"cpu_flags": ["avx2"]})
    assert hash_of(tmp_path / "out" / "stub.json").encode() in (tmp_path / "out" / "stub.png").read_bytes()


def test_docs_draws_what_is_missing_or_older_than_its_result_and_fills_the_blocks(stub, tmp_path, monkeypatch, capsys):
    results = tmp_path / "experiments" / "results"
    assert main(["stub", "--rounds", "2", "--out", str(results / "avx2")]) == 0
    chart, drawn = results / "avx2" / "stub.png", (results / "avx2" / "stub.png").read_bytes()
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- stub-avx2 -->\nold\n<!-- /stub-avx2 -->\nafter\n")
    for name, place in (("ROOT", tmp_path), ("RESULTS", results)):
        monkeypatch.setattr(docs, name, place)
    assert main(["docs"]) == 0
    assert chart.read_bytes() == drawn
    text = readme.read_text()
    assert "![stub](experiments/results/avx2/stub.png)" in text
    assert "**Rounds**\n\n| rounds |\n| --- |\n| 2 |" in text
    assert (text.startswith("before\n<!-- stub-avx2 -->\n"), text.endswith("<!-- /stub-avx2 -->\nafter\n")) == (True, True)

    assert main(["stub", "--rounds", "5", "--out", str(tmp_path / "again")]) == 0
    source = results / "avx2" / "stub.json"
    source.write_bytes((tmp_path / "again" / "stub.json").read_bytes())
    capsys.readouterr()
    assert main(["docs"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"changed": ["README.md"]}
    assert hash_of(source).encode() in chart.read_bytes()
    assert docs.fill_documents() == []


WRONG = {
    "no such engine": (["race", "--engines", "no-such"], "engine 'no-such' is not known; expected some of ours"),
    "no such size": (["race", "--size", "gpt3"], "size 'gpt3' is neither a directory nor one of gpt2"),
    "no rounds": (["attribution", "--rounds", "0"], "rounds=0, expected at least 1"),
    "too few seeds": (["pruning", "--seeds", "4"], "seeds=4, expected at least 5"),
    "no such method": (["decoding", "--methods", "beam"], "method 'beam' is not known; expected some of greedy, temperature"),
    "no such precision": (
        ["optimisations", "--engines", "torch-int3"],
        "engine 'torch-int3' is not known; expected some of torch-eager-fp32",
    ),
    "no such model": (["decoding", "--models", "./nowhere"], "no directory './nowhere'"),
    **{f"folder of a user's for {name}": ([name, "--out", "thesis"], "thesis is not empty") for name in EXPERIMENTS},
    **{f"a file for the folder of {name}": ([name, "--out", "file"], "file is a file, expected a folder") for name in EXPERIMENTS},
    **{f"{name}.json of a user's": ([name, "--out", "mine"], f"{name}.json is there and was not written") for name in EXPERIMENTS},
    "chart of a user's": (["pruning", "--out", "charts"], "pruning.png is there and was not written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for folder in ("mine", "charts"):  # folders of ours, into which a user put files
        claim_folder(tmp_path / folder)
    for name in EXPERIMENTS:
        for path in (Path("mine", f"{name}.json"), Path("charts", f"{name}.png")):
            (tmp_path / path).write_text("mine")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("gpt2opt:")]) == 1
    assert captured.out == ""
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_picture_of_a_document_has_the_words_of_its_chart(tmp_path):
    figure = Figure()
    figure.suptitle("Time [95%] — less is better")
    (tmp_path / "result.json").write_text("{}")
    write_charts({"chart": figure}, tmp_path, tmp_path / "result.json")
    assert docs.words_of(tmp_path / "chart.png") == "Time (95%) — less is better"
    Image.new("L", (1, 1)).save(tmp_path / "other.png")
    assert docs.words_of(tmp_path / "other.png") == ""
