"""`make install` with stand-ins for Python: which .venv is kept, made anew, or left alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.docs import ROOT

PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo {version} >> installed ;;
    *) exec "{real}" -c 'import sys; sys.version_info, sys.base_prefix = ({version}, 0), "/{version}"; exec(sys.argv[1])' "$2" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


class Checkout:
    """A folder with the Makefile, and stand-ins for Pythons on its PATH. `installed` has a line for each call of pip."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder / "a checkout", folder / "bin"
        for path in (self.folder, self.path):
            path.mkdir()
        for name in ("Makefile", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
            os.utime(self.folder / name, (1.6e9, 1.6e9))
        for name, version in (("python3", "3, 12"), ("python3.11", "3, 11"), ("python3.13", "3, 13")):
            (self.path / name).write_text(PYTHON.format(version=version, real=sys.executable))
            (self.path / name).chmod(0o755)

    def install(self, *arguments: str) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MFLAGS")}
        environment = {**inherited, "PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["make", "install", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True)

    @property
    def installed(self) -> list[str]:
        path = self.folder / "installed"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def python(self) -> str:
        return (self.folder / ".venv/bin/python").read_text()


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_it_is_installed_once_and_again_when_what_it_needs_changes(checkout):
    assert checkout.install().returncode == checkout.install().returncode == 0
    assert checkout.installed == ["3, 12"] * 2  # what is required, and the package itself
    (checkout.folder / "requirements.txt").touch()
    os.utime(checkout.folder / ".venv/.ready", (1.7e9, 1.7e9))
    assert checkout.install().returncode == 0
    assert checkout.installed == ["3, 12"] * 4


def test_another_python_makes_the_environment_anew_and_is_kept_from_then_on(checkout):
    checkout.install()
    done = checkout.install("PYTHON=python3.11")
    assert (done.returncode, "python3.11 is not the Python of .venv" in done.stdout) == (0, True)
    assert "3, 11" in checkout.python
    assert checkout.installed == ["3, 12", "3, 12", "3, 11", "3, 11"]
    checkout.install("PYTHON=python3.11")
    checkout.install()  # nobody asked for another one
    assert len(checkout.installed) == 4
    assert "3, 11" in checkout.python


def test_a_python_that_is_not_supported_is_refused_before_anything_is_touched(checkout):
    assert "Python 3.13 found, 3.10, 3.11 or 3.12 expected" in checkout.install("PYTHON=python3.13").stderr
    assert not (checkout.folder / ".venv").exists()
    checkout.install()
    done = checkout.install("PYTHON=python3.13")
    assert done.returncode != 0
    assert "3, 12" in checkout.python
    assert len(checkout.installed) == 2


@pytest.mark.parametrize("arguments", [(), ("PYTHON=python3.11",)])
def test_an_environment_that_was_not_made_here_is_left_alone(checkout, arguments):
    (checkout.folder / ".venv/bin").mkdir(parents=True)
    (checkout.folder / ".venv/mine.txt").write_text("mine")
    done = checkout.install(*arguments)
    assert done.returncode != 0
    assert ".venv is there and was not made by this Makefile" in done.stderr
    assert sorted(path.name for path in (checkout.folder / ".venv").iterdir()) == ["bin", "mine.txt"]
    assert checkout.installed == []


def test_an_installation_that_was_cut_off_goes_on(checkout):
    checkout.install()
    ready = checkout.folder / ".venv/.ready"
    os.utime(ready, (9e8, 9e8))
    assert checkout.install("PYTHON=python3.11").returncode == 0
    assert "3, 11" in checkout.python
