"""This project's runtime: the IR that stage 4 writes, and the rows of the race that tell what it is worth."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.race.engines.base import Driven, Timing
from gpt2opt import environment
from gpt2opt.decoding.decoder import Decoder
from gpt2opt.measure.memory import read_resident
from gpt2opt.measure.results import Resident

CALIBRATION_ROWS = 32
OPENVINO = "openvino"
"""What decodes where it is not the decode step of `gpt2opt.runtime`."""


class Ours(Driven):
    """The IR that stage 4 writes, in the runtime of this package: the default recipe, as users get it, the gate included."""

    name, package = "ours", "openvino"
    files = ("openvino_model.*",)
    block_bytes = head_bytes = 1
    texts: tuple[str, ...] = ("random", "repeating")
    note = "W8A8 by the default recipe"
    precision = "f32"
    options: dict[str, Any] = {}  # noqa: RUF012

    def prepare(self, source: Path, folder: Path) -> str | None:
        from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
        from gpt2opt.sources.models import load_model
        from gpt2opt.sources.texts import find_texts

        tokenizer, model = load_model(source)
        texts = find_texts()
        rows = prepare_calibration_dataset([document.text for document in texts.calibration], tokenizer, limit=CALIBRATION_ROWS)
        found = quantize_int8(model, tokenizer, rows, folder).sensitivity
        assert found
        return (
            f"calibrated on {len(rows)} rows of {texts.name}; the gate left {len(found.float_inputs)} of {len(found.only_this)} inputs "
            f"float (the KV cache counts as one), the rest costs {found.left:.5f} nats per token of KL"
        )

    def load(self, folder: Path, threads: int) -> None:
        from gpt2opt.runtime.ir_model import load_ir

        self.model = load_ir(folder, threads, self.precision, **self.options)

    def decodes_by(self) -> str | None:
        return "decode step" if self.model.step else OPENVINO

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> Decoder:
        return self.model.decoder(prompts)


class OursBf16(Ours):
    """The same runtime with float arithmetic in bf16; on CPUs that have it. No engine of the race, but a step of `attribution`."""

    name, precision = "ours, bf16", "bf16"


class OursWithout(Ours):
    """The same runtime with graph passes left out, ready to generate; for `passes`."""

    def __init__(self, leave_out: Sequence[str], folder: Path):
        from gpt2opt.runtime.ir_model import load_ir

        self.model = load_ir(folder, environment.threads(), leave_out=leave_out)

    def resident(self) -> Resident | None:
        return read_resident()


class OursUnpruned(Ours):
    """All heads: the fair comparison for peers that can't run pruned ones."""

    name, full_heads, texts = "ours, unpruned", True, ("random",)


class SameFiles(Ours):
    """The files of ours, used in another way."""

    made_from = Ours

    def prepare(self, source: Path, folder: Path) -> None:
        import shutil

        shutil.copytree(source, folder, dirs_exist_ok=True)


class OursByOpenVino(SameFiles):
    """The control of the decode step: tokens are decoded by OpenVINO too."""

    name, texts, options = "ours, OpenVINO decodes", ("random",), {"decode": OPENVINO}
    note = "the same files without the decode step"


class OursPromptLookup(SameFiles):
    """The same files, several tokens per step where the text repeats itself."""

    name, texts = "ours, prompt lookup", ("repeating",)
    note = "several tokens per step where they can be guessed, each with an equal share of the time"

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        from gpt2opt.decoding.prompt_lookup import lookup_steps

        decoder = self.model.decoder(prompts)
        marks = [time.perf_counter()]
        read_prompt = decoder.prefill

        def prefill() -> np.ndarray:
            logits = read_prompt()
            marks.append(time.perf_counter())
            return logits

        decoder.prefill = prefill  # type: ignore[method-assign]
        list(lookup_steps(decoder, new_tokens))
        later = time.perf_counter() - marks[1]
        return Timing(marks[1] - marks[0], (later / (new_tokens - 1),) * (new_tokens - 1))
