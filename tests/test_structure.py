"""The house stands as it is drawn: no circle of imports, nothing in the library imports what stands on it, and no arrow back."""

import ast

import pytest

from tests.conftest import ROOT

FACES = ("gpt2opt.cli", "gpt2opt.course")
"""What hands the apps on: the commands, and the course's functions under the name that its users know."""


def module(path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module(path): path for package in ("gpt2opt", "experiments") for path in (ROOT / package).rglob("*.py")}


def imports(name: str) -> set[str]:
    """Return the files of ours that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{alias.name}") in FILES else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(FILES)) - {name}


IMPORTS = {name: imports(name) for name in FILES}


def closure(name: str) -> set[str]:
    """Return the files of ours that a file needs, itself included."""
    seen: set[str] = set()
    to_see = [name]
    while to_see:
        one = to_see.pop()
        if one not in seen:
            seen.add(one)
            to_see += IMPORTS[one]
    return seen


def test_no_files_import_each_other_in_a_circle():
    behind = {name: set().union(*(closure(other) for other in IMPORTS[name]), set()) for name in FILES}
    assert [name for name in FILES if name in behind[name]] == []


def test_nothing_in_the_library_imports_what_stands_on_it():
    below = {name: found for name, found in IMPORTS.items() if not name.startswith(("gpt2opt.apps", "experiments")) and name not in FACES}
    assert {
        name: up for name, found in below.items() if (up := [one for one in found if one.startswith(("gpt2opt.apps", "experiments"))])
    } == {}


def test_no_app_imports_another():
    def app(name: str) -> str:
        return name.split(".")[2]

    apps = [name for name in FILES if name.startswith("gpt2opt.apps.")]
    assert {(name, one) for name in apps for one in IMPORTS[name] if one.startswith("gpt2opt.apps.") and app(one) != app(name)} == set()


@pytest.mark.parametrize(
    ("name", "most"), [("gpt2opt.prune", 8), ("gpt2opt.finetune", 8), ("gpt2opt.quantize.int8", 30), ("gpt2opt.runtime.ir_model", 20)]
)
def test_a_file_needs_few_others(name, most):
    assert len(closure(name)) <= most
