"""How sure a figure is: the only intervals of this project, all of one confidence, and by methods that hold for few samples.

Rounds in which models take turns give ratios, and of these the median and its interval (`paired_ratio`). A text gives sums over its
documents, and of these a statistic and its interval over other such documents (`over_documents`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
PERCENT = f"{CONFIDENCE:.0%}"
"""What stands in captions and headers."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval, which are infinite (0 and infinite for a ratio) where there are too few samples for one."""

    value: float
    low: float
    high: float

    @property
    def measurable(self) -> bool:
        """Return whether this ratio shows a difference: whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(samples: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return the median of samples ÷ base, pair by pair, so that a slow minute of the machine cancels out. See `median`.

    Raises:
        ValueError: some sample has no partner, or there is none at all.
    """
    if len(samples) != len(base) or not len(samples):
        raise ValueError(f"{len(samples)} and {len(base)} samples can't be paired; expected as many of each, at least 1")
    return median(np.divide(samples, base))


def median(samples: Sequence[float]) -> Estimate:
    """Return the median of positive samples, whatever their distribution.

    The interval goes from the k-th least to the k-th greatest sample. The number of samples below the true median is binomial (n, 1/2), so
    it covers with 1 − 2 P(fewer than k), of which the greatest k is taken that keeps the confidence (Conover 1999, Practical Nonparametric
    Statistics, 3.2). Below 6 samples even the range covers less (93.75% at 5): it is joined with Student's interval of the mean logarithm,
    which holds for distributions symmetrical on a logarithmic scale, and by simulation nearly so for skewed ones at such numbers.
    """
    ordered, count = np.sort(np.asarray(samples, dtype=float)), len(samples)
    value = float(np.median(ordered))
    if count < 2:
        return Estimate(value, 0.0, math.inf)
    rank = _samples_left_out(count)
    low, high = ordered[rank], ordered[-1 - rank]
    if 1 - 2 * 0.5**count < CONFIDENCE:
        logs = np.log(ordered)
        reach = _student(count - 1) * logs.std(ddof=1) / math.sqrt(count)
        low, high = min(low, np.exp(logs.mean() - reach)), max(high, np.exp(logs.mean() + reach))
    return Estimate(value, float(low), float(high))


def _samples_left_out(count: int) -> int:
    """Return how many samples can be left out at each end so that the rest still covers the median; 0 where none can."""
    missed, left_out = 2 * 0.5**count, 0
    while (missed := missed + 2 * math.comb(count, left_out + 1) * 0.5**count) <= 1 - CONFIDENCE:
        left_out += 1
    return left_out


def ratio_of_medians(samples: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return median(samples) ÷ median(base) of samples that are not paired.

    The two intervals are joined on a logarithmic scale by MOVER (Zou and Donner 2008, Statistics in Medicine 27): the distances from the
    medians to the ends add up as squares.
    """
    one, other = median(samples), median(base)
    value = one.value / other.value
    if min(len(samples), len(base)) < 2:
        return Estimate(value, 0.0, math.inf)
    down = math.hypot(math.log(one.value / one.low), math.log(other.high / other.value))
    up = math.hypot(math.log(one.high / one.value), math.log(other.value / other.low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up))


def over_documents(statistic: Callable[..., np.ndarray], *sums: Sequence[float], tokens: Sequence[float]) -> Estimate:
    """Return a statistic of totals over documents, and its interval over other texts of such documents.

    The standard error is the jackknife's, by leaving out each document in turn (Efron and Stein 1981). A few long documents make most of
    a total, so Student's t has (Σ w²)² ÷ Σ w⁴ degrees of freedom, w being the documents' shares of the tokens, and at most n − 1: that is
    Satterthwaite's number for a mean of documents with weights (Bell and McCaffrey 2002). By simulation it covers 94% to 97% from 5
    documents of skewed sizes on; 91% where, besides, long documents are harder or easier than short ones.

    Args:
        statistic: totals, in the order of `sums`, each a number or an array -> the statistic, elementwise, on a scale where its errors are
            about symmetrical: nats, or the logarithm of a positive ratio.
        sums: per document, as many of each as of `tokens`.
        tokens: per document.
    """
    by_document, weights = np.array(sums, dtype=float), np.asarray(tokens, dtype=float) / np.sum(tokens)
    totals, count = by_document.sum(1), len(weights)
    value = float(statistic(*totals))
    if count < 2:
        return Estimate(value, -math.inf, math.inf)
    without = statistic(*(totals[:, None] - by_document))
    error = math.sqrt((count - 1) * np.var(without))
    freedom = min(count - 1, np.sum(weights**2) ** 2 / np.sum(weights**4))
    reach = _student(freedom) * error
    return Estimate(value, value - reach, value + reach)


def mean_interval(sums: Sequence[float], tokens: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of Σ sums ÷ Σ tokens, see `over_documents`; None for fewer than two documents."""
    found = over_documents(np.divide, sums, tokens, tokens=tokens)
    return (found.low, found.high) if len(sums) > 1 else None


def positive_mean_interval(sums: Sequence[float], tokens: Sequence[float]) -> tuple[float, float] | None:
    """Return the interval of Σ sums ÷ Σ tokens, taken on a logarithmic scale, since sums that can't be negative are skewed.

    None for fewer than two documents, and where all but one add up to nothing: then there is no logarithm, and one tells nothing.
    """
    if len(sums) < 2 or not min(sum(sums) - one for one in sums) > 0:
        return None
    found = over_documents(lambda total, scored: np.log(total / scored), sums, tokens, tokens=tokens)
    return float(np.exp(found.low)), float(np.exp(found.high))


def percentile_99(values: np.ndarray, owners: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """Return the 99th percentile of values (N,), and its interval; None where there are too few documents.

    The interval is Woodruff's (1952, Journal of the American Statistical Association 47): that of the share of the values that are as
    great, see `positive_mean_interval`, read back from the values in their order.

    Args:
        owners: (N,) int64, the document of each value.
    """
    ordered = np.sort(values)

    def reached_by(share: float) -> float:
        return float(ordered[max(0, min(int((1 - share) * len(ordered)), len(ordered) - 1))])

    p99 = reached_by(0.01)
    tokens, as_great = np.bincount(owners), np.bincount(owners, values >= p99)
    shares = positive_mean_interval(as_great[tokens > 0].tolist(), tokens[tokens > 0].tolist())
    return p99, shares and (reached_by(shares[1]), reached_by(shares[0]))


def _student(freedom: float) -> float:
    """Return how many standard errors Student's t reaches with that many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
