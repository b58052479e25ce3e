"""OpenVINO GenAI, with both of its back-ends."""

import time
from pathlib import Path

import numpy as np

from experiments.race.engines.base import Engine, Timing
from experiments.race.engines.openvino_ir import DEFAULTS, OpenVinoFp32, OpenVinoInt8


class GenAiSdpa(Engine):
    name, package, made_from = "OpenVINO GenAI SDPA", "openvino-genai", OpenVinoInt8
    files = ("openvino_model.*",)
    block_bytes = head_bytes = 1
    backend, properties = "SDPA", DEFAULTS
    note = "the weight-only INT8 model; token times from its own metrics"

    def prepare(self, source: Path, folder: Path) -> None:
        import shutil

        from openvino import save_model
        from openvino_tokenizers import convert_tokenizer

        from gpt2opt.sources.models import load_tokenizer

        shutil.copytree(source, folder, dirs_exist_ok=True)
        # The pipeline does not load without these two, though the race hands it ids.
        parts = convert_tokenizer(load_tokenizer(source), with_detokenizer=True)
        for part, name in zip(parts, ("tokenizer", "detokenizer"), strict=True):
            save_model(part, folder / f"openvino_{name}.xml")

    def load(self, folder: Path, threads: int) -> None:
        from openvino_genai import LLMPipeline

        properties = self.properties | {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = LLMPipeline(folder, "CPU", ATTENTION_BACKEND=self.backend, **properties)

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        import openvino
        from openvino_genai import TokenizedInputs

        inputs = TokenizedInputs(openvino.Tensor(prompts), openvino.Tensor(np.ones_like(prompts)))
        start = time.perf_counter()
        result = self.pipeline.generate(inputs, max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
        total = time.perf_counter() - start
        metrics = result.perf_metrics.raw_metrics
        first = metrics.m_times_to_first_token[0] / 1e6  # microseconds
        later = np.diff(metrics.m_new_token_times)  # their unit differs from what its documentation says: taken as shares of the rest
        return Timing(first, tuple((later / later.sum() * (total - first)).tolist()))


class GenAiPaged(GenAiSdpa):
    name, backend = "OpenVINO GenAI paged", "PA"
    note = "the weight-only INT8 model; its default back-end; token times from its own metrics"


class GenAiFp32(GenAiSdpa):
    name, made_from = "OpenVINO GenAI SDPA FP32", OpenVinoFp32
    properties = OpenVinoFp32.properties
    block_bytes = head_bytes = 4
    note = "OpenVINO FP32 with the head cut to the last position; token times from its own metrics"
