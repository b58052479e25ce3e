"""The engines of the race, one small class each: how to convert GPT-2 for it, load it, and time every token that it makes.

All decode greedily, keep a KV cache, go on after end-of-text, and want logits of the last position only where their API offers that.
Nothing heavy is imported before an engine is asked to work: a process that races one engine holds that engine's libraries alone.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CALIBRATION_ROWS = 32
DEFAULTS = {"PERFORMANCE_HINT": "LATENCY"}
"""What optimum-intel sets; all else, the u8 KV cache too, is what OpenVINO chooses for its users."""


@dataclass(frozen=True)
class Timing:
    """One generate call on (B, T) prompts: seconds to the first token, and to each later one from the one before it."""

    first_s: float
    later_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        return self.first_s + sum(self.later_s)


def timing(marks: Sequence[float]) -> Timing:
    """Return the timing of a call from its clock readings: its start, then one when each token was there."""
    steps = [after - before for before, after in itertools.pairwise(marks)]
    return Timing(steps[0], tuple(steps[1:]))


class Engine:
    """One way to run GPT-2 on a CPU. The race calls `prepare` once, in a process of its own, then `load` and `generate` in another.

    name: in tables. package: the distribution it needs beyond ours; where that is not installed the engine is left out. made_from: the
    engine whose folder `prepare` starts from; None for the model directory itself. full_heads: it can't run pruned heads and gets the
    unpruned model. files: what of its folder counts as its size on disk. block_bytes, head_bytes: stored bytes a weight, scales
    included, of the block matmuls and of the output head; decoding reads each of them once a token. texts: the kinds of prompt that
    it races on.
    """

    name: str
    package: str
    made_from: "type[Engine] | None" = None
    full_heads = False
    files = ("*",)
    block_bytes: float = 4
    head_bytes: float = 4
    texts: tuple[str, ...] = ("random",)
    note = ""

    def prepare(self, source: Path, folder: Path) -> str | None:
        """Convert what lies in `source` into `folder`, which exists and is empty; return what there is to remark on what came out."""
        raise NotImplementedError

    def load(self, folder: Path, threads: int) -> None:
        """Get ready to generate with that many threads."""
        raise NotImplementedError

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        """Continue (B, T) int64 prompts greedily by `new_tokens` each, at least 2, and time every token."""
        raise NotImplementedError


class Stepwise(Engine):
    """An engine whose caller runs the loop: a call reads tokens behind those already in the KV cache and returns the next."""

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        batch, length = prompts.shape
        self.open(batch, length + new_tokens)
        marks = [time.perf_counter()]
        ids = prompts
        for past in (0, *range(length, length + new_tokens - 1)):
            ids = self.read(ids, past)
            marks.append(time.perf_counter())
        return timing(marks)

    def open(self, batch: int, context: int) -> None:
        """Make an empty KV cache, where the engine wants one of a known size; not timed."""

    def read(self, ids: np.ndarray, past: int) -> np.ndarray:
        """Read (B, T) ids behind `past` cached ones, 0 for an empty cache, and return the next ids (B, 1)."""
        raise NotImplementedError


class Ours(Engine):
    """The IR that stage 4 writes, in the runtime of this package: the default recipe, as users get it, the gate included."""

    name, package = "ours", "openvino"
    files = ("openvino_model.*",)
    block_bytes = head_bytes = 1
    texts = ("random", "repeating")
    note = "W8A8 by the default recipe"
    precision = "f32"

    def prepare(self, source: Path, folder: Path) -> str:
        from gpt2opt.sources.models import load_model
        from gpt2opt.sources.texts import find_texts
        from gpt2opt.stages.quantize import prepare_calibration_dataset, quantize_int8

        tokenizer, model = load_model(source)
        texts = find_texts()
        rows = prepare_calibration_dataset([document.text for document in texts.calibration], tokenizer, limit=CALIBRATION_ROWS)
        found = quantize_int8(model, tokenizer, rows, folder).sensitivity
        return (
            f"calibrated on {len(rows)} rows of {texts.name}; the gate left {len(found.float_inputs)} of {len(found.only_this)} inputs "
            f"float (the KV cache counts as one), the rest costs {found.left:.5f} nats per token of KL"
        )

    def load(self, folder: Path, threads: int) -> None:
        from gpt2opt.runtime.ir_model import load_ir

        self.model = load_ir(folder, threads, self.precision)

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        from gpt2opt.decoding import Greedy

        greedy = Greedy(self.model.decoder(prompts))
        marks = [time.perf_counter()]
        for act in (greedy.start, *[greedy.step] * (new_tokens - 1)):
            act()
            marks.append(time.perf_counter())
        return timing(marks)


class OursBf16(Ours):
    """The same runtime with float arithmetic in bf16; on CPUs that have it. No engine of the race, but a step of `attribution`."""

    name, precision = "ours, bf16", "bf16"


class OursUnpruned(Ours):
    """All heads: to be held against peers that can't run pruned ones."""

    name, full_heads, texts = "ours, unpruned", True, ("random",)


