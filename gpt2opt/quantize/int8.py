"""From a GPT-2 and calibration rows to an INT8 OpenVINO IR that has passed its audit."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.decoding.text import token_rows, window_length
from gpt2opt.environment import give_back_memory, has_int8_dot_product
from gpt2opt.errors import text_of
from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize.fake_quant import fake_quantize
from gpt2opt.quantize.gate import Sensitivity, apply_gate
from gpt2opt.quantize.inc import calibrate
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.recipes import RECIPES, Recipe
from gpt2opt.runtime.audit import Int8Audit, audit_int8
from gpt2opt.settings import MIN_CALIBRATION_SEQUENCES, check_whole, is_whole
from gpt2opt.sources.gpt2 import check_finite, check_ids
from gpt2opt.storage import check_folder, new_folder

GATE_TOKENS = 2048
"""Tokens on which the gate compares, twice for each input: enough to distinguish sensitivity from noise."""
SLOW_INT8 = {
    False: "this CPU has neither VNNI nor AMX, so an INT8 product takes several instructions; `gpt2opt doctor` shows what INT8 gained on "
    "each kind of CPU",
    None: "the system does not list this CPU's instructions, so whether it has VNNI or AMX is not known: INT8 runs as without them",
}
"""What a user reads by the answer of `has_int8_dot_product`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantized:
    """What `quantize_int8` did. sensitivity is None where no input was to be quantized or no gate was asked for."""

    audit: Int8Audit
    sensitivity: Sensitivity | None


def prepare_calibration_dataset(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int | None = None, limit: int = 64
) -> Dataset:
    """Tokenize texts into whole rows, `input_ids` (rows, length), without padding, which would widen the measured ranges.

    Args:
        texts: text that is neither trained on nor scored; it must give at least 8 rows.
        length: tokens per row; the model's context by default, since later positions reach values that earlier ones don't.
        limit: the largest number of rows.
    """
    length = window_length(tokenizer) if length is None else length
    check_whole("length", length, 2)
    check_whole("limit", limit, MIN_CALIBRATION_SEQUENCES)
    rows = [row for row in token_rows(texts, tokenizer, length) if len(row) == length][:limit]
    if len(rows) < MIN_CALIBRATION_SEQUENCES:
        found = f"the calibration text gives {len(rows)} rows of {length} tokens"
        raise ValueError(f"{found}, at least {MIN_CALIBRATION_SEQUENCES} are needed; give more text")
    return Dataset.from_dict({"input_ids": rows})


def quantize_int8(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, calibration: Dataset, out_dir: Path | str, recipe: str | Recipe = "w8a8"
) -> Quantized:
    """Quantize weights and activations to INT8 and write a stateful OpenVINO IR.

    `INCQuantizer` smooths and calibrates: weights symmetric per output channel, activations asymmetric per tensor. Then the gate
    measures what each quantized input and an INT8 KV cache cost, and leaves those float that cost too much; see `apply_gate`.

    Args:
        model: a GPT-2 of any dtype, heads pruned or not. It is not changed.
        calibration: column `input_ids`, rows of one length; see `prepare_calibration_dataset`. The last quarter is the gate's.
        out_dir: a new or empty folder, or one that was written here before; it appears whole or not at all.
        recipe: `w8a8`, `w8a8-naive` (neither smoothing nor gate, for comparison), `w8` (weights alone, INT8 per channel), `w4` (weights
            alone, INT4 in groups), or a `Recipe` of your own.

    Raises:
        ValueError: an unknown recipe, a weight that is NaN or infinite, ids outside the vocabulary, in the rows or the tokenizer, too few
            rows, or `out_dir` can't be written.
        RuntimeError: SmoothQuant was asked for and not applied, or a matmul came out in another type than it should. In the latter case
            what was written is kept in a folder beside `out_dir`, `NAME-failed-audit`, which the next such failure replaces.
    """
    check_folder(out_dir)
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"recipe {recipe!r} is not known; expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    check_finite(model)
    check_ids(tokenizer, model.config.vocab_size)
    _check_calibration(calibration, model.config.vocab_size)
    gated = recipe.activations and recipe.max_kl is not None
    if gated and not has_int8_dot_product():
        logger.warning(SLOW_INT8[has_int8_dot_product()])
    linear = prepare_for_export(model)
    seen, kept_back = split_calibration(calibration)
    logger.info("quantizing by INC, on %d rows of the calibration text", len(seen))
    fake = fake_quantize(linear, calibrate(linear, seen, recipe))
    sensitivity = apply_gate(fake, prepare_for_export(model), kept_back, recipe.max_kl) if gated else None
    kv_cache = sensitivity.kv_cache if sensitivity else "u8" if recipe.activations else "f16"
    give_back_memory()
    logger.info("writing the IR, and auditing it")
    with new_folder(out_dir) as partial:
        export_ir(fake, tokenizer, partial, kv_cache)
        audit = _passed_audit(partial, Path(out_dir).resolve())
    return Quantized(audit, sensitivity)


def _passed_audit(written: Path, folder: Path) -> Int8Audit:
    """Audit what was written. What fails took minutes: it is kept, under another name than that of the folder."""
    try:
        return audit_int8(written)
    except (MemoryError, RuntimeError, ValueError) as error:
        kept = folder.with_name(f"{folder.name}-failed-audit")
        try:
            with new_folder(kept) as partial:
                shutil.copytree(written, partial, dirs_exist_ok=True)
        except (OSError, ValueError) as lost:
            raise type(error)(f"{text_of(error)}; what was written could not be kept: {lost}") from error
        raise type(error)(f"{text_of(error)}; what was written is kept in {kept}: `gpt2opt audit` shows what is INT8 there") from error


def split_calibration(calibration: Dataset) -> tuple[Dataset, list[list[int]]]:
    """Return the rows that INC sees, and those for the gate, with up to `GATE_TOKENS` tokens."""
    gate_rows = calibration["input_ids"][-(len(calibration) // 4) :]
    return calibration.select(range(len(calibration) - len(gate_rows))), gate_rows[: max(1, GATE_TOKENS // len(gate_rows[0]))]


def _check_calibration(calibration: Dataset, vocab_size: int) -> None:
    if "input_ids" not in calibration.column_names:
        raise ValueError(f"the calibration data have columns {calibration.column_names}, expected 'input_ids'")
    if len(calibration) < MIN_CALIBRATION_SEQUENCES:
        raise ValueError(f"{len(calibration)} calibration rows, at least {MIN_CALIBRATION_SEQUENCES} are needed; give more text")
    rows = calibration["input_ids"]
    strange = [each for row in rows for each in (row if isinstance(row, list) else [str(row)]) if not is_whole(each, 0)]
    if strange:
        raise ValueError(f"the calibration rows hold {strange[0]!r}, expected lists of token ids, whole numbers of at least 0")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or lengths[0] < 2:
        found = f"calibration rows of {lengths[0]} to {lengths[-1]} tokens"
        raise ValueError(f"{found}, expected one length of at least 2; prepare_calibration_dataset makes such rows")
    beyond = sum(token >= vocab_size for row in rows for token in row)
    if beyond:
        raise ValueError(f"{beyond} calibration ids lie outside the model's {vocab_size} tokens; use the model's own tokenizer")
