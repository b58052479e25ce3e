"""OpenVINO on optimum-intel's export, driven as optimum-intel drives it; and OpenVINO GenAI, with both of its back-ends."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.race.engines.base import Engine, Stepwise, Timing

DEFAULTS = {"PERFORMANCE_HINT": "LATENCY"}
"""What optimum-intel sets; all else, the u8 KV cache too, is what OpenVINO chooses for its users."""


class OpenVinoFp32(Stepwise):
    name, package = "OpenVINO FP32", "openvino"
    files = ("openvino_model.*",)
    properties = DEFAULTS | {"INFERENCE_PRECISION_HINT": "f32"}  # else it would be bf16 on machines with AMX
    note = "optimum-intel's export: logits of every position"

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.export.openvino import export_ir
        from gpt2opt.quantize.linear import prepare_for_export
        from gpt2opt.sources.models import load_model

        tokenizer, model = load_model(source)
        export_ir(prepare_for_export(model), tokenizer, folder)

    def load(self, folder: Path, threads: int) -> None:
        import openvino

        from gpt2opt.runtime.manifest import IR_NAME

        properties = self.properties | {"INFERENCE_NUM_THREADS": str(threads)}
        # The request that OVModelForCausalLM drives, without the Python around it, which would be timed as well.
        self.request = openvino.Core().compile_model(folder / IR_NAME, "CPU", properties).create_infer_request()
        self.inputs = {name for port in self.request.model_inputs for name in port.get_names()}

    def read(self, ids: np.ndarray, past: int) -> np.ndarray:
        batch, length = ids.shape
        if not past:
            self.request.reset_state()
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, past + length), np.int64),
            "position_ids": np.broadcast_to(np.arange(past, past + length), ids.shape),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self.request.infer({name: value for name, value in inputs.items() if name in self.inputs})
        return self.request.get_tensor("logits").data[:, -1]


class OpenVinoInt8(OpenVinoFp32):
    name, package, made_from = "OpenVINO INT8", "optimum-intel", OpenVinoFp32
    properties = DEFAULTS
    block_bytes: float = 1
    head_bytes: float = 1
    note = "weight-only, asymmetric per channel: optimum-intel's load_in_8bit; logits of every position"
    bits: int = 8
    symmetric: bool = False
    group_size: int | None = None

    def prepare(self, source: Path, folder: Path) -> None:
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        from gpt2opt.sources.models import load_tokenizer

        quantization = OVWeightQuantizationConfig(self.bits, self.symmetric, self.group_size)
        OVModelForCausalLM.from_pretrained(source, quantization_config=quantization, compile=False).save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)


class OpenVinoInt4(OpenVinoInt8):
    name = "OpenVINO INT4"
    block_bytes = 0.5 + 2 / 64
    note = "weight-only, symmetric, groups of 64; embedding and head INT8, as is the default"
    bits, symmetric, group_size = 4, True, 64


class GenAiSdpa(Engine):
    name, package = "OpenVINO GenAI SDPA", "openvino-genai"
    made_from: type[Engine] = OpenVinoInt8
    files = ("openvino_model.*",)
    block_bytes = head_bytes = 1
    backend, properties = "SDPA", DEFAULTS
    note = "the weight-only INT8 model; token times from its own metrics; no logits"

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

    def _generate(self, prompts: np.ndarray, new_tokens: int) -> Any:
        import openvino
        from openvino_genai import TokenizedInputs

        inputs = TokenizedInputs(openvino.Tensor(prompts), openvino.Tensor(np.ones_like(prompts)))
        return self.pipeline.generate(inputs, max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)

    def forced(self, row: np.ndarray, prompt_tokens: int) -> Iterator[int]:
        # Its pipelines give no logits, and of log probabilities that of the chosen token alone: one call for each token.
        for end in range(prompt_tokens, len(row)):
            yield self._generate(row[None, :end], 1).tokens[0][0]

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        start = time.perf_counter()
        result = self._generate(prompts, new_tokens)
        total = time.perf_counter() - start
        metrics = result.perf_metrics.raw_metrics
        first = metrics.m_times_to_first_token[0] / 1e6  # microseconds
        later = np.diff(metrics.m_new_token_times)  # their unit differs from what its documentation says: taken as shares of the rest
        return Timing(first, tuple((later / later.sum() * (total - first)).tolist()))


class GenAiPaged(GenAiSdpa):
    name, backend = "OpenVINO GenAI paged", "PA"
    note = "the weight-only INT8 model; its default back-end; token times from its own metrics; no logits"


class GenAiFp32(GenAiSdpa):
    name, made_from = "OpenVINO GenAI SDPA FP32", OpenVinoFp32
    properties = OpenVinoFp32.properties
    block_bytes = head_bytes = 4
    note = "OpenVINO FP32 with the head cut to the last position; token times from its own metrics; no logits"