class OursAgain(Ours):
    """Ours against itself, the same files in another process: what this race tells apart, and what it doesn't."""

    name, made_from, texts = "ours again", Ours, ("random",)
    note = "the same files as ours, in another process"

    def prepare(self, source: Path, folder: Path) -> None:
        import shutil

        shutil.copytree(source, folder, dirs_exist_ok=True)


class OursPromptLookup(OursAgain):
    """The same files, several tokens a step where the text repeats itself."""

    name, texts = "ours, prompt lookup", ("repeating",)
    note = "several tokens a step where they can be guessed, each with an equal share of the time"

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        from gpt2opt.runtime.prompt_lookup import PromptLookup

        decoder = self.model.decoder(prompts)
        marks = [time.perf_counter()]
        read_prompt = decoder.prefill

        def prefill() -> np.ndarray:
            logits = read_prompt()
            marks.append(time.perf_counter())
            return logits

        decoder.prefill = prefill
        PromptLookup(decoder).generate(new_tokens)
        later = time.perf_counter() - marks[1]
        return Timing(marks[1] - marks[0], (later / (new_tokens - 1),) * (new_tokens - 1))


class TorchFp32(Stepwise):
    name, package = "torch eager FP32", "torch"
    files = ("model.safetensors",)
    dtype = "float32"

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.sources.models import load_model

        load_model(source, self.dtype)[1].save_pretrained(folder)

    def load(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(threads)
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, self.dtype)).eval()

    def read(self, ids: np.ndarray, past: int) -> np.ndarray:
        import torch

        with torch.inference_mode():
            cache = self.cache if past else None
            out = self.model(input_ids=torch.from_numpy(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.cache = out.past_key_values
            return out.logits[:, -1:].argmax(-1).numpy()


class TorchBf16(TorchFp32):
    name, dtype = "torch eager bf16", "bfloat16"
    block_bytes = head_bytes = 2


class TorchCompile(TorchFp32):
    name = "torch.compile FP32"
    note = "default mode, dynamic shapes; compiled during the warm-up"

    def load(self, folder: Path, threads: int) -> None:
        import torch

        super().load(folder, threads)
        # A cache of its own: its peak memory is then that of compiling, in the first run and in later ones.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # more are processes of their own, which would idle beside the race
        self.model = torch.compile(self.model, dynamic=True)


class TorchInt8(TorchFp32):
    name = "torch dynamic INT8"
    files = ("model.pt",)
    block_bytes = head_bytes = 1
    note = "the embedding keeps an FP32 copy of the head's weight"

    def prepare(self, source: Path, folder: Path) -> None:
        import torch

        from gpt2opt.quantize.fake_quant import linearize
        from gpt2opt.sources.models import load_model

        model = linearize(load_model(source)[1])  # GPT-2's own Conv1D would be passed over
        torch.save(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8), folder / "model.pt")

    def load(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = torch.load(folder / "model.pt", weights_only=False)  # written by `prepare`


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
        return out["logits"].numpy()[:, -1:].argmax(-1)

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


class OpenVinoFp32(Stepwise):
    name, package = "OpenVINO FP32", "openvino"
    files = ("openvino_model.*",)
    properties = DEFAULTS | {"INFERENCE_PRECISION_HINT": "f32"}  # else it would be bf16 on machines with AMX
    note = "optimum-intel's export: logits of every position"

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.quantize.export import export_ir
        from gpt2opt.quantize.fake_quant import linearize
        from gpt2opt.sources.models import load_model

        tokenizer, model = load_model(source)
        export_ir(linearize(model), tokenizer, folder)

    def load(self, folder: Path, threads: int) -> None:
        import openvino

        properties = self.properties | {"INFERENCE_NUM_THREADS": str(threads)}
        # The request that OVModelForCausalLM drives, without the Python around it, which would be timed as well.
        self.request = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", properties).create_infer_request()
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
        return self.request.get_tensor("logits").data[:, -1:].argmax(-1)


class OpenVinoInt8(OpenVinoFp32):
    name, package, made_from = "OpenVINO INT8", "optimum-intel", OpenVinoFp32
    properties = DEFAULTS
    block_bytes = head_bytes = 1
    note = "weight-only, asymmetric per channel: optimum-intel's load_in_8bit; logits of every position"
    bits, symmetric, group_size = 8, False, None

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


class CTranslate2(Engine):
    name, package = "CTranslate2 INT8", "ctranslate2"
    full_heads = True
    files = ("model.bin",)
    block_bytes = head_bytes = 1
    note = "unpruned: it has no pruned heads; times from its callback"

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


class LlamaCpp(Stepwise):
    name, package = "llama.cpp Q8_0", "llama-cpp-python"
    full_heads = True
    files = ("model.gguf",)
    block_bytes = head_bytes = 34 / 32  # 32 weights and an FP16 scale
    note = "unpruned: it has no pruned heads"

    def prepare(self, source: Path, folder: Path) -> None:
        from gpt2opt.sources.models import load_model

        write_gguf(load_model(source)[1], folder / "model.gguf")

    def load(self, folder: Path, threads: int) -> None:
        import ctypes

        import llama_cpp

        self.api, self.threads = llama_cpp, threads
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(folder / "model.gguf").encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp did not load the model")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = None

    def open(self, batch: int, context: int) -> None:
        if self.context:
            self.api.llama_free(self.context)
        settings = self.api.llama_context_default_params()
        settings.n_seq_max, settings.n_ctx = batch, batch * -(-context // 256) * 256
        settings.n_batch = batch * context
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.flash_attn_type = batch > 1  # on CPUs it is the slower way to decode one sequence, and the faster for several
        self.context = self.api.llama_init_from_model(self.model, settings)

    def read(self, ids: np.ndarray, past: int) -> np.ndarray:
        batch, length = ids.shape
        with self._batch(ids, past) as tokens:
            if self.api.llama_decode(self.context, tokens):
                raise RuntimeError("llama_decode failed")
        logits = [self.api.llama_get_logits_ith(self.context, row * length + length - 1) for row in range(batch)]
        return np.array([[np.ctypeslib.as_array(row, (self.vocab_size,)).argmax()] for row in logits])

    @contextlib.contextmanager
    def _batch(self, ids: np.ndarray, past: int) -> Iterator:
        length = ids.shape[1]
        tokens = self.api.llama_batch_init(ids.size, 0, 1)
        tokens.n_tokens = ids.size
        for i, token in enumerate(ids.ravel().tolist()):
            row, column = divmod(i, length)
            tokens.token[i], tokens.pos[i] = token, past + column
            tokens.n_seq_id[i], tokens.seq_id[i][0] = 1, row
            tokens.logits[i] = column == length - 1
        yield tokens
        self.api.llama_batch_free(tokens)


def write_gguf(model, path: Path) -> None:
    """Write a GPT-2 for llama.cpp: matmul weights and embeddings in Q8_0, norms, biases and positions in FP32, no tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in model.transformer.state_dict().items():
        value = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if value.ndim == 2 and not name.startswith("wpe"):
            kind = gguf.GGMLQuantizationType.Q8_0
            # Conv1D keeps its weight (in, out), GGUF wants (out, in).
            value = gguf.quants.quantize(np.ascontiguousarray(value.T if name.startswith("h.") else value), kind)
        writer.add_tensor(gguf_name(name), value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls a tensor of `GPT2Model`.

    >>> gguf_name("h.3.mlp.c_fc.weight")
    'blk.3.ffn_up.weight'
    """
    for theirs, ours in GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name


GGUF_NAMES = {
    "h.": "blk.", "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip

ENGINES: tuple[type[Engine], ...] = (
    Ours, OursAgain, OursUnpruned, OursPromptLookup, TorchFp32, TorchBf16, TorchCompile, TorchInt8, OnnxFp32, OnnxInt8, OpenVinoFp32,
    OpenVinoInt8, OpenVinoInt4, GenAiFp32, GenAiSdpa, GenAiPaged, CTranslate2, LlamaCpp,
)  # fmt: skip
OURS = tuple(engine.name for engine in ENGINES if issubclass(engine, Ours))
"""The rows that are no peers."""
