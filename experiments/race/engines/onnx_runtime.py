"""ONNX Runtime on optimum's export."""

import shutil
from pathlib import Path

import numpy as np

from experiments.race.engines.base import Driven
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
