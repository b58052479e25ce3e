"""`make install` with stand-ins for Python: which .venv is kept, made anew, or left alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpt2opt import environment
from gpt2opt.versions import requirements
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo {version} >> installed ;;
    "-m pytest") ;;
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
        for name in ("Makefile", "requirements.txt", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
            os.utime(self.folder / name, (1.6e9, 1.6e9))
        for name, version in (("python3", "3, 12"), ("python3.11", "3, 11"), ("python3.13", "3, 13")):
            (self.path / name).write_text(PYTHON.format(version=version, real=sys.executable))
            (self.path / name).chmod(0o755)

    def install(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.make("install", *arguments)

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MFLAGS")}
        environment = {**inherited, "PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(["make", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True)

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


@pytest.mark.parametrize("changed", ["requirements.txt", "requirements.lock", "pyproject.toml"])
def test_it_is_installed_once_and_again_when_what_it_needs_changes(checkout, changed):
    assert checkout.install().returncode == checkout.install().returncode == 0
    assert checkout.installed == ["3, 12"] * 2  # what is required, and the package itself
    (checkout.folder / changed).touch()
    os.utime(checkout.folder / ".venv/.ready", (1.7e9, 1.7e9))
    assert checkout.install().returncode == 0
    assert checkout.installed == ["3, 12"] * 4


def test_what_tests_need_is_installed_for_them_alone_and_again_after_the_rest(checkout):
    checkout.install()
    assert len(checkout.installed) == 2
    tests = [checkout.make("test") for _ in range(2)]
    assert [done.returncode for done in tests] == [0, 0], tests[0].stderr
    assert len(checkout.installed) == 3
    os.utime(checkout.folder / ".venv/.ready-test", (1.7e9, 1.7e9))
    checkout.make("test")
    assert len(checkout.installed) == 4


def test_the_oldest_packages_have_an_environment_of_their_own(checkout):
    (checkout.folder / "tests").mkdir()
    wanted = shutil.copy(ROOT / "tests" / "course-requirements.txt", checkout.folder / "tests")
    tests = [checkout.make("test-course", "COURSE_PYTHON=python3.11") for _ in range(2)]
    assert [done.returncode for done in tests] == [0, 0], tests[0].stderr
    assert checkout.installed == ["3, 11"]
    assert not (checkout.folder / ".venv").exists()
    os.utime(checkout.folder / ".venv-course/.ready", (1.6e9, 1.6e9))
    os.utime(wanted, (1.7e9, 1.7e9))
    checkout.make("test-course", "COURSE_PYTHON=python3.11")
    assert checkout.installed == ["3, 11"] * 2


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_jupyter_is_told_that_root_may_run_it_where_root_does(checkout, user, allowed):
    (checkout.path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (checkout.path / "id").chmod(0o755)
    assert ("jupyterlab project.ipynb --allow-root" in checkout.make("--dry-run", "lab").stdout) == allowed


@pytest.mark.parametrize("name", ["requirements.lock", "tests/course-requirements.txt"])
def test_both_ends_of_the_window_are_within_it(name):
    pinned = {requirement.name: requirement.specifier for requirement in lines_of(name)}
    for package in environment.STACK:
        (exact,) = pinned[package]
        wanted = requirements()[package]
        assert wanted.problem(exact.version) is None or wanted.is_untested(exact.version), package


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_lock_has_one_exact_version_within_the_range_for_every_requirement(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "platform_system": "Linux"}
    locked: dict[str, str] = {}
    for requirement in lines_of("requirements.lock"):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in locked
            (exact,) = requirement.specifier
            assert exact.operator == "=="
            locked[requirement.name] = exact.version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [Requirement(line) for name in ("test", "bench") for line in project["optional-dependencies"][name]]
    for requirement in [*lines_of("requirements.txt"), *extras]:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_a_library_holds_none_of_what_tests_and_races_need():
    names = {requirement.name for requirement in lines_of("requirements.txt")}
    assert not names & {"pytest", "ruff", "mypy", "lm-eval", "openvino-genai", "onnxruntime", "ctranslate2", "jupyterlab"}


def lines_of(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


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
