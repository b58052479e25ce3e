"""A run begins only where it can end."""

import subprocess
import sys

import pytest

from gpt2opt.stages.run import start_run
from gpt2opt.storage import new_folder


def test_several_processes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were launched.*gpt2opt finetune"):
        start_run("bundled", "docs", tmp_path / "out", tmp_path / "traces")
    assert not list(tmp_path.iterdir())


def test_a_run_removes_the_stages_of_the_one_before_it_and_nothing_else(model_dir, text_file, tmp_path):
    out = tmp_path / "out"
    start_run(str(model_dir), str(text_file), out, out / "traces")
    with new_folder(out / "2-prune") as partial:
        (partial / "config.json").write_text("{}")
    mine = out / "1-introduction" / "chapter.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    (out / "notes.txt").write_text("mine")
    start_run(str(model_dir), str(text_file), out, out / "traces")
    assert not (out / "2-prune").exists()
    assert mine.read_text() == "years of work"
    assert (out / "notes.txt").read_text() == "mine"


HOLD = "import sys; from gpt2opt.storage import claim_folder, take_lock; take_lock(claim_folder(sys.argv[1])); print(flush=True); input()"


def test_two_runs_in_one_folder_are_refused_and_the_one_at_work_is_named(model_dir, text_file, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(ValueError, match=f"process {holder.pid} is writing to"):
            start_run(str(model_dir), str(text_file), tmp_path, tmp_path / "traces")
    finally:
        holder.kill()
        holder.communicate()
    start_run(str(model_dir), str(text_file), tmp_path, tmp_path / "traces")
