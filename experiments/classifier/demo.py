"""The block of figures that the DistilBERT demo ends with, each line beside what this run gives, with a verdict.

The demo calls its optimized model INT8, or FP16 where its torch has no INT8 engine; so each line is judged for both.
"""

import statistics

from experiments.classifier.run import ClassifierResult, VariantResult
from experiments.classifier.variants import TorchFp16, TorchInt8
from experiments.contract import CONFIRMED, REFUTED, Finding
from gpt2opt.measure.stats import Estimate, paired_ratio

MIB = 2**20
"""What the demo calls MB."""
ABOUT = 0.02
"""How far from a figure, as a share of it, lies what the demo calls about that figure."""
OPEN = "not decided: the interval reaches beyond the claim"
ANOTHER_MODEL, ANOTHER_MACHINE = "not judged: it is of another model", "not judged: it is of another machine"


def demo_blocks(result: ClassifierResult) -> dict[str, list[Finding]]:
    """Return the block for each form of the classifier that the demo may have ended with, as far as they were measured."""
    return {each.name: demo_block(result.base, each) for each in result.measured if each.name in (TorchFp16.name, TorchInt8.name)}


def demo_block(base: VariantResult, variant: VariantResult) -> list[Finding]:
    """Judge what the demo claims, given its FP32 model and its optimized one."""
    assert base.size_bytes
    assert variant.size_bytes
    before, after = base.size_bytes / MIB, variant.size_bytes / MIB
    slow, fast = (statistics.median(each.samples_s) * 1e3 for each in (base, variant))
    speed = paired_ratio(base.samples_s, variant.samples_s)
    saved = Estimate(*(1 - 1 / times for times in (speed.value, speed.low, speed.high)))
    saved_mib = before - after
    known = judge(before, 255 * (1 - ABOUT), 255 * (1 + ABOUT)) == CONFIRMED
    small = judge(after, 128 * (1 - ABOUT), 128 * (1 + ABOUT))
    twice = (1.95, 2.25)
    return [
        Finding("FP32 model size: about 255 MiB", CONFIRMED if known else ANOTHER_MODEL, f"{before:.1f} MiB"),
        Finding("FP32 latency: about 14 ms", ANOTHER_MACHINE, f"{slow:.3g} ms"),
        Finding("optimized model size: about 128 MiB", small if known else ANOTHER_MODEL, f"{after:.1f} MiB"),
        Finding("optimized latency: about 6 to 7 ms", ANOTHER_MACHINE, f"{fast:.3g} ms"),
        Finding("compression: 2.00 ×", judge(before / after, 1.995, 2.005), f"{before / after:.2f} ×"),
        Finding("speed-up: 2.0 to 2.2 ×", judge(speed, *twice), f"{speed} ×"),
        Finding(
            "memory saved: about 128 MiB, 50%",
            judge(saved_mib / before, 0.5 * (1 - ABOUT), 0.5 * (1 + ABOUT)),
            f"{saved_mib:.1f} MiB, {saved_mib / before:.1%}",
        ),
        Finding(
            "time saved per inference: about 7 ms, 50%",
            judge(saved, *(1 - 1 / times for times in twice)),
            f"{saved.value * slow:.3g} ms, {saved:.0%}",
        ),
    ]


def judge(found: Estimate | float, low: float, high: float) -> str:
    """Return whether a figure, or its whole interval, lies in what is claimed, and on which side of it if it lies outside."""
    found = found if isinstance(found, Estimate) else Estimate(found, found, found)
    if found.high < low or found.low > high:
        return f"{REFUTED}: less" if found.high < low else f"{REFUTED}: more"
    return CONFIRMED if low <= found.low and found.high <= high else OPEN
