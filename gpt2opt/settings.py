"""The stages, what a run of them is asked to do, and how numbers are checked that somebody gave.

The command line reads this first, so it needs the standard library alone.
"""

import math
import numbers
from dataclasses import dataclass

PROFILE, PRUNE, FINETUNE, QUANTIZE = STAGES = ("1-profile", "2-prune", "3-finetune", "4-quantize")
"""The stages by the names of their folders and of their entries in the record."""

MIN_CALIBRATION_SEQUENCES = 8


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. The defaults fit a 2-core machine; the same values hold at every stage."""

    prune_fraction: float = 0.2
    epochs: float = 1
    learning_rate: float = 5e-4
    fine_tune_bytes: int = 300_000
    score_bytes: int = 100_000
    calibration_sequences: int = 32
    sequence_length: int = 256
    prompt_tokens: int = 64
    new_tokens: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError, in one line, for a number that no run can follow."""
        check_fraction(self.prune_fraction)
        check_epochs(self.epochs)
        check_learning_rate(self.learning_rate)
        for name, least in (
            ("fine_tune_bytes", 1), ("score_bytes", 1), ("calibration_sequences", MIN_CALIBRATION_SEQUENCES),
            ("sequence_length", 2), ("prompt_tokens", 1), ("new_tokens", 2),
        ):  # fmt: skip
            check_whole(name, getattr(self, name), least)
        check_whole("seed", self.seed, 0, most=MOST_SEED)


MOST_EPOCHS = 1000
MOST_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""


def is_whole(value: object, least: int, most: int | None = None) -> bool:
    """Return whether a value is an integer within bounds; True and False are none."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least and (most is None or value <= most)  # type: ignore[operator]


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether a value is a finite number within bounds, which belong to them."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and -math.inf < value < math.inf and low <= value <= high  # type: ignore[operator]


def check_whole(name: str, value: object, least: int, why: str = "", most: int | None = None) -> None:
    """Raise ValueError unless a value is an integer within bounds. why: the reason for the bounds, or what to give instead."""
    if not is_whole(value, least, most):
        kind = "" if isinstance(value, int) else "a whole number of "
        bounds = f"{kind}at least {least}" + ("" if most is None else f" and at most {most}")
        raise ValueError(f"{name}={value!r}, expected {bounds}{why and f': {why}'}")


def check_fraction(prune_fraction: float) -> None:
    """Raise ValueError unless every layer would keep a head."""
    if not is_number(prune_fraction, 0, 1) or prune_fraction == 1:
        raise ValueError(f"prune_fraction={prune_fraction} is outside [0, 1); at least one head per layer must stay")


def check_epochs(epochs: float) -> None:
    if not is_number(epochs, 0, MOST_EPOCHS) or epochs == 0:
        raise ValueError(f"epochs={epochs}, expected more than 0 and at most {MOST_EPOCHS}; 1 to 5 is usual")


def check_learning_rate(learning_rate: float) -> None:
    if not is_number(learning_rate, 0, 1) or learning_rate == 0:
        raise ValueError(f"learning_rate={learning_rate}, expected more than 0 and at most 1; 1e-5 to 1e-3 is usual")
