"""What can be chosen in the page: a model and a precision, and how its tokens are chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import check_text
from gpt2opt.quantize.recipes import RECIPES
from gpt2opt.sources.hub import cached_snapshot
from gpt2opt.sources.models import DEFAULT, PATTERNS

FP32 = "fp32"
PRECISIONS = (FP32, *RECIPES)
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "bundled")
"""Models by name. Any folder of a run, of a torch model or of an IR may be chosen too."""
DECODING = (
    "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "seed", "stop_strings",
)  # fmt: skip
"""The settings that the page offers: those of decoding token by token. Beam search knows its text only at its end, so it can't stream."""
OTHERS = 5
"""How many tokens are shown beside each token that was chosen: the most probable others."""
PROMPT_CHARACTERS = 131_072
"""Of a prompt at most: the context of GPT-2, 1,024 tokens, times the characters of its longest token, 128."""
STOP_STRINGS, STOP_CHARACTERS = 32, 200
"""How many stop strings at most, and of how many characters each: every one of them is looked for after every token."""
MESSAGE_BYTES = 2**20
"""Of a request at most: room for such a prompt in any script."""
LARGEST = {"max_new_tokens": 131_072, "top_k": 1_000_000, "seed": 2**53 - 1}
"""What a number may be at most where `DecodingSettings` sets no bound. Beyond 2**53 - 1 a browser rounds whole numbers."""


@dataclass(frozen=True)
class Choice:
    """A model, one of `SIZES` or a folder, in a precision, one of `PRECISIONS`."""

    model: str
    precision: str

    def __post_init__(self) -> None:
        """Raise ValueError, in one line that names the choices, for what can't be chosen."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not known; expected one of {', '.join(PRECISIONS)}")
        if self.model not in SIZES and not (self.model and Path(self.model).is_dir()):
            raise ValueError(
                f"model {self.model!r} is not known; expected one of {', '.join(SIZES)}, "
                "or a folder: of a run, of a torch model or of an IR"
            )


def default_model() -> str:
    """Return what is chosen when nothing was named: `gpt2` if it is on this disk, else the bundled model, which the page names as such."""
    return DEFAULT if cached_snapshot(DEFAULT, PATTERNS) else "bundled"


def decoding_settings(given: Mapping[str, Any]) -> DecodingSettings:
    """Return the settings that the page sent, by the names in `DECODING`, with the probabilities that it shows.

    Raises:
        ValueError: a name is not known, or a value is none that the setting may have.
    """
    unknown = sorted(set(given) - set(DECODING))
    if unknown:
        raise ValueError(f"settings {', '.join(unknown)} are not known; expected some of {', '.join(DECODING)}")
    stop_strings = given.get("stop_strings", ())
    if not isinstance(stop_strings, list | tuple):
        raise ValueError(f"stop_strings={stop_strings!r}, expected a list of strings")
    longest = max((len(stop) for stop in stop_strings if isinstance(stop, str)), default=0)
    if len(stop_strings) > STOP_STRINGS or longest > STOP_CHARACTERS:
        raise ValueError(
            f"stop_strings: {len(stop_strings):,} of up to {longest:,} characters each, "
            f"expected at most {STOP_STRINGS} of up to {STOP_CHARACTERS} each"
        )
    settings = DecodingSettings(**{**given, "stop_strings": tuple(stop_strings)}, top_logprobs=OTHERS + 1)
    for name, most in LARGEST.items():
        if getattr(settings, name) > most:
            raise ValueError(f"{name}={getattr(settings, name)!r}, expected at most {most:,}")
    return settings


def check_prompt(prompt: Any) -> None:
    """Raise ValueError, in one line, for a prompt that no model can continue; tokenizing it would take its time and memory before that."""
    check_text(prompt)
    if len(prompt) > PROMPT_CHARACTERS:
        raise ValueError(f"the prompt has {len(prompt):,} characters, expected at most {PROMPT_CHARACTERS:,}: shorten it")
