"""The forms of a sequence classifier that are compared: how each is made, loaded, and how many of its Linear layers are INT8.

A class each. Heavy libraries are imported where they are used: a process that times one form holds the libraries of that one alone.
"""

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.contract import slug
from experiments.race.engines.base import Runner
from gpt2opt.environment import has_int8_dot_product, installed
from gpt2opt.measure.memory import read_peak_rss
from gpt2opt.runtime.manifest import IR_NAME

TASK = "text-classification"
MAX_TOKENS = 512
TRAINED_ROWS = 4096
"""Texts of the epoch of quantization-aware training: seconds for the small classifier, some minutes for DistilBERT on two cores."""


@dataclass(frozen=True)
class Subject:
    """The classifier that variants are made from.

    calibration, training: rows of token ids, without padding, for the static variant and for the one that is trained. classes: for each
    number that the model answers with, the number of the texts' class that it means; empty: the numbers are the same.
    """

    name: str
    model: Any
    tokenizer: Any
    calibration: tuple[tuple[int, ...], ...] = ()
    training: tuple[tuple[int, ...], ...] = ()
    classes: tuple[int, ...] = ()

    @property
    def room(self) -> int:
        """Return how many tokens of a text the model reads."""
        limits = (getattr(self.model.config, "max_position_embeddings", None), getattr(self.tokenizer, "model_max_length", None))
        return min(MAX_TOKENS, *(limit for limit in limits if limit))

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, cut to what the model reads."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.room).input_ids

    def with_rows(self, calibration: Sequence[Sequence[int]], training: Sequence[Sequence[int]]) -> "Subject":
        return replace(self, calibration=tuple(map(tuple, calibration)), training=tuple(map(tuple, training)))


@dataclass(frozen=True)
class Int8Layers:
    """Of the Linear layers, how many have their weight stored in INT8, and how many multiply INT8 by INT8 when they run."""

    stored: int
    multiplied: int


