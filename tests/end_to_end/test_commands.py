"""The commands of README and docs in the pages' own words, in a copy of this folder. A tiny model is in the hub's cache as gpt2."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from gpt2opt.environment import installed
from gpt2opt.sources.texts import WIKITEXT_FOLDER, WIKITEXT_SPLITS
from tests.conftest import ROOT, sample_text
from tests.test_documents import commands, words_of

SERVERS = ("gpt2opt ui", "make lab", "make tensorboard")
IN_THE_TEXT = ("make lab", "make tensorboard", "make docs")
"""Commands that the pages name in a sentence and show in no block of code."""
LIMIT_S = 900

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]


def why_not(command: str) -> str | None:
    """Return why a command can't be run here, None if it can."""
    words = words_of(command)
    if words[0] in ("ovms", "curl"):
        return "no server runs: test_model_server.py and test_completions.py ask theirs"
    if words[0] in ("kaggle", "unzip") or "grid-models" in command:
        return "the movie reviews can't be had here; tests/experiments/test_grid.py uses the models that are kept"
    if "experiments" in words and "small" not in words:
        return "an experiment takes minutes; tests/experiments runs each with small models"
    if "--multi_gpu" in words and torch.cuda.device_count() < 4:
        return "there are no four GPUs"
    if command.split("  #")[0].strip() in ("make run", "make test"):
        return "`make run` is run with a model by its own line, `make test` by CI"
    if "ui" in words and installed("tornado") is None:
        return "the extra ui is not installed"
    return None


def replaces_the_run(command: str) -> bool:
    """Return whether a command rewrites the notebook and its traces; those before it find the ones that are committed."""
    return "make run" in command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("commands") / "a folder"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "artifacts", "*.egg-info", "__pycache__"))
    install(copy)
    return copy


def install(folder: Path) -> None:
    """Make `.venv` as `make install` does, but with the packages of this environment in place of a copy of them."""
    venv, here = folder / ".venv", Path(sys.prefix)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
    (venv / packages / "here.pth").write_text(str(here / packages))
    for program in (here / "bin").iterdir():
        if not (venv / "bin" / program.name).exists():
            (venv / "bin" / program.name).symlink_to(program)
    (venv / "bin" / "gpt2opt").unlink()
    pip = [venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", "."]
    subprocess.run(pip, cwd=folder, check=True)
    for made in (".ready", *(path.name for path in here.glob(".ready-*"))):
        (venv / made).touch()


@pytest.fixture(scope="module")
def environment(folder, model_dir, tmp_path_factory) -> dict[str, str]:
    """Return the variables of a user whose cache has gpt2 and WikiText-2, with the tiny model also at the paths that the pages name."""
    for name in ("model", "gpt2"):
        shutil.copytree(model_dir, folder / "path" / "to" / name)
    home = tmp_path_factory.mktemp("home")
    model, text = (cached(home / "hub" / name) for name in ("models--gpt2", "datasets--Salesforce--wikitext"))
    shutil.copytree(model_dir, model)
    (text / WIKITEXT_FOLDER).mkdir(parents=True)
    paragraphs, parts = iter(sample_text().split("\n\n")), {"train": 44, "validation": 8, "test": 8}
    assert set(parts) == set(WIKITEXT_SPLITS.values())
    for split, size in parts.items():
        rows = pyarrow.table({"text": [f" = {split} = \n", *itertools.islice(paragraphs, size)]})
        pyarrow.parquet.write_table(rows, text / WIKITEXT_FOLDER / f"{split}-00000-of-00001.parquet")
    (home / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true, "open_browser": false}}')
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HF_HOME": str(home), "JUPYTER_CONFIG_DIR": str(home), "PATH": path}


def cached(repository: Path) -> Path:
    """Make the folders in which the hub's cache keeps a repository; return that of its files, not made yet."""
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    return repository / "snapshots" / ("0" * 40)


@pytest.mark.parametrize(
    "command", sorted([*commands(), *IN_THE_TEXT], key=replaces_the_run), ids=lambda command: command.split("  #")[0].strip()
)
def test_a_command_does_what_its_page_says(command, folder, environment):
    if reason := why_not(command):
        pytest.skip(reason)
    with (folder / "output").open("w+") as output:
        started = [
            subprocess.Popen(
                ["bash", "-c", f"exec {line}"], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            for line in on_this_machine(command)
        ]
        try:
            if any(server in command for server in SERVERS):
                address = address_in(folder / "output", started[0])
                assert urllib.request.urlopen(address, timeout=60).status == 200
                os.killpg(started[0].pid, signal.SIGINT)
                os.killpg(started[0].pid, signal.SIGTERM)  # JupyterLab asks whether it was meant
                started[0].wait(60)
            else:
                codes = [process.wait(LIMIT_S) for process in started]
                output.seek(0)
                assert codes == [code_of(command)] * len(codes), output.read()[-3000:]
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def code_of(command: str) -> int:
    """Return the exit code of a command: 1 of one that begins an exercise, 2 of one that checks what nobody has written yet; else 0."""
    return 0 if "exercise" not in words_of(command) else 2 if "checks it" in command else 1


def on_this_machine(command: str) -> list[str]:
    """Return the commands to start together: two, if the page's is for the first of two machines."""
    command = re.sub(r"^((?:\w+=\S+ )*)", r"env \1", command.split("  #")[0])
    if "FIRST_MACHINE" not in command:
        return [command]
    command = command.replace("FIRST_MACHINE", "localhost")
    return [command, command.replace("--node_rank 0", "--node_rank 1")]


def address_in(output: Path, process: subprocess.Popen) -> str:
    """Wait for a server to print its address."""
    end = time.monotonic() + LIMIT_S
    while not (found := re.search(r"http://(127\.0\.0\.1|localhost):\d+\S*", output.read_text())):
        assert process.poll() is None, output.read_text()[-3000:]
        assert time.monotonic() < end, output.read_text()[-3000:]
        time.sleep(0.2)
    return found.group()
