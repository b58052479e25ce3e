"""Stage 4: INC calibrates, OpenVINO runs: the fine-tuned model in INT8 on the CPU, beside itself in FP32."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.deploy.audit import audit_int8
from gpt2opt.deploy.ir import LinearCalibration, export_ir, fake_quantize, linearize
from gpt2opt.deploy.runtime import cpu_properties, load_ir
from gpt2opt.environment import has_int8_dot_product
from gpt2opt.measure.quality import window_length
from gpt2opt.report.results import Int8Audit, StageResult, hash_weights
from gpt2opt.sources.models import load_model
from gpt2opt.sources.texts import token_rows
from gpt2opt.stages import finetune
from gpt2opt.stages.run import MIN_CALIBRATION_SEQUENCES, Run, measure_ir, prompt_ids, stopwatch

NAME = "4-quantize"


def prepare_calibration_dataset(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int | None = None, limit: int = 64
) -> Dataset:
    """Filter out empty texts and tokenize the rest into whole rows, without padding: padding would widen the measured ranges.

    Args:
        texts: text that is neither trained on nor scored.
        tokenizer: the model's own.
        length: tokens a row; the model's context unless told, since later positions reach values that earlier ones don't.
        limit: rows at the most.

    Returns:
        A dataset with `input_ids` (rows, length).

    Raises:
        ValueError: fewer than 8 whole rows.
    """
    length = length or window_length(tokenizer)
    rows = [row for row in token_rows(texts, tokenizer, length) if len(row) == length][:limit]
    if len(rows) < MIN_CALIBRATION_SEQUENCES:
        raise ValueError(
            f"the calibration text gives {len(rows)} rows of {length} tokens, at least {MIN_CALIBRATION_SEQUENCES} are needed; "
            "give more text"
        )
    return Dataset.from_dict({"input_ids": rows})


def quantize_int8(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, calibration: Dataset, out_dir: Path | str) -> Int8Audit:
    """Quantize weights and activations to INT8 and write a stateful OpenVINO IR.

    `INCQuantizer` calibrates: weights symmetric per output channel, activations asymmetric per tensor, range by min-max. On a CPU
    without VNNI or AMX the weights keep to 7 of their 8 bits, see `keep_sums_in_16_bits`.

    INC's own accuracy gate is left out: its result was measured to pass whatever it measured. Score the IR instead.

    Args:
        model: a GPT-2 of any dtype, heads pruned or not. It is not changed.
        tokenizer: saved beside the IR.
        calibration: column `input_ids`, rows of one length; see `prepare_calibration_dataset`.
        out_dir: replaced if it exists; it appears whole or not at all.

    Returns:
        The audit of what was written; it has passed.

    Raises:
        ValueError: ids outside the vocabulary, too few rows, or `out_dir` can't be written.
        RuntimeError: a block matmul or the head came out in another type than INT8.
    """
    _check_calibration(calibration, model.config.vocab_size)
    linear = linearize(model)
    ranges = calibrate(linear, calibration)
    export_ir(fake_quantize(linearize(model), ranges), tokenizer, Path(out_dir))
    return audit_int8(out_dir)


def calibrate(linear: GPT2LMHeadModel, calibration: Dataset) -> dict[str, LinearCalibration]:
    """Run `INCQuantizer` on a linearized model and read back, for each Linear, the scales that it chose."""
    from neural_compressor.config import PostTrainingQuantConfig
    from neural_compressor.utils.utility import set_workspace
    from optimum.intel import INCQuantizer

    config = PostTrainingQuantConfig(
        approach="static",
        op_type_dict={
            "Linear": {"activation": {"algorithm": ["minmax"]}},
            # The token embedding shares the head's INT8 tensor in the exported graph; positions stay as they are.
            "Embedding": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}},
        },
    )
    with tempfile.TemporaryDirectory() as scratch:
        set_workspace(scratch)
        quantizer = INCQuantizer.from_pretrained(linear, task="text-generation")
        quantizer.quantize(quantization_config=config, save_directory=scratch, calibration_dataset=calibration)
        state = torch.load(Path(scratch, "pytorch_model.bin"), weights_only=False)
    ranges = read_calibration(state)
    if has_int8_dot_product():
        return ranges
    return {name: keep_sums_in_16_bits(found, linear.get_submodule(name).weight) for name, found in ranges.items()}


def read_calibration(state: dict) -> dict[str, LinearCalibration]:
    """Read INC's state dict: beside each Linear's packed weight lie the scale and the zero point of its input.

    On a CPU without VNNI INC lays the range of an input over 128 steps. Here it always gets 256: the weights make room instead.
    """
    suffix = "._packed_params._packed_params"
    finer = 255 / 127 if state["best_configure"]["reduce_range"] else 1
    found = {}
    for key in (key for key in state if key.endswith(suffix)):
        module = key.removesuffix(suffix)
        weight, _ = state[key]
        found[module.removesuffix(".module")] = LinearCalibration(
            weight.dequantize(),
            weight.q_per_channel_scales(),
            state[f"{module}_input_scale_0"].item() / finer,
            round(state[f"{module}_input_zero_point_0"].item() * finer),
        )
    return found


def keep_sums_in_16_bits(found: LinearCalibration, weight: torch.Tensor) -> LinearCalibration:
    """Round a weight to 7 bits instead of 8, for CPUs that add two u8 × i8 products in 16 bits before anything else.

    2 × 255 × 64 = 32,640 still fits there; 2 × 255 × 127 saturates. 7-bit weights, each channel with a scale of its
    own, lose less than 7-bit activations, which share one.

    Args:
        found: the layer's calibration in 8 bits.
        weight: (O, I) the float weight it was made from, so that it is rounded once and not twice.
    """
    scale = 2 * found.weight_scale
    steps = torch.round(weight.detach().double() / scale[:, None]).clamp(-64, 64)
    return dataclasses.replace(found, weight=(steps * scale[:, None]).float(), weight_scale=scale)


def _check_calibration(calibration: Dataset, vocab_size: int) -> None:
    if len(calibration) < MIN_CALIBRATION_SEQUENCES:
        raise ValueError(f"{len(calibration)} calibration rows, at least {MIN_CALIBRATION_SEQUENCES} are needed; give more text")
    beyond = sum(token >= vocab_size for row in calibration["input_ids"] for token in row)
    if beyond:
        raise ValueError(f"{beyond} calibration ids lie outside the model's {vocab_size} tokens; use the model's own tokenizer")


def run_quantize(run: Run) -> StageResult:
    """Quantize the fine-tuned model, prove that it is INT8, and measure it; control: the same model in FP32 IR, same CPU and runtime."""
    before, folder = run.folder(finetune.NAME), run.folder(NAME)
    control_folder = run.out / "4-control-fp32"
    settings = run.settings
    with stopwatch() as seconds:
        tokenizer, model = load_model(before)
        texts = [document.text for document in run.texts.calibration]
        calibration = prepare_calibration_dataset(texts, tokenizer, limit=settings.calibration_sequences)
        audit = quantize_int8(model, tokenizer, calibration, folder)
        export_ir(linearize(model), tokenizer, control_folder)
        measurement = measure_ir(run, "INT8", folder, "int8", tokenizer)
        control = measure_ir(run, "FP32", control_folder, "float32", tokenizer)
        facts = {
            "calibration_rows": len(calibration),
            "audit": dataclasses.asdict(audit),
            "int8_matmuls": len(audit.expected) - len(audit.failures),
            "expected_matmuls": len(audit.expected),
            "int8_share_of_bytes": audit.int8_share,
            "int8_dot_product": has_int8_dot_product(),
            "runtime_properties": cpu_properties(),
            "optimum_generates_the_same": optimum_generates_the_same(run, folder, tokenizer),
        }
        stage = StageResult(NAME, hash_weights(before), hash_weights(folder), measurement, seconds(), (control,), facts)
    run.finish(stage)
    return stage


def optimum_generates_the_same(run: Run, folder: Path, tokenizer) -> bool:
    """Load the directory with optimum-intel's own class, as others will, and compare its greedy tokens with our runtime's."""
    from optimum.intel import OVModelForCausalLM

    ids = torch.tensor([prompt_ids(run, tokenizer)])
    count = run.settings.new_tokens
    theirs = OVModelForCausalLM.from_pretrained(folder, ov_config=cpu_properties())
    theirs.generation_config.eos_token_id = None  # go on after end-of-text, as our runtime does
    generated = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=tokenizer.eos_token_id
    )
    return generated[0, ids.shape[1] :].tolist() == load_ir(folder).generate(ids.numpy(), count)[0].tolist()
