"""The tables, the chart and the caption of the classifier experiment."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.charts import bar, name_rows
from experiments.classifier.demo import demo_blocks
from experiments.classifier.run import BATCHES, ClassifierResult, VariantResult, compare_variants
from experiments.contract import Experiment, findings_table
from gpt2opt.environment import machine_label
from gpt2opt.measure.results import percentile
from gpt2opt.measure.stats import PERCENT, Estimate, over_documents, paired_ratio, paired_share_difference, share
from gpt2opt.measure.turns import again
from gpt2opt.report.chart import COLORS, CONTROL
from gpt2opt.report.tables import MISSING, Table, megabytes, milliseconds, table

ONE = "1"
"""The size of a batch of one text."""
PRECISION_COLORS = {32: COLORS["FP32"], 16: COLORS["Baseline"], 8: COLORS["INT8"]}


def hits(result: ClassifierResult, variant: VariantResult) -> list[bool]:
    """Return whether each answer is right."""
    return [answer == label for answer, label in zip(variant.answers, result.truth, strict=True)]


def gained_and_lost(right: list[bool], base: list[bool]) -> tuple[int, int]:
    """Return how many answers are right in `right` alone, and how many in `base` alone."""
    pairs = list(zip(right, base, strict=True))
    return sum(one and not other for one, other in pairs), sum(other and not one for one, other in pairs)


def macro_f1(result: ClassifierResult, variant: VariantResult) -> float:
    """Return the mean over the classes of F1, the harmonic mean of precision and recall; a class that no answer names counts 0."""
    return float(_mean_f1(*_counts(result, variant).sum(1)))


def f1_difference(result: ClassifierResult, variant: VariantResult) -> Estimate:
    """Return a variant's macro F1 minus that of torch FP32, with its interval over other texts of this kind; texts are paired."""
    own, base = _counts(result, variant), _counts(result, result.base)

    def difference(*totals: np.ndarray) -> np.ndarray:
        return _mean_f1(*totals[: len(own)]) - _mean_f1(*totals[len(own) :])

    return over_documents(difference, *own, *base, tokens=np.ones(len(result.truth)).tolist())


def _counts(result: ClassifierResult, variant: VariantResult) -> np.ndarray:
    """Return, for each class, whether a text was rightly given it, and how often it is the text's answer or its truth: (2 × classes, N)."""
    truth, answers = np.array(result.truth), np.array(variant.answers)
    rows = [row for one in range(len(result.classes)) for row in ((truth == one) & (answers == one), (truth == one) * 1 + (answers == one))]
    return np.array(rows, dtype=float)


def _mean_f1(*totals: np.ndarray) -> np.ndarray:
    right, named = np.array(totals[::2]), np.array(totals[1::2])
    return np.divide(2 * right, named, out=np.zeros_like(right), where=named > 0).mean(0)


def size_table(result: ClassifierResult) -> Table:
    """Show what each variant takes as saved and in memory, and how many of its Linear layers really are INT8."""
    rows = []
    for variant in result.variants:
        if variant.left_out:
            rows.append((variant.name, *[MISSING] * 6, f"left out: {variant.left_out}"))
            continue
        assert variant.size_bytes
        assert variant.int8
        assert result.base.size_bytes
        smaller = f"{result.base.size_bytes / variant.size_bytes:.2f}"
        resident = megabytes(variant.peak_rss_bytes) if variant.peak_rss_bytes else MISSING
        layers = [f"{count} of {result.linears}" for count in (variant.int8.stored, variant.int8.multiplied)]
        package = f"{variant.package} {variant.version}"
        rows.append((variant.name, megabytes(variant.size_bytes), smaller, resident, *layers, package, variant.note))
    header = (
        "variant", "saved, MB", "times smaller", "peak RSS, MB", "Linear stored in INT8", "Linear multiplied in INT8", "package", "how",
    )  # fmt: skip
    return table(header, rows)


def latency_table(result: ClassifierResult) -> Table:
    """Show the latency of each variant, how many times as fast as torch FP32 it is, and what the runtime and the precision each give."""
    rows = []
    for variant in _with_again(result):
        own = result.fp32_of(variant) if variant in result.measured else None
        factors = (_factor(variant, result.base), _factor(own, result.base), _factor(variant, own))
        rows.append((variant.name, *_quantiles(variant.samples_s), *factors))
    header = ("variant", "p50, ms", "p95", "p99", f"times as fast [{PERCENT}]", "of it the runtime", "of it the precision")
    return table(header, rows)


def batch_table(result: ClassifierResult) -> Table:
    """Show the latency of one text and of batches, and how many times as fast as torch FP32 a variant reads each of them."""

    def cell(variant: VariantResult, size: str) -> str:
        samples = _samples(variant, size)
        if not samples:
            return MISSING
        return f"{milliseconds(statistics.median(samples))}; {_factor(variant, result.base, size)}"

    sizes = [ONE, *map(str, BATCHES)]
    header = ("variant", *(f"batch of {size}, ms; times as fast [{PERCENT}]" for size in sizes))
    return table(header, [(variant.name, *(cell(variant, size) for size in sizes)) for variant in _with_again(result)])


def _with_again(result: ClassifierResult) -> list[VariantResult]:
    """Return what was measured, the first variant a second time behind it, if it had a second process (A/A)."""
    base, *others = result.measured
    twice = replace(base, name=again(base.name), samples_s=result.again_s, batches=result.again_batches)
    return [base, *([twice] if result.again_s else []), *others]


def _quantiles(samples_s: Sequence[float]) -> list[str]:
    return [milliseconds(percentile(samples_s, share)) for share in (0.5, 0.95, 0.99)]


