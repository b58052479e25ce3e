"""Two models in lock-step: each writes its own text, and the distance is measured on the reference's text."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from gpt2opt.apps.ui.answers import answers, divergence, read_prompt
from gpt2opt.apps.ui.models import Cost, Loaded, Prepared
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.sources.models import load_tokenizer

PROMPT = "Node 7 of graph"


def loaded(folder) -> Loaded:
    return Loaded(Prepared("tiny", folder, Cost()), load_ir(folder), load_tokenizer(folder))


@pytest.fixture(scope="module")
def fp32(run_dir) -> Loaded:
    return loaded(run_dir / "4-control-fp32")


@pytest.fixture(scope="module")
def int8(run_dir) -> Loaded:
    return loaded(run_dir / "4-quantize")


@pytest.fixture(scope="module")
def prompt(fp32) -> list[int]:
    return read_prompt([fp32], PROMPT, settings(), False)


def settings(**changed) -> DecodingSettings:
    return DecodingSettings(**{"max_new_tokens": 40, "do_sample": True, "seed": 4, "top_logprobs": 6, **changed})


def ids(events, side=0) -> list[int]:
    return [event["id"] for event in events if event["side"] == side]


def test_each_writes_what_it_writes_alone(fp32, int8, prompt):
    events = list(answers([fp32, int8], prompt, settings(), lambda: False))
    for side, model in enumerate((fp32, int8)):
        assert ids(events, side) == ids(list(answers([model], prompt, settings(), lambda: False)))
    assert ids(events, 0) != ids(events, 1)  # they part, or this shows little
    assert [event["side"] for event in events] == [0, 1] * 40


def test_the_distance_is_that_of_both_models_on_the_references_text(fp32, int8, pruned, prompt):
    events = list(answers([fp32, int8], prompt, settings(), lambda: False))
    text = prompt + ids(events)
    with torch.inference_mode():
        log_p = pruned(torch.tensor([text])).logits[0].log_softmax(-1).numpy()
    decoder = int8.model.decoder([prompt], 40)
    rows = [decoder.prefill()[0].copy()]
    for token in ids(events)[:-1]:
        rows.append(decoder.decode(np.array([[token]]))[0].copy())
    first = len(text) - 40 - 1
    expected = [
        (np.exp(log_p[first + step]) * (log_p[first + step] - log_softmax(row.astype(np.float64)))).sum() for step, row in enumerate(rows)
    ]
    np.testing.assert_allclose([event["kl_nats"] for event in events if event["side"] == 0], expected, rtol=1e-3, atol=1e-6)


def test_a_model_has_no_distance_from_itself(fp32, prompt):
    events = list(answers([fp32, fp32], prompt, settings(), lambda: False))
    assert ids(events, 0) == ids(events, 1)
    assert max(event["kl_nats"] for event in events) < 1e-6


def test_one_text_may_end_before_the_other(fp32, int8, prompt):
    """By a stop string that only one of them writes."""
    events = list(answers([fp32, int8], prompt, settings(), lambda: False))
    pieces = {side: [event["piece"] for event in events if event["side"] == side] for side in (0, 1)}
    for ends, goes_on in ((0, 1), (1, 0)):
        stop = next(piece for piece in pieces[ends] if piece.strip() and piece not in "".join(pieces[goes_on]))
        found = list(answers([fp32, int8], prompt, settings(stop_strings=(stop,)), lambda: False))
        last = {side: [event for event in found if event["side"] == side][-1] for side in (0, 1)}
        assert (last[ends]["finish"], last[goes_on]["finish"]) == ("stop string", "length")
        measured = [event["kl_nats"] for event in found if event["side"] == 0]
        assert None not in measured


def test_a_stop_ends_both(fp32, int8, prompt):
    asked = iter([False] * 9 + [True] * 9)
    events = list(answers([fp32, int8], prompt, settings(), lambda: next(asked)))
    assert len(events) == 11
    assert {event["side"]: event["finish"] for event in events} == {0: "stopped", 1: "stopped"}


def test_models_of_different_tokens_are_refused(fp32, tmp_path):
    class Other:
        def get_vocab(self):
            return {"a": 0}

    other = Loaded(fp32.prepared, fp32.model, Other())
    with pytest.raises(ValueError, match="different tokens; choose two precisions of one model"):
        read_prompt([fp32, other], PROMPT, settings(), False)


def test_divergence_by_arithmetic():
    assert divergence(np.log([0.5, 0.5]), np.log([0.25, 0.75])) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert divergence(np.zeros(4), np.zeros(4) + 7) == 0
