"""What a command says of an interrupt, of a lack of memory, of an error without a message, and of a reader that has gone away."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2opt.errors import cause_of, guarded, raise_cause
from gpt2opt.runtime.compile import compile_ir
from gpt2opt.sources.models import load_model
from tests.conftest import ROOT

INTERRUPTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize.py that interrupts its process when a module is about to be imported."""


def told(capsys, error: Exception) -> tuple[int, str]:
    """Return the exit code of a command that raises an error, and its one line."""

    def command(_):
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(command=command)
    code = guarded(lambda: parser, [])
    (line,) = capsys.readouterr().err.splitlines()
    return code, line.removeprefix("gpt2opt: ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 GiB for an array"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("Exception from src/inference:\nstd::bad_alloc"),
        RuntimeError("Cannot load library libplugin.so: libplugin.so: failed to map segment from shared object"),
        ImportError("libopenvino.so: failed to map segment from shared object"),
        RuntimeError("Exception from src/inference:\nNode MatMul_1 of type FullyConnected\ncan't alloc\n\n"),
        RuntimeError("generate failed in a fresh process:\nTraceback:\n  line\nMemoryError"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_memory_is_told_with_what_to_lower(error, capsys):
    code, line = told(capsys, error)
    assert code == 2
    assert re.match(r"memory ran out.*; end other programs, or lower what takes it: a smaller model", line)


@pytest.mark.parametrize("error", [OSError(), ValueError(), RuntimeError(), ImportError("")])
def test_an_error_without_a_message_is_told_by_its_type(error, capsys):
    code, line = told(capsys, error)
    assert code == (1 if isinstance(error, RuntimeError) else 2)
    assert line.startswith(f"{type(error).__name__}, without a message; run the same again")


def test_an_interrupt_that_a_library_caught_is_still_one(capsys):
    error = RuntimeError("unexpected results")
    error.__context__ = TypeError("tried another way")
    error.__context__.__context__ = KeyboardInterrupt()
    assert told(capsys, error) == (130, "interrupted")


def test_a_fault_of_ours_keeps_its_traceback(capsys):
    with pytest.raises(KeyError):
        told(capsys, KeyError("a fault"))


def test_what_was_meant_by_the_first_error_is_not_looked_for_where_it_was_dealt_with():
    dealt_with = ValueError("a file is missing")
    dealt_with.__context__, dealt_with.__suppress_context__ = MemoryError(), True
    assert cause_of(dealt_with) is dealt_with
    raise_cause(dealt_with)


@pytest.mark.parametrize("wrapping", ["ir", "torch"])
def test_a_lack_of_memory_is_not_told_as_a_damaged_file(wrapping, quantized, model_dir, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("bad_alloc")

    monkeypatch.setattr("openvino.Core.compile_model", fail)
    monkeypatch.setattr("transformers.GPT2LMHeadModel.from_pretrained", fail)
    with pytest.raises(MemoryError):
        compile_ir(quantized[0]) if wrapping == "ir" else load_model(model_dir)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("gpt2opt doctor", "gpt2opt.cli"),
        ("gpt2opt doctor", "gpt2opt.decoding.settings"),
        ("gpt2opt audit missing", "openvino"),
        ("gpt2opt run", "torch"),
        ("experiments docs", "experiments.contract"),
        ("experiments docs", "numpy"),
        ("experiments recipes", "torch"),
        ("gpt2opt.notebook missing", "nbformat"),
    ],
)
def test_an_interrupt_while_modules_are_imported_is_one_line(command, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "INTERRUPT_AT": module}
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (130, ["gpt2opt: interrupted"])
    assert "Traceback" not in done.stderr


def test_the_installed_command_begins_where_the_module_does():
    assert 'gpt2opt = "gpt2opt.__main__:main"' in (ROOT / "pyproject.toml").read_text()


NOTEBOOK = """{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {}, "outputs": [],
 "source": "import time; open('begun', 'w').close(); time.sleep(60)"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}"""
WORK = {
    "a child": "from gpt2opt.measure.memory import in_fresh_process; import time; begun(); in_fresh_process(time.sleep, 60.0)",
    "threads": "from concurrent.futures import ThreadPoolExecutor as Pool; import time; begun(); Pool(2).submit(time.sleep, 2).result()",
    "a notebook": "from pathlib import Path; from gpt2opt.notebook import execute_notebook; execute_notebook(Path('n.ipynb'))",
}


@pytest.mark.parametrize("whole_group", [True, False], ids=["the terminal's", "its own"])
@pytest.mark.parametrize("work", WORK)
def test_an_interrupt_at_work_is_one_line(work, whole_group, tmp_path):
    (tmp_path / "n.ipynb").write_text(NOTEBOOK)
    (tmp_path / "work.py").write_text(
        "import argparse, sys\nfrom gpt2opt.errors import guarded\n"
        f"def begun(): open('begun', 'w').close()\ndef command(_):\n    {WORK[work]}\n    return 0\n"
        "parser = argparse.ArgumentParser()\nparser.set_defaults(command=command)\nsys.exit(guarded(lambda: parser, []))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "work.py"], stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    wait_for(tmp_path / "begun")
    time.sleep(0.5)  # until the child is at work too
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "gpt2opt: interrupted\n")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reader_that_has_read_enough_ends_a_command_without_a_word():
    process = subprocess.Popen([sys.executable, "-m", "gpt2opt", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(timeout=60), said) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "gpt2opt", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "gpt2opt: [Errno 28] No space left on device\n")
