"""Nothing of a user's is deleted or overwritten, and what is written appears whole or not at all."""

import os
import subprocess
import sys
import time

import pytest

from gpt2opt import storage
from gpt2opt.storage import (
    add_file,
    check_file,
    check_folder,
    claim_folder,
    new_folder,
    remove_folder,
    take_lock,
    write_result,
    write_whole,
)

JSON = '{"schema": "gpt2opt.example/1"}'


def fill(folder, **files):
    with new_folder(folder) as partial:
        for name, text in files.items():
            (partial / f"{name}.json").write_text(text)


def fail(folder):
    with new_folder(folder) as partial:
        (partial / "config.json").write_text("2")
        raise ZeroDivisionError


def shown(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != storage.MARKER}


def test_a_folder_appears_with_its_files_and_is_replaced_by_the_next(tmp_path):
    fill(tmp_path / "out", config="1", old="1")
    fill(tmp_path / "out", config="2", new="2")
    assert shown(tmp_path / "out") == {"config.json", "new.json"}
    assert (tmp_path / "out/config.json").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_is_added_goes_with_the_others(tmp_path):
    fill(tmp_path / "out", config="1")
    add_file(tmp_path / "out", "more", b"1")
    assert shown(tmp_path / "out") == {"config.json", "more"}
    fill(tmp_path / "out", config="2")
    assert shown(tmp_path / "out") == {"config.json"}
    (tmp_path / "a_users").mkdir()
    add_file(tmp_path / "a_users", "more", b"1")
    assert [path.name for path in (tmp_path / "a_users").iterdir()] == ["more"]


def test_anybody_may_read_what_was_written(tmp_path):
    fill(tmp_path / "out", config="1")
    assert (tmp_path / "out").stat().st_mode & 0o055 == 0o055


@pytest.mark.parametrize("use", [fill, claim_folder, check_folder])
def test_a_folder_of_a_users_is_refused_and_left_as_it_is(use, tmp_path):
    (tmp_path / "keep.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and was not written by gpt2opt"):
        use(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_the_current_folder_is_treated_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(".", config="1")
    assert shown(tmp_path) == {"config.json"}
    (tmp_path / storage.MARKER).unlink()
    with pytest.raises(ValueError, match="is not empty"):
        fill(".", config="2")


def test_a_users_files_in_a_folder_of_ours_survive(tmp_path):
    out = tmp_path / "out"
    fill(out, config="1")
    (out / "notes.txt").write_text("mine")
    (out / "later.json").write_text("mine")
    fill(out, config="2", later="2")
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "later.json.kept").read_text() == "mine"
    remove_folder(out)
    assert shown(out) == {"notes.txt", "later.json.kept"}


def test_what_fails_leaves_nothing_and_the_earlier_version_as_it_was(tmp_path):
    fill(tmp_path / "old", config="1")
    for folder in ("old", "new/folders"):
        with pytest.raises(ZeroDivisionError):
            fail(tmp_path / folder)
    assert shown(tmp_path) == {"old/config.json"}
    assert not (tmp_path / "new").exists()


def test_a_kill_while_files_move_leaves_nothing_that_loads_and_the_next_run_cleans_up(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, config="1", weights="1")

    def killed(source, target):
        if str(target).endswith("config.json"):
            raise KeyboardInterrupt
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(out, config="2", weights="2")
    assert shown(out) == {"weights.json"}  # what every reader opens first is not there
    monkeypatch.undo()
    (out / ".gpt2opt-stale").mkdir()
    fill(out, config="3", weights="3")
    assert shown(out) == {"config.json", "weights.json"}
    assert not (out / ".gpt2opt-stale").exists()


@pytest.mark.parametrize("kind", ["link", "mount"])
def test_a_link_and_a_mounted_volume_are_written_in_place(kind, tmp_path, monkeypatch):
    volume, out = tmp_path / "volume", tmp_path / "out"
    volume.mkdir()
    if kind == "link":
        out.symlink_to(volume)
    else:
        out, rename = volume, os.rename

        def busy(source, target, *arguments, **options):
            if os.fspath(volume) in (os.fspath(source), os.fspath(target)):
                raise OSError(16, "Device or resource busy")
            return rename(source, target, *arguments, **options)

        monkeypatch.setattr(os, "rename", busy)
    fill(out, config="1")
    fill(out, config="2")
    assert out.is_symlink() == (kind == "link")
    assert (volume / "config.json").read_text() == "2"


def test_a_marker_that_names_files_elsewhere_is_not_believed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    out = tmp_path / "out"
    fill(out, config="1")
    (out / storage.MARKER).write_text('{"files": ["../thesis.txt", "config.json"]}')
    remove_folder(out)
    assert shown(tmp_path) == {"thesis.txt", "out/config.json"}


def test_a_file_is_replaced_only_if_it_says_that_it_came_from_here(tmp_path):
    path = tmp_path / "result.json"
    write_result(path, JSON)
    write_result(path, JSON)
    path.write_text("mine")
    with pytest.raises(ValueError, match="was not written by gpt2opt"):
        write_result(path, JSON)
    assert path.read_text() == "mine"


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        check_file(tmp_path)


def test_a_file_that_can_not_be_written_leaves_the_one_before_it(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, JSON)
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_result(path, JSON.replace("1", "2"))
    assert path.read_text() == JSON
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "real.ipynb").write_text("1")
    (tmp_path / "link.ipynb").symlink_to("real.ipynb")
    write_whole(tmp_path / "link.ipynb", "2")
    assert (tmp_path / "real.ipynb").read_text() == "2"


HOLD = "import sys, time; from gpt2opt.storage import take_lock; take_lock(sys.argv[1]); print('held', flush=True); time.sleep(60)"


def test_a_folder_in_use_names_the_process_and_a_stale_lock_is_cleared(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} is writing to"):
            take_lock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / storage.LOCK).exists()
    start = time.monotonic()
    take_lock(tmp_path).release()
    assert time.monotonic() - start < 30
    assert not (tmp_path / storage.LOCK).exists()


def test_a_process_may_take_a_lock_that_it_holds(tmp_path):
    first, second = take_lock(tmp_path), take_lock(tmp_path)
    second.release()
    assert (tmp_path / storage.LOCK).exists()
    first.release()
    assert not (tmp_path / storage.LOCK).exists()
