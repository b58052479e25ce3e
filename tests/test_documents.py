"""README, CONTRIBUTING and docs: every command that they show is one that exists, and is run by a test; every link leads somewhere."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import gpt2opt
from experiments.__main__ import _parser as parser_of_experiments
from gpt2opt.cli import _parser as parser_of_commands
from tests.conftest import ROOT

DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
LAUNCHERS = {"torchrun", "accelerate"}
OTHERS = {"git", "ovms", "cd", "pip", "docker", "curl", "for", "kaggle", "unzip", "tests/gpu/run.sh", "tests/browser/install.sh"}


def commands() -> list[str]:
    """Return the command lines in the blocks of shell code, comments and prompts left out."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            found += [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return list(dict.fromkeys(found))


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):  # settings of the environment
        del words[0]
    return words


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_exists(command):
    check_command(command)


def check_command(command: str) -> None:
    words = words_of(command)
    program = Path(words[0]).name
    if program == "make":
        if shutil.which("make"):
            done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    elif program in LAUNCHERS or (program.startswith("python") and words[1] == "-m"):
        module = words[words.index("-m") + 1]
        arguments = words[words.index("-m") + 2 :]
        parse(module, arguments)
    elif program == "gpt2opt":
        parse("gpt2opt", words[1:])
    else:
        assert words[0] in OTHERS, f"a test should know {words[0]}"


def parse(module: str, arguments: list[str]) -> None:
    if module == "gpt2opt":
        parser_of_commands().parse_args(arguments)
    elif module == "experiments" and arguments != ["--help"]:
        parser_of_experiments().parse_args([argument for argument in arguments if argument != "NAME"] or ["docs"])
    else:
        assert module in {"experiments", "gpt2opt.notebook"} or (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_to_a_file_that_is_there(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith(("https://", "http://")) or (document.parent / target).exists(), target


def rows_of_originals() -> list[tuple[str, ...]]:
    """Return the rows of the five tables: what an original asks for, where it is here, and the verdict."""
    lines = (ROOT / "docs" / "originals.md").read_text(encoding="utf-8").splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines if line.startswith("| ")]
    return [row for row in rows if row[-1] != "verdict" and not row[0].startswith("---")]


@pytest.mark.parametrize("row", rows_of_originals(), ids=lambda row: row[0][:60])
def test_what_the_originals_ask_for_is_here_or_needs_what_a_cpu_lacks(row):
    _, here, verdict = row
    assert re.fullmatch(r"yes|yes; .*|no: .*(GPU|card|hub).*", verdict), verdict
    for code in re.findall(r"`([^`]+)`", here):
        if code.startswith(("gpt2opt ", "python -m ", "make ")):
            check_command(code)
        elif code.startswith("gpt2opt."):
            assert hasattr(gpt2opt, code.removeprefix("gpt2opt.")), code
        elif code.startswith("--"):
            assert code.split()[0] in options_of_experiments(), code


def options_of_experiments() -> set[str]:
    subcommands = next(action for action in parser_of_experiments()._actions if action.choices)
    return {option for parser in subcommands.choices.values() for action in parser._actions for option in action.option_strings}
