import os
from pathlib import Path

import pytest

from experiments import waiting
from experiments.contract import write_json
from experiments.waiting import EXPERIMENT, POLICIES, WORKS, compare_waiting
from gpt2opt.measure.child import Child


class StubWork:
    """Takes the place of `Work`: says what its process was told, as seconds."""

    def seconds(self, model: str) -> dict[str, float]:
        assert Path(model).is_dir()
        return dict.fromkeys(WORKS, float(os.environ.get("GOMP_SPINCOUNT", 1)))


class StubBusy:
    """Takes the place of `Busy`, and needs no core."""


@pytest.fixture
def result(monkeypatch, model_dir):
    monkeypatch.setattr(waiting, "Work", StubWork)
    monkeypatch.setattr(waiting, "Busy", StubBusy)
    monkeypatch.setattr(waiting, "SETTLE_S", 0)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    return compare_waiting(str(model_dir), rounds=2)


@pytest.mark.slow
def test_every_way_of_waiting_is_told_to_its_own_process_and_compared_with_the_first(result, tmp_path):
    first, *others = POLICIES
    assert [waited.policy for waited in result.waited] == [first, f"{first} again", *others]
    for waited, asked in zip(result.waited, (300_000, 300_000, 20_000, 1000, 1), strict=True):
        assert waited.alone == waited.beside == dict.fromkeys(WORKS, (asked, asked))
    tables = EXPERIMENT.tables(result)
    assert tables["Quantizing"].rows[2] == (
        "GOMP_SPINCOUNT=20000", "2e+04", "0.067 [0.067, 0.067]", "2e+04", "0.067 [0.067, 0.067]",
    )  # fmt: skip
    assert "2 rounds in turns" in EXPERIMENT.caption(result)
    write_json(tmp_path / "waiting.json", result)


def test_the_busy_process_is_there_meanwhile_and_gone_afterwards(monkeypatch):
    children = []
    monkeypatch.setattr(waiting, "Child", lambda *given, **named: children.append(Child(*given, **named)) or children[-1])
    monkeypatch.setattr(waiting, "Busy", StubBusy)
    monkeypatch.setattr(waiting, "SETTLE_S", 0)
    with waiting.busy_process():
        assert children[0]._process.poll() is None
    assert children[0]._process.poll() is not None


def test_one_round_is_refused():
    with pytest.raises(ValueError, match="rounds=1, expected at least 2"):
        compare_waiting("bundled", rounds=1)
