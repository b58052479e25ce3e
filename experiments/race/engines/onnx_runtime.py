"""ONNX Runtime on optimum's export, driven by this project's loop and by that of ONNX Runtime GenAI."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.race.engines.base import Driven, Timing, timing
from gpt2opt.decoding.decoder import Decoder


class OnnxFp32(Driven):
    name, package = "ONNX Runtime FP32", "onnxruntime"
    files = ("*.onnx", "*.onnx_data")
    note = "optimum's export, the head cut to the last position; KV cache through IO binding"

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.export.onnx import export_onnx
        from gpt2opt.sources.models import load_model

        tokenizer, model = load_model(source)
        export_onnx(model, tokenizer, folder)

    def load(self, folder: Path, threads: int) -> None:
        from gpt2opt.runtime.onnx_model import load_onnx

        self.model = load_onnx(folder, threads)

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> Decoder:
        return self.model.decoder(prompts, new_tokens)


class OnnxInt8(OnnxFp32):
    name, made_from = "ONNX Runtime INT8", OnnxFp32
    block_bytes = head_bytes = 1
    note = "quantize_dynamic, weights per channel"

    def prepare(self, source: Path, folder: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(source / "model.onnx", folder / "model.onnx", per_channel=True)
        shutil.copy(source / "config.json", folder)


class OnnxGenAi(Driven):
    """The loop of ONNX Runtime GenAI. Its own model builder does not know GPT-2, but it takes optimum's export with a configuration."""

    name, package, made_from = "ONNX Runtime GenAI INT8", "onnxruntime-genai", OnnxInt8
    files = ("*.onnx",)
    block_bytes = head_bytes = 1
    note = "the files of ONNX Runtime INT8"

    def prepare(self, source: Path, folder: Path) -> None:
        import onnx

        model = onnx.load(source / "model.onnx")
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1  # the head is cut to the last position, and it has to be told
        onnx.save(model, folder / "model.onnx")
        cache = next(port for port in model.graph.input if port.name.startswith("past"))
        heads, head_size = (cache.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        settings = genai_settings(config, heads, head_size, [port.name for port in model.graph.input])
        (folder / "genai_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def load(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        self.api, config = onnxruntime_genai, onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = onnxruntime_genai.Model(config)

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> "OnnxGenAiDecoder":
        options = self.api.GeneratorParams(self.model)
        options.set_search_options(batch_size=len(prompts), max_length=prompts.shape[1] + new_tokens, do_sample=False)
        return OnnxGenAiDecoder(self.api.Generator(self.model, options), prompts.astype(np.int32))

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        generator = self.decoder(prompts, new_tokens).generator
        marks = [time.perf_counter()]
        generator.append_tokens(prompts.astype(np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            marks.append(time.perf_counter())
        return timing(marks)


class OnnxGenAiDecoder(Decoder):
    """A decoder over a generator that chooses its tokens itself: logits of which one alone is possible leave it no choice."""

    def __init__(self, generator: Any, prompts: np.ndarray):
        self.generator, self.prompts = generator, prompts

    def prefill(self) -> np.ndarray:
        self.generator.append_tokens(self.prompts)
        return self._logits()

    def decode(self, ids: np.ndarray) -> np.ndarray:
        forced = np.full((len(ids), 1, self.vocab_size), -np.inf, np.float32)
        np.put_along_axis(forced, ids[:, :, None], 0, axis=-1)
        self.generator.set_logits(forced)
        self.generator.generate_next_token()
        return self._logits()

    def _logits(self) -> np.ndarray:
        logits = self.generator.get_logits()[:, -1]
        self.vocab_size = logits.shape[-1]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        raise NotImplementedError


def genai_settings(config: dict[str, Any], heads: int, head_size: int, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what ONNX Runtime GenAI is told of an export with these inputs, given GPT-2's own configuration."""
    return {
        "model": {
            "type": "llama",  # for decoders alone; under `gpt2` it wants the inputs of an older exporter
            "context_length": config["n_positions"],
            "vocab_size": config["vocab_size"],
            "bos_token_id": 0, "pad_token_id": 0,
            "eos_token_id": [],  # all engines make as many tokens as they are asked for
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": "model.onnx",
                "head_size": head_size,
                "hidden_size": config["n_embd"],
                "num_attention_heads": heads,
                "num_key_value_heads": heads,
                "num_hidden_layers": config["n_layer"],
                "inputs": {
                    **{name: name for name in inputs if not name.startswith("past")},
                    "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
            },
        },
        "search": {"max_length": config["n_positions"], "past_present_share_buffer": False},
    }  # fmt: skip
