"""Choices of heads and recovered shares by arithmetic, and the whole experiment on a tiny model."""

import copy
import dataclasses
import json

import matplotlib as mpl
import numpy as np
import pytest
import torch

from experiments.pruning import (
    IMPORTANCE,
    RANDOM,
    PruningControls,
    Recovery,
    Score,
    compare_pruning,
    curve_table,
    head_choices,
    head_magnitude,
    plot_pruning,
    ratio_table,
    recovery_caption,
    recovery_table,
)
from gpt2opt.measure.results import Quality
from gpt2opt.measure.stats import Estimate
from gpt2opt.storage import from_json

HEAD_DIM = 8


def quality(nats_a_token: float, spread: float = 0) -> Quality:
    """Return three windows of 10 tokens; the first and the last differ by twice the spread."""
    return Quality(tuple(10 * (nats_a_token + d) for d in (-spread, 0, spread)), (10, 10, 10), 25, 150, "a text")


@pytest.fixture
def controls() -> PruningControls:
    scores = [Score(IMPORTANCE, None, count, quality(4 + 0.1 * count)) for count in (2, 6)]
    scores += [Score("first heads", None, count, quality(4 + 0.2 * count)) for count in (2, 6)]
    scores += [Score(RANDOM, seed, count, quality(4 + 0.1 * count + 0.1 * seed)) for count in (2, 6) for seed in range(5)]
    recovery = Recovery(2, 1, 100, tuned_pruned=quality(3.9), tuned_unpruned=quality(3.8))
    return PruningControls({}, "bundled (from the argument)", 12, quality(4), tuple(scores), recovery)


def test_magnitude_is_the_norm_of_all_weights_that_leave_with_a_head(model):
    found = head_magnitude(model)
    attention = [block.attn for block in model.transformer.h]
    whole = [sum(float(p.weight.detach().double().square().sum()) for p in (a.c_attn, a.c_proj)) for a in attention]
    np.testing.assert_allclose((found**2).sum(1), whole)
    silenced = copy.deepcopy(model)
    head = slice(3 * HEAD_DIM, 4 * HEAD_DIM)
    with torch.no_grad():
        silenced.transformer.h[1].attn.c_proj.weight[head] = 0
        silenced.transformer.h[1].attn.c_attn.weight.view(-1, 3, 12 * HEAD_DIM)[:, :, head] = 0
    expected = found.copy()
    expected[1, 3] = 0
    np.testing.assert_allclose(head_magnitude(silenced), expected)


def test_choices_are_importance_its_controls_and_one_order_a_seed(model):
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    choices, again = head_choices(model, [ids], 5), head_choices(model, [ids], 5)
    assert [rule for rule, _, _ in choices] == [IMPORTANCE, "magnitude", "first heads", *[RANDOM] * 5]
    assert choices[2][2].argsort(1).tolist() == [list(range(12))] * 2
    assert len({order.tobytes() for _, _, order in choices}) == 8
    assert all((a[2] == b[2]).all() for a, b in zip(choices, again, strict=True))


def test_recovered_share_is_taken_beside_the_tuned_control(controls):
    found = {name: estimate.value for name, estimate in controls.estimates.items()}
    assert found == pytest.approx(
        {"cost": 0.2, "cost left": 0.1, "gain of pruned": 0.3, "gain of unpruned": 0.2, "without control": 1.5, "recovered": 0.5}
    )
    caption = recovery_caption(controls)
    assert "so 50% [50%, 50%] is recovered; without the control it would seem to be 150% [150%, 150%]" in caption
    assert [row[2][:6] for row in recovery_table(controls).rows] == ["1.0000", "1.2214", "0.9048", "0.8187"]


def test_interval_redraws_the_same_windows_for_all_models(controls):
    """A difficult window is difficult for all four models, so the interval of their difference has no width."""
    noisy = dataclasses.replace(
        controls,
        unpruned=quality(4, 1),
        scores=tuple(dataclasses.replace(score, quality=quality(score.quality.nll_nats / 30, 1)) for score in controls.scores),
        recovery=dataclasses.replace(controls.recovery, tuned_pruned=quality(3.9, 1), tuned_unpruned=quality(3.8, 1)),
    )
    cost = noisy.estimates["cost"]
    assert (cost.value, cost.low, cost.high) == pytest.approx((0.2, 0.2, 0.2))


def test_of_a_cost_that_may_be_nothing_no_share_is_named(controls):
    scores = tuple(dataclasses.replace(score, quality=quality(4.001, 0.5)) for score in controls.scores)
    doubtful = dataclasses.replace(controls, scores=scores)
    assert doubtful.estimates["cost"].low < 0
    assert "not measurably different from 0, so there is no share of it to recover" in recovery_caption(doubtful)


def test_tables_show_mean_and_range_of_the_seeds_and_paired_ratios(controls):
    header, rows = curve_table(controls).header, curve_table(controls).rows
    assert header == ("heads removed per layer", IMPORTANCE, "first heads", RANDOM)
    assert rows[0] == ("0", "54.60", "54.60", "54.60")
    assert rows[1] == ("2 of 12 (17%)", "66.69", "81.45", "81.45 (66.69 to 99.48)")  # exp of 4.2, 4.4; 4.2 to 4.6 and their mean
    assert ratio_table(controls).rows[0] == ("2 of 12", "0.8187 [0.8187, 0.8187]", "0.8187 [0.8187, 0.8187]")


def test_chart_has_a_curve_for_each_rule_and_a_band_for_the_seeds(controls):
    mpl.use("Agg")
    curves, recovery = plot_pruning(controls)
    assert [line.get_label() for line in curves.lines] == [IMPORTANCE, "first heads", "random: mean, and range of 5 seeds"]
    assert curves.lines[0].get_xdata() == pytest.approx([0, 2 / 12, 0.5])
    assert curves.lines[0].get_ydata() == pytest.approx(np.exp([4, 4.2, 4.6]))
    (band,) = curves.collections
    assert max(band.get_paths()[0].vertices[:, 1]) == pytest.approx(np.exp(5))
    assert [bar.get_width() for bar in recovery.patches] == pytest.approx([0.2, -0.1, -0.2])
    assert "50% [50%, 50%] recovered" in recovery.get_title()


@pytest.mark.slow
def test_controls_of_a_tiny_model(model_dir, text_file):
    found = compare_pruning(str(model_dir), str(text_file), fractions=(0, 0.5, 0.52), score_bytes=8000, epochs=0.3)
    assert (found.heads, found.counts) == (12, [2, 6])  # of the run's fraction, and one for two that come to the same
    assert [len(found.of(rule, 6)) for rule in found.rules] == [1, 1, 1, 5]
    perplexities = {score.quality.perplexity for score in found.scores} | {found.unpruned.perplexity}
    assert len(perplexities) == 17
    assert found.recovery.rows > 50
    assert found.estimates["gain of unpruned"].low > 0
    assert isinstance(found.estimates["recovered"], Estimate)
    assert from_json(PruningControls, json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_wrong_input_is_said_at_once():
    with pytest.raises(ValueError, match="seeds=4, expected at least 5"):
        compare_pruning(seeds=4)
    with pytest.raises(ValueError, match="epochs=0, expected more than 0"):
        compare_pruning(epochs=0)
