"""CTranslate2."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.race.engines.base import Engine, Timing, timing


class CTranslate2(Engine):
    name, package = "CTranslate2 INT8", "ctranslate2"
    full_heads = True
    files = ("model.bin",)
    block_bytes = head_bytes = 1
    note = "unpruned: it has no pruned heads; times from its callback; logits of a whole row at once"

    def prepare(self, source: Path, folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(source)).convert(str(folder), quantization="int8", force=True)

    def load(self, folder: Path, threads: int) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(str(folder), compute_type="int8", inter_threads=1, intra_threads=threads)
        self.tokens = np.array(json.loads((folder / "vocabulary.json").read_text(encoding="utf-8")), dtype=object)

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        starts = self.tokens[prompts].tolist()
        marks = [time.perf_counter()]

        def seen(result) -> bool:
            if result.batch_id == len(prompts) - 1:
                marks.append(time.perf_counter())
            return False

        self.generator.generate_batch(
            starts, max_length=new_tokens, min_length=new_tokens, include_prompt_in_result=False, beam_size=1, callback=seen
        )
        return timing(marks)

    def forced(self, row: np.ndarray, prompt_tokens: int) -> Iterator[np.ndarray]:
        scores = self.generator.forward_batch([self.tokens[row[:-1]].tolist()], return_log_probs=True)
        yield from np.array(scores)[0, prompt_tokens - 1 :]
