"""A run begins only where it can end."""

import pytest

from gpt2opt.stages.run import start_run


def test_several_processes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were launched.*gpt2opt finetune"):
        start_run("bundled", "docs", tmp_path / "out", tmp_path / "traces")
    assert not list(tmp_path.iterdir())
