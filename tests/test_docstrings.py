"""Docstrings: every example in them is run, and the reference of the library can be made of them."""

import sys

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_every_module_with_an_example_is_among_the_tests():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    with_examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gpt2opt").rglob("*.py") if ">>> " in path.read_text()}
    assert with_examples == set(listed) - {"tests"}
