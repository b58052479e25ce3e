"""docs/runtime.md: its table is that of the passes, its worked example computes, and its ledger names tests that exist."""

import doctest
import re

import pytest

from gpt2opt.runtime.compile import NO_DOT_PRODUCT, PASSES
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "runtime.md"


def test_the_table_of_passes_is_that_of_the_code():
    expected = [
        [f"`{each.__name__}`", *("yes" if each in passes else "–" for passes in PASSES.values())] for each in PASSES[NO_DOT_PRODUCT]
    ]
    (shown,) = re.findall(r"<!-- table: graph passes -->\n\n(.*?)\n\n<!-- end of table -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    header, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in shown.splitlines())
    assert header == ["pass", *PASSES, "what it is for"]
    assert [row[:-1] for row in rows] == expected
    assert all(row[-1] for row in rows)


def test_the_worked_example_computes_what_it_shows():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted >= 6
    assert found.failed == 0


def ledger() -> list[list[str]]:
    rows = PAGE.read_text(encoding="utf-8").split("## What the code relies on")[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")][2:]


@pytest.mark.parametrize("row", ledger(), ids=lambda row: row[1])
def test_every_row_of_the_ledger_names_a_test_or_says_why_there_is_none(row):
    _, relies, named = row
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    tests = re.findall(r"`(test_\w+)`", named)
    assert tests or named.startswith("no test: ")
    assert set(tests) <= defined
    code = "\n".join(path.read_text() for room in ("runtime", "quantize", "export") for path in (ROOT / "gpt2opt" / room).glob("*.py"))
    for name in re.findall(r"`([\w.]+)`", relies):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", code), f"{name} is not in the code any more"