def _samples(variant: VariantResult, size: str) -> tuple[float, ...]:
    return variant.samples_s if size == ONE else variant.batches.get(size, ())


def _factor(variant: VariantResult | None, base: VariantResult | None, size: str = ONE) -> str:
    """Show how many times as fast as `base` a variant is, run by run; times of two devices are not divided."""
    if variant is None or base is None or variant.device != base.device:
        return MISSING
    ratio = paired_ratio(_samples(base, size), _samples(variant, size))
    return "1" if variant is base else f"{ratio}" + ("" if ratio.measurable else ", no measurable difference")


def answer_table(result: ClassifierResult) -> Table:
    """Show accuracy and macro F1 of each variant, and how they differ from those of torch FP32 on the same texts."""
    rows = []
    for variant in result.measured:
        right, base = hits(result, variant), hits(result, result.base)
        row = [variant.name, f"{share(sum(right), len(right)):.4f}", f"{macro_f1(result, variant):.4f}"]
        if variant is result.base:
            rows.append((*row, *[""] * 4))
            continue
        changed = sum(a != b for a, b in zip(variant.answers, result.base.answers, strict=True))
        won, lost = gained_and_lost(right, base)
        f1 = f"{f1_difference(result, variant):+.4f}" if changed else "none: the same answers"  # the jackknife would give it no width
        answers = f"{changed} ({won} gained, {lost} lost)"
        rows.append((*row, f"{_share_difference(result, variant):+.4f}", f1, answers, f"{mcnemar(won, lost):.3f}"))
    header = (
        "variant", f"accuracy [{PERCENT}]", "macro F1", f"accuracy − FP32's [{PERCENT}]", f"macro F1 − FP32's [{PERCENT}]",
        "answers changed", "McNemar p",
    )  # fmt: skip
    return table(header, rows)


def mcnemar(won: int, lost: int) -> float:
    """Return the p-value of McNemar's exact test: a case that only one of two hits is as likely to be the one's as the other's."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def caption(result: ClassifierResult) -> str:
    """Say what was measured on what, which variants lose answers, and what is not INT8."""
    lost = [each.name for each in result.measured[1:] if _share_difference(result, each).high < 0]
    answers = (
        f"Measurably fewer right answers than torch FP32: {', '.join(lost)}." if lost else "No variant loses a measurable share of answers."
    )
    left = "".join(f" Left out: {variant.name} ({variant.left_out})." for variant in result.variants if variant.left_out)
    scored_by = "the same model" if result.scored == result.timed else result.scored
    return (
        f"Size and speed: {result.timed}, {result.linears} Linear layers. Answers: by {scored_by}; task: {result.data}. "
        f"{answers}{left} {machine_label(result.environment)}; one text of {result.tokens} tokens, {result.runs} runs of each variant in "
        "turns, each in a process of its own; factors are medians of the ratios within a round. Sizes are counted and have no interval."
    )


def _share_difference(result: ClassifierResult, variant: VariantResult) -> Estimate:
    return paired_share_difference(*gained_and_lost(hits(result, variant), hits(result, result.base)), len(result.truth))


def plot_classifier(result: ClassifierResult) -> list[Axes]:
    """Draw size, latency (bar: p50, whisker: p95, dot: p99) and the difference of accuracy to torch FP32, a row for each variant."""
    variants = result.measured
    figure, (size, latency, answers) = plt.subplots(1, 3, figsize=(14, 1.8 + 0.5 * len(variants)), layout="constrained")
    for row, variant in enumerate(variants):
        own = PRECISION_COLORS.get(variant.bits, CONTROL)
        assert variant.size_bytes
        bar(size, row, variant.size_bytes / 1e6, own, megabytes(variant.size_bytes))
        p50, p95, p99 = (percentile(variant.samples_s, share) * 1e3 for share in (0.5, 0.95, 0.99))
        bar(latency, row, p50, own, f"p50 {p50:.3g}", end=p99)
        latency.errorbar(p50, row, xerr=[[0], [p95 - p50]], fmt="none", color="black", capsize=3, linewidth=1)
        latency.plot(p99, row, "o", color="black", markersize=3)
        if variant is not result.base:
            found = _share_difference(result, variant).scaled(100)
            answers.errorbar(found.value, row, xerr=found.reach, fmt="o", color=own, capsize=4)
    name_rows((size, latency, answers), [variant.name for variant in variants])
    size.set(title="As saved", xlabel="MB")
    latency.set(title=f"Latency of one text of {result.tokens} tokens", xlabel="ms; bar: p50, whisker: p95, dot: p99")
    accuracy = statistics.fmean(hits(result, result.base))
    answers.axvline(0, color="black", linewidth=0.8)
    answers.set(title=f"Accuracy, beside {accuracy:.1%} of torch FP32", xlabel=f"percentage points, {PERCENT} paired intervals")
    figure.suptitle(f"A sequence classifier in FP32, FP16 and INT8 on {machine_label(result.environment)}")
    return [size, latency, answers]


EXPERIMENT = Experiment(
    ClassifierResult,
    compare_variants,
    tables=lambda result: {
        "Size, and what really is INT8": size_table(result),
        "Latency": latency_table(result),
        "Latency of batches": batch_table(result),
        "Answers on the same texts": answer_table(result),
        **{f"The block that the demo ends with, for {name}": findings_table(lines) for name, lines in demo_blocks(result).items()},
    },
    charts=lambda result: {"classifier": plot_classifier(result)[0].figure},
    caption=caption,
)
