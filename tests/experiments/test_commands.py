"""`python -m experiments`: what is wrong is said before the work, and nothing of a user's is touched."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.contract import EXPERIMENTS
from experiments.docs import ROOT


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


WRONG = {
    "no such engine": (["race", "--engines", "no-such"], "engine 'no-such' is not known; expected some of ours"),
    "no such size": (["race", "--size", "gpt3"], "size 'gpt3' is neither a directory nor one of gpt2"),
    "no rounds": (["attribution", "--rounds", "0"], "rounds=0, expected at least 1"),
    "too few seeds": (["pruning", "--seeds", "4"], "seeds=4, expected at least 5"),
    "one round of scoring": (["scoring", "--rounds", "1"], "rounds=1, expected at least 2"),
    "folder of a user's for a race": (["race", "--out", "."], ". is not empty"),
    **{f"a file for the folder of {name}": ([name, "--out", "file"], "name a writable place") for name in EXPERIMENTS if name != "race"},
    "a file for the folder of a race": (["race", "--out", "file"], "file is a file, expected a folder"),
    **{
        f"{name}.json of a user's": ([name, "--out", "mine"], f"{name}.json is there and was not written")
        for name in EXPERIMENTS
        if name != "race"
    },
    "chart of a user's": (["pruning", "--out", "charts"], "pruning.png is there and was not written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    for name in EXPERIMENTS:
        for path in (Path("mine", f"{name}.json"), Path("charts", f"{name}.png")):
            (tmp_path / path).parent.mkdir(exist_ok=True)
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
