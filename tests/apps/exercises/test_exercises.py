"""The exercises: each solution is short and passes, and what learners get wrong is told apart, with the line where there is one."""

import ast
import json

import pytest

from gpt2opt.apps.exercises.tasks import EXERCISES
from gpt2opt.cli import main
from tests.conftest import ROOT

SOLUTIONS = ROOT / "tests" / "apps" / "exercises" / "solutions"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def solution(number: int) -> str:
    return (SOLUTIONS / f"exercise_{number}.py").read_text()


@pytest.mark.parametrize("number", EXERCISES)
def test_an_exercise_is_begun_once_and_solved_in_under_20_lines(number, tmp_path, capsys):
    path, name = tmp_path / f"exercise_{number}.py", EXERCISES[number].function
    assert main(["exercise", str(number)]) == 1
    starter = path.read_text()
    (function,) = (node for node in ast.parse(starter).body if isinstance(node, ast.FunctionDef))
    assert (function.name, ast.unparse(function.args)) == (name, EXERCISES[number].arguments)
    assert ast.get_docstring(function).startswith("Return ")
    assert max(map(len, starter.splitlines())) <= 140
    assert f"exercise_{number}.py was written" in capsys.readouterr().out
    assert main(["exercise", str(number)]) == 2  # nothing is written in it yet
    last = len(starter.splitlines())
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"gpt2opt: exercise_{number}.py, line {last}: NotImplementedError: write the body of {name} here")
    assert path.read_text() == starter
    assert len([line for line in solution(number).splitlines() if line.strip() and not line.startswith(("import", "def "))]) < 20
    path.write_text(solution(number))
    assert main(["exercise", str(number)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1])["passed"] is True
    assert all(line.startswith("ok   ") for line in out[:-2])


WRONG = {
    "the same position": (1, "logits[:-1]", "logits[1:]", "no   logits that are sure of the NEXT token: "),
    "overflow": (
        1,
        " - logits[:-1].max(1, keepdims=True)",
        "",
        "no   the same logits plus 1000: nothing changes, nothing overflows: inf came",
    ),
    "no exp": (
        1,
        "return np.exp(-",
        "return (-",
        "no   equal logits over 12 tokens: each costs ln 12 nats, so the perplexity is 12: 2.48491 came",
    ),
    "nothing returned": (1, "return np", "np", "perplexity is 12: None came, expected a number"),
    "one number for each token": (1, ".mean()", "", "an array of shape (6,) came, expected a number"),
    "no size": (2, ".abs()", "", "the importance is 2, not -2: -2 came at (1,), expected 2"),
    "size after the mean": (
        2,
        "gates.grad.abs()\n    return total",
        "gates.grad\n    return total.abs()",
        "no   two texts with opposite slopes",
    ),
    "gates of 0": (2, "torch.ones", "torch.zeros", "no   a curved loss: its slope where all gates are 1: 0 came"),
    "the sum": (2, " / len(losses)", "", "no   two texts with opposite slopes: they don't cancel: 3 came at (1,), expected 1.5"),
    "values are left": (3, ", own + 2 * len(c_proj)", "", "(12, 28), (28,), (8, 12)] came, expected [(12, 24), (24,), (8, 12)]"),
    "columns of c_proj": (3, "own, axis=0", "own, axis=1", "(12, 8)] came"),
    "the first head": (3, "np.arange(head * width, (head + 1) * width)", "np.arange(width)", "no   head 1 of 3 cut: attention"),
    "no tuple": (3, "return np.delete(c_attn, of_all_three, axis=1),", "return", "no   head 0 of 3 cut: the shapes"),
    "int8 sums": (4, "np.int32", "np.int8", "no   one scale for the weight: "),
    "one scale for all": (4, "0 if per_channel else None", "None", "no   a scale for each column: "),
    "a scale of zero": (4, "np.where(scale == 0, 1, scale)).astype(np.int32)", "scale)", "no   a column of zeros stays zero: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_told_what_came_and_what_was_expected(case, tmp_path, capsys):
    number, old, new, said = WRONG[case]
    assert old in solution(number)
    (tmp_path / "mine.py").write_text(solution(number).replace(old, new))
    assert main(["exercise", str(number), "--file", "mine.py"]) == 1
    *_, failed, verdict, answer = capsys.readouterr().out.splitlines()
    assert said in failed
    assert failed.startswith("no   ")
    assert verdict.startswith("not solved yet")
    assert json.loads(answer)["passed"] is False


REFUSED = {
    "a syntax error": ("x = 1\ndef perplexity(logits, ids)\n    return 1\n", "mine.py, line 2: SyntaxError: expected ':'; mend it"),
    "an error at import": ("import numpy as np\n\nnp.no_such_name\n", "mine.py, line 3: AttributeError: module 'numpy' has no"),
    "an error in the function": (
        "def perplexity(logits, ids):\n    return 1 / 0\n",
        "mine.py, line 2: ZeroDivisionError: division by zero; mend",
    ),
    "an error below it": (
        "import numpy as np\ndef perplexity(logits, ids):\n    return np.ones(2) @ np.ones(3)\n",
        "mine.py, line 3: ValueError: matmul",
    ),
    "an end": ("import sys\nsys.exit(0)\n", "mine.py, line 2: SystemExit: 0; mend"),
    "no message": ("def perplexity(logits, ids):\n    assert False\n", "mine.py, line 2: AssertionError; mend"),
    "another name": ("def ppl(logits, ids):\n    return 1\n", "mine.py has no function perplexity(logits, ids); write one of that name"),
    "no text": (b"\0\xff", "mine.py"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_run_gets_one_line_with_its_number(case, tmp_path, capsys):
    content, said = REFUSED[case]
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "mine.py").write_bytes(content)
    assert main(["exercise", "1", "--file", "mine.py"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("gpt2opt: "))
    assert said in line
    assert (tmp_path / "mine.py").read_bytes() == content


def test_a_place_that_is_none_and_a_number_that_is_none_are_refused(tmp_path, capsys):
    assert main(["exercise", "1", "--file", "missing/mine.py"]) == 2
    assert "No such file or directory: 'missing/mine.py'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["exercise", "5"])
    assert "choose from" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_points_to_each_exercise_and_the_page_names_its_function():
    notebook, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("project.ipynb", "docs/exercises.md"))
    for number, (function, arguments, *_) in EXERCISES.items():
        assert f"`gpt2opt exercise {number}`" in notebook
        assert f"`{function}({arguments})`" in page
