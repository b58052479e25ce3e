"""What can be chosen in the page: a model and a precision, and how its tokens are chosen."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.quantize.recipes import RECIPES
from gpt2opt.sources.hub import cached_snapshot
from gpt2opt.sources.models import DEFAULT, PATTERNS

FP32 = "fp32"
PRECISIONS = (FP32, *RECIPES)
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "bundled")
"""Models by name. Any folder of a run, of a torch model or of an IR may be chosen too."""
OTHERS = 5
"""How many tokens are shown beside each token that was chosen: the most probable others."""
MESSAGE_BYTES = 2**20
"""Of a request at most: room for a prompt of the longest context, in any script."""


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


def at_hand(out: Path) -> list[str]:
    """Return the sizes that can be had without the hub: bundled, in the local cache, or made in this folder before."""
    return [size for size in SIZES if size == "bundled" or (out / size).is_dir() or cached_snapshot(size, PATTERNS)]


def proxy_name(host: str) -> str:
    """Return the name of a host in lower case; raise ValueError, in one line, for what is none."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host):
        raise ValueError(f"host {host!r}, expected a name alone, as in hub.example.org: neither https:// nor a port nor *")
    return host.lower()


def decoding_settings(given: Mapping[str, Any]) -> DecodingSettings:
    """Return the settings that the page sent, with the probabilities that it shows; raise ValueError for a value outside its range."""
    return DecodingSettings(**{**given, "stop_strings": tuple(given.get("stop_strings", ())), "top_logprobs": OTHERS + 1})
