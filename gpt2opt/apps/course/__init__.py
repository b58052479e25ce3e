"""The functions that the course's notebook names and leaves empty, over the functions of this library: `from gpt2opt.course import *`.

Names, arguments, defaults and returned types are the notebook's, so that its own cells and checks run as they stand, on a GPU or a CPU.
Every error of bad input is a ValueError of one line. See docs/course.md for what the numbers mean beside those of the course.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer

from gpt2opt import finetune, prune, torch_model
from gpt2opt.apps.course.charts import plot_latency, plot_memory_usage, plot_perplexity
from gpt2opt.apps.course.cpu_model import CpuModel
from gpt2opt.decoding.decoder import Greedy, Model
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import encode_prompt, token_text, window_length
from gpt2opt.finetune import prepare_tokenizer_for_padding
from gpt2opt.measure.latency import cuda_time, wall_time
from gpt2opt.measure.memory import read_peak_rss
from gpt2opt.measure.quality import COURSE, JOIN, perplexity, prepare_text
from gpt2opt.measure.trace import record_trace
from gpt2opt.quantize import int8
from gpt2opt.run.measurements import TRACED_TOKENS
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import read_manifest
from gpt2opt.sources.models import find_model_or_stand_in, load_tokenizer
from gpt2opt.sources.texts import find_texts
from gpt2opt.torch_model import TorchModel, generate_tokens, logits_of

__all__ = [
    "compute_perplexity", "compute_ppl_cpu", "create_training_arguments", "get_next_token_suggestions", "load_cpu_model", "load_fp16_model",
    "load_wikitext_dataset", "measure_latency_cpu", "measure_latency_gpu", "peak_ram_usage_gb", "plot_latency", "plot_memory_usage",
    "plot_perplexity", "prepare_calibration_dataset", "prepare_tokenizer_for_padding", "profile_model_for_tensorboard",
    "prune_attention_heads", "run_fine_tuning", "run_post_training_quantization", "tokenize_dataset",
]  # fmt: skip

AnyModel = GPT2LMHeadModel | CpuModel
Device = str | torch.device
ROW_TOKENS, BATCH_ROWS = 512, 2
"""How the course's stubs tokenize and train: each text becomes one row of at most so many tokens, and a step takes so many rows."""
WARM_UP_TOKENS = 10
"""The course's warm-up. Its cells time the whole call too and divide that by the new tokens alone, so a call does nothing beyond that."""
DTYPES = {"f32": torch.float32, "i8": torch.int8, "i4": torch.int8}
"""What the weights of an IR are stored in -> the nearest dtype of torch."""
GB = 2**30
"""The course's own cells divide bytes of VRAM by this and call the result GB; RAM is drawn beside it."""


def load_fp16_model(model_id: str | Path = "gpt2") -> tuple[Tokenizer, GPT2LMHeadModel]:
    """Load a GPT-2 in FP16, see `find_model`, on the GPU if there is one; print what was loaded, a stand-in by its name."""
    found = find_model_or_stand_in(str(model_id))
    tokenizer, model = torch_model.load_fp16_model(found.path)
    print(f"Loaded {found} in FP16 on {model.device}")
    if found.stand_in:
        print("It is a smaller model: no figure of it compares with gpt2's. For gpt2 connect to the hub, or name a directory that holds it")
    return tokenizer, model


def load_wikitext_dataset(train_split: str = "train[:100]", valid_split: str = "validation[:200]") -> tuple[Dataset, Dataset]:
    """Load slices of WikiText-2 raw as it is published, in the words of `datasets`; print how many rows, and a stand-in by its name."""
    rows = find_texts()
    train, valid = rows.take(train_split), rows.take(valid_split)
    print(f"{rows}: {len(train)} rows of {train_split}, {len(valid)} rows of {valid_split}")
    if rows.stand_in:
        print("No figure on this text compares with one on WikiText-2. For that connect to the hub once")
    return train, valid


