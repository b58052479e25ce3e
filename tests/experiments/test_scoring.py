"""The harness and we score one text, and the table says who took how long."""

import dataclasses
import json

import pytest

from experiments import scoring
from experiments.scoring import Scored, Scorer, ScoringComparison, compare_scoring, scoring_table
from gpt2opt.storage import from_json


@pytest.mark.slow
def test_both_score_the_same_tokens_and_agree(model_dir, text_file, monkeypatch):
    ours, *_, theirs = scoring.CONTESTANTS
    monkeypatch.setattr(scoring, "CONTESTANTS", {name: scoring.CONTESTANTS[name] for name in (ours, theirs)})
    found = compare_scoring(str(model_dir), str(text_file), rounds=2)
    nats = [turn.nats for scorer in found.scorers for turn in scorer.turns]
    assert len(nats) == 3 * 2  # ours takes part twice
    assert found.tokens > 0
    # The harness reads the last window of a document with as much context as fits, and so some tokens twice. Here a window is 64 tokens.
    assert nats == pytest.approx([nats[0]] * len(nats), rel=1e-2)
    assert from_json(ScoringComparison, json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_table_pairs_the_turns_of_a_round():
    ours, theirs = (
        Scorer(name, "1", tuple(Scored(seconds, 100.0, 2_000_000) for seconds in taken))
        for name, taken in (("ours", (1.0, 2.0, 4.0)), ("theirs", (2.0, 4.0, 8.0)))
    )
    rows = scoring_table(ScoringComparison("2026-01-01", {}, "a model", "a text", 3, 50, (ours, theirs))).rows
    assert rows[1] == ("theirs", "1", "12", "2.00 [2.00, 2.00]", "2.00000", "2")


def test_one_round_is_refused(model_dir):
    with pytest.raises(ValueError, match="rounds=1"):
        compare_scoring(str(model_dir), rounds=1)
