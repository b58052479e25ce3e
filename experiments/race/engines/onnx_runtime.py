"""ONNX Runtime on optimum's export."""

from pathlib import Path

import numpy as np

from experiments.race.engines.base import Stepwise


class OnnxFp32(Stepwise):
    name, package = "ONNX Runtime FP32", "onnxruntime"
    files = ("*.onnx", "*.onnx_data")
    note = "optimum's export, the head cut to the last position; KV cache through IO binding"

    def prepare(self, source: Path, folder: Path) -> None:
        from optimum.exporters.onnx import onnx_export_from_model
        from optimum.exporters.onnx.model_configs import GPT2OnnxConfig

        from gpt2opt.quantize.export import kept_heads_config
        from gpt2opt.sources.models import load_model

        _, model = load_model(source)
        # Only the last position's logits, as `logits_to_keep=1` gives them in torch.
        model.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0][:, -1:],))
        configs = {"model": kept_heads_config(model, GPT2OnnxConfig)}
        onnx_export_from_model(model, folder, task="text-generation-with-past", custom_onnx_configs=configs, do_validation=False)

    def load(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.outputs = [port.name for port in self.session.get_outputs()]

    def read(self, ids: np.ndarray, past: int) -> np.ndarray:
        batch, length = ids.shape
        if not past:
            self.cache = {name: self._no_past(port, batch) for name, port in self.inputs.items() if name.startswith("past")}
        binding = self.session.io_binding()
        mask = np.ones((batch, past + length), np.int64)
        positions = np.ascontiguousarray(np.broadcast_to(np.arange(past, past + length), ids.shape))
        for name, value in {"input_ids": np.ascontiguousarray(ids), "attention_mask": mask, "position_ids": positions}.items():
            if name in self.inputs:
                binding.bind_cpu_input(name, value)
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        out = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        self.cache = {name: out[name.replace("past_key_values", "present")] for name in self.cache}
        return out["logits"].numpy()[:, -1]

    @staticmethod
    def _no_past(port, batch: int):
        from onnxruntime import OrtValue

        _, heads, _, head_dim = port.shape
        return OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, head_dim), np.float32))


class OnnxInt8(OnnxFp32):
    name, made_from = "ONNX Runtime INT8", OnnxFp32
    block_bytes = head_bytes = 1
    note = "quantize_dynamic, weights per channel"

    def prepare(self, source: Path, folder: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(source / "model.onnx", folder / "model.onnx", per_channel=True)
