"""What `gpt2opt perplexity` scores of a text that it finds by itself, beside what a run scores of it."""

import pytest

from gpt2opt.apps.commands import score_model
from gpt2opt.settings import Settings


@pytest.mark.parametrize("run_scores", [500, 10**9])
def test_it_says_where_a_run_scores_less_of_the_same_text(model_dir, monkeypatch, run_scores):
    whole = "part. " * 300
    found = type("Found", (), {"score": [type("Document", (), {"text": whole})], "revision": "1", "__str__": lambda self: "words"})()
    monkeypatch.setattr("gpt2opt.apps.commands.find_texts", lambda text: found)
    monkeypatch.setattr(Settings, "score_bytes", run_scores)
    _, quality = score_model(str(model_dir), "docs")
    assert ("all 1,800 bytes of the scored part, of which a run scores the first 500" in quality.protocol) == (run_scores == 500)
