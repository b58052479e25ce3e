"""Which engines are faster than ours, which are slower, and of which that can't be said: one test for each, and one correction for all."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.race.results import FIGURES, Figure, RaceResult, peers
from gpt2opt.measure.stats import CONFIDENCE

FASTER, EVEN, SLOWER = "faster", "even", "slower"


def p_value(samples: Sequence[float], base: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired t-test on the logarithms of samples ÷ base; 1 where it has no answer.

    A test of ranks or signs would need more rounds than a race has: seven can give no p-value below 2 ÷ 2⁷ = 0.016, which does not
    outlast a correction for a dozen comparisons.
    """
    from scipy.stats import ttest_1samp

    logs = np.log(np.divide(samples, base))
    found = float(ttest_1samp(logs, 0).pvalue) if len(logs) > 1 else math.nan
    return 1.0 if math.isnan(found) else found


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which hypotheses are rejected so that the chance of any false rejection stays below 1 − `CONFIDENCE`, however they depend.

    Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure: the k-th smallest of n p-values is held against
    (1 − confidence) ÷ (n − k + 1), up to the first that is too large.
    """
    rejected = [False] * len(p_values)
    for done, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > (1 - CONFIDENCE) / (len(p_values) - done):
            break
        rejected[place] = True
    return rejected


def verdicts(result: RaceResult) -> dict[tuple[Figure, str], str]:
    """Return for each figure and each peer that has it whether the peer is faster than ours, even or slower.

    Even is who is not significantly different by Holm's correction over all comparisons of the race.
    """
    pairs = [(figure, peer) for figure in FIGURES for peer in peers(result, figure) if figure.ratio(peer, result.ours)]
    differ = holm([p_value(figure.per_round(peer), figure.per_round(result.ours)) for figure, peer in pairs])
    found = {}
    for (figure, peer), differs in zip(pairs, differ, strict=True):
        ratio = figure.ratio(peer, result.ours)
        assert ratio
        found[figure, peer.name] = EVEN if not differs else FASTER if (ratio.value > 1) == figure.more_is_better else SLOWER
    return found