def measure_latency_gpu(model: AnyModel, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 50) -> float:
    """Time one greedy generation after a warm-up of 10 tokens, where the model is: on a GPU by CUDA events, on a CPU by the clock.

    A call does what the course's own function does, and no more; it returns the ms per new token of a single run, the reading of the
    prompt included. `run.measure` repeats runs until they are steady, and gives medians. End-of-text does not stop the generation.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 2:
        raise ValueError(f"max_new_tokens={max_new_tokens!r}, expected at least 2 tokens")
    greedy = Greedy(_runnable(model).decoder([encode_prompt(tokenizer, prompt, 0)], max_new_tokens))
    timer = cuda_time if model.device.type == "cuda" else wall_time

    def timed() -> None:
        greedy.generate(max_new_tokens)

    greedy.generate(min(WARM_UP_TOKENS, max_new_tokens))
    return 1e3 * timer(timed) / max_new_tokens


def compute_perplexity(model: AnyModel, tokenizer: Tokenizer, dataset: Dataset) -> float:
    """Score each row that is not empty alone, cut at 512 tokens; the mean loss of a row counts once for each of its tokens.

    On a CPU, FP16 weights are scored in FP32 arithmetic: most CPUs emulate FP16, many times slower. Stock GPT-2 in FP16 gets 40.03 per
    token on `validation[:200]` of WikiText-2, by the course's reference run.
    """
    _runnable(model)
    scored = prepare_text(tokenizer, _texts(dataset), "the dataset", COURSE)
    scoring: Any = model.ir if isinstance(model, CpuModel) else model
    half = scoring is model and model.dtype == torch.float16 and model.device.type == "cpu"
    try:
        return perplexity(logits_of(scoring.float() if half else scoring), scored).course_perplexity
    finally:
        if half:
            scoring.half()


compute_ppl_cpu = compute_perplexity
"""The notebook has a name of its own for the CPU."""


def profile_model_for_tensorboard(
    model: AnyModel, tokenizer: Tokenizer, prompt: str, device: Device, log_dir: str | Path = "tb_logs", run_name: str = "pruned_fp16"
) -> None:
    """Record a trace of reading a prompt and generating four tokens into `log_dir/run_name`, where TensorBoard and Perfetto open it.

    device: where the model is moved for it; without a GPU, `cuda` becomes the CPU, with a printed line.
    """
    if isinstance(model, CpuModel):
        raise ValueError("this model runs in OpenVINO, where torch.profiler sees nothing; profile the torch model that it was made from")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        print(f"There is no GPU, so the CPU is profiled in place of {device}")
        device = "cpu"
    _runnable(model.to(device))  # type: ignore[arg-type] # transformers' wrapper of `to` hides the types of torch's
    ids = encode_prompt(tokenizer, prompt, 0)
    trace = record_trace(lambda: generate_tokens(model, [ids], TRACED_TOKENS), Path(log_dir, run_name))
    print(f"The trace is in {trace.path}; `tensorboard --logdir {log_dir}` shows it")


def prune_attention_heads(model: GPT2LMHeadModel, prune_fraction: float = 0.2) -> GPT2LMHeadModel:
    """Remove the first `int(heads × prune_fraction)` heads of every layer, in place; the parameters are FP16 afterwards.

    By index, as the course says. `gpt2opt.prune_attention_heads` takes the importance of heads instead, which costs less perplexity.
    Whole heads leave: 20% of 12 are 2, which is 16.7%. `attn.num_heads` and `attn.pruned_heads` of each layer say what was removed.
    """
    return prune.prune_attention_heads(model, prune_fraction).half()


def tokenize_dataset(dataset: Dataset, tokenizer: Tokenizer) -> Dataset:
    """Tokenize for causal language modelling: a row for each text that is not empty, cut at 512 tokens, padded to them.

    Returns `input_ids`, `attention_mask` and `labels`, each (rows, 512), or as long as a shorter context. Padding has the label -100, which
    no loss counts. What is cut off here, `gpt2opt.tokenize_dataset` keeps in further rows.
    """
    return finetune.tokenize_dataset(dataset, tokenizer, min(ROW_TOKENS, window_length(tokenizer)), truncate=True)


def create_training_arguments(output_dir: str | Path = "gpt2_finetuned", learning_rate: float = 1e-5) -> TrainingArguments:
    """Build the arguments of one epoch in batches of 2 rows, all columns kept, without checkpoints and without logs to other services."""
    arguments = finetune.create_training_arguments(output_dir, learning_rate)
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = BATCH_ROWS, 1
    arguments.remove_unused_columns = False
    return arguments


def run_fine_tuning(model: GPT2LMHeadModel, training_args: TrainingArguments, tokenized_train: Dataset, tokenizer: Tokenizer) -> Trainer:
    """Train in place, in FP32 since small updates vanish in FP16; afterwards the parameters are FP16 again, as the cells after it say.

    Returns the `Trainer`; its loss in nats per token is in `trainer.state.log_history`.
    """
    trainer = finetune.run_fine_tuning(model, training_args, tokenized_train, tokenizer)
    model.half().eval()
    return trainer


def prepare_calibration_dataset(valid_ds: Dataset, tokenizer: Tokenizer) -> Dataset:
    """Filter empty rows out, join the others and cut them into rows of 512 tokens without padding, which would widen measured ranges.

    The notebook gives the rows that it scores later; other rows would prove more. Returns the column `input_ids`, (at most 64 rows, 512),
    or as long as a shorter context.
    """
    text = JOIN.join(row.strip() for row in _texts(valid_ds) if row.strip())
    return int8.prepare_calibration_dataset([text], tokenizer, min(COURSE.window, window_length(tokenizer)))


def run_post_training_quantization(quantizer: Any, calibration_dataset: Dataset, output_dir: str | Path) -> None:
    """Quantize weights and activations to INT8 and write OpenVINO IR, in which every matmul is INT8: an audit proves it or raises.

    The model is taken out of the quantizer, and `quantize_int8` runs an `INCQuantizer` of its own on it. The given one would
    skip the `Conv1D` layers that a GPT-2 computes with, report success, and write a torch state dict that OpenVINO can't read.

    Args:
        quantizer: `INCQuantizer.from_pretrained(model)`. Its model is not changed; the tokenizer is the one beside the model's weights.
        calibration_dataset: its last quarter decides which activations stay float.
        output_dir: a new or empty folder, or one that was written here before.
    """
    model = getattr(quantizer, "_original_model", None)
    if not isinstance(model, GPT2LMHeadModel):
        raise ValueError(f"a quantizer of type {type(quantizer).__name__}, expected INCQuantizer.from_pretrained(model) of a GPT-2")
    if not model.name_or_path:
        raise ValueError("the model was made in memory, so its tokenizer is unknown; save both with save_pretrained() and load them again")
    skipped = sum(type(module).__name__ == "Conv1D" for module in model.modules())
    print(f"INC would skip {skipped} Conv1D layers of this model: they are made equal Linear layers first")
    audit = int8.quantize_int8(model, load_tokenizer(model.name_or_path), calibration_dataset, output_dir).audit
    print(f"{len(audit.expected) - len(audit.failures)} of {len(audit.expected)} matmuls are INT8 in {output_dir}")


def load_cpu_model(model_dir: str | Path) -> CpuModel:
    """Load what `run_post_training_quantization` wrote; raise ValueError if it is no IR, was changed or is cut short."""
    ir, config = load_ir(model_dir), GPT2Config.from_pretrained(model_dir, local_files_only=True)
    return CpuModel(ir, config.eos_token_id, DTYPES[read_manifest(model_dir).weights])


def measure_latency_cpu(model: AnyModel, tokenizer: Tokenizer, prompt: str = "The future of AI is", max_new_tokens: int = 50) -> float:
    """Measure what `measure_latency_gpu` does, in ms per new token; its arguments and errors are the same."""
    return measure_latency_gpu(model, tokenizer, prompt, max_new_tokens)


def peak_ram_usage_gb() -> float:
    """Return the peak RSS of this process since it began, in GB of 2³⁰ bytes; the present RSS if the system keeps no peak.

    In a notebook that trained and quantized, that is not the memory of the model: see `gpt2opt.peak_ram`, which takes a fresh process.
    """
    import psutil

    return (read_peak_rss() or psutil.Process().memory_info().rss) / GB


def get_next_token_suggestions(model: AnyModel, tokenizer: Tokenizer, prompt: str, top_k: int = 5) -> list[tuple[str, float]]:
    """Return the `top_k` most probable next tokens as `(text, probability)`, the most probable one first."""
    if not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k={top_k!r}, expected a whole number of at least 1")
    (found,) = generate(_runnable(model), [prompt], DecodingSettings(max_new_tokens=1, top_logprobs=top_k), tokenizer)
    return [(token_text(tokenizer, token), math.exp(logprob)) for top in found.top or () for token, logprob in top]


def _runnable(model: Any) -> Model:
    """Return a model in evaluation mode, for the generation loop."""
    if isinstance(model, CpuModel):
        return model.ir
    if not isinstance(model, GPT2LMHeadModel):
        raise ValueError(f"a model of type {type(model).__name__}, expected a GPT-2 of transformers or what load_cpu_model returns")
    return TorchModel(model.eval())


def _texts(dataset: Dataset) -> list[str]:
    if "text" not in dataset.column_names:
        raise ValueError(f"the dataset has columns {dataset.column_names}, expected 'text'")
    return list(dataset["text"])
