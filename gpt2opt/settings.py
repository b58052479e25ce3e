"""The stages and what a run of them is asked to do. The command line reads this first, so it needs the standard library alone."""

from dataclasses import dataclass

PROFILE, PRUNE, FINETUNE, QUANTIZE = STAGES = ("1-profile", "2-prune", "3-finetune", "4-quantize")
"""The stages by the names of their folders and of their entries in the record."""


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