class Variant(Runner):
    """One form of the classifier, made from a `Subject`.

    fp32: the variant that computes the same in FP32. bits: of a weight. device: where torch runs it.
    """

    fp32: "type[Variant]"
    bits = 32
    device = "cpu"

    def unavailable(self) -> str | None:
        """Return why this variant can't be made here; None if it can."""
        return None if installed(self.package) else f"{self.package} is not installed; pip install -e '.[bench]' brings it"

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return the logits (B, classes) of token ids (B, T) without padding."""
        raise NotImplementedError

    def int8_layers(self) -> Int8Layers:
        return Int8Layers(0, 0)

    def seconds(self, ids: np.ndarray) -> float:
        start = time.perf_counter()
        self.logits(ids)
        return time.perf_counter() - start

    def peak_rss(self) -> int | None:
        """Return the most memory that this process ever took, its libraries included; None where there is no /proc."""
        return read_peak_rss()

    def answers(self, rows: list[list[int]]) -> list[int]:
        """Return the number of the class of each text, one at a time: padding would change what is rounded."""
        return [int(self.logits(np.array([row])).argmax()) for row in rows]

    def _beside(self, folder: Path) -> Path:
        """Return the folder of the FP32 form, which was made before."""
        return folder.parent / slug(self.fp32.name)


class TorchFp32(Variant):
    name, package = "torch FP32", "torch"
    files = ("model.safetensors",)
    note = "eager mode; where the demo starts"

    def prepare(self, subject: Subject, folder: Path) -> None:
        subject.model.save_pretrained(folder)

    def load(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        torch.set_num_threads(threads)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto").eval().to(self.device)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = torch.from_numpy(ids).to(self.device)
            return self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().cpu().numpy()


class TorchFp16(TorchFp32):
    name, bits = "torch FP16", 16
    note = "all weights halved; the demo falls back to this where torch has no INT8 engine, and still calls it optimized"

    def prepare(self, subject: Subject, folder: Path) -> None:
        copy.deepcopy(subject.model).half().save_pretrained(folder)


class TorchInt8(TorchFp32):
    name, bits = "torch INT8 dynamic", 8
    files = ("model.pt",)
    note = "quantize_dynamic of the Linear layers; embeddings stay FP32"

    def unavailable(self) -> str | None:
        import torch

        engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
        return None if engines else "this torch has no quantization engine; torch FP16 is there instead, which is not INT8"

    def prepare(self, subject: Subject, folder: Path) -> None:
        import torch

        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(subject.model), {torch.nn.Linear}, dtype=torch.qint8)
        torch.save(quantized, folder / "model.pt")

    def load(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = torch.load(folder / "model.pt", weights_only=False)  # written by `prepare`

    def int8_layers(self) -> Int8Layers:
        import torch

        layers = [module for module in self.model.modules() if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)]
        count = sum(layer.weight().dtype == torch.qint8 for layer in layers)
        return Int8Layers(count, count)


class TorchGpu(TorchFp32):
    name, device = "torch FP32 on the GPU", "cuda"
    note = "the same on the GPU; the way there and back is timed too"

    def unavailable(self) -> str | None:
        import torch

        return None if torch.cuda.is_available() else "there is no GPU"


class TorchGpuFp16(TorchGpu, TorchFp16):
    name, note = "torch FP16 on the GPU", "all weights halved, on the GPU"


class OnnxFp32(Variant):
    name, package = "ONNX Runtime FP32", "onnxruntime"
    files = ("*.onnx", "*.onnx_data")
    note = "optimum's export"

    def prepare(self, subject: Subject, folder: Path) -> None:
        from optimum.exporters.onnx import onnx_export_from_model

        onnx_export_from_model(subject.model, folder, task=TASK, do_validation=False)

    def load(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.path, self.optimized = folder / "model.onnx", Path(tempfile.mkdtemp(dir=folder), "optimized.onnx")
        options.optimized_model_filepath = str(self.optimized)  # what the session really runs, for `int8_layers`
        self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.inputs = [port.name for port in self.session.get_inputs()]

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return self.session.run(["logits"], named_inputs(self.inputs, ids))[0]

    def int8_layers(self) -> Int8Layers:
        import onnx

        kinds = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm")
        graphs = (onnx.load(path, load_external_data=False).graph for path in (self.path, self.optimized))
        return Int8Layers(*(sum(node.op_type in kinds for node in graph.node) for graph in graphs))


class OnnxInt8(OnnxFp32):
    name, bits, fp32 = "ONNX Runtime INT8", 8, OnnxFp32
    note = "quantize_dynamic, weights per channel; embeddings too"

    def prepare(self, subject: Subject, folder: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        # Without INT8 dot products the kernel adds pairs of products in 16 bits: weights of 7 bits keep these from saturating.
        source, reduce_range = self._beside(folder) / "model.onnx", not has_int8_dot_product()
        quantize_dynamic(source, folder / "model.onnx", per_channel=True, reduce_range=reduce_range)


class OpenVinoFp32(Variant):
    name, package = "OpenVINO FP32", "openvino"
    files = ("openvino_model.*",)
    note = "optimum's export"

    def prepare(self, subject: Subject, folder: Path) -> None:
        from optimum.exporters.openvino import export_from_model

        export_from_model(subject.model, folder, task=TASK)

    def load(self, folder: Path, threads: int) -> None:
        import openvino

        from gpt2opt.runtime.compile import cpu_properties

        core = openvino.Core()
        self.graph = core.read_model(folder / IR_NAME)
        self.compiled = core.compile_model(self.graph, "CPU", cpu_properties(threads))
        self.inputs = [port.get_any_name() for port in self.compiled.inputs]

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return self.compiled(named_inputs(self.inputs, ids))["logits"]

    def int8_layers(self) -> Int8Layers:
        from gpt2opt.runtime.audit import INT8_TYPES, executed_types
        from gpt2opt.runtime.graph import matmuls, stored_weight

        weights = [weight for node in matmuls(self.graph) if (weight := stored_weight(node))]
        stored = sum(weight.get_element_type().get_type_name() in INT8_TYPES for weight in weights)
        executed = executed_types(self.compiled, lambda name: name)
        return Int8Layers(stored, sum(set(types) <= set(INT8_TYPES) for types in executed.values()))


class OpenVinoInt8Static(OpenVinoFp32):
    name, bits, fp32 = "OpenVINO INT8 static", 8, OpenVinoFp32
    note = "calibrated by INC: weights per channel, inputs per tensor; embeddings stay FP32"

    def prepare(self, subject: Subject, folder: Path) -> None:
        import openvino
        from openvino._offline_transformations import compress_quantize_weights_transformation
        from optimum.exporters.openvino import export_from_model

        with tempfile.TemporaryDirectory(dir=folder.parent) as exported:
            export_from_model(self.rounded(subject), exported, task=TASK)
            graph = openvino.Core().read_model(Path(exported, IR_NAME))
            compress_quantize_weights_transformation(graph)
            openvino.save_model(graph, folder / IR_NAME, compress_to_fp16=False)

    def rounded(self, subject: Subject) -> Any:
        return fake_quantized(subject)


class OpenVinoInt8Trained(OpenVinoInt8Static):
    name = "OpenVINO INT8 QAT"
    note = f"as static, then trained with that rounding: one epoch over at most {TRAINED_ROWS:,} texts, towards FP32's own answers"

    def rounded(self, subject: Subject) -> Any:
        return fake_quantized(subject, trained=True)


class OpenVinoInt8Weights(OpenVinoFp32):
    name, bits, fp32 = "OpenVINO INT8 weights", 8, OpenVinoFp32
    note = "weights alone, by NNCF, embeddings too; inputs and products stay FP32"

    def prepare(self, subject: Subject, folder: Path) -> None:
        import nncf
        import openvino

        graph = openvino.Core().read_model(self._beside(folder) / IR_NAME)
        openvino.save_model(nncf.compress_weights(graph), folder / IR_NAME, compress_to_fp16=False)


TorchFp32.fp32, TorchGpu.fp32, OnnxFp32.fp32, OpenVinoFp32.fp32 = TorchFp32, TorchGpu, OnnxFp32, OpenVinoFp32
VARIANTS: tuple[type[Variant], ...] = (
    TorchFp32, TorchFp16, TorchInt8, TorchGpu, TorchGpuFp16, OnnxFp32, OnnxInt8, OpenVinoFp32, OpenVinoInt8Static, OpenVinoInt8Trained,
    OpenVinoInt8Weights,
)  # fmt: skip


def named_inputs(names: list[str], ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return what an exported graph reads for token ids (B, T): all of them count, and all are of the first segment."""
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: known[name] for name in names}


def fake_quantized(subject: Subject, trained: bool = False) -> Any:
    """Return a copy of the model whose Linear layers hold INC's INT8 weights and round their inputs to u8 as INC calibrated them.

    trained: first train the weights for one epoch with these steps; see `qat`.
    """
    from datasets import Dataset

    from experiments.classifier.qat import train_rounded
    from gpt2opt.quantize.fake_quant import FakeQuantLinear
    from gpt2opt.quantize.inc import calibrate
    from gpt2opt.quantize.ranges import keep_sums_in_16_bits
    from gpt2opt.quantize.recipes import RECIPES

    rows = [list(row) for row in subject.calibration]
    calibration = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    layers = calibrate(subject.model, calibration, RECIPES["w8a8-naive"], task=TASK)
    if trained:
        model = train_rounded(subject.model, layers, subject.training[:TRAINED_ROWS])
        layers = keep_sums_in_16_bits(model, calibration, layers)  # the weights are others now
    else:
        model = copy.deepcopy(subject.model)
    for name, layer in layers.items():
        model.set_submodule(name, FakeQuantLinear(layer, model.get_submodule(name).bias))
    return model
